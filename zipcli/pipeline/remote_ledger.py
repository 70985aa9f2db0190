"""What was done to which object: the ledger of a remote output folder, and the order of writing there.

As in `ledger.py`, each step is stored before the next one begins, for each image:

    1. `start`    a part of the ledger says `started`
    2. `publish`  one put of the whole output; it waits for that part, and the network does not
    3. `finish`   a later part says `done`, after two seconds at most

Where the store can, an output is marked with what its `started` line says. So an output that nobody knows
the end of, because of a crash or since the answer of the store got lost, is told from what others have put
there meanwhile. `remote_records.py` says what lies in the state folder.
"""

import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from zipcli.config import Shard
from zipcli.errors import InputError, OutputError, Reason, shown
from zipcli.pipeline.account import Account, stranger_at_work
from zipcli.pipeline.outcome import Outcome, as_line
from zipcli.pipeline.records import WHOLE, Records, refuse_counts
from zipcli.pipeline.remote import RemoteOutlet, Sizes, Store, telling
from zipcli.pipeline.remote_lock import remotely_locked
from zipcli.pipeline.remote_records import (
    RUN_FILE,
    begun_object,
    heal_remote,
    lock_object,
    part_object,
    parts,
    read_parts,
    read_remote,
    remote_locks,
    remote_owner,
    remote_shards,
    remote_state,
)
from zipcli.pipeline.settings import refuse_difference, run_json
from zipcli.pipeline.url import Url

FLUSH_SECONDS = 2.0
"""How long a line may wait that nobody waits for."""

PARTS_TOGETHER = 64
"""Parts of a run that are joined to one as soon as there are so many."""

JOIN_BYTES = 2**28
"""Most bytes of parts that are joined at the end of a run."""


class RemoteOutputs:
    """The outputs below a URL."""

    def __init__(self, url: Url) -> None:
        """Look at nothing yet."""
        self._store = Store(url)
        self._sizes = Sizes(self._store)

    def size(self, target: str) -> int | None:
        """Size of an output when its folder was listed."""
        return self._sizes[target]

    def has_digest(self, target: str, sha256: str | None) -> bool:
        """Read the output."""
        with contextlib.suppress(OSError):  # what cannot be read is written again
            return hashlib.sha256(self._store.read(target)).hexdigest() == sha256
        return False


class RemoteLedger(Account):
    """The state folder of one remote output folder, or what a shard has of it, locked by this run."""

    def __init__(self, out: Url, source: Path | Url | None = None, shard: Shard = WHOLE) -> None:
        """Look at what an output folder holds; nothing is written before `open`.

        Args:
            out: The output folder.
            source: The input folder, noted for whoever wants to compare; it is no setting.
            shard: The part of the folder that this run takes.

        Raises:
            ConfigError: The folder was divided into other shards.
            OutputError: There is no such bucket, or access is refused.
        """
        super().__init__(out, RemoteOutputs(out), shard)
        self.out: Url = out
        self.source = source
        self.outlet = RemoteOutlet(out)
        self._store = Store(out)
        self._known = self._read()
        self._writer: PartWriter | None = None
        self._begun: dict[str, tuple[int, str | None]] = {}

    def _read(self) -> Records:
        """Read our lines, and those of the runs before there were shards."""
        name, there = shown(str(self.out)), remote_shards(self.out)
        with telling(self.out):
            refuse_counts({shard.count for shard in there if parts(self.out, shard)}, self.shard, name)
        return read_remote(self.out, dict.fromkeys((WHOLE, self.shard)))

    def _refuse_other_settings(self) -> None:
        if not self._overwrite and (state := remote_state(self.out)):
            refuse_difference(state.settings, self.settings, shown(str(self.out)))

    @contextlib.contextmanager
    def open(self, *, force: bool = False) -> Iterator["RemoteLedger"]:
        """Lock the folder, and write lines until the end of the block.

        `took_over` says afterwards who had the folder before and did not let go of it.

        Args:
            force: Take the folder from an owner who cannot be seen from here.

        Raises:
            LockedError: Another run holds the folder.
            OutputError: The folder cannot be written.
        """
        with remotely_locked(self._store, lock_object(self.shard), force=force) as self.took_over:
            self._known = self._read()  # another run may have ended since we looked
            self._refuse_company(force=force)
            if self.damaged_lines:
                heal_remote(self.out, self.shard)
            self._write_settings()
            with telling(self.out):
                last = max((number for number, _ in parts(self.out, self.shard)), default=0)
            with telling(self.out, "cannot write the ledger"):
                self._store.put(begun_object(self.shard), b"begun\n")
            self._writer = PartWriter(self.out, self.shard, last + 1)
            try:
                yield self
            finally:
                self._writer.close()  # also what was done before somebody stopped us
            join_parts(self.out, self.shard)

    def _refuse_company(self, *, force: bool) -> None:
        """Refuse to work beside runs that divide the folder in another way, or to change their settings.

        With `force`, those on other machines are believed to have ended.
        """
        state = remote_state(self.out)
        changes = self._overwrite and state is not None and state.settings != self.settings
        for shard in self._strangers(remote_locks(self.out), changes=changes):
            if who := remote_owner(self.out, shard, force=force):
                raise stranger_at_work(shown(str(self.out)), shard, who)

    def _write_settings(self) -> None:
        """Record the settings; of runs that start at the same moment, the first decides."""
        data = run_json(self.settings, self.source)
        with telling(self.out, "cannot write the ledger"):
            if not self._overwrite:
                with contextlib.suppress(FileExistsError):
                    self._store.create(RUN_FILE, data)
            self._refuse_other_settings()
            if self._store_differs(data):
                self._store.put(RUN_FILE, data)

    def _store_differs(self, data: bytes) -> bool:
        try:
            return self._store.read(RUN_FILE) != data
        except FileNotFoundError:
            return True

    def start(self, images: Iterable[tuple[str, str, str]], seed: int | None) -> None:
        """Note (path, target, input digest) of images; their outputs wait until that is stored."""
        images = list(images)
        for (path, target, _), line in zip(images, self._started(images, seed), strict=True):
            mark = self._mark(path, target)
            line |= {"mark": mark} if mark else {}
            ticket = self._open_writer.add(as_line(self._stamped(line)), soon=True)
            self._begun[path] = ticket, mark

    def _mark(self, path: str, target: str) -> str | None:
        """What to mark an output with: what it may be marked with already, if a run was stopped."""
        record = self.records.get(path)
        if record and record.claim == target and record.mark:
            return record.mark
        return secrets.token_hex(8) if self._store.has_marks else None

    def publish(self, path: str, target: str, data: bytes) -> None:
        """Make an output appear whole under its name; its image is `started`.

        Raises:
            InputError: Something that is not ours or that this run has written for another input is in
                the way, the name is not possible there, or the store has failed again and again.
            OutputError: The folder cannot be written.
        """
        may_replace = self.may_replace(path, target) and not self._is_told_by_mark(path, target)
        ticket, mark = self._begun.pop(path, (None, None))
        self._open_writer.wait(ticket)
        try:
            self.outlet.publish(target, data, replace=may_replace, mark=mark)
        except InputError as e:
            if e.reason is Reason.FOREIGN_OUTPUT:
                self._refuse_collision(path, target)
            raise

    def _is_told_by_mark(self, path: str, target: str) -> bool:
        """Whether an output is ours only if it has our mark: no run is known to have finished it."""
        record = self.records.get(path)
        if self._overwrite or record is None or record.mark is None or record.claim != target:
            return False
        return record.output is None or record.output.path != target

    def finish(self, outcome: Outcome) -> None:
        """Note what became of an image; may be called from several threads."""
        line = self._stamped(outcome.as_json())
        self._open_writer.add(as_line(line), soon=False)
        self._learn(line)

    def retract(self, path: str, target: str, in_sha256: str | None) -> None:
        """Remove our own output of an input that now fails, where it is not of this very version."""
        if not self._is_outdated(path, target, in_sha256):
            return
        record = self.records[path]
        with telling(self.out, "cannot remove what is out of date"), contextlib.suppress(FileNotFoundError):
            seen, output = self._store.look(target), record.output
            is_finished = output is not None and (output.path, output.bytes) == (target, seen.size)
            if is_finished or (record.claim == target and record.mark in (None, seen.mark)):
                self._store.remove(target, seen)

    def sync(self) -> None:
        """Wait until every line is stored."""
        self._open_writer.wait(None)

    @property
    def _open_writer(self) -> "PartWriter":
        assert self._writer is not None, "the ledger is not open"
        return self._writer


class PartWriter:
    """Writes lines as numbered parts, in a thread of its own.

    Lines that come while a part is on its way share the next one, so the number of puts follows from how
    long one takes, and not from how many images there are.
    """

    def __init__(self, url: Url, shard: Shard, number: int) -> None:
        """Start the thread.

        Args:
            url: The output folder.
            shard: Whose ledger it is.
            number: Of the first part.
        """
        self._url, self._store, self._shard, self._number = url, Store(url), shard, number
        self._recent: list[tuple[str, bytes]] = []
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._since = 0.0
        self._added = self._stored = self._wanted = 0
        self._is_closing = False
        self._error: OutputError | None = None
        self._thread = threading.Thread(target=self._run, name="zipcli-ledger", daemon=True)
        self._thread.start()

    def add(self, line: bytes, *, soon: bool) -> int:
        """Take a line.

        Args:
            line: With its line break.
            soon: Whether somebody waits for it.

        Returns:
            A ticket to `wait` with.

        Raises:
            OutputError: Earlier lines could not be stored.
        """
        with self._changed:
            self._refuse_failed()
            self._since = self._since if self._waiting else time.monotonic()
            self._waiting.append(line)
            self._added += 1
            if soon:
                self._wanted = self._added
            self._changed.notify_all()
            return self._added

    def wait(self, ticket: int | None) -> None:
        """Wait until a line is stored, or, without a ticket, all are.

        Raises:
            OutputError: It could not be stored.
        """
        with self._changed:
            ticket = self._added if ticket is None else ticket
            self._wanted = max(self._wanted, ticket)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stored >= ticket or self._error)
            if self._stored < ticket:
                self._refuse_failed()

    def close(self) -> None:
        """Store what is left, and end.

        Raises:
            OutputError: It could not be stored.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()
        self._refuse_failed()

    def _refuse_failed(self) -> None:
        if self._error:
            raise OutputError(str(self._error)) from self._error  # in several threads: one object for each

    def _run(self) -> None:
        try:
            while lines := self._next():
                self._put(b"".join(lines))
                with self._changed:
                    self._stored += len(lines)
                    self._changed.notify_all()
                if len(self._recent) >= PARTS_TOGETHER:
                    self._join()
        except OutputError as e:
            with self._changed:
                self._error = e
                self._changed.notify_all()

    def _next(self) -> list[bytes]:
        """Wait for lines that are due; none at the end."""
        with self._changed:
            while not (self._is_closing or self._wanted > self._stored):
                left = self._since + FLUSH_SECONDS - time.monotonic() if self._waiting else None
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            lines, self._waiting = self._waiting, []
            return lines

    def _put(self, data: bytes) -> None:
        """Store one part.

        Raises:
            OutputError: It cannot be stored, or another run has stored one of its number.
        """
        part = part_object(self._shard, self._number)
        try:
            with telling(self._url, "cannot write the ledger"):
                self._store.create(part, data)
        except OutputError as e:
            if isinstance(e.__cause__, FileExistsError):
                name = shown(str(self._url))
                raise OutputError(f"{name}: another run writes the same ledger; wait until it ends") from e
            raise
        self._number += 1
        self._recent.append((part, data))

    def _join(self) -> None:
        """Replace the last parts by one, so that there are never very many."""
        old, self._recent = self._recent, []
        self._put(b"".join(data for _, data in old))
        self._recent.clear()
        with telling(self._url, "cannot write the ledger"):
            for part, _ in old:
                self._store.remove(part)


def join_parts(url: Url, shard: Shard) -> None:
    """Replace the last parts of a ledger, as many as fit, by one; a crash in between loses nothing.

    Raises:
        OutputError: The store cannot be written.
    """
    store = Store(url)
    with telling(url, "cannot write the ledger"):
        last = parts(url, shard)
        while sum(size for _, size in last) > JOIN_BYTES:
            del last[0]  # what remains must be the end of the ledger, whose lines may be there twice
        if len(last) > 1:
            data = b"".join(data for _, data in read_parts(url, shard, last))
            store.create(part_object(shard, last[-1][0] + 1), data)
            for number, _ in last:
                store.remove(part_object(shard, number))
