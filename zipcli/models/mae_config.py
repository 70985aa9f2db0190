"""Shape of a masked autoencoder, and what the config.json of transformers says of it. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zipcli.config import check, check_types
from zipcli.errors import shown

MODEL_TYPE = "vit_mae"
"""How transformers calls these networks."""


@dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """Everything that decides what an `MAE` computes from its weights; the defaults are ViT-B/16.

    Neither the heads nor `norm_eps` show in the shapes of the weights.

    Attributes:
        side: Side of its images, in pixels.
        patch: Side of a token, in pixels.
        width: Features of a token in the encoder.
        blocks: Blocks of the encoder.
        heads: Attention heads of the encoder.
        hidden: Features inside a block of the encoder.
        decoder_width: The same of the decoder.
        decoder_blocks: Likewise.
        decoder_heads: Likewise.
        decoder_hidden: Likewise.
        norm_eps: Epsilon of the normalisations.
    """

    side: int = 224
    patch: int = 16
    width: int = 768
    blocks: int = 12
    heads: int = 12
    hidden: int = 3072
    decoder_width: int = 512
    decoder_blocks: int = 8
    decoder_heads: int = 16
    decoder_hidden: int = 2048
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        """Refuse what cannot be built, and sizes that no honest file has, before anything is built."""
        check_types(self)
        check(1 <= self.side <= 4096, f"network: side {self.side} beyond 1 to 4096")
        check(
            1 <= self.patch <= self.side and self.side % self.patch == 0,
            f"network: side {self.side} cannot be cut into tokens of {self.patch} pixels",
        )
        check(2 <= self.grid <= 64, f"network: {self.grid} tokens a side; from 2 to 64 are possible")
        for width, heads in ((self.width, self.heads), (self.decoder_width, self.decoder_heads)):
            check(2 <= width <= 8192, f"network: width {width} beyond 2 to 8192")
            check(heads >= 1 and width % heads == 0, f"network: width {width} cannot be split into {heads}")
        for hidden in (self.hidden, self.decoder_hidden):
            check(1 <= hidden <= 32_768, f"network: {hidden} features in a block")
        for blocks in (self.blocks, self.decoder_blocks):
            check(1 <= blocks <= 96, f"network: {blocks} blocks; from 1 to 96 are possible")
        check(0 < self.norm_eps < 1, f"network: norm epsilon {self.norm_eps} is not between 0 and 1")

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.side // self.patch


# Our fields by those of transformers' ViTMAEConfig, whose defaults are ours.
_FIELDS = {
    "side": "image_size",
    "patch": "patch_size",
    "width": "hidden_size",
    "blocks": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "decoder_width": "decoder_hidden_size",
    "decoder_blocks": "decoder_num_hidden_layers",
    "decoder_heads": "decoder_num_attention_heads",
    "decoder_hidden": "decoder_intermediate_size",
    "norm_eps": "layer_norm_eps",
}

# Fields that must have the one value that we have.
_FIXED: Mapping[str, Any] = {"num_channels": 3, "hidden_act": "gelu", "qkv_bias": True}


def mae_config(given: Mapping[str, Any]) -> MAEConfig:
    """The network that a `config.json` of transformers' ViTMAEForPreTraining describes.

    Args:
        given: The file's content.

    Raises:
        ConfigError: It describes another network, one that predicts normalised patches, or sizes that
            no honest file has.
    """
    check("auto_map" not in given, "it asks to run code of its own (auto_map), which is never done")
    check(
        not given.get("norm_pix_loss", False),
        "it was trained to predict normalised patches (norm_pix_loss), which are no pixels",
    )
    for name, value in _FIXED.items():
        found = given.get(name, value)
        check(found == value, f"{name} is {shown(repr(found)[:60])}; only {value} can be used")
    return MAEConfig(**{ours: given[theirs] for ours, theirs in _FIELDS.items() if theirs in given})
