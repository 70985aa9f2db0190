"""Reads and writes model files: safetensors with a description in the header, verified first."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from zipcli.config import NoiseSchedule, check
from zipcli.errors import ModelError
from zipcli.models.denoiser import Denoiser
from zipcli.models.prior import Prior
from zipcli.models.unet import UNet, UNetConfig

FORMAT = 1
"""Version of the description in the header; it rises when older programs cannot read a file."""

MINIMUM_SIDE = 8
"""Smaller images are padded before the network sees them."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """The verified bytes of a model and what they say of themselves.

    Attributes:
        sha256: Digest of the file.
        description: The header: network, preconditioning, schedule and model card.
        tensors: The weights by name.
    """

    sha256: str
    description: dict[str, Any]
    tensors: dict[str, Tensor]


def load_prior(path: Path, sha256: str | None, device: torch.device) -> tuple[Prior, str]:
    """Load a model file as a noise predictor, ready on its device.

    Args:
        path: The file.
        sha256: The digest that it must have, or None.
        device: Where to put it.

    Returns:
        The prior and the digest of its file.

    Raises:
        ModelError: The file is missing, damaged, not ours, or has weights that are not finite.
    """
    file = read_model(path, sha256)
    try:
        config = UNetConfig(**_tuples(file.description["network"]))
        schedule = NoiseSchedule(**file.description["schedule"])
        sigma_data = float(file.description["sigma_data"])
        check(0 < sigma_data < math.inf, f"sigma_data: {sigma_data} is not a positive number")
        with torch.device("meta"):
            denoiser = Denoiser(UNet(config), sigma_data)
        denoiser.net.load_state_dict(file.tensors, assign=True)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise ModelError(f"{path}: does not describe a network that we can build: {e}") from e
    denoiser.eval().requires_grad_(False)
    denoiser.to(device)
    for parameter in denoiser.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return Prior(denoiser, schedule, config.channels, MINIMUM_SIDE), file.sha256


def read_model(path: Path, sha256: str | None) -> ModelFile:
    """Read and verify a model file; nothing in it is ever unpickled."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ModelError(f"{path}: cannot read the model: {e.strerror}") from e
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise ModelError(f"{path}: wrong bytes: SHA-256 is {digest}, expected {sha256}; install zipcli again")
    try:
        with safe_open(path, framework="pt") as f:
            description = json.loads((f.metadata() or {}).get("zipcli", "null"))
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, ValueError) as e:
        raise ModelError(f"{path}: not a safetensors file, or a damaged one: {e}") from e
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelError(f"{path}: not a model of this version of zipcli (no description in its header)")
    for name, tensor in tensors.items():
        if not math.isfinite(tensor.double().sum().item()):
            raise ModelError(f"{path}: the weights {name} are not finite")
    return ModelFile(sha256=digest, description=description, tensors=tensors)


def write_model(path: Path, denoiser: Denoiser, schedule: NoiseSchedule, card: dict[str, Any]) -> str:
    """Write a model file and return its SHA-256; `card` says how the model was made."""
    assert isinstance(denoiser.net, UNet)
    description = {
        "format": FORMAT,
        "network": asdict(denoiser.net.config),
        "sigma_data": denoiser.sigma_data,
        "schedule": asdict(schedule),
        "card": card,
    }
    tensors = {name: t.contiguous() for name, t in denoiser.net.state_dict().items()}
    data = save(tensors, metadata={"zipcli": json.dumps(description)})
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(path)
    return hashlib.sha256(data).hexdigest()


def _tuples(network: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where the configuration has tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in network.items()}
