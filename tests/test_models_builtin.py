"""The network, its preconditioning and its files."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SMALL_UNET
from safetensors.torch import save_file
from torch import Tensor, nn

from zipcli.config import NoiseSchedule
from zipcli.errors import ConfigError, ModelError
from zipcli.models.catalog import CATALOG
from zipcli.models.denoiser import Denoiser, predict_eps
from zipcli.models.hub import file_sha256
from zipcli.models.loading import fitting_dtype, load_model, multiplies_bfloat16
from zipcli.models.local_unet import BandedUNet, LocalUNetConfig, build_local_unet
from zipcli.models.prior import Prior
from zipcli.models.store import find_model
from zipcli.models.tensors import open_safetensors
from zipcli.models.unet import UNet
from zipcli.models.weights import write_model
from zipcli.schedule import alpha_bars

CPU = torch.device("cpu")
TINY = LocalUNetConfig(widths=(8, 16), blocks=(1, 1), embedding=16)
GATED = replace(TINY, block="gated")
BANDED = replace(GATED, bands=(0.2, 1.0))
KINDS = pytest.mark.parametrize("config", [TINY, GATED, BANDED], ids=["residual", "gated", "banded"])


def tiny(seed: int = 0, config: LocalUNetConfig = TINY) -> Denoiser:
    torch.manual_seed(seed)
    denoiser = Denoiser(build_local_unet(config)).eval().requires_grad_(False)
    for parameter in denoiser.parameters():  # the last layers start at zero: nothing to see
        nn.init.normal_(parameter, std=0.2)
    return denoiser


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a file of ours, and what it says of itself."""
    with open_safetensors(path) as file:
        assert file.description is not None
        return {name: file.read(name) for name in file.shapes}, file.description


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_model(tmp_path / "tiny.safetensors", Prior(tiny(), NoiseSchedule(), 3), {"data": "none"})
    return tmp_path / "tiny.safetensors"


@KINDS
@pytest.mark.parametrize("size", [(8, 8), (9, 8), (13, 18), (1, 1), (32, 5)])
def test_the_network_takes_any_size(config: LocalUNetConfig, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    assert tiny(config=config).net(x, torch.tensor([-0.5, 0.3])).shape == x.shape


@KINDS
def test_a_fresh_network_predicts_nothing(config: LocalUNetConfig) -> None:
    x = torch.randn(2, 3, 8, 8)
    assert (build_local_unet(config)(x, torch.tensor([-0.5, 0.3])) == 0).all()


def test_each_image_meets_the_network_of_its_noise_level() -> None:
    net = tiny(config=BANDED).net
    assert isinstance(net, BandedUNet)
    x = torch.randn(5, 3, 8, 8)
    levels = torch.tensor([3.0, 0.1, 0.5, 0.19, 1.1]).log() / 4
    mixed = net(x, levels)
    for k, band in enumerate([2, 0, 1, 0, 2]):
        torch.testing.assert_close(mixed[k : k + 1], net.experts[band](x[k : k + 1], levels[k : k + 1]))


def test_a_batch_teaches_only_the_networks_of_its_noise_levels() -> None:
    denoiser = tiny(config=BANDED).requires_grad_()
    denoiser(torch.randn(2, 3, 8, 8), torch.tensor([0.1, 3.0])).square().mean().backward()
    assert isinstance(denoiser.net, BandedUNet)
    learned = [any(p.grad is not None for p in expert.parameters()) for expert in denoiser.net.experts]
    assert learned == [True, False, True]


def test_blocks_of_both_kinds_cost_the_same() -> None:
    wide = replace(TINY, widths=(48, 96))
    counts = [
        sum(p.numel() for p in build_local_unet(c).parameters()) for c in (wide, replace(wide, block="gated"))
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.02)


@pytest.mark.parametrize("bands", [(1.0, 0.5), (0.0,), (-1.0, 1.0), tuple(range(1, 17)), (float("inf"),)])
def test_bands_that_are_none_are_refused(bands: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="band"):
        replace(TINY, bands=tuple(map(float, bands)))


def test_the_network_looks_no_further_than_its_receptive_field() -> None:
    net = tiny().net
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[..., :8, :8] += 1
    difference = (net(x, torch.zeros(1)) - net(changed, torch.zeros(1))).abs().amax(1)[0]
    assert difference[:8, :8].max() > 0
    assert difference[48:, :].max() == 0
    assert difference[:, 48:].max() == 0


def test_the_noise_level_matters() -> None:
    net, x = tiny().net, torch.randn(1, 3, 8, 8)
    assert not torch.allclose(net(x, torch.zeros(1)), net(x, torch.ones(1)))


def test_eps_is_what_the_denoised_image_leaves() -> None:
    denoiser = tiny()
    x_0 = torch.randn(5, 3, 8, 8)
    sigma = torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0])
    x = x_0 + sigma[:, None, None, None] * torch.randn_like(x_0)
    denoised = denoiser(x, sigma)
    x_t = x / (1 + sigma**2).sqrt()[:, None, None, None]
    expected = (x - denoised) / sigma[:, None, None, None]
    # (x - D) / sigma cancels at sigma 0.01: float32 leaves it four digits, which is why we do not use it.
    torch.testing.assert_close(predict_eps(denoiser, x_t, sigma), expected, atol=2e-3, rtol=1e-3)


def test_a_perfect_network_gives_the_true_noise_at_both_ends_of_the_chain() -> None:
    x_0 = torch.rand(1, 3, 4, 4) * 2 - 1

    class Oracle(nn.Module):
        def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
            sigma = (noise_level * 4).exp()[:, None, None, None]
            total = (sigma**2 + 0.25).sqrt()
            return (x_0 - 0.25 / total * x) / (sigma * 0.5 / total)

    prior = Prior.__new__(Prior)
    denoiser = Denoiser(Oracle())
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    table = alpha_bars(NoiseSchedule())
    for t in (0, 1, 500, 999):
        alpha_bar = table[t]
        x_t = (alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise).float()
        sigma = ((1 - alpha_bar) / alpha_bar).sqrt().float()[None]
        torch.testing.assert_close(predict_eps(denoiser, x_t, sigma), noise, atol=2e-2, rtol=0)
    assert prior.native_side is None


def test_fractional_timesteps_lie_between_their_neighbours() -> None:
    prior = Prior(tiny(), NoiseSchedule(), 3)
    low, middle, high = prior.sigma(torch.tensor([10.0, 10.5, 11.0])).tolist()
    assert low < middle < high
    alpha_bar = alpha_bars(NoiseSchedule())[10]
    assert low == pytest.approx(((1 - alpha_bar) / alpha_bar).sqrt().item(), rel=1e-5)
    assert prior.sigma(torch.tensor([999.0])).isfinite().all()


@KINDS
def test_a_model_file_loads_to_the_same_network(tmp_path: Path, config: LocalUNetConfig) -> None:
    file = tmp_path / "tiny.safetensors"
    model = Prior(tiny(config=config), NoiseSchedule(), 3)
    write_model(file, model, {"data": "none"})
    loaded = load_model(str(file), CPU, "float32")
    x_t, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0])
    expected = model(x_t, t)
    torch.testing.assert_close(loaded.model(x_t, t), expected)
    assert loaded.sha256 == file_sha256(file)
    assert (loaded.model.channels, loaded.model.native_side, loaded.model.minimum_side) == (3, None, 8)
    assert read(file)[1]["card"] == {"data": "none"}


def test_ours_is_short_where_that_saves_time_and_a_published_one_on_a_gpu() -> None:
    ours, published = tiny(), UNet(SMALL_UNET)
    on_a_cpu = "bfloat16" if multiplies_bfloat16() else "float32"
    assert load_model("builtin", CPU).fingerprint["dtype"] == on_a_cpu
    gpu = torch.device("cuda")
    assert [fitting_dtype(ours, place) for place in (CPU, gpu)] == [on_a_cpu, "float32"]
    assert [fitting_dtype(published, place) for place in (CPU, gpu)] == ["float32", "float16"]


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({}, False), ({"avx512_f": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)],
    ids=str,
)
def test_a_processor_says_whether_it_multiplies_in_bfloat16(
    capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert multiplies_bfloat16.__wrapped__() == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as before PyTorch had it
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: expected)
    assert multiplies_bfloat16.__wrapped__() == expected


def test_the_builtin_prior_is_small_pinned_and_says_what_it_is() -> None:
    files = find_model("builtin")
    assert files.verify() == {"weights": CATALOG["builtin"].sha256}
    assert files.weights.stat().st_size == CATALOG["builtin"].size
    assert files.weights.stat().st_size <= 25_000_000
    _, description = read(files.weights)
    assert {"data", "licence", "steps", "loss", "recipe"} <= set(description["card"])
    assert (files.weights.parent / "README.md").is_file()


def test_wrong_bytes_are_refused_with_both_digests(file: Path) -> None:
    good = file_sha256(file)
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match=good) as caught:
        replace(find_model(str(file)), sha256={"weights": good}).verify()
    assert file_sha256(file) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        b"<html>not here</html>",
        b"version https://git-lfs.github.com/spec/v1\noid x",
        b"PK\x03\x04",
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.safetensors"):
        load_model(str(tmp_path / "m.safetensors"), CPU)


def test_a_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged"):
        load_model(str(file), CPU)


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match="damaged"):
        load_model(str(tmp_path / "m.safetensors"), CPU)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    denoiser = tiny()
    next(denoiser.parameters())[0] = torch.nan
    write_model(tmp_path / "m.safetensors", Prior(denoiser, NoiseSchedule(), 3), {})
    with pytest.raises(ModelError, match="not finite"):
        load_model(str(tmp_path / "m.safetensors"), CPU)


def test_another_networks_weights_are_refused(tmp_path: Path, file: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="no description"):
        load_model(str(tmp_path / "m.safetensors"), CPU)
    description = json.dumps(read(file)[1])
    save_file({"weight": torch.zeros(2)}, tmp_path / "m.safetensors", metadata={"zipcli": description})
    with pytest.raises(ModelError, match="do not fit"):
        load_model(str(tmp_path / "m.safetensors"), CPU)


@pytest.mark.parametrize(
    "absurd", [{"blocks": [1, 10**9]}, {"widths": [8, 10**9]}, {"widths": []}, {"code": "import os"}]
)
def test_an_absurd_network_is_refused_before_it_is_built(
    tmp_path: Path, file: Path, absurd: dict[str, object]
) -> None:
    tensors, description = read(file)
    description["network"] |= absurd
    save_file(tensors, tmp_path / "m.safetensors", metadata={"zipcli": json.dumps(description)})
    with pytest.raises(ModelError, match="does not describe"):
        load_model(str(tmp_path / "m.safetensors"), CPU)


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ModelError, match="Did you mean 'builtin'"):
        find_model("bultin")
