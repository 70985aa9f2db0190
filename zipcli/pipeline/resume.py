"""What to do with an input, from what an earlier run has left: one table."""

import contextlib
import errno
import hashlib
import stat
from enum import Enum
from pathlib import Path
from typing import Protocol

from zipcli.errors import OutputError
from zipcli.images.write import Fill
from zipcli.pipeline.looking import looking
from zipcli.pipeline.records import Record


class Decision(Enum):
    """What to do with an input."""

    PURIFY = "purify"
    SKIP = "skip"
    REFUSE = "refuse"


class Found(Enum):
    """What an earlier run has left of an image; the first that holds."""

    NO_OUTPUT = "there is no file at the name of the output"
    FOREIGN = "there is one, and the ledger does not say that it is ours"
    UNFINISHED = "it is ours; the image was started, or has failed since, or was skipped"
    OTHER_SETTINGS = "it was purified with other settings"
    OTHER_INPUT = "it was purified from other bytes"
    OTHER_SIZE = "the output has not the size that was written"
    OTHER_BYTES = "it has the size, but not the bytes; looked for with --paranoid"
    INTACT = "none of these"


DECISIONS = {
    Found.NO_OUTPUT: Decision.PURIFY,
    Found.FOREIGN: Decision.REFUSE,  # unless --overwrite
    Found.UNFINISHED: Decision.PURIFY,
    Found.OTHER_SETTINGS: Decision.PURIFY,
    Found.OTHER_INPUT: Decision.PURIFY,
    Found.OTHER_SIZE: Decision.PURIFY,
    Found.OTHER_BYTES: Decision.PURIFY,
    Found.INTACT: Decision.SKIP,
}
"""Modification times are never consulted."""


class Outputs(Protocol):
    """Outputs that can be looked at, wherever they are."""

    def size(self, target: str, /) -> int | None:
        """Size of an output; None where there is none, -1 for what is no file."""

    def has_digest(self, target: str, sha256: str | None, /) -> bool:
        """Whether an output can be read and has this digest."""


class OutputFolder:
    """The outputs in a folder of this machine."""

    def __init__(self, out: Path) -> None:
        """Take the output folder."""
        self._out = out

    def size(self, target: str) -> int | None:
        """As `size_of`."""
        return size_of(self._out / target)

    def has_digest(self, target: str, sha256: str | None) -> bool:
        """Read the output."""
        return _has_digest(self._out / target, sha256)


def find(
    out: Path | Outputs,
    target: str,
    record: Record | None,
    in_sha256: str | None,
    fingerprint: str,
    *,
    paranoid: bool,
) -> Found:
    """Look at the output of one input.

    Args:
        out: The output folder, or how to look at what is in it.
        target: The output, relative to it.
        record: What the ledger says of the input, if anything.
        in_sha256: Digest of the input; None to leave changes of the input out of it.
        fingerprint: Of the settings of this run.
        paranoid: Whether to read the output before it is believed.

    Raises:
        OutputError: Nobody can look there.
    """
    outputs = OutputFolder(out) if isinstance(out, Path) else out
    size = outputs.size(target)
    if size is None:
        return Found.NO_OUTPUT
    if record is None or target not in record.targets:
        return Found.FOREIGN
    output = record.output
    if not record.is_finished or output is None or output.path != target:
        return Found.UNFINISHED
    if output.fingerprint != fingerprint:
        return Found.OTHER_SETTINGS
    if in_sha256 not in (None, output.in_sha256):
        return Found.OTHER_INPUT
    if size != output.bytes:
        return Found.OTHER_SIZE
    if paranoid and not outputs.has_digest(target, output.sha256):
        return Found.OTHER_BYTES
    return Found.INTACT


def size_of(path: Path) -> int | None:
    """Size of a file, or None where there is none; -1 for what is no file, such as a link.

    Raises:
        OutputError: Nobody can look there.
    """
    with looking(path, OutputError):
        try:
            status = path.lstat()
            return status.st_size if stat.S_ISREG(status.st_mode) else -1
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
                return None
            raise


def output_sha256(path: Path) -> str | None:
    """Digest of an output; None for a link, which we never write.

    Raises:
        OSError: It cannot be read.
    """
    if path.is_symlink():
        return None
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _has_digest(path: Path, sha256: str | None) -> bool:
    with contextlib.suppress(OSError):  # what cannot be read is written again
        return output_sha256(path) == sha256
    return False


def has_bytes(path: Path, data: bytes | Fill) -> bool:
    """Whether a file, which is no link, holds exactly `data`, or what that makes."""
    digest = hashlib.sha256()
    if isinstance(data, bytes):
        digest.update(data)
    else:
        data(digest.update)
    return _has_digest(path, digest.hexdigest())
