"""Understands the files of a model: which network, which noise, where each parameter is."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zipcli.config import NoiseSchedule, check
from zipcli.errors import ConfigError, ModelError, shown
from zipcli.models.catalog import Architecture
from zipcli.models.foreign import check_pipeline, diffusers_config, diffusers_schedule
from zipcli.models.layouts import Source, diffusers_sources, guided_sources, mae_sources
from zipcli.models.local_unet import LocalUNetConfig, build_local_unet
from zipcli.models.mae import MAE
from zipcli.models.mae_config import MODEL_TYPE, MAEConfig, mae_config
from zipcli.models.store import ModelFiles, read_json
from zipcli.models.tensors import OpenFile, SafetensorsFile, open_safetensors
from zipcli.models.unet import UNet
from zipcli.models.unet_config import UNetConfig

FORMAT = 1
"""Version of the description in the header of our files; it rises when older programs cannot read a file."""


Network = UNetConfig | LocalUNetConfig | MAEConfig

KINDS: Mapping[str, type[Network]] = {"local-unet": LocalUNetConfig, "unet": UNetConfig, "mae": MAEConfig}
"""Networks by what the header of our files calls them."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a model computes, and where its file has each parameter.

    Attributes:
        network: Settings of the network; their class says which network.
        schedule: The noise it was trained with; None of a masked autoencoder, which knows none.
        sources: Where each parameter comes from, by our name.
        layout: Whose names the file uses: ours, diffusers', transformers' or OpenAI's ("guided").
        sigma_data: Of the preconditioning around a `LocalUNet`.
        card: How the model was made, where the file says so.
        notes: What the user should know.
    """

    network: Network
    schedule: NoiseSchedule | None
    sources: Mapping[str, Source]
    layout: str
    sigma_data: float = 0.5
    card: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def build(self) -> nn.Module:
        """Build the network without weights, on the meta device."""
        with torch.device("meta"):
            if isinstance(self.network, UNetConfig):
                return UNet(self.network)
            if isinstance(self.network, MAEConfig):
                return MAE(self.network)
            return build_local_unet(self.network)


@contextmanager
def open_model(files: ModelFiles) -> Iterator[tuple[SafetensorsFile, Design]]:
    """Open the files of a model: every tensor has its place and shape, and none is read yet.

    Raises:
        ModelError: They are damaged, or do not describe a network that we can build.
    """
    with open_safetensors(files.weights) as file:
        design = read_design(files, file)
        check_shapes(design.sources, file, files.weights)
        yield file, design


def read_design(files: ModelFiles, file: OpenFile) -> Design:
    """Read what the files say of their network.

    Raises:
        ModelError: It is nothing that we can build.
    """
    if (own := file.description) is not None:
        with _about(files.weights):
            return _own_design(own)
    if files.config is not None:
        config = read_json(files.config)
        if config.get("model_type") == MODEL_TYPE:
            return _mae_design(files.config, config, file)
        return _diffusers_design(files, files.config, config, file)
    if files.architecture is not None:
        return architecture_design(files.architecture, file)
    like = ""
    if "input_blocks.0.0.weight" in file.shapes:
        like = (
            "; it has OpenAI's names: if you know its kind, `zipcli models convert --like` writes that down"
        )
    raise ModelError(
        f"{shown(str(files.weights))}: the file has no description of its network, and there is no "
        f"config.json beside it{like}"
    )


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Name the file whose content cannot be used, whatever it fails with."""
    try:
        yield
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise ModelError(
            f"{shown(str(path))}: does not describe a network that we can build: "
            + (str(e) if isinstance(e, ConfigError) else f"{type(e).__name__}: {shown(str(e)[:200])}")
        ) from e


def _own_design(own: Mapping[str, Any]) -> Design:
    check(own.get("format") == FORMAT, "not a model of this version of zipcli")
    kind = own.get("architecture", "local-unet")
    check(kind in KINDS, "its kind of network is not one of this version of zipcli")
    network = KINDS[kind](**tuples(own["network"]))
    sigma_data = own.get("sigma_data", 0.5)
    check(
        type(sigma_data) in (int, float) and 0 < sigma_data < 1e6,
        f"sigma_data: {sigma_data} is not a positive number",
    )
    design = Design(
        network=network,
        schedule=None if kind == "mae" else NoiseSchedule(**tuples(own["schedule"])),
        sources={},
        layout="zipcli",
        sigma_data=sigma_data,
        card=dict(own.get("card") or {}),
    )
    parameters = design.build().state_dict().items()
    same = {name: Source(names=(name,), shapes=(tuple(p.shape),)) for name, p in parameters}
    return replace(design, sources=same)


def _mae_design(config_file: Path, config: Mapping[str, Any], file: OpenFile) -> Design:
    with _about(config_file):
        network = mae_config(config)
    # Since 2026 transformers writes other names for the same blocks.
    is_new = any(name.startswith("decoder.decoder_encoder.") for name in file.shapes)
    sources = mae_sources(network, decoder="decoder_encoder.layer" if is_new else "decoder_layers")
    return Design(network=network, schedule=None, sources=sources, layout="transformers")


def _diffusers_design(
    files: ModelFiles, config_file: Path, config: Mapping[str, Any], file: OpenFile
) -> Design:
    if "index" in files.paths:
        with _about(files.paths["index"]):
            check_pipeline(read_json(files.paths["index"]))
    with _about(config_file):
        network = diffusers_config(config)
    schedule, notes = NoiseSchedule(), list[str]()
    if "scheduler" in files.paths:
        with _about(files.paths["scheduler"]):
            schedule, prediction = diffusers_schedule(read_json(files.paths["scheduler"]))
            network = replace(network, prediction=prediction)
    else:
        notes.append(
            f"{shown(files.name)} does not say what noise it was trained with (no scheduler_config.json); "
            "DDPM's linear schedule is assumed, and that it predicts the noise"
        )
    if network.side is None:
        notes.append(f"{shown(files.name)} does not say the side of its images; it sees windows of any side")
    if network.center_input:
        notes.append(f"{shown(files.name)} was trained on images in [0, 1] and sees them in [-1, 1] here")
    legacy = config.get("attention_legacy_order") is True
    sources = diffusers_sources(network, old_names=_has_old_names(file), legacy=legacy)
    return Design(network=network, schedule=schedule, sources=sources, layout="diffusers", notes=tuple(notes))


def _has_old_names(file: OpenFile) -> bool:
    return any(".query." in name for name in file.shapes)


def architecture_design(architecture: Architecture, file: OpenFile) -> Design:
    """The design of weights that do not describe themselves."""
    network = architecture.network
    if architecture.layout == "guided":
        sources = guided_sources(network, architecture.qkv_order)
    else:
        sources = diffusers_sources(network, old_names=_has_old_names(file))
    return Design(
        network=network, schedule=architecture.schedule, sources=sources, layout=architecture.layout
    )


def check_shapes(sources: Mapping[str, Source], file: OpenFile, where: Path) -> None:
    """Require that a file has every tensor that the network needs, in its shape, and no other.

    Raises:
        ModelError: It does not; the first few differences are named.
    """
    needed = {
        name: shape
        for source in sources.values()
        for name, shape in zip(source.names, source.shapes, strict=True)
    }
    problems = [f"{name} is missing" for name in needed if name not in file.shapes]
    extra = [name for name in file.shapes if name not in needed and not _is_alias(name, file)]
    problems += [f"{shown(name[:100])} is not used" for name in extra]
    problems += [
        f"{name} has shape {list(file.shapes[name])}, expected {list(shape)}"
        for name, shape in needed.items()
        if file.shapes.get(name, shape) != shape
    ]
    if any(name.startswith(("label_emb.", "class_embedding.")) for name in file.shapes):
        problems.insert(
            0, "it is class-conditional: it needs the label of every image, which nobody knows here"
        )
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(
            f"{shown(str(where))}: these weights do not fit their network: {', '.join(problems[:3])}{more}"
        )


def _is_alias(name: str, file: OpenFile) -> bool:
    """Whether a tensor is the same as its twin: very old files of diffusers have some twice."""
    twin = name.replace(".Conv2d_0.", ".conv.")
    return twin != name and twin in file.shapes and torch.equal(file.read(name), file.read(twin))


def tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where our settings have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
