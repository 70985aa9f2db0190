"""Keeps published pickles as safetensors: each is opened once, restricted, and never again."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from zipcli.errors import ModelError, OutputError, shown
from zipcli.models.hub import ABANDONED_SECONDS, Listener, file_sha256
from zipcli.models.records import converted_file, find_converted, own_folder, write_converted
from zipcli.models.store import PICKLES, ModelFiles, converted_copy, with_copy
from zipcli.models.tensors import check_finite, open_pickle


def unpickled(files: ModelFiles, listener: Listener, *, again: bool = False) -> ModelFiles:
    """Replace weights from the Hub that are a pickle by a copy in safetensors, made once.

    Only the container changes; names and values stay as their authors wrote them. The copy is named
    after the SHA-256 of the pickle, and its own is recorded beside it.

    Raises:
        ModelError: The pickle has wrong bytes, or is not a plain dictionary of tensors.
    """
    if files.weights.suffix not in PICKLES:
        return files
    assert files.from_hub, "pickles of the user's are refused where they are found"
    copy = None if again else converted_copy(files)
    if copy is not None:
        return copy
    digest = files.verify()["weights"]
    if not again and (found := find_converted(digest)) is not None:
        return with_copy(files, *found)
    listener.note(
        f"{files.name} is published as a pickle (SHA-256 {digest}); it is read once, restricted to tensors, "
        "and kept as safetensors"
    )
    target = converted_file(own_folder("converted"), digest)
    pickle = open_pickle(files.weights)
    for name in pickle.shapes:
        check_finite(name, pickle.read(name), files.weights)
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name in pickle.shapes:
        tensor = pickle.read(name)
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor  # two names for one value
        seen.add(tensor.data_ptr())
    try:
        save(target, tensors, {"source_sha256": digest}, listener.check_stop)
        sha256 = file_sha256(target)
        write_converted(target, sha256)
    except (OutputError, OSError) as e:
        raise ModelError(f"{e} (HF_HOME)") from e
    return with_copy(files, target, sha256)


def save(
    target: Path, tensors: dict[str, Tensor], metadata: dict[str, str], check_stop: Callable[[], None]
) -> None:
    """Write a safetensors file so that it is there whole or not at all.

    Raises:
        OutputError: The disk is full, or the place cannot be written.
    """
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    check_stop()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for old in target.parent.glob(f"{target.name}.*.part"):  # a process that was killed left it
            if time.time() - old.stat().st_mtime > ABANDONED_SECONDS:
                old.unlink(missing_ok=True)
        with torch.no_grad():
            save_file(tensors, part, metadata=metadata)
        with part.open("rb+") as f:
            os.fchmod(f.fileno(), 0o666 & ~_umask())  # safetensors makes files that nobody else may read
            os.fsync(f.fileno())
        part.replace(target)
    except (OSError, SafetensorError) as e:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        full = "; free some space, or choose another disk" if "space" in str(e) else ""
        raise OutputError(f"{shown(str(target))}: cannot be written: {e}{full}") from e


def _umask() -> int:
    """What the user takes away from the permissions of new files; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
