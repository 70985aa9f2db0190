"""Where the network runs, and what happens when it does not fit there."""

import torch
from torch import Tensor

from zipcli.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Turn --device into a device that exists; never fall back in silence.

    Raises:
        ConfigError: The device is unknown or absent.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ConfigError(f"device: {name!r} is not auto, cpu, cuda, cuda:N or mps") from e
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= available.get(device.type, 0):
        raise ConfigError(f"device: there is no {name} on this machine; use --device cpu or auto")
    return device


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Move to a device; a GPU fetches from locked memory by itself, while we prepare what comes next."""
    fetches = device.type == "cuda" and x.device.type == "cpu"
    return x.pin_memory().to(device, non_blocking=True) if fetches else x.to(device)


def every_device() -> list[str]:
    """Every CUDA device, or where there is none, the one that auto means."""
    return [f"cuda:{n}" for n in range(torch.cuda.device_count())] or [pick_device("auto").type]


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch's means that the device or the machine has too little memory."""
    # On a CPU torch raises a plain RuntimeError.
    words = ("can't allocate", "out of memory")
    is_told = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return is_told or isinstance(error, torch.OutOfMemoryError | MemoryError)


def is_device_lost(error: Exception) -> bool:
    """Whether an error of torch's means that the device fails at everything from now on.

    After "an illegal memory access" or "unspecified launch failure" every call fails until the process ends.
    """
    lost = isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
    return lost and not is_out_of_memory(error)
