"""What others reach with the network that we bench: diffusers' DDIMPipeline, on the same machine."""

import contextlib
import warnings
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from zipcli.config import PurifyConfig
from zipcli.errors import ConfigError, shown
from zipcli.models.hub import Listener
from zipcli.models.loading import load_model
from zipcli.models.store import find_model
from zipcli.protocols import EpsModel
from zipcli.schedule import betas

SAFE_WEIGHTS = "diffusion_pytorch_model.safetensors"
"""What diffusers calls weights that it can load without running what is in them."""


class AsUNet2D(nn.Module):
    """An `EpsModel` in the shape of diffusers' UNet2DModel, as far as DDIMPipeline looks at it."""

    def __init__(self, model: EpsModel, side: int, device: torch.device) -> None:
        """Wrap `model` for square images of `side`."""
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(sample_size=side, in_channels=model.channels)
        self.device = device
        self.dtype = torch.float32  # of the states

    def forward(self, sample: Tensor, timestep: Tensor) -> SimpleNamespace:
        """Predict the noise in (N, C, H, W) at one timestep."""
        eps = self.model(sample, timestep.to(sample).expand(len(sample)))
        return SimpleNamespace(sample=eps[:, : self.model.channels])


def import_diffusers() -> Any:
    """Import the library.

    Raises:
        ConfigError: It is missing.
    """
    try:
        with _calm():
            diffusers = import_module("diffusers")
            diffusers.utils.logging.set_verbosity_error()
    except ImportError as e:
        raise ConfigError(f"--peers: {shown(str(e))}; pip install diffusers, or leave it out") from e
    return diffusers


class DiffusersDDIM:
    """Draws images with diffusers' DDIMPipeline.

    Its network is diffusers' own where the files are as diffusers saves them, and else ours as `load_model`
    builds it, not laid out for inference.
    """

    def __init__(self, config: PurifyConfig, device: torch.device, dtype: torch.dtype, side: int) -> None:
        """Load the model once more.

        Args:
            config: Names it.
            device: Where it runs.
            dtype: Precision of the network.
            side: Side of the images.

        Raises:
            ConfigError: Diffusers is missing.
            ModelError: The model cannot be had.
        """
        diffusers = import_diffusers()
        name = str(dtype).removeprefix("torch.")
        model = load_model(config.model, device, name, offline=config.offline).model
        files = find_model(config.model, Listener(), offline=config.offline)
        network: Any = AsUNet2D(model, side, device)
        if files.config and files.config.parent / SAFE_WEIGHTS == files.weights:
            network = diffusers.UNet2DModel.from_pretrained(
                files.config.parent, use_safetensors=True, low_cpu_mem_usage=False, local_files_only=True
            )
            network = network.to(device, dtype).eval()
        self.side = network.config.sample_size
        given = betas(model.schedule).numpy()
        scheduler = diffusers.DDIMScheduler(len(given), trained_betas=given, clip_sample=False)
        self._pipeline = diffusers.DDIMPipeline(network, scheduler)
        self._pipeline.set_progress_bar_config(disable=True)

    def draw(self, count: int, steps: int) -> None:
        """Draw `count` images in one batch, with `steps` evaluations of the network."""
        generator = torch.Generator().manual_seed(0)
        with _calm():
            drawn = self._pipeline(
                batch_size=count, generator=generator, eta=1.0, num_inference_steps=steps, output_type="pt"
            )
        assert drawn.images.shape == (count, 3, self.side, self.side)


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """Keep diffusers from warning of what is no concern of a bench."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
