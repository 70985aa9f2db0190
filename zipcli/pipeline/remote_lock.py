"""A lock that is an object: whoever creates it has the folder. It does not die with its owner."""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict

from zipcli.errors import LockedError, OutputError, shown
from zipcli.pipeline.lock import is_gone, owner_from_json, refusal, this_process
from zipcli.pipeline.remote import TRIES, Store, telling

SETTLE = 0.5
"""Seconds after which of two runs that take over the same lock at once, one sees the other.

It is for stores that do not put under the condition that nobody has put since.
"""


@contextlib.contextmanager
def remotely_locked(
    store: Store, path: str, *, force: bool, remedy: str = "use --force-unlock"
) -> Iterator[str | None]:
    """Hold the object at `path` until the end of the block.

    An owner on this machine that has ended is seen, one on another only the user can know. Nothing that
    is written depends on the lock: two runs at once waste work, and one of them ends when both want to
    create the same part of the ledger.

    Args:
        store: The output folder.
        path: Where the lock lies in it.
        force: Take it from an owner who cannot be seen from here.
        remedy: What to do about an owner who has ended unseen.

    Yields:
        Who had it and did not let go, in words, or None.

    Raises:
        LockedError: Another process holds it, or may hold it.
        OutputError: It cannot be made.
    """
    ours = json.dumps(asdict(this_process()) | {"token": secrets.token_hex(8)}).encode()
    try:
        with telling(store.url, "cannot write there"):
            previous = _acquire(store, path, ours, force=force, remedy=remedy)
    except OutputError:
        _release(store, path, ours, tries=1)  # it may be there, and this process lives on as its owner
        raise
    try:
        yield previous
    finally:
        _release(store, path, ours)


def _release(store: Store, path: str, ours: bytes, tries: int = TRIES) -> None:
    """Remove our lock, and no other."""
    with contextlib.suppress(OSError):  # then the next run finds out that we have ended
        seen = store.look(path, tries)
        if store.read(path, tries=tries) == ours:
            store.remove(path, seen)


def _acquire(store: Store, path: str, ours: bytes, *, force: bool, remedy: str) -> str | None:
    """Take the lock; returns who did not let go of it."""
    for _ in range(3):
        try:
            store.create(path, ours)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):  # let go of at this moment
                return _take_over(store, path, ours, force=force, remedy=remedy)
        else:
            return None
    raise OutputError(
        f"{shown(str(store.url))}: another run comes and goes there; run the same command again"
    )


def _take_over(store: Store, path: str, ours: bytes, *, force: bool, remedy: str) -> str:
    """Replace a lock that nobody holds.

    Raises:
        FileNotFoundError: It is gone.
    """
    seen = store.look(path)  # before it is read: what has changed since is not replaced
    owner = owner_from_json(store.read(path))
    if not (is_gone(owner, force=force) and (owner or force)):
        raise LockedError(refusal(owner, str(store.url), remedy))
    beaten = LockedError(refusal(None, str(store.url), "run the same command again"))
    try:
        store.replace(path, ours, seen)
    except FileExistsError as e:
        raise beaten from e
    time.sleep(SETTLE)
    if store.read(path) != ours:
        raise beaten
    return str(owner or "unknown")
