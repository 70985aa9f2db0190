"""What the configurations of foreign checkpoints mean, in our settings. No torch here."""

from collections.abc import Mapping
from typing import Any

from zipcli.config import NoiseSchedule, check
from zipcli.errors import shown
from zipcli.models.unet_config import UNetConfig


def guided_config(
    *,
    side: int,
    base: int,
    multipliers: tuple[float, ...],
    blocks: int,
    attention_sides: tuple[int, ...] = (32, 16, 8),
    head_channels: int | None = None,
    heads: int | None = None,
    scale_shift: bool = True,
    residual: bool = True,
    out_channels: int = 6,
    timestep_scale: float = 1.0,
) -> UNetConfig:
    """A network of OpenAI's, from the flags of their programs.

    Args:
        side: `image_size`.
        base: `num_channels`.
        multipliers: `channel_mult`, or what they choose for an image size without one.
        blocks: `num_res_blocks`.
        attention_sides: `attention_resolutions`, in pixels.
        head_channels: `num_head_channels`; where it is given, `num_heads` is ignored.
        heads: `num_heads`.
        scale_shift: `use_scale_shift_norm`.
        residual: `resblock_updown`.
        out_channels: 6 with `learn_sigma`, else 3.
        timestep_scale: 1000 / `diffusion_steps` with `rescale_timesteps`, else 1.
    """
    factors = {side // attended for attended in attention_sides}
    attention = tuple(2**i in factors for i in range(len(multipliers)))
    return UNetConfig(
        out_channels=out_channels,
        widths=tuple(int(base * multiplier) for multiplier in multipliers),
        blocks=blocks,
        attention_down=attention,
        attention_up=attention,
        time_features=base,
        time_width=4 * base,
        scale_shift=scale_shift,
        resample="residual" if residual else "conv",
        head_channels=head_channels,
        heads=None if head_channels else heads,
        side=side,
        timestep_scale=timestep_scale,
    )


# Blocks of diffusers that we know: has it attention, and what does it resample with
# (None: what the configuration says under downsample_type or upsample_type)?
_BLOCKS: Mapping[str, tuple[bool, str | None]] = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "resnet"),
}

# Fields that decide nothing at inference: training, and the averaging of weights.
_IGNORED = frozenset(
    {"dropout", "num_train_timesteps", "decay", "inv_gamma", "min_decay", "optimization_step", "power"}
    | {"update_after_step", "use_ema_warmup"}
)

_ACTIVATIONS = {"swish": "silu", "silu": "silu", "mish": "mish", "gelu": "gelu", "relu": "relu"}

# A constructor's defaults: a field that is missing in the file has this value.
_DEFAULTS: Mapping[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "attention_legacy_order": False,
}


def diffusers_config(given: Mapping[str, Any]) -> UNetConfig:
    """The network that a `config.json` of diffusers' UNet2DModel describes.

    Args:
        given: The file's content.

    Raises:
        ConfigError: It describes another class, a block or a feature that we do not have, or sizes
            that no honest file has.
    """
    kind = given.get("_class_name")
    check(kind == "UNet2DModel", f"its class is {_quote(kind)}; only UNet2DModel can be used")
    check("auto_map" not in given, "it asks to run code of its own (auto_map), which is never done")
    unknown = [
        name
        for name, value in given.items()
        if not (name.startswith("_") or name in _DEFAULTS or name in _IGNORED or value is None)
    ]
    check(not unknown, f"fields that we do not know: {', '.join(map(_quote, unknown[:5]))}")
    c = {**_DEFAULTS, **given}
    no_label = c["num_class_embeds"] is None and c["class_embed_type"] is None
    check(
        no_label, "the model is class-conditional: it needs the label of every image, which nobody knows here"
    )
    legacy = c["attention_legacy_order"] is True
    embedding = c["time_embedding_type"]
    known = embedding == "positional" or (embedding == "adm" and legacy)
    check(known, f"time embedding {_quote(embedding)}; only positional can be used")
    check(c["mid_block_type"] == "UNetMidBlock2D", f"middle block {_quote(c['mid_block_type'])} is not known")
    shift = c["resnet_time_scale_shift"]
    check(shift in ("default", "scale_shift"), f"resnet_time_scale_shift {_quote(shift)} is not known")
    activation = _ACTIVATIONS.get(str(c["act_fn"]).lower(), "")
    check(bool(activation), f"activation {_quote(c['act_fn'])} is not known")
    check(
        c["downsample_padding"] in (0, 1),
        f"downsample_padding {_quote(c['downsample_padding'])} is not 0 or 1",
    )
    down, down_types = _blocks(c["down_block_types"], c["downsample_type"] or "conv")
    up, up_types = _blocks(c["up_block_types"], c["upsample_type"] or "conv")
    # The last level of each way has no resampling, whatever its block could do.
    resampling = set(down_types[:-1] + up_types[:-1]) or {"conv"}
    check(len(resampling) == 1, "levels are joined in different ways, which is not supported")
    check(resampling <= {"conv", "resnet"}, f"resampling {_quote(*resampling)} is not known")
    widths = tuple(c["block_out_channels"])
    check(len(widths) >= 1, "block_out_channels is empty")
    scale_shift = shift == "scale_shift"
    adm = embedding == "adm"
    return UNetConfig(
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        widths=widths,
        blocks=c["layers_per_block"],
        attention_down=down,
        attention_up=up[::-1],
        attention_middle=bool(c["add_attention"]),
        # The middle attention of scale-shift networks is normalised only when it is told to be.
        attention_middle_norm=not (scale_shift and c["attn_norm_num_groups"] is None),
        middle_groups=c["attn_norm_num_groups"] or c["norm_num_groups"],
        middle_scale=c["mid_block_scale_factor"],
        time_features=widths[0],
        time_width=c["time_embedding_dim"] or 4 * widths[0],
        scale_shift=scale_shift,
        resample="residual" if resampling == {"resnet"} else "conv",
        head_channels=c["attention_head_dim"],
        sines_first=not (c["flip_sin_to_cos"] or adm),
        frequency_shift=0 if adm else c["freq_shift"],
        asymmetric_padding=c["downsample_padding"] == 0,
        norm_groups=c["norm_num_groups"],
        norm_eps=c["norm_eps"],
        activation=activation,
        center_input=bool(c["center_input_sample"]),
        side=_side(c["sample_size"], 2 ** (len(widths) - 1)),
    )


def _blocks(names: list[str], own: str | None) -> tuple[tuple[bool, ...], list[str | None]]:
    """Attention and resampling of each block of one way."""
    names = [str(name).removeprefix("UNetRes") for name in names]
    for name in names:
        check(name in _BLOCKS, f"block {_quote(name)} is not known; known: {', '.join(_BLOCKS)}")
    return tuple(_BLOCKS[name][0] for name in names), [_BLOCKS[name][1] or own for name in names]


def _side(size: Any, multiple: int) -> int | None:
    """Read sample_size: a number, or one for each side; a hint, of no use if it cannot be halved."""
    sides = {*size} if isinstance(size, list | tuple) else {size}
    check(len(sides) == 1, f"sample_size {_quote(size)} is not square")
    side: int | None = sides.pop()
    return side if side is None or side % multiple == 0 else None


_PIPELINES = frozenset({"DDPMPipeline", "DDIMPipeline", "PNDMPipeline"})

# Schedulers whose betas we read: each of them is a way to walk the same noise schedule.
_SCHEDULERS = frozenset(
    f"{name}Scheduler"
    for name in (
        *(
            "DDPM",
            "DDPMParallel",
            "DDIM",
            "DDIMParallel",
            "PNDM",
            "DPMSolverMultistep",
            "DPMSolverSinglestep",
        ),
        *("DEISMultistep", "UniPCMultistep", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete"),
    )
)

_SCHEDULE_KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


def diffusers_schedule(given: Mapping[str, Any]) -> tuple[NoiseSchedule, str]:
    """The noise schedule of a `scheduler_config.json`, and what the network was trained to predict.

    Raises:
        ConfigError: It is not a noise schedule of DDPM's kind.
    """
    kind = given.get("_class_name")
    check(
        kind in _SCHEDULERS,
        f"its class is {_quote(kind)}, which does not belong to a noise predictor on a chain of betas",
    )
    zero_snr = given.get("rescale_betas_zero_snr", False)
    check(not zero_snr, "a schedule that ends in pure noise (rescale_betas_zero_snr) cannot be used")
    prediction = given.get("prediction_type", "epsilon")
    trained = given.get("trained_betas")
    if trained is not None:
        return NoiseSchedule(kind="trained", betas=tuple(trained), timesteps=len(trained)), prediction
    name = given.get("beta_schedule", "linear")
    check(name in _SCHEDULE_KINDS, f"beta_schedule {_quote(name)} is not known")
    schedule = NoiseSchedule(
        kind=_SCHEDULE_KINDS[name],
        beta_start=given.get("beta_start", 1e-4),
        beta_end=given.get("beta_end", 0.02),
        timesteps=given.get("num_train_timesteps", 1000),
    )
    return schedule, prediction


def check_pipeline(index: Mapping[str, Any]) -> None:
    """Refuse a `model_index.json` whose network is code of its own, or does not work on pixels.

    Raises:
        ConfigError: There is more in the pipeline than diffusers' UNet2DModel and a scheduler.
    """
    kind = index.get("_class_name")
    check(kind in _PIPELINES, f"its pipeline is {_quote(kind)}; known: {', '.join(sorted(_PIPELINES))}")
    parts = {name: part for name, part in index.items() if not name.startswith("_")}
    unet = parts.pop("unet", None)
    check(
        isinstance(unet, list) and unet == ["diffusers", "UNet2DModel"],
        f"its pipeline has a network of another kind, {_quote(unet)}, or code of its own, which is never run",
    )
    parts.pop("scheduler", None)
    check(not parts, f"its pipeline needs more than a network: {', '.join(map(_quote, parts))}")


def _quote(*values: Any) -> str:
    """Words of a foreign file, harmless and short."""
    return " ".join(shown(repr(value)[:60]) for value in values)
