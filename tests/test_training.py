"""The training loop: data and state depend on the step alone, so a stop changes nothing."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zipcli.models.denoiser import Denoiser
from zipcli.models.local_unet import LocalUNet, LocalUNetConfig
from zipcli.training.data import Source, batch_at
from zipcli.training.trainer import TrainConfig, denoising_loss, draw_sigma, learning_rate, train

TINY = LocalUNetConfig(widths=(8, 16), blocks=(1, 1), embedding=16)


def images(count: int, side: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(side)
    return [torch.randint(0, 256, (3, side, side + 3), generator=g, dtype=torch.uint8) for _ in range(count)]


SOURCES = [
    Source(images=images(4, 16), crop=16, batch=4, share=0.5),
    Source(images=images(3, 24), crop=20, batch=2, share=0.5),
]


def fresh() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(LocalUNet(TINY))


def run(steps: int, checkpoint: Path, config: TrainConfig) -> tuple[Denoiser, Any, list[dict[str, Any]]]:
    reports: list[dict[str, Any]] = []
    denoiser = fresh()

    def batches(step: int) -> Tensor:
        if step >= steps:
            raise KeyboardInterrupt
        return batch_at(SOURCES, step, config.seed)

    try:
        average = train(denoiser, batches, config, checkpoint, reports.append)
    except KeyboardInterrupt:
        average = None
    return denoiser, average, reports


def test_a_batch_is_a_function_of_the_step() -> None:
    shapes = set()
    for step in range(12):
        batch = batch_at(SOURCES, step, seed=3)
        assert torch.equal(batch, batch_at(SOURCES, step, seed=3))
        assert batch.min() >= -1
        assert batch.max() <= 1
        shapes.add(tuple(batch.shape))
    assert shapes == {(4, 3, 16, 16), (2, 3, 20, 20)}
    assert not torch.equal(batch_at(SOURCES[:1], 0, 3), batch_at(SOURCES[:1], 1, 3))
    assert not torch.equal(batch_at(SOURCES[:1], 0, 3), batch_at(SOURCES[:1], 0, 4))


def test_crops_come_from_everywhere_and_half_are_mirrored() -> None:
    ramp = torch.arange(9, dtype=torch.uint8).expand(3, 8, 9).contiguous()
    rows = torch.cat(
        [batch_at([Source(images=[ramp], crop=8, batch=16, share=1)], s, 0)[:, 0, 0] for s in range(8)]
    )
    firsts = {round(v) for v in ((rows[:, 0] + 1) * 127.5).tolist()}
    assert firsts == {0, 1, 7, 8}


def test_a_stopped_and_resumed_run_equals_one_that_never_stopped(tmp_path: Path) -> None:
    config = TrainConfig(steps=8, warmup=2, save_every=2, log_every=4)
    whole, whole_average, _ = run(99, tmp_path / "whole.safetensors", config)
    run(5, tmp_path / "cut.safetensors", config)
    cut, cut_average, reports = run(99, tmp_path / "cut.safetensors", config)
    for a, b in zip(whole.state_dict().values(), cut.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole_average.parameters(), cut_average.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [r["step"] for r in reports] == [8]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    config = TrainConfig(steps=120, warmup=5, lr=1e-2, log_every=20, save_every=1000)
    flat = [torch.full((3, 16, 16), level, dtype=torch.uint8) for level in (20, 120, 220)]
    source = Source(images=flat, crop=16, batch=8, share=1)
    reports: list[dict[str, Any]] = []
    train(
        fresh(),
        lambda step: batch_at([source], step, config.seed),
        config,
        tmp_path / "c.safetensors",
        reports.append,
    )
    assert reports[-1]["loss"] < 0.7 * reports[0]["loss"]


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    config = TrainConfig(steps=100, warmup=10, decay=0.2, lr=1.0)
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 50) == 1
    assert learning_rate(config, 90) == pytest.approx(0.5)
    assert learning_rate(config, 99) == pytest.approx(0.05)


def test_noise_levels_lie_where_they_should() -> None:
    sigma = draw_sigma(TrainConfig(), 4000, torch.Generator().manual_seed(0))
    assert sigma.min() >= 0.0099
    assert sigma.max() <= 101
    assert 0.3 < sigma.median() < 0.6
    assert (sigma > 20).float().mean() > 0.01


def test_an_untrained_network_has_a_loss_of_about_one_at_every_noise_level() -> None:
    x_0 = 0.5 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    for sigma in (0.01, 0.3, 3.0, 100.0):
        loss = denoising_loss(fresh(), x_0, torch.full((64,), sigma), noise)
        assert math.isclose(loss.item(), 1, rel_tol=0.1)
