"""Turns weights that say nothing of themselves into one file that loads anywhere."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from zipcli.config import NoiseSchedule
from zipcli.errors import ConfigError, ModelError, shown
from zipcli.models.catalog import Architecture, parse_name
from zipcli.models.design import FORMAT, KINDS, architecture_design, check_shapes, read_design, tuples
from zipcli.models.hub import Listener, file_sha256
from zipcli.models.loading import gathered
from zipcli.models.published import save, unpickled
from zipcli.models.store import PICKLES, ModelFiles, find_model, local_files, read_json
from zipcli.models.tensors import OpenFile, open_pickle, open_safetensors
from zipcli.models.unet_config import UNetConfig


def convert_model(
    source: str,
    target: Path,
    *,
    architecture: Architecture | None = None,
    config: Path | None = None,
    offline: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Write a model as one safetensors file with its network and noise schedule in the header.

    Args:
        source: A name, file or folder; pickles of the user's are read here, restricted, and
            nowhere else.
        target: The file to write; it must not exist.
        architecture: What the weights do not say, for OpenAI's.
        config: The same from a file: diffusers' config.json, or for OpenAI's a JSON object with
            network (the fields of `UNetConfig`), schedule (of `NoiseSchedule`) and qkv_order.
        offline: Never connect.
        listener: Who is told of a download.

    Returns:
        The description in the header.

    Raises:
        ModelError: The source cannot be read or does not fit its network.
        ConfigError: The target is there already, or has the wrong suffix.
        OutputError: It cannot be written.
    """
    listener = listener or Listener()
    if target.suffix != ".safetensors":
        raise ConfigError(f"{shown(str(target))}: the new file must be called something.safetensors")
    if target.exists():
        raise ConfigError(f"{shown(str(target))}: is there already; move it away or choose another name")
    meaning = parse_name(source)
    if isinstance(meaning, Path):
        files = local_files(meaning, pickles=True)
    else:
        files = unpickled(find_model(source, listener, offline=offline), listener)
    if config is not None:
        content = read_json(config)
        if {"_class_name", "model_type"} & content.keys():
            files = replace(files, paths=files.paths | {"config": config})
        else:
            architecture = _read_architecture(config, content)
    digest = files.verify()["weights"]
    with _opened(files) as file:
        design = read_design(files, file) if architecture is None else architecture_design(architecture, file)
        if design.layout == "zipcli":
            raise ModelError(f"{shown(source)}: is a model of ours already; there is nothing to convert")
        check_shapes(design.sources, file, files.weights)
        description = {
            "format": FORMAT,
            "architecture": next(kind for kind, of in KINDS.items() if isinstance(design.network, of)),
            "network": asdict(design.network),
            "schedule": None if design.schedule is None else asdict(design.schedule),
            "card": {**design.card, "converted_from": files.name, "source_sha256": digest},
        }
        tensors = dict(gathered(design.sources, file, files.weights))
        save(target, tensors, {"zipcli": json.dumps(description)}, listener.check_stop)
    return description | {"file": str(target), "sha256": file_sha256(target), "notes": list(design.notes)}


@contextmanager
def _opened(files: ModelFiles) -> Iterator[OpenFile]:
    if files.weights.suffix in PICKLES:
        yield open_pickle(files.weights)
    else:
        with open_safetensors(files.weights) as file:
            yield file


def _read_architecture(path: Path, content: dict[str, Any]) -> Architecture:
    try:
        return Architecture(
            network=UNetConfig(**tuples(content["network"])),
            schedule=NoiseSchedule(**tuples(content["schedule"])),
            layout="guided",
            qkv_order=content["qkv_order"],
        )
    except KeyError as e:
        raise ModelError(f"{shown(str(path))}: {e} is missing") from e
    except (AttributeError, TypeError, ValueError) as e:
        raise ModelError(f"{shown(str(path))}: does not describe a network that we can build: {e}") from e
