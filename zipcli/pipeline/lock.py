"""A lock that dies with its owner, and a record of who that is for where locks do not work."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from zipcli.errors import LockedError, OutputError, shown
from zipcli.system import started

A_MOMENT = 0.05
"""Seconds in which whoever only looks at a lock has let go of it."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process, told from every other that ever had its number.

    Attributes:
        host: Name of its machine.
        pid: Its number there.
        started: When it was started, in the words of the system; empty where that cannot be known.
    """

    host: str
    pid: int
    started: str

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether it runs on this machine at this moment."""
        return self.is_here and started(self.pid) in (self.started, "unknown")

    def __str__(self) -> str:
        """The owner in a message."""
        return f"process {self.pid} on {shown(self.host)}"


def this_process() -> Owner:
    """The process that asks."""
    return Owner(host=socket.gethostname(), pid=os.getpid(), started=started(os.getpid()) or "")


def holder(file: Path) -> str | None:
    """Who holds `file`, in words, or None where nobody does; it is not taken."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        owner = _recorded(descriptor)
        with contextlib.suppress(OSError):
            if not _take(descriptor, fcntl.LOCK_SH):
                return str(owner or "unknown")
        return str(owner) if owner and owner.is_alive else None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(file: Path, what: Path, *, force: bool = False, remedy: str | None = None) -> Iterator[str | None]:
    """Hold `file`, created as needed, until the end of the block.

    On a local disk the kernel's lock decides: it dies with its owner. Some network file systems say
    yes to everybody; there the record in the file decides, and where it names another machine, only
    the user can know. Nothing that is written depends on the lock: two runs at once waste work.

    Args:
        file: The lock; it stays when the block ends, for whoever waits has it open.
        what: What it guards, for messages.
        force: Take it from an owner who cannot be seen from here.
        remedy: What a user does who knows that such an owner has ended; to remove `file` by default.

    Yields:
        Who had it and did not let go, in words, or None.

    Raises:
        LockedError: Another process holds it, or may hold it.
        OutputError: It cannot be made.
    """
    descriptor, is_taken = _acquire(file, what)
    try:
        owner = _recorded(descriptor)
        if is_taken is False and force and not (owner and owner.is_alive):
            file.unlink(missing_ok=True)  # a lock on a file without a name stops nobody
            os.close(descriptor)
            descriptor, is_taken = _acquire(file, what)
        if is_taken is False or not (is_gone(owner, force=force) or (is_taken and _works(file))):
            raise LockedError(refusal(owner, str(what), remedy or f"remove {shown(str(file))}"))
        _record(descriptor, json.dumps(asdict(this_process())))
        try:
            yield str(owner) if owner else None
        finally:
            _record(descriptor, "")
    finally:
        os.close(descriptor)


def _acquire(file: Path, what: Path) -> tuple[int, bool | None]:
    """Open a lock and try to take it: its descriptor, and whether it is ours (None where nobody can tell)."""
    while True:
        descriptor = _open(file, what)
        is_taken = _take_soon(descriptor)
        if not is_taken or _is_still(file, descriptor):
            return descriptor, is_taken
        os.close(descriptor)  # its owner has removed it: who comes next would make a new one


def _is_still(file: Path, descriptor: int) -> bool:
    """Whether a name still leads to the file that we have open."""
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
    except OSError:  # a disk that does not answer; the next call will say so
        return True


def _open(file: Path, what: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as e:
        raise OutputError(f"{shown(str(what))}: cannot write there: {e.strerror}") from e


def _take(descriptor: int, kind: int) -> bool:
    """Try to lock a file that is open; False where another process holds it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_soon(descriptor: int) -> bool | None:
    """Try to lock, and once more for the sake of a `holder` at work; None where there are no locks."""
    try:
        if _take(descriptor, fcntl.LOCK_EX):
            return True
        time.sleep(A_MOMENT)
        return _take(descriptor, fcntl.LOCK_EX)
    except OSError:
        return None


def _works(file: Path) -> bool:
    """Whether a lock that we hold keeps others out, tried by opening the file once more."""
    try:
        other = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            return not _take(other, fcntl.LOCK_EX)
        finally:
            os.close(other)
    except OSError:
        return False


def is_gone(owner: Owner | None, *, force: bool) -> bool:
    """Whether nobody is recorded, or somebody who has ended, as we see here or the user knows."""
    return owner is None or (not owner.is_alive and (owner.is_here or force))


def refusal(owner: Owner | None, what: str, remedy: str) -> str:
    """What to say to whoever finds a lock taken; `remedy` is for those who know that its owner has ended."""
    running = f"{shown(what)}: another run is writing there ({owner or 'unknown'}); wait for it"
    if owner and owner.is_here:
        return running
    return f"{running}, or, when you know that it has ended, {remedy}"


def _recorded(descriptor: int) -> Owner | None:
    """Who wrote there last and did not let go; None also where that cannot be read."""
    try:
        return owner_from_json(os.pread(descriptor, 1000, 0))
    except OSError:
        return None


def owner_from_json(data: bytes) -> Owner | None:
    """Who wrote this into a lock; None where that cannot be understood."""
    try:
        values = json.loads(data)
        return Owner(host=str(values["host"]), pid=int(values["pid"]), started=str(values["started"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _record(descriptor: int, text: str) -> None:
    """Write down who holds the lock; a courtesy, for which a full disk has no room."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
