"""Writes our own model files: safetensors with a description in the header."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save

from zipcli.config import NoiseSchedule
from zipcli.models.denoiser import Denoiser
from zipcli.models.design import FORMAT
from zipcli.models.local_unet import LocalUNet


def write_model(path: Path, denoiser: Denoiser, schedule: NoiseSchedule, card: dict[str, Any]) -> str:
    """Write a model file and return its SHA-256; `card` says how the model was made."""
    assert isinstance(denoiser.net, LocalUNet)
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
