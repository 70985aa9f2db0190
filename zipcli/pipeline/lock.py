"""A lock that dies with its owner."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from zipcli.errors import LockedError, OutputError, shown

A_MOMENT = 0.05
"""Seconds in which whoever only looks at a lock has let go of it."""


def holder(file: Path) -> str | None:
    """Who holds `file`, as they wrote there, or None where nobody does; it is not taken."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with contextlib.suppress(OSError):
            if not _take(descriptor, fcntl.LOCK_SH):
                return _owner(descriptor)
    finally:
        os.close(descriptor)
    return None


def _take(descriptor: int, kind: int) -> bool:
    """Try to lock a file that is open; False where another process holds it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"


@contextlib.contextmanager
def locked(file: Path, what: Path) -> Iterator[None]:
    """Hold `file`, created as needed, until the end of the block.

    Args:
        file: The lock; it stays when the block ends, for whoever waits has it open.
        what: What it guards, for messages.

    Raises:
        LockedError: Another process holds it.
        OutputError: It cannot be made.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as e:
        raise OutputError(f"{shown(str(what))}: cannot write there: {e.strerror}") from e
    try:
        try:
            taken = _take(descriptor, fcntl.LOCK_EX)
            if not taken:  # by `holder`, perhaps, which lets go at once
                time.sleep(A_MOMENT)
                taken = _take(descriptor, fcntl.LOCK_EX)
        except OSError as e:
            raise OutputError(f"{shown(str(what))}: cannot be locked: {e.strerror}") from e
        if not taken:
            raise LockedError(
                f"{shown(str(what))}: another run is writing there ({_owner(descriptor)}); wait for it"
            )
        with contextlib.suppress(OSError):  # a courtesy, for which a full disk has no room
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
