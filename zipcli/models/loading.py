"""Loads a model: finds its files, verifies them, builds its network and fills it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zipcli.config import AUTOENCODER, NoiseSchedule
from zipcli.errors import ModelError, shown
from zipcli.models.denoiser import Denoiser
from zipcli.models.design import Design, open_model
from zipcli.models.hub import Listener
from zipcli.models.layouts import Source
from zipcli.models.local_unet import BandedUNet, LocalUNet
from zipcli.models.mae import MAE, Restorer
from zipcli.models.mae_config import MAEConfig
from zipcli.models.prior import Prior, UNetPrior
from zipcli.models.published import unpickled
from zipcli.models.store import ModelFiles, find_model
from zipcli.models.tensors import OpenFile, SafetensorsFile, check_finite
from zipcli.models.unet import UNet


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A noise predictor, ready on its device.

    Attributes:
        model: An `EpsModel`.
        sha256: Digest of the file of its weights.
        fingerprint: Everything that decides its predictions, for JSON.
        card: How the model was made, where its file says so.
        notes: What the user should know.
    """

    model: Prior | UNetPrior
    sha256: str
    fingerprint: dict[str, Any]
    card: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_model(
    name: str,
    device: torch.device,
    dtype: str = "auto",
    *,
    offline: bool = False,
    listener: Listener | None = None,
) -> LoadedModel:
    """Load a model as a noise predictor.

    Args:
        name: A name of the catalog, `owner/name[@revision][/file]` on the Hub, a file or a folder.
        device: Where to put it.
        dtype: Precision inside the network; auto is what `fitting_dtype` says.
        offline: Never connect.
        listener: Who is told of a download.

    Raises:
        ModelError: It cannot be had, is damaged, or is nothing that we can use.
    """
    with _opened(name, offline, listener) as (files, sha256, file, design):
        if design.schedule is None:
            raise ModelError(
                f"model {shown(name)}: it is a masked autoencoder, of use to --method bdmae alone; give a "
                "diffusion model"
            )
        network = design.build()
        if dtype == "auto":
            dtype = fitting_dtype(network, device)
        if isinstance(network, UNet):
            network.set_torso(getattr(torch, dtype))
        fill(network, design.sources, file, files.weights, device)
        network.eval().requires_grad_(False)
        model = _serve(network, design, design.schedule, getattr(torch, dtype))
    return LoadedModel(
        model=model,
        sha256=sha256,
        fingerprint=_fingerprint(design, sha256, dtype),
        card=design.card,
        notes=design.notes,
    )


@dataclass(frozen=True, kw_only=True)
class LoadedAutoencoder:
    """A masked autoencoder, ready on its device.

    Attributes:
        model: A `MaskedAutoencoder`.
        fingerprint: Everything that decides its predictions, for JSON.
    """

    model: Restorer
    fingerprint: dict[str, Any]


def load_autoencoder(
    name: str, device: torch.device, *, offline: bool = False, listener: Listener | None = None
) -> LoadedAutoencoder:
    """Load a model as a masked autoencoder, in float32; the arguments are those of `load_model`.

    Raises:
        ModelError: It cannot be had, is damaged, or is no masked autoencoder.
    """
    with _opened(name, offline, listener) as (files, sha256, file, design):
        if not isinstance(design.network, MAEConfig):
            raise ModelError(
                f"model {shown(name)}: it is a diffusion model, and a masked autoencoder is needed, such as "
                f"{AUTOENCODER}"
            )
        network = design.build()
        assert isinstance(network, MAE)
        fill(network, design.sources, file, files.weights, device)
    network.eval().requires_grad_(False)
    return LoadedAutoencoder(model=Restorer(network), fingerprint=_fingerprint(design, sha256, "float32"))


def check_model(name: str) -> str:
    """Read a model that is here completely, of whichever kind; returns the digest of its weights.

    Raises:
        ModelError: It is not here, is damaged, or is nothing that we can use.
    """
    with _opened(name, True, None) as (files, sha256, file, design):
        fill(design.build(), design.sources, file, files.weights, torch.device("cpu"))
    return sha256


@contextmanager
def _opened(
    name: str, offline: bool, listener: Listener | None
) -> Iterator[tuple[ModelFiles, str, SafetensorsFile, Design]]:
    """Find, verify and open a model; no tensor is read yet."""
    listener = listener or Listener()
    files = unpickled(find_model(name, listener, offline=offline), listener)
    sha256 = files.verify()["weights"]
    with open_model(files) as (file, design):
        yield files, sha256, file, design


def _fingerprint(design: Design, sha256: str, dtype: str) -> dict[str, Any]:
    fingerprint: dict[str, Any] = {"model_sha256": sha256, "dtype": dtype}
    if design.layout != "zipcli":  # our own files say this under their digest
        schedule = {} if design.schedule is None else {"schedule": asdict(design.schedule)}
        fingerprint["network"] = asdict(design.network) | schedule
    return fingerprint


def fitting_dtype(network: nn.Module, device: torch.device) -> str:
    """The shortest format in which a network is as good as in float32, where that saves time.

    A published U-Net is float16 on a GPU, as its authors run it. One of ours is bfloat16 on a CPU that
    multiplies in it: measured on CIFAR-10, PSNR and accuracy are those of float32, at 1.6 times the speed.
    """
    if isinstance(network, UNet):
        return "float16" if device.type == "cuda" else "float32"
    return "bfloat16" if device.type == "cpu" and multiplies_bfloat16() else "float32"


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; not known of all kinds."""
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    older = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return older is not None and bool(older())


def _serve(
    network: nn.Module, design: Design, schedule: NoiseSchedule, dtype: torch.dtype
) -> Prior | UNetPrior:
    if isinstance(network, UNet):
        return UNetPrior(network, schedule)
    assert isinstance(network, LocalUNet | BandedUNet)
    denoiser = Denoiser(network, design.sigma_data).eval()
    return Prior(denoiser, schedule, network.config.channels, dtype)


def fill(
    network: nn.Module, sources: Mapping[str, Source], file: OpenFile, where: Path, device: torch.device
) -> None:
    """Give a network on the meta device its weights, one tensor after the other.

    Each is read, checked and moved to its place before the next, so that no moment has the weights
    twice. Convolutions get the memory order that they are fastest in.
    """
    wanted = network.state_dict()
    state: dict[str, Tensor] = {}
    for name, tensor in gathered(sources, file, where):
        tensor = tensor.to(device, wanted[name].dtype)
        if tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        state[name] = tensor
    network.load_state_dict(state, assign=True)


def gathered(sources: Mapping[str, Source], file: OpenFile, where: Path) -> Iterator[tuple[str, Tensor]]:
    """Read every parameter by our name, with the rows of q, k and v in our order.

    Raises:
        ModelError: A weight is not finite, or the file ends early.
    """
    for name, source in sources.items():
        parts = []
        for part, shape in zip(source.names, source.shapes, strict=True):
            try:
                tensor = file.read(part)
            except (OSError, RuntimeError) as e:
                raise ModelError(f"{shown(str(where))}: cannot read {shown(part)}: {e}") from e
            check_finite(part, tensor, where)
            # A projection stored as a convolution over one pixel has a trailing side of 1.
            parts.append(tensor.squeeze(-1) if len(shape) == 3 else tensor)
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        yield name, joined if source.legacy_heads is None else from_legacy(joined, source.legacy_heads)


def from_legacy(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a q, k and v matrix from [heads, 3, d] to [3, heads, d].

    Args:
        rows: (3 C, ...), weights or biases.
        heads: Number of attention heads.
    """
    return rows.reshape(heads, 3, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)
