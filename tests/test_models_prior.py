"""Published U-Nets served as noise predictors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zipcli.config import NoiseSchedule
from zipcli.errors import ModelError
from zipcli.models.loading import load_model
from zipcli.models.prior import UNetPrior
from zipcli.models.unet import UNet, timestep_features
from zipcli.models.unet_config import UNetConfig
from zipcli.pipeline.purifier import Purifier
from zipcli.schedule import alpha_bars

TINY = UNetConfig(
    widths=(8, 16),
    blocks=1,
    attention_down=(False, True),
    attention_up=(False, True),
    time_features=8,
    time_width=32,
    norm_groups=4,
    middle_groups=4,
    side=16,
)


def tiny(config: UNetConfig = TINY, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(config).eval().requires_grad_(False)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_side_that_cannot_be_halved_is_padded_with_its_edge() -> None:
    prior = UNetPrior(tiny(), NoiseSchedule())
    x, t = images(2, 3, 11, 16), torch.tensor([3.0, 700.0])
    padded = torch.cat([x, x[..., -1:, :]], dim=-2)
    assert torch.equal(prior(x, t), prior(padded, t)[..., :11, :])
    assert (prior.native_side, prior.minimum_side, prior.channels) == (16, 2, 3)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_other_predictions_are_served_as_eps(prediction: str) -> None:
    schedule = NoiseSchedule()
    x_0, eps = images(1, 3, 8, 8), images(1, 3, 8, 8, seed=1)
    for t in (0, 10, 500, 999):
        alpha_bar = alpha_bars(schedule)[t].float()
        x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
        v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
        prior = UNetPrior(tiny(replace(TINY, prediction=prediction)), schedule)
        answer = v if prediction == "v_prediction" else x_0
        prior.net.forward = lambda x, t, answer=answer: answer  # type: ignore[misc]
        # At t = 0 the noise is a hundredth of x_t; a sample keeps two digits less of it.
        torch.testing.assert_close(prior(x_t, torch.tensor([float(t)])), eps, atol=3e-4, rtol=1e-4)


def test_timesteps_are_scaled_before_they_are_embedded() -> None:
    quarter = UNetPrior(tiny(replace(TINY, timestep_scale=0.25)), NoiseSchedule(timesteps=4000))
    whole = UNetPrior(tiny(), NoiseSchedule())
    x = images(1, 3, 16, 16)
    assert torch.equal(quarter(x, torch.tensor([2000.0])), whole(x, torch.tensor([500.0])))
    assert not torch.equal(quarter(x, torch.tensor([2000.0])), whole(x, torch.tensor([501.0])))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 4e-3), (torch.bfloat16, 4e-2)])
def test_a_torso_of_half_precision_stays_close_and_answers_in_float32(
    dtype: torch.dtype, limit: float
) -> None:
    x, t = images(1, 3, 16, 16), torch.tensor([437.0])
    whole = tiny()(x, t)
    half = tiny()
    half.set_torso(dtype)
    out = half(x, t)
    assert out.dtype == torch.float32
    assert 0 < (out - whole).abs().max() / whole.abs().max() < limit


def test_normalisations_embedding_and_head_stay_float32_in_a_torso_of_half_precision() -> None:
    net = tiny()
    net.set_torso(torch.float16)
    for name, parameter in net.named_parameters():
        inside = name.startswith(("stem", "down", "mid", "up"))
        kept = "norm" in name or ".time." in name or not inside
        assert parameter.dtype == (torch.float32 if kept else torch.float16), name


def test_timesteps_are_embedded_in_float32() -> None:
    a, b = timestep_features(torch.tensor([999.0, 998.0], dtype=torch.float64), TINY)
    assert a.dtype == torch.float32
    assert (a - b).abs().max() > 0.1


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of a fixed side of 16 pixels, as diffusers saves one."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
    )
    net.save_pretrained(tmp_path / "model")
    DDPMScheduler().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (5, 7), (40, 23), (16, 64)])
def test_a_model_of_a_fixed_side_purifies_any_size(model: Path, size: tuple[int, int]) -> None:
    purifier = Purifier.from_pretrained(str(model), transforms=["gray"], steps=2, grid="paper", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    clean = purifier.purify_pixels(list(pixels))
    assert [picture.shape for picture in clean] == [(*size, 3)] * 3
    assert all((a != b).any() for a, b in zip(clean, pixels, strict=True))
    assert purifier.fingerprint_parts["tile"] == 16
    assert purifier.fingerprint_parts["network"]["widths"] == (8, 16)


def test_a_tensor_that_old_files_have_twice_is_read_once(model: Path) -> None:
    from safetensors.torch import load_file

    file = model / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    twin = tensors["down_blocks.0.downsamplers.0.conv.weight"]
    save_file(tensors | {"down_blocks.0.downsamplers.0.Conv2d_0.weight": twin.clone()}, file)
    Purifier.from_pretrained(str(model), device="cpu")
    save_file(tensors | {"down_blocks.0.downsamplers.0.Conv2d_0.weight": twin + 1}, file)
    with pytest.raises(ModelError, match="Conv2d_0"):
        Purifier.from_pretrained(str(model), device="cpu")


@pytest.mark.parametrize("part", ["", "unet", "unet/diffusion_pytorch_model.safetensors"])
def test_any_part_of_a_pipeline_knows_its_noise(model: Path, tmp_path: Path, part: str) -> None:
    pipeline = tmp_path / "pipeline"
    (pipeline / "scheduler").mkdir(parents=True)
    scheduler = json.loads((model / "scheduler_config.json").read_text()) | {
        "prediction_type": "v_prediction"
    }
    (pipeline / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "x"],
    }
    (pipeline / "model_index.json").write_text(json.dumps(index))
    (model / "scheduler_config.json").unlink()
    model.rename(pipeline / "unet")
    loaded = load_model(str(pipeline / part), torch.device("cpu"))
    assert loaded.fingerprint["network"]["prediction"] == "v_prediction"
    assert loaded.notes == ()


def test_a_model_that_does_not_say_its_noise_is_noted(model: Path) -> None:
    (model / "scheduler_config.json").unlink()
    (note,) = load_model(str(model), torch.device("cpu")).notes
    assert "linear schedule is assumed" in note


def test_a_network_that_centres_its_input_is_noted(model: Path) -> None:
    config = model / "config.json"
    config.write_text(
        config.read_text().replace('"center_input_sample": false', '"center_input_sample": true')
    )
    (note,) = load_model(str(model), torch.device("cpu")).notes
    assert "[0, 1]" in note


def test_weights_of_half_precision_are_served_in_float32(model: Path) -> None:
    from safetensors.torch import load_file

    file = model / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    purifier = Purifier.from_pretrained(str(model), steps=2, grid="paper", device="cpu")
    assert purifier.fingerprint_parts["dtype"] == "float32"
    assert purifier.purify_pixels([np.zeros((16, 16, 3), np.uint8)])[0].shape == (16, 16, 3)
