"""What foreign checkpoints call the tensors of our networks.

Two families have published weights of our U-Net: OpenAI's guided-diffusion and improved-diffusion
("guided"), and diffusers' UNet2DModel ("diffusers"). Masked autoencoders are called as transformers does
("transformers"). Each table below has our name of a layer on the left.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from zipcli.models.mae import MAE
from zipcli.models.mae_config import MAEConfig
from zipcli.models.unet import UNet
from zipcli.models.unet_config import UNetConfig


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the values of one of our parameters come from.

    Attributes:
        names: Tensors of the foreign file, to be stacked along rows.
        shapes: The shape that each must have.
        legacy_heads: Number of heads whose rows are in legacy order, or None.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    legacy_heads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one family names the layers of its network.

    Attributes:
        res: Layers of a residual block.
        attention: Layers of an attention block; several names are stacked into our `qkv`.
        attention_rank: Dimensions of its weights: 2, or 3 where a projection is a convolution.
    """

    res: Mapping[str, str]
    attention: Mapping[str, tuple[str, ...]]
    attention_rank: int


GUIDED = Layout(
    res={
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "skip": "skip_connection",
    },
    attention={"norm": ("norm",), "qkv": ("qkv",), "proj": ("proj_out",)},
    attention_rank=3,
)

_DIFFUSERS_RES = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}

DIFFUSERS = Layout(
    res=_DIFFUSERS_RES,
    attention={"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "proj": ("to_out.0",)},
    attention_rank=2,
)

# Files saved before 2023, Google's DDPM weights among them.
DIFFUSERS_OLD = Layout(
    res=_DIFFUSERS_RES,
    attention={"norm": ("group_norm",), "qkv": ("query", "key", "value"), "proj": ("proj_attn",)},
    attention_rank=2,
)


def guided_sources(config: UNetConfig, qkv_order: str) -> dict[str, Source]:
    """Where our parameters are in a file of OpenAI's, by our name."""
    n, residual = config.blocks, config.resample == "residual"
    blocks = {"mid.res.0": "middle_block.0", "mid.attn.0": "middle_block.1", "mid.res.1": "middle_block.2"}
    last = len(config.widths) - 1
    for i in range(last + 1):
        first = 1 + i * (n + 1)  # input_blocks.0 is the stem; a level has n blocks and a resampling
        for j in range(n):
            blocks[f"down.{i}.res.{j}"] = f"input_blocks.{first + j}.0"
            blocks[f"down.{i}.attn.{j}"] = f"input_blocks.{first + j}.1"
        blocks[f"down.{i}.resample"] = f"input_blocks.{first + n}.0" + ("" if residual else ".op")
    for u in range(last + 1):
        first = u * (n + 1)
        for j in range(n + 1):
            blocks[f"up.{u}.res.{j}"] = f"output_blocks.{first + j}.0"
            blocks[f"up.{u}.attn.{j}"] = f"output_blocks.{first + j}.1"
        # The resampling stands in the list of the level's last block, after its attention if it has one.
        place = 2 if config.attention_up[last - u] else 1
        blocks[f"up.{u}.resample"] = f"output_blocks.{first + n}.{place}" + ("" if residual else ".conv")
    layers = {
        "time.0": "time_embed.0",
        "time.1": "time_embed.2",
        "stem": "input_blocks.0.0",
        "head.norm": "out.0",
        "head.conv": "out.2",
    }
    return _sources(config, layers, blocks, GUIDED, legacy=qkv_order == "legacy")


def diffusers_sources(
    config: UNetConfig, *, old_names: bool = False, legacy: bool = False
) -> dict[str, Source]:
    """Where our parameters are in a file of diffusers', by our name.

    `old_names` are those of attention before 2023; `legacy` says that to_q, to_k and to_v are the
    thirds of a matrix in OpenAI's legacy order, as some conversions have them.
    """
    residual = config.resample == "residual"
    blocks = {
        "mid.res.0": "mid_block.resnets.0",
        "mid.attn.0": "mid_block.attentions.0",
        "mid.res.1": "mid_block.resnets.1",
    }
    for i in range(len(config.widths)):
        for j in range(config.blocks + 1):
            for ours, theirs in (("down", "down_blocks"), ("up", "up_blocks")):
                blocks[f"{ours}.{i}.res.{j}"] = f"{theirs}.{i}.resnets.{j}"
                blocks[f"{ours}.{i}.attn.{j}"] = f"{theirs}.{i}.attentions.{j}"
        conv = "" if residual else ".conv"
        blocks[f"down.{i}.resample"] = f"down_blocks.{i}.downsamplers.0{conv}"
        blocks[f"up.{i}.resample"] = f"up_blocks.{i}.upsamplers.0{conv}"
    layers = {
        "time.0": "time_embedding.linear_1",
        "time.1": "time_embedding.linear_2",
        "stem": "conv_in",
        "head.norm": "conv_norm_out",
        "head.conv": "conv_out",
    }
    return _sources(config, layers, blocks, DIFFUSERS_OLD if old_names else DIFFUSERS, legacy=legacy)


def _sources(
    config: UNetConfig, layers: Mapping[str, str], blocks: Mapping[str, str], layout: Layout, *, legacy: bool
) -> dict[str, Source]:
    """Put together what `layers` and `blocks` of our network are called in a layout."""
    with torch.device("meta"):
        parameters = UNet(config).state_dict()
    sources: dict[str, Source] = {}
    for name, parameter in parameters.items():
        shape = tuple(parameter.shape)
        layer, _, kind = name.rpartition(".")
        block, _, part = layer.rpartition(".")
        if layer in layers:
            sources[name] = Source(names=(f"{layers[layer]}.{kind}",), shapes=(shape,))
        elif ".attn." in name:
            theirs = [f"{blocks[block]}.{own}.{kind}" for own in layout.attention[part]]
            rows = (shape[0] // len(theirs), *shape[1:])
            if part != "norm" and kind == "weight" and layout.attention_rank == 3:
                rows = (*rows, 1)
            heads = config.heads_of(shape[0] // 3) if legacy and part == "qkv" else None
            sources[name] = Source(names=tuple(theirs), shapes=(rows,) * len(theirs), legacy_heads=heads)
        elif part in layout.res:
            sources[name] = Source(names=(f"{blocks[block]}.{layout.res[part]}.{kind}",), shapes=(shape,))
        else:  # the convolution of a resampling without a residual block
            assert part == "conv", name
            sources[name] = Source(names=(f"{blocks[block]}.{kind}",), shapes=(shape,))
    return sources


# Tensors of transformers' ViTMAEForPreTraining that are there once.
_MAE_LAYERS = {
    "patch": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "bridge": "decoder.decoder_embed",
    "decoder_norm": "decoder.decoder_norm",
    "pixels": "decoder.decoder_pred",
}
_MAE_TENSORS = {
    "class_token": "vit.embeddings.cls_token",
    "positions": "vit.embeddings.position_embeddings",
    "mask_token": "decoder.mask_token",
    "decoder_positions": "decoder.decoder_pos_embed",
}
_MAE_BLOCK = {
    "norm1": ("layernorm_before",),
    "qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
}


def mae_sources(config: MAEConfig, *, decoder: str = "decoder_layers") -> dict[str, Source]:
    """Where the parameters of an `MAE` are in a file of transformers', by our name.

    `decoder` is what the file calls the blocks of its decoder.
    """
    blocks = {"encoder": "vit.encoder.layer", "decoder": f"decoder.{decoder}"}
    with torch.device("meta"):
        parameters = MAE(config).state_dict()
    sources: dict[str, Source] = {}
    for name, parameter in parameters.items():
        shape = tuple(parameter.shape)
        layer, _, kind = name.rpartition(".")
        if name in _MAE_TENSORS:
            sources[name] = Source(names=(_MAE_TENSORS[name],), shapes=(shape,))
        elif layer in _MAE_LAYERS:
            sources[name] = Source(names=(f"{_MAE_LAYERS[layer]}.{kind}",), shapes=(shape,))
        else:
            way, number, part = layer.split(".")
            theirs = tuple(f"{blocks[way]}.{number}.{own}.{kind}" for own in _MAE_BLOCK[part])
            rows = (shape[0] // len(theirs), *shape[1:])
            sources[name] = Source(names=theirs, shapes=(rows,) * len(theirs))
    return sources
