"""The U-Net against the two families of published networks, in every convention that they differ in.

Diffusers' networks are built with diffusers, and those of OpenAI are a slow transcription. No published
weights: random ones that hide nothing, because as built both families end in a layer of zeros and agree
with anything.

Limits are relative to the largest value of the expected output, where that is above 1. PARITY, measured
up to 3.4e-6, is rounding in float32; the smallest mistake that is possible, 1e-6 in place of 1e-5 in the
normalisations, costs 5e-5.
"""

import json
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import guided_unet as openai
from safetensors.torch import load_file, save_file
from torch import Tensor

from zipcli.config import MethodConfig, NoiseSchedule
from zipcli.errors import ModelError
from zipcli.methods.zip import purify
from zipcli.models.catalog import ARCHITECTURES, Architecture
from zipcli.models.convert import convert_model
from zipcli.models.foreign import diffusers_config, diffusers_schedule, guided_config
from zipcli.models.layouts import Source, diffusers_sources, guided_sources
from zipcli.models.loading import load_model
from zipcli.models.prior import UNetPrior
from zipcli.models.unet import UNet
from zipcli.models.unet_config import UNetConfig
from zipcli.schedule import alpha_bars
from zipcli.transforms import make_operator

PARITY = 1e-5
CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"

# At 0 every sine is 0 and every cosine is 1, which would hide a wrong frequency.
TIMESTEPS = torch.tensor([0.0, 437.0, 250.25])


def images(channels: int, height: int, width: int, count: int = 3) -> Tensor:
    """Faint noise: behind a strong signal, the epsilon of a normalisation would not show."""
    return 0.3 * torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(3))


def error(out: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value where that is above 1."""
    assert out.shape == expected.shape
    scale = max(1.0, expected.abs().max().item())
    return (out.double() - expected.double()).abs().max().item() / scale


def run(network: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(x, t)


def with_weights_of(network: UNet, config: UNetConfig) -> UNet:
    """The same weights, read by other conventions."""
    other = UNet(config)
    other.load_state_dict(network.state_dict())
    return other.eval()


def foreign_shapes(sources: Mapping[str, Source]) -> openai.Shapes:
    """All that sources read, by its name in the file; nothing may be read twice."""
    pairs = [pair for source in sources.values() for pair in zip(source.names, source.shapes, strict=True)]
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def own_names(config: UNetConfig) -> set[str]:
    with torch.device("meta"):
        return set(UNet(config).state_dict())


# diffusers


DOWN, ATTENTION_DOWN, RESNET_DOWN = "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"
UP, ATTENTION_UP, RESNET_UP = "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"

# What the config.json files of google/ddpm-* have in common.
GOOGLE: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "time_embedding_type": "positional",
}
CIFAR10 = GOOGLE | {
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": [DOWN, ATTENTION_DOWN, DOWN, DOWN],
    "up_block_types": [UP, UP, ATTENTION_UP, UP],
    "sample_size": 32,
}
CELEBAHQ = GOOGLE | {
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [DOWN, DOWN, DOWN, DOWN, ATTENTION_DOWN, DOWN],
    "up_block_types": [UP, ATTENTION_UP, UP, UP, UP, UP],
    "sample_size": 256,
}
# openai/diffusers-cd_bedroom256_*: a consistency model, so no noise predictor, but the shape of one.
BEDROOM: dict[str, Any] = {
    "attention_head_dim": 64,
    "block_out_channels": [256, 256, 512, 512, 1024, 1024],
    "down_block_types": [*[RESNET_DOWN] * 3, *[ATTENTION_DOWN] * 3],
    "up_block_types": [*[ATTENTION_UP] * 3, *[RESNET_UP] * 3],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "default",
    "sample_size": 256,
}

SMALL_CIFAR10 = CIFAR10 | {"block_out_channels": [32, 64, 64, 64]}

# A user's own: everything that is not said has the default.
USER: dict[str, Any] = {
    "block_out_channels": [32, 64, 64],
    "down_block_types": [DOWN, ATTENTION_DOWN, DOWN],
    "up_block_types": [UP, ATTENTION_UP, UP],
    "sample_size": 32,
}
SCALE_SHIFT = USER | {"resnet_time_scale_shift": "scale_shift"}
RESIDUAL = USER | {
    "down_block_types": [RESNET_DOWN, ATTENTION_DOWN, ATTENTION_DOWN],
    "up_block_types": [ATTENTION_UP, ATTENTION_UP, RESNET_UP],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}

PUBLISHED = {
    "ddpm-cifar10-32": (CIFAR10, 328),
    "ddpm-celebahq-256": (CELEBAHQ, 450),
    "cd_bedroom256": (BEDROOM, 630),
}

SMALL: dict[str, dict[str, Any]] = {
    "small cifar10": SMALL_CIFAR10,
    "user": USER,
    "user, all written out": USER
    | {
        "attention_head_dim": 8,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "add_attention": True,
        "resnet_time_scale_shift": "default",
        "norm_eps": 1e-5,
        "time_embedding_type": "positional",
    },
    "one head": USER | {"attention_head_dim": None},
    "three heads": USER | {"block_out_channels": [32, 96, 96], "attention_head_dim": 32},
    "padding below and right": USER | {"downsample_padding": 0},
    "padding below and right of attention": USER
    | {
        "downsample_padding": 0,
        "down_block_types": [ATTENTION_DOWN] * 3,
        "up_block_types": [ATTENTION_UP] * 3,
    },
    "sines first": USER | {"flip_sin_to_cos": False},
    "shifted frequencies": USER | {"freq_shift": 1},
    "scale-shift without a norm in the middle": SCALE_SHIFT,
    "scale-shift with a norm in the middle": SCALE_SHIFT | {"attn_norm_num_groups": 32},
    "other groups in the middle": SCALE_SHIFT | {"norm_num_groups": 8, "attn_norm_num_groups": 16},
    "additive with other groups in the middle": USER | {"norm_num_groups": 16, "attn_norm_num_groups": 4},
    "residual resampling": RESIDUAL,
    "residual resampling without types": RESIDUAL
    | {
        "down_block_types": [RESNET_DOWN, RESNET_DOWN, ATTENTION_DOWN],
        "up_block_types": [RESNET_UP, RESNET_UP, RESNET_UP],
    },
    "residual resampling, scale-shift": RESIDUAL
    | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32, "attention_head_dim": 32},
    "no attention in the middle": USER | {"add_attention": False},
    "no attention at all": USER
    | {"add_attention": False, "down_block_types": [DOWN] * 3, "up_block_types": [UP] * 3},
    "attention at other levels on the way up": USER
    | {
        "block_out_channels": [32, 64, 96],
        "down_block_types": [ATTENTION_DOWN, DOWN, DOWN],
        "up_block_types": [UP, ATTENTION_UP, UP],
    },
    "old block names": USER
    | {
        "down_block_types": [f"UNetRes{name}" for name in (DOWN, ATTENTION_DOWN, DOWN)],
        "up_block_types": [f"UNetRes{name}" for name in (UP, ATTENTION_UP, UP)],
    },
    "swish": USER | {"act_fn": "swish"},
    "mish": USER | {"act_fn": "mish"},
    "gelu": SCALE_SHIFT | {"act_fn": "gelu"},
    "relu": RESIDUAL | {"act_fn": "relu"},
    "norm epsilon 1e-6": USER | {"norm_eps": 1e-6},
    # So large that each normalisation would show by itself.
    "norm epsilon 0.5": SCALE_SHIFT | {"norm_eps": 0.5, "attn_norm_num_groups": 8},
    "one block a level": USER | {"layers_per_block": 1},
    "three blocks a level": RESIDUAL | {"layers_per_block": 3},
    "images from 0 to 1": USER | {"center_input_sample": True},
    "own width of the embedding": USER | {"time_embedding_dim": 48},
    "scaled middle": USER | {"mid_block_scale_factor": math.sqrt(2)},
    "gray": USER | {"in_channels": 1, "out_channels": 1},
    "learned variance": USER | {"out_channels": 6},
    "two levels that shrink": USER
    | {
        "block_out_channels": [64, 32],
        "down_block_types": [DOWN, ATTENTION_DOWN],
        "up_block_types": [ATTENTION_UP, UP],
    },
    "one level": USER
    | {"block_out_channels": [32], "down_block_types": [ATTENTION_DOWN], "up_block_types": [ATTENTION_UP]},
}


def quietly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What diffusers warns about is not ours to fix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return quietly(pytest.importorskip, "diffusers")


def build(diffusers: Any, config: Mapping[str, Any]) -> Any:
    """A network of diffusers' with weights that hide nothing."""
    with torch.device("meta"):
        network = quietly(diffusers.UNet2DModel, **config)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(openai.random_weights(shapes, seed=11), assign=True)
    return network.eval()


def save(diffusers: Any, network: Any, folder: Path, **noise: Any) -> Path:
    """Network and scheduler in one folder, as the repositories of google/ddpm-* have them."""
    quietly(network.save_pretrained, folder)
    quietly(scheduler(diffusers, **noise).save_pretrained, folder)
    return folder


def scheduler(diffusers: Any, **noise: Any) -> Any:
    return quietly(diffusers.DDPMScheduler, **noise)


def predict(network: Any, x: Tensor, t: Tensor) -> Tensor:
    """The prediction of a network of diffusers'."""
    return run(lambda x, t: network(x, t).sample, x, t)


def rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@pytest.mark.parametrize("name", SMALL)
def test_every_convention_of_diffusers_gives_their_output(name: str, diffusers: Any, tmp_path: Path) -> None:
    network = build(diffusers, SMALL[name])
    loaded = load_model(str(save(diffusers, network, tmp_path)), CPU)
    x = images(network.config.in_channels, 16, 24)
    out = run(loaded.model, x, TIMESTEPS)
    assert out.dtype == torch.float32
    assert error(out, predict(network, x, TIMESTEPS)) <= PARITY


@pytest.mark.parametrize("given", [{}, *SMALL.values()], ids=["nothing", *SMALL])
def test_a_field_that_a_config_leaves_out_has_the_default_of_diffusers(
    given: dict[str, Any], diffusers: Any
) -> None:
    with torch.device("meta"):
        network = quietly(diffusers.UNet2DModel, **given)
    assert set(network.config) > set(given)
    assert diffusers_config({"_class_name": "UNet2DModel", **given}) == diffusers_config(
        {"_class_name": "UNet2DModel", **network.config}
    )


def test_a_scheduler_that_leaves_all_fields_out_has_the_defaults_of_diffusers(diffusers: Any) -> None:
    full = {"_class_name": "DDPMScheduler", **scheduler(diffusers).config}
    assert diffusers_schedule({"_class_name": "DDPMScheduler"}) == diffusers_schedule(full)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("ddpm-cifar10-32", 32), ("ddpm-celebahq-256", 64)])
def test_published_networks_at_full_width_give_the_output_of_diffusers(
    name: str, side: int, diffusers: Any, tmp_path: Path
) -> None:
    """Loaded from the few fields that their config.json had in 2022."""
    config, _ = PUBLISHED[name]
    network = build(diffusers, config)
    save(diffusers, network, tmp_path)
    rewrite(
        tmp_path / "config.json",
        lambda _: {"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", **config},
    )
    loaded = load_model(str(tmp_path), CPU)
    (tmp_path / WEIGHTS).unlink()  # pytest would keep 455 MB of each of the last three runs
    x = images(3, side, side, count=2)
    expected = predict(network, x, TIMESTEPS[:2])
    assert error(run(loaded.model, x, TIMESTEPS[:2]), expected) <= PARITY


def test_a_shape_like_the_consistency_models_gives_the_output_of_diffusers(
    diffusers: Any, tmp_path: Path
) -> None:
    """All six levels and both kinds of blocks of cd_bedroom256, an eighth as wide."""
    network = build(
        diffusers, BEDROOM | {"block_out_channels": [32, 32, 64, 64, 128, 128], "attention_head_dim": 8}
    )
    loaded = load_model(str(save(diffusers, network, tmp_path)), CPU)
    x = images(3, 32, 64)
    assert error(run(loaded.model, x, TIMESTEPS), predict(network, x, TIMESTEPS)) <= PARITY


@pytest.mark.parametrize("config", [SMALL_CIFAR10, SCALE_SHIFT], ids=["norm in the middle", "none there"])
def test_the_old_names_of_attention_weights_are_read(
    config: dict[str, Any], diffusers: Any, tmp_path: Path
) -> None:
    network = build(diffusers, config)
    file = save(diffusers, network, tmp_path) / WEIGHTS
    save_file({old_name(name): tensor for name, tensor in load_file(file).items()}, file)
    loaded = load_model(str(tmp_path), CPU)
    x = images(3, 16, 16)
    assert error(run(loaded.model, x, TIMESTEPS), predict(network, x, TIMESTEPS)) <= PARITY


def old_name(name: str) -> str:
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def test_thirds_of_a_legacy_matrix_are_put_together(diffusers: Any, tmp_path: Path) -> None:
    """Community copies of OpenAI's networks cut its interleaved matrix in three and call these q, k and v."""
    network = build(diffusers, USER)
    file = save(diffusers, network, tmp_path) / WEIGHTS
    tensors = load_file(file)
    for name in [name for name in tensors if ".to_q." in name]:
        names = [name.replace("to_q", f"to_{letter}") for letter in "qkv"]
        q, k, v = (tensors[name] for name in names)
        heads = [
            part for d in zip(*(rows.chunk(len(rows) // 8) for rows in (q, k, v)), strict=True) for part in d
        ]
        tensors |= zip(names, torch.cat(heads).clone().chunk(3), strict=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
    rewrite(
        tmp_path / "config.json",
        lambda config: config | {"attention_legacy_order": True, "time_embedding_type": "adm"},
    )
    loaded = load_model(str(tmp_path), CPU)
    x = images(3, 16, 16)
    assert error(run(loaded.model, x, TIMESTEPS), predict(network, x, TIMESTEPS)) <= PARITY


def test_a_saved_pipeline_is_read(diffusers: Any, tmp_path: Path) -> None:
    network = build(diffusers, SMALL_CIFAR10)
    pipeline = quietly(diffusers.DDPMPipeline, network, scheduler(diffusers, beta_end=0.015))
    quietly(pipeline.save_pretrained, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model_index.json", "scheduler", "unet"}
    loaded = load_model(str(tmp_path), CPU)
    assert loaded.model.schedule == NoiseSchedule(beta_end=0.015)
    x = images(3, 16, 16)
    assert error(run(loaded.model, x, TIMESTEPS), predict(network, x, TIMESTEPS)) <= PARITY


def test_a_network_of_diffusers_that_needs_labels_is_refused(diffusers: Any, tmp_path: Path) -> None:
    network = build(diffusers, USER | {"num_class_embeds": 10})
    with pytest.raises(ModelError, match="label"):
        load_model(str(save(diffusers, network, tmp_path)), CPU)


@pytest.mark.parametrize(
    "noise",
    [
        {},
        {"beta_start": 0.001, "beta_end": 0.01, "num_train_timesteps": 500},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.01 * k for k in range(1, 51)], "num_train_timesteps": 50},
    ],
    ids=["linear", "all values", "scaled linear", "cosine", "trained"],
)
def test_a_network_comes_with_the_noise_it_was_trained_with(
    noise: dict[str, Any], diffusers: Any, tmp_path: Path
) -> None:
    """Limit 1e-4, measured 1.3e-5: their product over 1000 timesteps is float32."""
    loaded = load_model(str(save(diffusers, build(diffusers, SMALL_CIFAR10), tmp_path, **noise)), CPU)
    expected = scheduler(diffusers, **noise).alphas_cumprod.double()
    torch.testing.assert_close(alpha_bars(loaded.model.schedule), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_twenty_steps_of_ddim_end_where_those_of_diffusers_do(
    prediction: str, diffusers: Any, tmp_path: Path
) -> None:
    """Limit 1e-4, measured 1e-6, and 1.3e-5 where the network predicts x_0 and we make it eps and back."""
    network = build(diffusers, SMALL_CIFAR10)
    save(diffusers, network, tmp_path, prediction_type=prediction)
    loaded = load_model(str(tmp_path), CPU)
    ddim = quietly(
        diffusers.DDIMScheduler.from_pretrained, tmp_path, clip_sample=False, set_alpha_to_one=True
    )
    ddim.set_timesteps(20)
    start = images(3, 16, 16, count=2) / 0.3
    expected = start
    for t in ddim.timesteps:
        expected = ddim.step(predict(network, expected, t), t, expected, eta=0.0).prev_sample
    # lambda 0 ignores the input: what is left of the method is DDIM.
    config = MethodConfig(grid="official", steps=20, lambda_=0.0, eta=0.0)
    operators = (make_operator("blur:2", no_mask),)
    with torch.inference_mode():
        out = purify(torch.zeros_like(start), loaded.model, operators, config, noise=lambda _: start)
    assert error(out, expected) <= 1e-4


def no_mask(path: str) -> Tensor:
    raise AssertionError(path)


# Each loads without complaint, and is wrong.
DIFFUSERS_MISTAKES: dict[str, Callable[[UNetConfig], UNetConfig]] = {
    "norm epsilon": lambda config: replace(config, norm_eps=1e-5),
    "sines and cosines": lambda config: replace(config, sines_first=False),
    "frequency shift": lambda config: replace(config, frequency_shift=0.0),
    "channels of a head": lambda config: replace(config, head_channels=8, heads=None),
    "number of heads": lambda config: replace(config, head_channels=None, heads=4),
    "padding": lambda config: replace(config, asymmetric_padding=False),
    "groups": lambda config: replace(config, norm_groups=16),
    "groups in the middle": lambda config: replace(config, middle_groups=16),
    "scale of the middle": lambda config: replace(config, middle_scale=1.01),
    "activation": lambda config: replace(config, activation="mish"),
    "centred input": lambda config: replace(config, center_input=True),
}


def test_every_mistake_in_reading_a_diffusers_network_shows(diffusers: Any, tmp_path: Path) -> None:
    network = build(diffusers, SMALL_CIFAR10)
    loaded = load_model(str(save(diffusers, network, tmp_path)), CPU)
    x = images(3, 16, 16)
    expected = predict(network, x, TIMESTEPS)
    assert isinstance(loaded.model, UNetPrior)
    unet = loaded.model.net
    again = with_weights_of(unet, unet.config)
    assert error(run(again, x, TIMESTEPS), expected) <= PARITY
    for name, mistake in DIFFUSERS_MISTAKES.items():
        changed = with_weights_of(unet, mistake(unet.config))
        assert error(run(changed, x, TIMESTEPS), expected) > PARITY, name


@pytest.mark.parametrize("old_names", [False, True], ids=["new names", "old names"])
@pytest.mark.parametrize("name", [*PUBLISHED, *SMALL])
def test_every_tensor_of_a_diffusers_network_has_one_place(
    name: str, old_names: bool, diffusers: Any
) -> None:
    given = PUBLISHED[name][0] if name in PUBLISHED else SMALL[name]
    with torch.device("meta"):
        network = quietly(diffusers.UNet2DModel, **given)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    if name in PUBLISHED:
        assert len(shapes) == PUBLISHED[name][1]
    config = diffusers_config({"_class_name": "UNet2DModel", **given})
    sources = diffusers_sources(config, old_names=old_names)
    assert foreign_shapes(sources) == {old_name(k) if old_names else k: s for k, s in shapes.items()}
    assert set(sources) == own_names(config)


# OpenAI's


IMPROVED = openai.Settings(
    size=32, base=128, multipliers=(1, 2, 2, 2), blocks=3, attention_at=(16, 8), heads=4, updown=False
)
GUIDED_256 = openai.Settings(size=256, base=256, multipliers=(1, 1, 2, 2, 4, 4), head_channels=64)
GUIDED_512 = openai.Settings(size=512, base=256, multipliers=(0.5, 1, 1, 2, 2, 4, 4), head_channels=64)
GUIDED_64 = openai.Settings(
    size=64, base=192, multipliers=(1, 2, 3, 4), blocks=3, head_channels=64, qkv="new"
)
GUIDED_128 = openai.Settings(size=128, base=256, multipliers=(1, 1, 2, 3, 4), heads=4)
IMPROVED_64 = replace(IMPROVED, size=64, multipliers=(1, 2, 3, 4))
LSUN = openai.Settings(
    size=256,
    base=128,
    multipliers=(1, 1, 2, 2, 4, 4),
    attention_at=(16,),
    heads=1,
    updown=False,
    scale_shift=False,
)
UPSAMPLER = replace(GUIDED_256, base=192, head_channels=None, heads=4, in_channels=6)

# Tensors (None where nobody has written down how many) and parameters of the published files.
OPENAI_FILES: dict[str, tuple[openai.Settings, int | None, int]] = {
    "256x256_diffusion_uncond": (GUIDED_256, 566, 552_814_086),
    "512x512_diffusion_uncond_finetune_008100": (GUIDED_512, None, 557_973_638),
    "cifar10_uncond_50M_500K": (replace(IMPROVED, timestep_scale=0.25), None, 52_546_438),
    "imagenet64_uncond_100M_1500K": (replace(IMPROVED_64, timestep_scale=0.25), None, 121_063_942),
    "lsun_uncond_100M": (LSUN, None, 113_676_678),
    "256x256_diffusion": (replace(GUIDED_256, classes=1000), 567, 553_838_086),
    "512x512_diffusion": (replace(GUIDED_512, classes=1000), 645, 558_997_638),
    "128x128_diffusion": (replace(GUIDED_128, classes=1000), 493, 421_529_606),
    "64x64_diffusion": (replace(GUIDED_64, classes=1000), 541, 295_904_454),
    "64_256_upsampler": (replace(UPSAMPLER, classes=1000), None, 311_795_910),
    "imagenet64_cond_270M_250K": (replace(IMPROVED_64, base=192, classes=1000), None, 273_049_350),
}

CATALOGUED = {
    "openai-256": "256x256_diffusion_uncond",
    "openai-512": "512x512_diffusion_uncond_finetune_008100",
    "openai-cifar10": "cifar10_uncond_50M_500K",
    "openai-64": "imagenet64_uncond_100M_1500K",
    "openai-lsun": "lsun_uncond_100M",
}

# Two levels of three have attention: at 32 and 16 px.
GUIDED = openai.Settings(size=64, base=64, multipliers=(1, 2, 2), head_channels=32)
SMALL_IMPROVED = openai.Settings(
    size=32, base=32, multipliers=(1, 2, 2), attention_at=(16, 8), heads=4, updown=False
)

OPENAI: dict[str, openai.Settings] = {
    "legacy order": GUIDED,
    "new order": replace(GUIDED, multipliers=(1, 2, 3), blocks=3, qkv="new"),
    "four heads": replace(GUIDED, base=32, head_channels=None, heads=4),
    "four heads in the new order": replace(GUIDED, base=32, head_channels=None, heads=4, qkv="new"),
    # Their flag num_heads has a default, and counts for nothing next to num_head_channels.
    "head channels beside heads": replace(GUIDED, heads=4),
    "first level half as wide as the sinusoid": replace(GUIDED, multipliers=(0.5, 1, 2)),
    "convolutions": SMALL_IMPROVED,
    "convolutions and scaled timesteps": replace(SMALL_IMPROVED, blocks=3, timestep_scale=0.25),
    "convolutions, additive, one head": replace(
        SMALL_IMPROVED, multipliers=(1, 1, 2), attention_at=(16,), heads=1, scale_shift=False
    ),
    "additive": replace(GUIDED, scale_shift=False),
    "without a variance": replace(GUIDED, base=32, out_channels=3),
    "attention at the finest level": replace(GUIDED, size=32),
}


def our_config(settings: openai.Settings) -> UNetConfig:
    return guided_config(
        side=settings.size,
        base=settings.base,
        multipliers=settings.multipliers,
        blocks=settings.blocks,
        attention_sides=settings.attention_at,
        head_channels=settings.head_channels,
        heads=settings.heads,
        scale_shift=settings.scale_shift,
        residual=settings.updown,
        out_channels=settings.out_channels,
        timestep_scale=settings.timestep_scale,
    )


def published_file(folder: Path, settings: openai.Settings) -> tuple[Path, dict[str, Tensor]]:
    """Random weights in a file as OpenAI's: pickled, and nothing around the tensors."""
    weights = openai.random_weights(openai.published_shapes(settings), seed=5)
    torch.save(OrderedDict(weights), folder / "published.pt")
    return folder / "published.pt", weights


def convert(source: Path, network: UNetConfig, qkv_order: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Our model from their file."""
    target = source.with_name("converted.safetensors")
    target.unlink(missing_ok=True)
    architecture = Architecture(network=network, layout="guided", qkv_order=qkv_order)
    convert_model(str(source), target, architecture=architecture)
    return load_model(str(target), CPU).model


def transcribed(weights: dict[str, Tensor], settings: openai.Settings, x: Tensor) -> Tensor:
    """The expected output, in float64."""
    exact = {name: tensor.double() for name, tensor in weights.items()}
    return openai.forward(exact, settings, x.double(), TIMESTEPS)


@pytest.mark.parametrize("name", OPENAI)
def test_every_convention_of_openai_gives_the_transcribed_output(name: str, tmp_path: Path) -> None:
    settings = OPENAI[name]
    source, weights = published_file(tmp_path, settings)
    x = images(3, 16, 24)
    out = run(convert(source, our_config(settings), settings.qkv), x, TIMESTEPS)
    assert out.dtype == torch.float32
    assert error(out, transcribed(weights, settings, x)) <= PARITY


# Each converts and loads without complaint, and is wrong.
OPENAI_MISTAKES: dict[str, tuple[openai.Settings, Callable[[UNetConfig], UNetConfig]]] = {
    "norm epsilon": (GUIDED, lambda config: replace(config, norm_eps=1e-6)),
    "sines and cosines": (GUIDED, lambda config: replace(config, sines_first=True)),
    "frequency shift": (GUIDED, lambda config: replace(config, frequency_shift=1.0)),
    "channels of a head": (GUIDED, lambda config: replace(config, head_channels=64)),
    "scale of timesteps": (GUIDED, lambda config: replace(config, timestep_scale=0.25)),
    "number of heads": (SMALL_IMPROVED, lambda config: replace(config, heads=2)),
    "padding": (SMALL_IMPROVED, lambda config: replace(config, asymmetric_padding=True)),
}


@pytest.mark.parametrize("name", OPENAI_MISTAKES)
def test_every_mistake_in_describing_a_network_of_openai_shows(name: str, tmp_path: Path) -> None:
    settings, mistake = OPENAI_MISTAKES[name]
    source, weights = published_file(tmp_path, settings)
    x = images(3, 16, 16)
    out = run(convert(source, mistake(our_config(settings)), settings.qkv), x, TIMESTEPS)
    assert error(out, transcribed(weights, settings, x)) > PARITY


@pytest.mark.parametrize(("true", "wrong"), [("legacy", "new"), ("new", "legacy")])
def test_the_wrong_order_of_q_k_and_v_shows(true: str, wrong: str, tmp_path: Path) -> None:
    settings = replace(GUIDED, qkv=true)
    source, weights = published_file(tmp_path, settings)
    x = images(3, 16, 16)
    out = run(convert(source, our_config(settings), wrong), x, TIMESTEPS)
    assert error(out, transcribed(weights, settings, x)) > PARITY


def test_a_network_of_openai_that_needs_labels_is_refused(tmp_path: Path) -> None:
    source, _ = published_file(tmp_path, replace(GUIDED, classes=10))
    with pytest.raises(ModelError, match="label"):
        convert(source, our_config(GUIDED), GUIDED.qkv)


@pytest.mark.parametrize("name", OPENAI_FILES)
def test_the_transcription_has_the_size_of_the_published_files(name: str) -> None:
    settings, tensors, parameters = OPENAI_FILES[name]
    shapes = openai.published_shapes(settings)
    assert tensors in (None, len(shapes))
    assert sum(map(math.prod, shapes.values())) == parameters


@pytest.mark.parametrize("name", [*CATALOGUED.values(), *OPENAI])
def test_every_tensor_of_a_published_file_has_one_place(name: str) -> None:
    settings = OPENAI[name] if name in OPENAI else OPENAI_FILES[name][0]
    config = our_config(settings)
    sources = guided_sources(config, settings.qkv)
    assert foreign_shapes(sources) == openai.published_shapes(settings)
    assert set(sources) == own_names(config)


def test_the_catalog_describes_the_published_files() -> None:
    assert {name for name, one in ARCHITECTURES.items() if one.layout == "guided"} == set(CATALOGUED)
    for name, file in CATALOGUED.items():
        settings, _, _ = OPENAI_FILES[file]
        assert ARCHITECTURES[name].network == our_config(settings), name
        assert ARCHITECTURES[name].qkv_order == settings.qkv, name
        assert ARCHITECTURES[name].layout == "guided", name


# alpha_bar of the schedules that OpenAI trained with, computed elsewhere; each to its last digit.
LINEAR = {
    0: pytest.approx(9.9990000000e-01, abs=1e-10),
    250: pytest.approx(5.2142303062e-01, abs=1e-10),
    500: pytest.approx(7.7796658365e-02, abs=1e-11),
    999: pytest.approx(4.0358297654e-05, abs=1e-14),
}
COSINE = {
    0: pytest.approx(0.9999901, abs=1e-7),
    1000: pytest.approx(0.8467314, abs=1e-7),
    2000: pytest.approx(0.4934540, abs=1e-7),
    3999: pytest.approx(1.52e-10, abs=1e-12),
}


@pytest.mark.parametrize("name", CATALOGUED)
def test_the_catalog_knows_the_noise_of_the_published_files(name: str) -> None:
    expected = COSINE if name in ("openai-cifar10", "openai-64") else LINEAR
    alpha_bar = alpha_bars(ARCHITECTURES[name].schedule)
    assert len(alpha_bar) == max(expected) + 1
    assert {t: alpha_bar[t].item() for t in expected} == expected
