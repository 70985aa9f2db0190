"""A lock that dies with its owner."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from zipcli.errors import LockedError, OutputError, shown


def holder(file: Path) -> str | None:
    """Who holds `file`, as they wrote there, or None where nobody does; it is not taken."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(descriptor)
    except OSError:
        return None
    else:
        return None
    finally:
        os.close(descriptor)


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
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise LockedError(
                f"{shown(str(what))}: another run is writing there ({_owner(descriptor)}); wait for it"
            ) from e
        except OSError as e:
            raise OutputError(f"{shown(str(what))}: cannot be locked: {e.strerror}") from e
        with contextlib.suppress(OSError):  # a courtesy, for which a full disk has no room
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
