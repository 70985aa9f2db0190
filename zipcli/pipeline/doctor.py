"""What a bug report needs to know of a machine; looks only, and connects to nothing."""

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from PIL import features

from zipcli import __version__
from zipcli.errors import ModelError
from zipcli.models.catalog import CATALOG
from zipcli.models.hub import hub_constants, is_writable, private_folder
from zipcli.models.store import find_cached
from zipcli.pipeline.device import pick_device

PACKAGES = ("click", "torch", "pillow", "rich", "numpy", "safetensors", "huggingface-hub")
EXTRAS = ("onnxruntime", "scikit-image", "ray")
"""Packages that zipcli does without."""

CODECS = ("jpg", "webp", "libtiff", "zlib")
LITTLE_SPACE = 10**9
"""Bytes of free disk below which we warn: a published model alone may need two of them."""


def examine() -> dict[str, Any]:
    """Look at the machine.

    Returns:
        Versions, devices, codecs, the built-in models, the model cache, free disk, and `problems`:
        sentences for people, empty where all is well. Ready for JSON.
    """
    facts: dict[str, Any] = {
        "zipcli": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in (*PACKAGES, *EXTRAS)},
        "codecs": {name: bool(features.check(name)) for name in CODECS},
        "encoding": sys.getfilesystemencoding(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": torch.get_num_threads(),
        "devices": _devices(),
        "device": str(pick_device("auto")),
        "models": {name: _built_in(name) for name, known in CATALOG.items() if known.file},
        "hub": _hub(),
        "folder": _place(Path.cwd()),
    }
    return facts | {"problems": _problems(facts)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "cpu", "cores": os.cpu_count()}]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found.append({"name": f"cuda:{index}", "model": about.name, "memory_bytes": about.total_memory})
    if torch.backends.mps.is_available():
        found.append({"name": "mps"})
    return found


def _built_in(name: str) -> dict[str, Any]:
    """Whether a model in the package is what was shipped."""
    try:
        files = find_cached(name)
        assert files is not None
        return {"sha256": files.verify()["weights"], "error": None}
    except ModelError as e:
        return {"sha256": None, "error": str(e)}


def _hub() -> dict[str, Any]:
    constants = hub_constants()
    import huggingface_hub

    return {
        "endpoint": urlsplit(constants.ENDPOINT)._replace(netloc=_host(constants.ENDPOINT)).geturl(),
        "offline": bool(constants.HF_HUB_OFFLINE),
        "token": huggingface_hub.get_token() is not None,
        "cache": _place(Path(constants.HF_HUB_CACHE).expanduser()),
        "own_cache": _place(private_folder()),
    }


def _host(address: str) -> str:
    """Host and port, without the password that some write before them."""
    return urlsplit(address).netloc.rpartition("@")[2]


def _place(folder: Path) -> dict[str, Any]:
    """A folder, or the nearest one above it that is there: whether we may write, and what is free."""
    there = next((place for place in (folder, *folder.parents) if place.is_dir()), Path("/"))
    return {
        "path": str(folder),
        "exists": folder.is_dir(),
        "writable": is_writable(folder),
        "free_bytes": shutil.disk_usage(there).free,
    }


def _problems(facts: dict[str, Any]) -> list[str]:
    """What is wrong, and what to do."""
    found = []
    for name, model in facts["models"].items():
        if model["error"]:
            found.append(f"the model {name} is damaged, install zipcli again: {model['error']}")
    missing = [name for name, there in facts["codecs"].items() if not there]
    if missing:
        found.append(f"Pillow was built without {', '.join(missing)}; such images will fail")
    for name, place in (("this folder", facts["folder"]), ("the model cache", facts["hub"]["cache"])):
        if place["free_bytes"] < LITTLE_SPACE:
            found.append(f"{name}, {place['path']}: only {place['free_bytes'] / 1e6:,.0f} MB are free")
    if not facts["hub"]["cache"]["writable"]:
        found.append(
            f"{facts['hub']['cache']['path']}: not writable; models cannot be kept there, set HF_HOME"
        )
    return found
