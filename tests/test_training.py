"""The training loop: data and state depend on the step alone, so a stop changes nothing."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from zipcli.config import BLIND_SIGMA, LoopConfig, NoiseLevelConfig, NoiseSchedule
from zipcli.errors import ConfigError, ExitCode, ModelError, StoppedError
from zipcli.models.denoiser import Denoiser
from zipcli.models.local_unet import LocalUNet, LocalUNetConfig
from zipcli.schedule import alpha_bars
from zipcli.training import trainer as trainer_module
from zipcli.training.corruption import corrupted
from zipcli.training.data import ImageBank, Source, batch_at, step_generator
from zipcli.training.losses import (
    MOST_NOISE,
    ROOT_FLOOR,
    BlindStates,
    NoiseLoss,
    PartialNoise,
    denoising_loss,
    draw_sigma,
)
from zipcli.training.trainer import Checkpoint, Report, Trainer, learning_rate
from zipcli.transforms.blur import Blur
from zipcli.transforms.gray import Gray

TINY = LocalUNetConfig(widths=(8, 16), blocks=(1, 1), embedding=16)


def pictures(*shapes: tuple[int, ...]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, shape, generator=g, dtype=torch.uint8) for shape in shapes]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Crops


def numbered(height: int, width: int, channels: int, number: int) -> Tensor:
    """An image whose pixels say where they are, in which channel, and of which image."""
    image = torch.empty(height, width, channels, dtype=torch.uint8)
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                image[y, x, c] = 80 * number + 10 * y + 3 * x + c
    return image


def slow_crops(images: list[Tensor], side: int) -> dict[tuple[int, ...], tuple[int, int, int, bool]]:
    """Every crop that there is, and its mirror image, as bytes: where it comes from."""
    found = {}
    for number, image in enumerate(images):
        height, width, channels = image.shape
        for top in range(height - side + 1):
            for left in range(width - side + 1):
                for is_mirrored in (False, True):
                    levels = []
                    for c in range(channels):
                        for y in range(side):
                            for x in range(side):
                                column = left + (side - 1 - x if is_mirrored else x)
                                levels.append(int(image[top + y, column, c]))
                    found[tuple(levels)] = (number, top, left, is_mirrored)
    return found


@pytest.mark.parametrize("channels", [3, 1])
def test_crops_are_exactly_the_crops_of_a_slow_loop_and_come_from_everywhere(channels: int) -> None:
    images = [numbered(3, 5, channels, 0), numbered(6, 3, channels, 1), numbered(3, 3, channels, 2)]
    expected = slow_crops(images, 3)
    assert len(expected) == 2 * (3 + 4 + 1)
    crops = ImageBank(images).crops(600, 3, generator(1))
    assert crops.shape == (600, channels, 3, 3)
    assert crops.dtype == torch.float32
    levels = (crops + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    met = [expected[tuple(crop.flatten().int().tolist())] for crop in levels.round()]
    assert set(met) == set(expected.values())
    for number in range(3):  # each image as often as the others: a third, give or take five sigma
        assert abs(sum(place[0] == number for place in met) / 600 - 1 / 3) < 5 * math.sqrt(2 / 9 / 600)
    assert abs(sum(place[3] for place in met) / 600 - 1 / 2) < 5 * math.sqrt(1 / 4 / 600)


def test_crops_use_the_whole_range_of_levels() -> None:
    black, white = torch.zeros(4, 4, 3, dtype=torch.uint8), torch.full((4, 4, 3), 255, dtype=torch.uint8)
    crops = ImageBank([black, white]).crops(50, 4, generator(0))
    assert {crop.unique().item() for crop in crops} == {-1.0, 1.0}


def test_crops_have_their_channels_last_in_memory() -> None:
    crops = ImageBank(pictures((9, 9, 3))).crops(4, 8, generator(0))
    assert crops.is_contiguous(memory_format=torch.channels_last)


def test_a_bank_knows_its_images() -> None:
    bank = ImageBank(pictures((9, 12, 1), (7, 30, 1)))
    assert (len(bank), bank.channels, bank.smallest) == (2, 1, 7)


SOURCES = [
    Source(images=ImageBank(pictures(*[(16, 19, 3)] * 4)), crop=16, batch=4, share=0.5),
    Source(images=ImageBank(pictures(*[(24, 27, 3)] * 3)), crop=20, batch=2, share=0.5),
]


def test_a_batch_is_a_function_of_the_step_and_the_seed() -> None:
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


def test_each_step_and_stream_of_each_seed_draws_something_else() -> None:
    draws = {
        torch.rand(1, generator=step_generator(seed, step, stream=stream), dtype=torch.float64).item()
        for seed in (0, 1, 2**40 - 1)
        for step in range(20)
        for stream in range(4)
    }
    assert len(draws) == 3 * 20 * 4


# Losses


def fresh(seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(LocalUNet(TINY))


def test_noise_levels_lie_where_they_should() -> None:
    config = NoiseLevelConfig()
    log_sigma = draw_sigma(config, 20_000, generator(0)).log()
    low, high = math.log(config.lowest_sigma), math.log(config.highest_sigma)
    assert log_sigma.min() >= low - 1e-5
    assert log_sigma.max() <= high + 1e-5

    def below(x: float) -> float:
        """The share that should lie below ln(sigma) = x."""
        normal = (1 + math.erf((x - config.log_sigma_mean) / config.log_sigma_std / math.sqrt(2))) / 2
        return (1 - config.uniform_share) * normal + config.uniform_share * (x - low) / (high - low)

    for x in (-3.0, -2.0, -1.0, 0.0, 1.0, 3.0):
        assert (log_sigma < x).float().mean().item() == pytest.approx(below(x), abs=0.02)


def test_an_untrained_network_has_a_loss_of_about_one_at_every_noise_level() -> None:
    x_0 = 0.5 * torch.randn(64, 3, 8, 8, generator=generator(0))
    noise = torch.randn(x_0.shape, generator=generator(1))
    for sigma in (0.01, 0.3, 3.0, 100.0):
        loss = denoising_loss(fresh(), x_0, torch.full((64,), sigma), noise)
        assert math.isclose(loss.item(), 1, rel_tol=0.1)


def test_partial_noise_covers_only_what_the_operators_remove() -> None:
    seen: list[Tensor] = []

    def loss(x_0: Tensor, sigma: Tensor, noise: Tensor, _: torch.Generator) -> Tensor:
        seen.extend((x_0, sigma, noise))
        return noise.sum()

    x_0, noise = torch.zeros(10, 3, 8, 8), torch.randn(10, 3, 8, 8, generator=generator(0))
    sigma = torch.arange(10.0)
    blur, gray = Blur(2), Gray()
    PartialNoise(loss, [[blur], [blur, gray]], 0.4)(x_0, sigma, noise, generator(1))
    assert seen[0] is x_0
    assert seen[1] is sigma
    blurred = seen[2][:4].unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    assert blurred.abs().max() < 1e-6
    assert seen[2][2:4].mean(1).abs().max() < 1e-6
    assert seen[2][:2].mean(1).abs().max() > 0.1  # of these, no operator sees the grey
    own = noise[:4] - noise[:4].unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5)).repeat_interleave(
        2, 2
    ).repeat_interleave(2, 3)
    torch.testing.assert_close(seen[2][:2], own[:2])
    torch.testing.assert_close(seen[2][2:4], (own - own.mean(1, keepdim=True))[2:4])
    assert torch.equal(seen[2][4:], noise[4:])


def test_blind_states_are_altered_images_and_the_rest_of_the_batch_is_as_it_was() -> None:
    seen: list[Tensor] = []

    def loss(x_0: Tensor, sigma: Tensor, noise: Tensor, _: torch.Generator) -> Tensor:
        seen[:] = [x_0, sigma, noise]
        return noise.sum()

    g = generator(0)
    x_0, noise = torch.rand(40, 3, 16, 16, generator=g) - 0.5, torch.randn(40, 3, 16, 16, generator=g)
    sigma = torch.rand(40, generator=g)
    BlindStates(loss, 0.25)(x_0, sigma, noise, generator(1))
    assert seen[0] is x_0
    assert torch.equal(seen[1], torch.cat([sigma[:30], torch.full((10,), BLIND_SIGMA)]))
    assert torch.equal(seen[2][:30], noise[:30])
    again = corrupted(x_0[30:], same := generator(1))
    drawn = torch.rand(10, 4, generator=same)
    for n in range(10):
        strength = MOST_NOISE * drawn[n, 1] ** 2 if drawn[n, 0] < 0.5 else 0
        state = x_0[30 + n] + BLIND_SIGMA * seen[2][30 + n]
        cell = 4 if drawn[n, 3] < 0.4 else 8 if drawn[n, 3] < 0.7 else 1
        cells = again[n].unflatten(1, (-1, cell)).unflatten(3, (-1, cell))  # (3, rows, cell, columns, cell)
        grey = cells.mean(0)
        cells = grey + (cells - grey).mean((2, 4), keepdim=True)
        altered = cells.flatten(3, 4).flatten(1, 2)
        if drawn[n, 2] < 0.5:
            altered = altered - altered.mean((1, 2), keepdim=True) + altered.mean()
        torch.testing.assert_close(state, altered + strength * noise[30 + n])
    assert {bool(drawn[n, 2] < 0.5) for n in range(10)} == {False, True}
    assert {int(drawn[n, 3] < 0.4) + int(drawn[n, 3] < 0.7) for n in range(10)} == {0, 1, 2}


def test_the_denoising_loss_is_the_weighted_error_of_slow_loops() -> None:
    denoiser = fresh()
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.2)
    x_0, noise = torch.randn(3, 3, 4, 4, generator=generator(0)), torch.randn(3, 3, 4, 4)
    sigma = torch.tensor([0.1, 1.0, 10.0])
    total, roots = 0.0, 0.0
    for n in range(3):
        before = total
        s = sigma[n].item()
        c_out = s * 0.5 / math.sqrt(s**2 + 0.25)
        with torch.no_grad():
            x_denoised = denoiser(x_0[n : n + 1] + s * noise[n : n + 1], sigma[n : n + 1])[0]
        for value, wanted in zip(x_denoised.flatten().tolist(), x_0[n].flatten().tolist(), strict=True):
            total += ((value - wanted) / c_out) ** 2
        roots += math.sqrt((total - before) / 48 + ROOT_FLOOR)
    loss = denoising_loss(denoiser, x_0, sigma, noise).item()
    assert loss == pytest.approx(total / (3 * 48), rel=1e-4)
    loss = denoising_loss(denoiser, x_0, sigma, noise, root=True).item()
    assert loss == pytest.approx(roots / 3, rel=1e-4)


class Recorder:
    """A noise predictor that knows the noise, is wrong by a constant, and remembers what it saw."""

    channels = 3
    native_side = None
    minimum_side = 1

    def __init__(self, schedule: NoiseSchedule, noise: Tensor, error: float = 0.0) -> None:
        self.schedule, self.noise, self.error = schedule, noise, error

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        self.x_t, self.t = x_t, t
        return torch.cat([self.noise + self.error, torch.full_like(x_t, 7.0)], dim=1)  # and a variance


def test_the_noise_loss_shows_the_network_its_own_states_and_leaves_the_variance_alone() -> None:
    schedule = NoiseSchedule(kind="scaled_linear", beta_start=0.001, beta_end=0.02, timesteps=50)
    x_0, noise = torch.randn(4, 3, 4, 4, generator=generator(0)), torch.randn(4, 3, 4, 4)
    model = Recorder(schedule, noise, error=0.5)
    sigma = torch.tensor([1e-6, 0.2, 0.5, 1e6])
    assert NoiseLoss(model, torch.device("cpu"))(x_0, sigma, noise, generator(0)).item() == pytest.approx(
        0.25, rel=1e-5
    )
    alpha_bar = alpha_bars(schedule).tolist()
    distance = [[abs(math.log(math.sqrt((1 - a) / a) / s)) for a in alpha_bar] for s in sigma.tolist()]
    expected = [row.index(min(row)) for row in distance]
    assert model.t.tolist() == expected
    assert (expected[0], expected[3]) == (0, 49)
    for n, t in enumerate(expected):
        state = math.sqrt(alpha_bar[t]) * x_0[n] + math.sqrt(1 - alpha_bar[t]) * noise[n]
        torch.testing.assert_close(model.x_t[n], state)


def test_every_timestep_is_nearest_to_its_own_noise_level() -> None:
    model = Recorder(NoiseSchedule(), torch.zeros(1))
    alpha_bar = alpha_bars(NoiseSchedule())
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt().float()
    assert torch.equal(NoiseLoss(model, torch.device("cpu")).timesteps(sigma), torch.arange(1000))


# The learning rate and the moving average


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    config = LoopConfig(steps=100, warmup=10, decay=0.2)
    rates = [learning_rate(config, step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.5)
    assert rates[9:80] == [1] * 71
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)
    assert rates[100] == 0
    assert learning_rate(replace(config, decay=0), 99, 0.99) == 1
    assert learning_rate(replace(config, warmup=0), 0, 0.0) == 1


class Line(nn.Module):
    """Two numbers, so that everything about a run can be computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))


def line_trainer(config: LoopConfig) -> Trainer:
    line = Line()

    def loss(x_0: Tensor, sigma: Tensor, noise: Tensor, _: torch.Generator) -> Tensor:
        return (line.weight * x_0.mean((0, 2, 3))[:2]).square().sum()

    return Trainer(line, loss, lambda step: batch_at(SOURCES[:1], step, config.seed), config)


@pytest.mark.parametrize("exponent", [16.0, 2.5])
def test_the_moving_average_is_its_closed_form(exponent: float) -> None:
    trainer = line_trainer(LoopConfig(steps=60, lr=0.1, warmup=0, average=exponent))
    weights: list[Tensor] = []
    for t in range(1, 31):
        trainer.advance()
        weights.append(trainer.network.weight.detach().double().clone())
        # beta_t = (1 - 1 / t)^p telescopes: weight i has the share (i / t)^p - ((i - 1) / t)^p.
        p = exponent + 1
        expected = sum(((i / t) ** p - ((i - 1) / t) ** p) * w for i, w in enumerate(weights, start=1))
        torch.testing.assert_close(trainer.average.weight.double(), expected, rtol=1e-5, atol=1e-6)
        if t == 1:
            assert torch.equal(trainer.average.weight, trainer.network.weight)
    assert (weights[-1] - weights[0]).abs().min() > 0.05


def test_a_step_is_one_step_of_the_optimizer_at_the_rate_of_that_step() -> None:
    config = LoopConfig(steps=10, lr=0.1, warmup=4, decay=0.5, muon=False)
    trainer, twin = line_trainer(config), Line()
    optimizer = torch.optim.AdamW(twin.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(10):
        trainer.advance()
        x_0 = batch_at(SOURCES[:1], step, 0)
        optimizer.param_groups[0]["lr"] = 0.1 * learning_rate(config, step, step / 10)
        optimizer.zero_grad()
        (twin.weight * x_0.mean((0, 2, 3))[:2]).square().sum().backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        assert torch.equal(trainer.network.weight, twin.weight)


def test_noise_is_a_function_of_the_step_and_the_seed() -> None:
    def drawn(seed: int) -> list[tuple[Tensor, Tensor]]:
        seen = []
        line = Line()

        def loss(x_0: Tensor, sigma: Tensor, noise: Tensor, _: torch.Generator) -> Tensor:
            seen.append((sigma, noise))
            return line.weight.sum()

        config = LoopConfig(steps=3, seed=seed)
        trainer = Trainer(line, loss, lambda step: torch.zeros(4, 3, 8, 8), config)
        for _ in range(3):
            trainer.advance()
        return seen

    first, again, other = drawn(5), drawn(5), drawn(6)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
        assert not torch.equal(a[0], c[0])
        assert not torch.equal(a[1], c[1])
    assert len({noise.sum().item() for _, noise in first}) == 3


# Stops


WIDE = LocalUNetConfig(widths=(16, 32), blocks=(1, 1), embedding=16)
"""Wide enough for Muon, whose smallest matrix has 16 rows and columns."""


def build(config: LoopConfig) -> Trainer:
    torch.manual_seed(0)
    denoiser = Denoiser(LocalUNet(WIDE)).to(memory_format=torch.channels_last)
    return Trainer(
        denoiser,
        lambda x_0, sigma, noise, _: denoising_loss(denoiser, x_0, sigma, noise),
        lambda step: batch_at(SOURCES[:1], step, config.seed),
        config,
    )


def state(trainer: Trainer) -> dict[str, Tensor]:
    return {
        **{f"network.{name}": value for name, value in trainer.network.state_dict().items()},
        **{f"average.{name}": value for name, value in trainer.average.state_dict().items()},
        **{f"optimizer.{name}": value for name, value in trainer.optimizer.state().items()},
        "step": torch.tensor(trainer.step),
    }


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def ignore(report: Report) -> None:
    pass


def go_on() -> None:
    pass


def stop_at(trainer: Trainer, step: int) -> Callable[[], None]:
    def check() -> None:
        if trainer.step >= step:
            raise StoppedError(ExitCode.INTERRUPTED)

    return check


@pytest.mark.parametrize("muon", [True, False])
def test_a_run_stopped_anywhere_and_resumed_equals_one_that_never_stopped(tmp_path: Path, muon: bool) -> None:
    config = LoopConfig(steps=7, warmup=2, muon=muon, seed=4)
    whole = build(config)
    whole.run(Checkpoint(tmp_path / "whole.safetensors", {}), ignore, go_on)
    assert whole.step == 7
    assert any("muon" in name for name in whole.optimizer.state()) == muon
    for stop in range(1, 8):
        checkpoint = Checkpoint(tmp_path / f"{stop}.safetensors", {})
        first = build(config)
        with pytest.raises(StoppedError):
            first.run(checkpoint, ignore, stop_at(first, stop))
        rest = build(config)
        assert checkpoint.load(rest)
        assert rest.step == stop
        rest.run(checkpoint, ignore, go_on)
        assert_same(state(whole), state(rest))


def test_a_run_stopped_at_every_step_equals_one_that_never_stopped(tmp_path: Path) -> None:
    config = LoopConfig(steps=5, warmup=2)
    whole = build(config)
    whole.run(Checkpoint(tmp_path / "whole.safetensors", {}), ignore, go_on)
    checkpoint = Checkpoint(tmp_path / "cut.safetensors", {})
    for stop in range(1, 6):
        part = build(config)
        assert checkpoint.load(part) == (stop > 1)
        with pytest.raises(StoppedError):
            part.run(checkpoint, ignore, stop_at(part, stop))
    rest = build(config)
    assert checkpoint.load(rest)
    rest.run(checkpoint, ignore, go_on)
    assert_same(state(whole), state(rest))


def test_time_counts_over_all_runs(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})
    config = LoopConfig(minutes=60)
    first = build(config)
    first.seconds = 3000.0
    with pytest.raises(StoppedError):
        first.run(checkpoint, ignore, stop_at(first, 2))
    second = build(config)
    assert checkpoint.load(second)
    assert 3000 < second.seconds < 3100
    assert second.share == second.seconds / 3600
    second.seconds = 3599.9999
    second.run(checkpoint, ignore, go_on)
    assert second.step == 3
    assert second.share == 1


def test_another_length_than_before_goes_on(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})
    build(LoopConfig(steps=2)).run(checkpoint, ignore, go_on)
    longer = build(LoopConfig(steps=5))
    assert checkpoint.load(longer)
    longer.run(checkpoint, ignore, go_on)
    assert longer.step == 5


def test_checkpoints_are_written_while_the_run_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "REPORT_SECONDS", 0)
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", 0)
    monkeypatch.setattr(trainer_module, "SAVE_SHARE", 1e9)
    saved: list[int] = []

    class Counting(Checkpoint):
        def save(self, trainer: Trainer) -> None:
            super().save(trainer)
            fresh_one = build(config)
            assert self.load(fresh_one)
            saved.append(fresh_one.step)

    config = LoopConfig(steps=4)
    build(config).run(Counting(tmp_path / "c.safetensors", {}), ignore, go_on)
    assert saved == [1, 2, 3, 4, 4]


def test_reports_say_how_far_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "REPORT_SECONDS", 0)
    reports: list[Report] = []
    build(LoopConfig(steps=4, warmup=2)).run(
        Checkpoint(tmp_path / "c.safetensors", {}), reports.append, go_on
    )
    assert [r.step for r in reports] == [1, 2, 3, 4]
    assert [r.share for r in reports] == [0.25, 0.5, 0.75, 1]
    assert all(r.images_per_s > 0 for r in reports)
    assert reports[-1].seconds_left == 0
    assert reports[-1].lr == 0
    assert all(0.3 < r.loss < 3 for r in reports)


def test_training_lowers_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "REPORT_SECONDS", 0)
    flat = [torch.full((16, 16, 3), level, dtype=torch.uint8) for level in (20, 120, 220)]
    source = Source(images=ImageBank(flat), crop=16, batch=8)
    denoiser = fresh()
    trainer = Trainer(
        denoiser,
        lambda x_0, sigma, noise, _: denoising_loss(denoiser, x_0, sigma, noise),
        lambda step: batch_at([source], step, 0),
        LoopConfig(steps=120, warmup=5, lr=1e-2),
    )
    losses: list[float] = []
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})
    trainer.run(checkpoint, lambda report: losses.append(report.loss), go_on)
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tmp_path: Path, value: float) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})
    trainer = build(LoopConfig(steps=3))
    checkpoint.save(trainer)
    before = checkpoint.path.read_bytes()
    good = trainer.loss
    trainer.loss = lambda x_0, sigma, noise, more: (
        good(x_0, sigma, noise, more) * (value if trainer.step == 1 else 1)
    )
    with pytest.raises(ModelError, match="--lr"):
        trainer.run(checkpoint, ignore, go_on)
    assert checkpoint.path.read_bytes() == before


@pytest.mark.parametrize("stop", [2, 99])
def test_weights_after_a_loss_that_is_not_finite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Whether a checkpoint is due more often than a report, or a signal asks for one."""
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", 0)
    monkeypatch.setattr(trainer_module, "SAVE_SHARE", 1e9)
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})
    trainer = build(LoopConfig(steps=4))
    checkpoint.save(trainer)
    good = trainer.loss
    trainer.loss = lambda x_0, sigma, noise, more: (
        good(x_0, sigma, noise, more) * (math.nan if trainer.step else 1)
    )
    with pytest.raises(ModelError):
        trainer.run(checkpoint, ignore, stop_at(trainer, stop))
    rest = build(LoopConfig(steps=4))
    assert checkpoint.load(rest)
    assert all(value.isfinite().all() for value in state(rest).values())


def test_a_reader_who_leaves_does_not_lose_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "REPORT_SECONDS", 0)
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})

    def leave(report: Report) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        build(LoopConfig(steps=4)).run(checkpoint, leave, go_on)
    rest = build(LoopConfig(steps=4))
    assert checkpoint.load(rest)
    assert rest.step == 1


# The checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {"seed": 1, "crop": 8, "widths": (8, 16)})
    build(LoopConfig(steps=2)).run(checkpoint, ignore, go_on)
    return checkpoint


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    trainer = build(LoopConfig(steps=2))
    assert not Checkpoint(tmp_path / "c.safetensors", {}).load(trainer)
    assert trainer.step == 0


def test_settings_survive_the_way_through_json(saved: Checkpoint) -> None:
    again = Checkpoint(saved.path, {"seed": 1, "crop": 8, "widths": (8, 16)})
    assert again.load(build(LoopConfig(steps=2)))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": 2, "crop": 8, "widths": (8, 16)}, ["seed: 1 there, 2 now"]),
        ({"seed": 1, "widths": (8, 16)}, ["crop: 8 there, None now"]),
        (
            {"seed": 1, "crop": 16, "widths": (8,), "new": "x"},
            ["crop: 8 there, 16 now", "widths: [8, 16] there, [8] now", "new: None there, x now"],
        ),
    ],
)
def test_other_settings_are_refused_by_name(saved: Checkpoint, settings: dict, named: list[str]) -> None:
    trainer = build(LoopConfig(steps=2))
    before = {name: value.clone() for name, value in state(trainer).items()}
    with pytest.raises(ConfigError, match="--restart") as caught:
        Checkpoint(saved.path, settings).load(trainer)
    for words in named:
        assert words in str(caught.value)
    assert str(caught.value).count(" there, ") == len(named)
    assert_same(before, state(trainer))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-100],
    "cut in the header": lambda data: data[:100],
    "garbage": lambda data: b"garbage" * 1000,
    "zeros": lambda data: bytes(len(data)),
    "longer": lambda data: data + b"\0",
    "no safetensors": lambda data: b"<html>",
    "another network": lambda data: data.replace(b'"network.net.stem.weight"', b'"network.net.stan.weight"'),
    "no description": lambda data: data.replace(b"zipcli-training", b"zapcli-training"),
    "no JSON": lambda data: data.replace(rb"{\"step\"", rb"[\"step\""),
    "no step": lambda data: data.replace(rb"\"step\"", rb"\"stop\""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_refused_with_its_remedy(
    saved: Checkpoint, damage: Callable[[bytes], bytes]
) -> None:
    good = saved.path.read_bytes()
    bad = damage(good)
    assert bad != good
    saved.path.write_bytes(bad)
    with pytest.raises(ModelError, match=r"c\.safetensors: .*--restart"):
        saved.load(build(LoopConfig(steps=2)))


def test_a_checkpoint_of_another_optimizer_is_refused(saved: Checkpoint) -> None:
    with pytest.raises(ModelError, match="--restart"):
        saved.load(build(LoopConfig(steps=2, muon=False)))
