"""Writes our own model files: safetensors with a description in the header."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zipcli.models.design import FORMAT
from zipcli.models.hub import file_sha256
from zipcli.models.prior import Prior, UNetPrior
from zipcli.models.published import save


def write_model(
    path: Path,
    model: Prior | UNetPrior,
    card: dict[str, Any],
    check_stop: Callable[[], None] = lambda: None,
) -> str:
    """Write a model as one file that loads anywhere, and return its SHA-256.

    Args:
        path: The file to write; it is there whole or not at all.
        model: A prior whose weights have our names.
        card: How the model was made.
        check_stop: Raises where a signal asked us to stop.

    Raises:
        OutputError: The disk is full, or the place cannot be written.
    """
    description: dict[str, Any] = {"format": FORMAT, "schedule": asdict(model.schedule), "card": card}
    if isinstance(model, Prior):
        network = model.denoiser.net
        description |= {"architecture": "local-unet", "sigma_data": model.denoiser.sigma_data}
    else:
        network = model.net
        description |= {"architecture": "unet"}
    description["network"] = asdict(network.config)  # type: ignore[call-overload]  # both are dataclasses
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    save(path, tensors, {"zipcli": json.dumps(description)}, check_stop)
    return file_sha256(path)
