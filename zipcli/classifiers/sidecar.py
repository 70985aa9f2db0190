"""Reads FILE.json, which says beside the model file FILE what the file itself does not."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zipcli.config import ClassifierConfig
from zipcli.errors import ConfigError, shown
from zipcli.registry import unknown_name

KEYS = ("input_size", "mean", "std", "classes")
LIMIT = 10_000_000
"""Bytes; the longest list of class names that we know has half a million."""


def with_sidecar(config: ClassifierConfig, file: Path) -> ClassifierConfig:
    """Fill in what the user did not say from the sidecar of a model file, where there is one.

    `resnet.onnx` has the sidecar `resnet.onnx.json`: an object with any of `input_size` (a whole
    number), `mean` and `std` (three numbers each) and `classes` (a list of names).

    Raises:
        ConfigError: The sidecar is damaged, or says something unknown or impossible.
    """
    sidecar = file.with_name(file.name + ".json")
    if not sidecar.exists():
        return config
    said = _read(sidecar)
    for name in said:
        if name not in KEYS:
            raise ConfigError(f"{shown(str(sidecar))}: {shown(unknown_name('setting', name, KEYS))}")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in said.items()}
    try:
        replace(config, **values)  # also what an option overrules must make sense
        missing: dict[str, Any] = {n: v for n, v in values.items() if getattr(config, n) is None}
        return replace(config, **missing)
    except ConfigError as e:
        raise ConfigError(f"{shown(str(sidecar))}: {e}") from e


def _read(sidecar: Path) -> Mapping[str, Any]:
    name = shown(str(sidecar))
    try:
        with sidecar.open("rb") as f:
            data = f.read(LIMIT + 1)
    except OSError as e:
        raise ConfigError(f"{name}: cannot be read ({e.strerror})") from e
    if len(data) > LIMIT:
        raise ConfigError(f"{name}: larger than {LIMIT:,} bytes; is it really about {shown(sidecar.stem)}?")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{name}: is not JSON ({shown(str(e)[:100])}); mend it or move it away") from e
    if not isinstance(content, dict):
        raise ConfigError(f'{name}: is no JSON object; write {{"classes": [...], ...}}')
    return content
