"""Reads tensors from files that nobody vouches for: safetensors here, pickles once and restricted."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.torch_version import TorchVersion

from zipcli.errors import ModelError, shown
from zipcli.models.hub import what_it_is

HEADER_LIMIT = 10_000_000
"""Bytes of a safetensors header; the largest network that we know has 90,000."""

PICKLE_SAFE_TORCH = TorchVersion("2.10")
"""Older ones have a hole in their restricted loader (CVE-2025-32434, CVE-2026-24747)."""

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class OpenFile(Protocol):
    """Named tensors of a file, read one at a time."""

    @property
    def description(self) -> dict[str, Any] | None:
        """What one of our own files says of itself; None for a foreign one."""
        ...

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each, known before any of them is read."""
        ...

    def read(self, name: str) -> Tensor:
        """Read one into memory of its own."""
        ...


@dataclass(frozen=True)
class SafetensorsFile:
    """An open safetensors file.

    Attributes:
        shapes: Shape of each tensor.
        metadata: What the header says besides.
    """

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    _file: Any

    @property
    def description(self) -> dict[str, Any] | None:
        """What one of our own files says of itself."""
        try:
            content = json.loads(self.metadata.get("zipcli", "null"))
        except (ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None

    def read(self, name: str) -> Tensor:
        """Read a tensor into memory of its own."""
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


@contextmanager
def open_safetensors(path: Path) -> Iterator[SafetensorsFile]:
    """Open a safetensors file; its header is checked, nothing else is read yet.

    Tensors are read into memory, not mapped: weights that are rearranged would be there twice, and
    a file that shrinks under a mapping kills the process.

    Raises:
        ModelError: It is no such file, is damaged, or holds something else than floating point.
    """
    try:
        with path.open("rb") as f:
            header = int.from_bytes(f.read(8), "little")
        if header > HEADER_LIMIT:
            why = what_it_is(path) or "; its header is too large"
            raise ModelError(f"{shown(str(path))}: not a safetensors file, or a damaged one{why}")
        with safe_open(path, framework="pt", backend="pread") as f:
            slices = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118  # no mapping
            for name, piece in slices.items():
                if piece.get_dtype() not in _FLOATS:
                    raise ModelError(
                        f"{shown(str(path))}: {shown(name)} is {piece.get_dtype()}, not floating point"
                    )
            shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
            yield SafetensorsFile(shapes, dict(f.metadata() or {}), f)
    except OSError as e:
        raise ModelError(f"{shown(str(path))}: cannot read the model: {e.strerror or e}") from e
    except (SafetensorError, UnicodeDecodeError) as e:
        raise ModelError(
            f"{shown(str(path))}: not a safetensors file, or a damaged one{what_it_is(path)}: {e}"
        ) from e


@dataclass(frozen=True)
class PickleFile:
    """The tensors of a pickle, still in the file."""

    tensors: dict[str, Tensor]
    description: dict[str, Any] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """Return a tensor whose values lie in row-major order."""
        return self.tensors[name].contiguous()


def open_pickle(path: Path) -> PickleFile:
    """Read the tensors of a PyTorch file with the restricted loader. Nothing else opens a pickle.

    Raises:
        ModelError: It is not a plain dictionary of tensors; nothing in it has been run.
    """
    if TorchVersion(torch.__version__) < PICKLE_SAFE_TORCH:
        raise ModelError(
            f"{shown(str(path))}: reading a pickle needs torch 2.10 or newer, not {torch.__version__}"
        )
    try:
        with path.open("rb") as f:
            is_zip = f.read(4) == b"PK\x03\x04"
        if not is_zip:
            raise ModelError(f"{shown(str(path))}: not a PyTorch file of the kind we read{what_it_is(path)}")
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if unsafe:
            raise ModelError(
                f"{shown(str(path))}: a pickle that wants to run {shown(', '.join(sorted(unsafe))[:200])}; "
                "it was not opened, and should not be"
            )
        # weights_only is said outright: without it an environment variable could turn it off.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as e:
        raise ModelError(f"{shown(str(path))}: cannot read the model: {e.strerror or e}") from e
    except ModelError:
        raise
    except Exception as e:  # a hostile pickle can make the loader fail in any way
        raise ModelError(f"{shown(str(path))}: not a PyTorch file, or a damaged one: {_first_line(e)}") from e
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise ModelError(f"{shown(str(path))}: holds a {type(content).__name__}, not a dictionary of tensors")
    size = path.stat().st_size
    total = 0
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ModelError(
                f"{shown(str(path))}: {shown(str(name)[:100])} is not a tensor of floating point"
            )
        total += tensor.numel() * tensor.element_size()
    # Some old files have a tensor under two names; views that share their values could unfold to any size.
    if total > 2 * size:
        raise ModelError(f"{shown(str(path))}: its tensors claim {total:,} bytes in a file of {size:,}")
    return PickleFile(content)


def check_finite(name: str, tensor: Tensor, where: Path) -> None:
    """Refuse weights with NaN or infinity in them."""
    if tensor.numel() and not all(math.isfinite(bound.item()) for bound in tensor.aminmax()):
        raise ModelError(f"{shown(str(where))}: the weights {shown(name)} are not finite")


def _first_line(error: Exception) -> str:
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0][:200])
