"""Foreign configurations: what they mean to us, and which are refused."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from zipcli.config import NoiseSchedule
from zipcli.errors import ConfigError
from zipcli.models.foreign import check_pipeline, diffusers_config, diffusers_schedule
from zipcli.models.unet_config import UNetConfig
from zipcli.schedule import alpha_bars

CIFAR = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
"""What google/ddpm-cifar10-32 has as config.json, field by field."""


def test_the_published_cifar_network_is_understood() -> None:
    assert diffusers_config(CIFAR) == UNetConfig(
        widths=(128, 256, 256, 256),
        attention_down=(False, True, False, False),
        attention_up=(False, True, False, False),
        time_features=128,
        time_width=512,
        sines_first=True,
        frequency_shift=1,
        asymmetric_padding=True,
        norm_eps=1e-6,
        side=32,
    )


def test_old_block_names_and_averaging_fields_are_understood() -> None:
    old = [f"UNetRes{name}" if name == "DownBlock2D" else name for name in CIFAR["down_block_types"]]  # type: ignore[attr-defined]
    averaged = {**CIFAR, "down_block_types": old, "decay": 0.9999, "power": 0.75, "use_ema_warmup": True}
    assert diffusers_config(averaged) == diffusers_config(CIFAR)


def test_a_side_that_cannot_be_halved_is_no_hint() -> None:
    assert diffusers_config({**CIFAR, "sample_size": 36}).side is None
    assert diffusers_config({**CIFAR, "sample_size": [40, 40]}).side == 40


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "only UNet2DModel"),
        ({"_class_name": None}, "only UNet2DModel"),
        ({"auto_map": {"AutoModel": "modeling.Model"}}, "never done"),
        ({"num_class_embeds": 10}, "class-conditional"),
        ({"class_embed_type": "timestep"}, "class-conditional"),
        ({"time_embedding_type": "fourier"}, "time embedding"),
        ({"mid_block_type": None}, "middle block"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift"),
        ({"act_fn": "snake"}, "activation"),
        ({"downsample_padding": 2}, "downsample_padding"),
        ({"down_block_types": ["SkipDownBlock2D"] * 4}, "SkipDownBlock2D"),
        (
            {"downsample_type": "resnet", "down_block_types": ["DownBlock2D", "AttnDownBlock2D"] * 2},
            "different ways",
        ),
        ({"something_new": 3}, "something_new"),
        ({"sample_size": [32, 64]}, "not square"),
        ({"block_out_channels": [128, 256, 256, 10**9]}, "widths"),
        ({"block_out_channels": [100, 256, 256, 256]}, "groups"),
        ({"layers_per_block": 10**6}, "blocks per level"),
        ({"attention_head_dim": 7}, "heads"),
        ({"attention_head_dim": 0}, "heads"),
        ({"norm_num_groups": 0}, "group"),
        ({"out_channels": 4}, "channels out"),
        ({"time_embedding_dim": 10**9}, "time width"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"norm_eps": 2.0}, "epsilon"),
        ({"layers_per_block": True}, "blocks: True"),
        ({"layers_per_block": "2"}, "blocks"),
        ({"mid_block_scale_factor": float("inf")}, "middle_scale"),
        ({"down_block_types": ["DownBlock2D"] * 3}, "every level"),
    ],
    ids=str,
)
def test_what_we_cannot_compute_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        diffusers_config({**CIFAR, **change})


def test_a_pipeline_with_code_of_its_own_is_refused() -> None:
    good = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    check_pipeline(good)
    for unet in (["modeling_ddpm", "UNet2DModel"], ["diffusers", "UNet1DModel"], ["x"], None):
        with pytest.raises(ConfigError, match="code of its own"):
            check_pipeline({**good, "unet": unet})
    with pytest.raises(ConfigError, match="MyPipeline"):
        check_pipeline({**good, "_class_name": "MyPipeline"})
    with pytest.raises(ConfigError, match="vqvae"):  # a latent model: its pixels are none
        check_pipeline({**good, "vqvae": ["diffusers", "VQModel"]})


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [100, 1000])
def test_schedules_are_those_of_diffusers(kind: str, steps: int) -> None:
    for scheduler in (DDPMScheduler, DDIMScheduler):
        theirs = scheduler(num_train_timesteps=steps, beta_schedule=kind, beta_end=0.015)
        schedule, prediction = diffusers_schedule(dict(theirs.config) | {"_class_name": scheduler.__name__})
        assert prediction == "epsilon"
        # Theirs is built in float32.
        torch.testing.assert_close(alpha_bars(schedule).float(), theirs.alphas_cumprod, rtol=2e-4, atol=1e-9)


def test_trained_betas_replace_the_schedule() -> None:
    betas = [0.1, 0.2, 0.3]
    schedule, _ = diffusers_schedule({"_class_name": "DDPMScheduler", "trained_betas": betas})
    assert alpha_bars(schedule).tolist() == pytest.approx([0.9, 0.72, 0.504])


def test_the_cosine_schedule_has_the_published_values() -> None:
    for steps, values in {
        1000: (0.9999587, 0.8458880, 0.4922852, 2.43e-9),
        4000: (0.9999901, 0.8467314, 0.4934540, 1.52e-10),
    }.items():
        table = alpha_bars(NoiseSchedule(kind="cosine", timesteps=steps))
        found = [table[i].item() for i in (0, steps // 4, steps // 2, steps - 1)]
        assert found == pytest.approx(values, rel=2e-3)
        assert found[:3] == pytest.approx(values[:3], abs=1e-7)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"_class_name": "CMStochasticIterativeScheduler"}, "CMStochastic"),
        ({}, "class is None"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"_class_name": "DDPMScheduler", "rescale_betas_zero_snr": True}, "pure noise"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 10**9}, "timesteps"),
        ({"_class_name": "DDPMScheduler", "beta_start": 0.5, "beta_end": 0.1}, "beta"),
        ({"_class_name": "DDPMScheduler", "trained_betas": [0.1, 2.0]}, "betas"),
    ],
)
def test_a_schedule_that_is_no_chain_of_betas_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        diffusers_schedule(given)
