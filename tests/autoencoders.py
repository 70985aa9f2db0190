"""A small masked autoencoder on disk, as transformers writes one, that takes everything for red."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from zipcli.models.layouts import mae_sources
from zipcli.models.mae import IMAGENET_MEAN, IMAGENET_STD
from zipcli.models.mae_config import MAEConfig

RED = (0.8, 0.2, 0.2)

CONFIG = {
    **{"model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"], "norm_pix_loss": False},
    **{"image_size": 32, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 8, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1},
    **{"decoder_num_attention_heads": 2, "decoder_intermediate_size": 8, "layer_norm_eps": 1e-12},
}
NETWORK = MAEConfig(
    **{"side": 32, "patch": 4, "width": 8, "blocks": 1, "heads": 2, "hidden": 8},
    **{"decoder_width": 8, "decoder_blocks": 1, "decoder_heads": 2, "decoder_hidden": 8},
)


def red_weights() -> dict[str, Tensor]:
    """The tensors of the file: random, but for the last layer, which says RED whatever it is told."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.1
        for source in mae_sources(NETWORK).values()
        for name, shape in zip(source.names, source.shapes, strict=True)
    }
    tensors["decoder.decoder_pred.weight"].zero_()
    normal = [(c - mean) / std for c, mean, std in zip(RED, IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    tensors["decoder.decoder_pred.bias"] = torch.tensor(normal).repeat(16)
    return tensors


def write_autoencoder(folder: Path, **config: object) -> Path:
    """Write config.json and model.safetensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(red_weights(), folder / "model.safetensors")
    return folder
