"""Packed networks compute what their plain forms compute."""

from copy import deepcopy

import pytest
import torch
from fakes import SMALL_UNET
from torch import Tensor, nn

from zipcli import Purifier
from zipcli.config import NoiseSchedule
from zipcli.models.denoiser import Denoiser
from zipcli.models.loading import load_model
from zipcli.models.local_unet import LocalUNetConfig, build_local_unet
from zipcli.models.packed import (
    PackedConv,
    PackedUNet,
    for_inference,
    has_packed_layers,
    is_batch_invariant,
)
from zipcli.models.prior import Prior, UNetPrior
from zipcli.models.unet import UNet

CPU = torch.device("cpu")


def randomised(module: nn.Module) -> nn.Module:
    """Nothing may hide behind a weight that starts at zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return module.eval().requires_grad_(False)


def states(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


def local_prior(**config: object) -> Prior:
    shape = LocalUNetConfig(widths=(12, 18, 24), blocks=(1, 2, 1), embedding=16, **config)  # type: ignore[arg-type]
    return Prior(Denoiser(randomised(build_local_unet(shape))).eval(), NoiseSchedule(), shape.channels)


def test_this_pytorch_can_pack() -> None:
    """If this fails, everything still works, but slowly: see what has become of the operators."""
    assert has_packed_layers(torch.float32)


def test_a_precision_that_the_processor_lacks_is_served_plainly() -> None:
    """float64, which no processor has these operators in."""
    assert not has_packed_layers(torch.float64)
    plain = local_prior(block="gated")
    plain.dtype = torch.float64
    assert for_inference(plain) is plain


@torch.inference_mode()
@pytest.mark.parametrize("bands", [(), (0.2, 1.0)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (33, 20)])
def test_a_packed_prior_predicts_what_it_did(
    bands: tuple[float, ...], channels: int, size: tuple[int, int]
) -> None:
    plain = local_prior(block="gated", bands=bands, channels=channels)
    packed = for_inference(deepcopy(plain))
    assert isinstance(packed, Prior)
    assert isinstance(packed.denoiser.net, PackedUNet)
    x = states(3, channels, *size)
    for t in (0.0, 120.5, 400.0, 999.0, 120.5):
        times = torch.full((3,), t)
        torch.testing.assert_close(packed(x, times), plain(x, times), rtol=1e-4, atol=2e-5)


@torch.inference_mode()
def test_images_at_different_noise_levels_are_served_too() -> None:
    plain = local_prior(block="gated", bands=(0.2, 1.0))
    packed = for_inference(deepcopy(plain))
    x, times = states(4, 3, 16, 16), torch.tensor([5.0, 5.0, 300.0, 800.0])
    torch.testing.assert_close(packed(x, times), plain(x, times), rtol=1e-4, atol=2e-5)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(32, 32), (45, 70), (128, 96)])
def test_an_image_does_not_depend_on_its_batch(dtype: str, size: tuple[int, int]) -> None:
    model = for_inference(load_model("builtin", CPU, dtype).model)
    if not is_batch_invariant(model):
        assert dtype == "bfloat16", "then calls are filled up, which costs time: look why"
        return
    x = states(11, 3, *size)
    together = model(x, torch.full((11,), 321.0))
    for count in (1, 2, 5, 10):
        assert torch.equal(model(x[:count], torch.full((count,), 321.0)), together[:count]), count


def test_only_packed_networks_are_tried_for_invariance() -> None:
    assert not is_batch_invariant(local_prior(block="gated"))


def test_blocks_of_the_first_priors_stay_as_they_are() -> None:
    plain = local_prior(block="residual")
    assert for_inference(plain) is plain


@torch.inference_mode()
def test_the_builtin_prior_is_packed_in_both_precisions() -> None:
    x, times = states(2, 3, 32, 32), torch.full((2,), 250.0)
    plain = load_model("builtin", CPU, "float32").model(x, times)
    full = for_inference(load_model("builtin", CPU, "float32").model)(x, times)
    short = for_inference(load_model("builtin", CPU, "bfloat16").model)(x, times)
    torch.testing.assert_close(full, plain, rtol=1e-4, atol=1e-5)
    assert short.dtype == torch.float32
    assert 1e-5 < (short - plain).abs().max() < 0.05


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_published_network_predicts_what_it_did(dtype: torch.dtype) -> None:
    net = UNet(SMALL_UNET)
    net.set_torso(dtype)
    for parameter in net.parameters():
        parameter.data = (torch.randn(parameter.shape) * 0.05).to(parameter.dtype)
    plain = UNetPrior(net.eval().requires_grad_(False), NoiseSchedule())
    packed = for_inference(UNetPrior(deepcopy(net), NoiseSchedule()))
    assert isinstance(packed, UNetPrior)
    assert isinstance(packed.net.stem, PackedConv)
    for shape in ((2, 3, 16, 16), (1, 3, 32, 16), (2, 3, 16, 16)):
        x, times = states(*shape), torch.full((shape[0],), 77.0)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(packed(x, times), plain(x, times), rtol=tolerance, atol=tolerance)


def test_a_purifier_uses_packed_networks() -> None:
    model = Purifier.from_pretrained()._model
    assert model is not None
    assert isinstance(model.model, Prior)
    assert isinstance(model.model.denoiser.net, PackedUNet)
