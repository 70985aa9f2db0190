"""A lock that dies with its owner."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from zipcli.errors import LockedError, OutputError, shown


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
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
            raise LockedError(
                f"{shown(str(what))}: another run is writing there ({owner}); wait for it"
            ) from e
        except OSError as e:
            raise OutputError(f"{shown(str(what))}: cannot be locked: {e.strerror}") from e
        with contextlib.suppress(OSError):  # a courtesy, for which a full disk has no room
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
