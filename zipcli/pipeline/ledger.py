"""What was done to which file: the state folder inside an output folder, and the order of writing there.

    OUT/.zipcli/run.json                        settings of the outputs, their fingerprint, the input folder
    OUT/.zipcli/ledger-00001-of-00001.jsonl     one line for each image started and each finished
    OUT/.zipcli/lock-00001-of-00001             held while a run writes
    OUT/.zipcli/reserve-00001-of-00001          room for the last lines, should the disk fill up
    OUT/.zipcli/tmp/00001-of-00001/*.part       files that are not complete yet

How an output comes to be, each step on the disk before the next one begins:

    1. `start`    the ledger says `started`, so that what a crash leaves is known to be ours
    2. `publish`  the bytes, whole and checked, go to a file in tmp (fsync), which then gets its name
                  (rename; a file that is not ours is never replaced), and the folder is synced
    3. `finish`   the ledger says `done`, with the digests of both files

So an output without a line is never ours, one with `started` alone is ours from a crash, and a name
never shows half a file. `resume.py` is the table of what follows from that.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zipcli.config import Shard
from zipcli.errors import InputError, OutputError, Reason, shown
from zipcli.images.write import Fill, publish, sync_folder, withdraw
from zipcli.pipeline.account import Account, stranger_at_work
from zipcli.pipeline.lock import holder, locked
from zipcli.pipeline.looking import looking
from zipcli.pipeline.outcome import Outcome, as_line
from zipcli.pipeline.records import (
    WHOLE,
    Records,
    heal,
    ledger_file,
    lock_file,
    locks_of,
    read_records,
    refuse_other_shards,
    scratch_folder,
)
from zipcli.pipeline.resume import OutputFolder, has_bytes
from zipcli.pipeline.settings import (
    STATE_FOLDER,
    has_settings,
    refuse_other_settings,
    write_settings,
)
from zipcli.pipeline.url import Url

RESERVE_BYTES = 2**20
FULL = (errno.ENOSPC, errno.EDQUOT)


def refuse_unwritable(out: Path) -> None:
    """Look, before a model is loaded, whether an output folder can be written, or made where there is none.

    Raises:
        OutputError: It is on a read-only disk, or its permissions forbid it.
    """
    nearest = next(folder for folder in (out, *out.absolute().parents) if os.path.lexists(folder))
    try:
        read_only = bool(os.statvfs(nearest).f_flag & os.ST_RDONLY)
    except OSError as e:
        raise OutputError(f"{shown(str(out))}: cannot look there: {e.strerror}") from e
    if read_only:
        raise OutputError(f"{shown(str(out))}: cannot write there: {os.strerror(errno.EROFS)}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{shown(str(out))}: cannot write there: {os.strerror(errno.EACCES)}")


class Ledger(Account):
    """The state folder of one output folder, or what a shard has of it, locked by this run."""

    def __init__(self, out: Path, source: Path | Url | None = None, shard: Shard = WHOLE) -> None:
        """Look at what an output folder holds; nothing is written before `open`.

        Args:
            out: The output folder.
            source: The input folder, noted for whoever wants to compare; it is no setting.
            shard: The part of the folder that this run takes.

        Raises:
            ConfigError: The folder was divided into other shards.
        """
        super().__init__(out, OutputFolder(out), shard)
        self.out: Path = out
        self.source = source
        self.folder = out / STATE_FOLDER
        self.scratch = scratch_folder(out, shard)
        self._lock = lock_file(out, shard)
        self._reserve = self.folder / f"reserve-{shard.index:05}-of-{shard.count:05}"
        self._file = ledger_file(out, shard)
        self._known = self._read()
        self._descriptor = -1

    def _refuse_other_settings(self) -> None:
        if not self._overwrite:
            refuse_other_settings(self.out, self.settings)

    @contextlib.contextmanager
    def open(self, *, force: bool = False) -> Iterator["Ledger"]:
        """Lock the folder, sweep what a crash left, and write lines until the end of the block.

        `took_over` says afterwards who had the folder before and did not let go of it.

        Args:
            force: Take the folder from an owner on another machine, where locks do not tell.

        Raises:
            LockedError: Another run holds the folder.
            OutputError: The folder cannot be written.
        """
        with looking(self.folder, OutputError):
            for folder in (self.folder, self.scratch.parent, self.scratch):
                if folder.is_symlink():
                    name = shown(str(folder))
                    raise OutputError(
                        f"{name}: is a link; remove it, our files must stay in the output folder"
                    )
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"{shown(str(self.out))}: cannot write there: {e.strerror}") from e
        with locked(self._lock, self.out, force=force, remedy="use --force-unlock") as self.took_over:
            yield from self._opened(force=force)

    def _opened(self, *, force: bool) -> Iterator["Ledger"]:
        try:
            with self._reporting():
                self._known = self._read()  # another run may have ended since we looked
                self._refuse_other_settings()
                self._refuse_company()
                if not force:
                    self._sweep()
                write_settings(self.out, self.settings, self.source, self.scratch, overwrite=self._overwrite)
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                if self.damaged_lines and self._file.exists():
                    heal(self._file, self.scratch)
                self._descriptor = os.open(self._file, flags, 0o666)
                self._drop_torn_line()
                for folder in (self.folder, self.out, self.out.absolute().parent):
                    sync_folder(folder)  # no output may outlive the name of its ledger
                self._keep_reserve()
            yield self
            self.sync()
        finally:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
                with contextlib.suppress(OSError):
                    self._reserve.unlink(missing_ok=True)

    def _refuse_company(self) -> None:
        """Refuse to work beside runs that divide the folder in another way, or to change their settings.

        Each run has its own lock by then: of two that come at once, at least one sees the other.
        """
        changes = self._overwrite and not has_settings(self.out, self.settings)
        for shard in self._strangers(locks_of(self.out), changes=changes):
            if who := holder(lock_file(self.out, shard)):
                raise stranger_at_work(shown(str(self.out)), shard, who)

    def _read(self) -> Records:
        """Read our lines, and those of the runs before there were shards."""
        refuse_other_shards(self.out, self.shard)
        return read_records(self.out, dict.fromkeys((WHOLE, self.shard)))

    def _sweep(self) -> None:
        """Remove what a crash left unfinished; the lock says that nobody works on it."""
        shutil.rmtree(self.scratch)
        self.scratch.mkdir()

    def _keep_reserve(self) -> None:
        """Take some room while there is some; without it, the lines of the last images could be lost."""
        try:
            self._reserve.unlink(missing_ok=True)
            with self._reserve.open("xb") as f:
                f.write(bytes(RESERVE_BYTES))
        except OSError as e:
            self._reserve.unlink(missing_ok=True)
            if e.errno not in (*FULL, errno.EFBIG):
                raise

    def start(self, images: Iterable[tuple[str, str, str | None]], seed: int | None) -> None:
        """Note (path, target, input digest if known) of images before their outputs can appear; synced."""
        for line in self._started(images, seed):
            self._append(line)
        self.sync()

    def publish(self, path: str, target: str, data: bytes | Fill) -> None:
        """Make an output appear whole under its name, durably; its image is `started`.

        Raises:
            InputError: Something that is not ours or that this run has written for another input is in
                the way, or the name is not possible there.
            OutputError: The folder cannot be written.
        """
        try:
            publish(data, self.out, target, self.scratch, replace=self.may_replace(path, target))
        except InputError as e:
            # Where locks do not work, another run may have written the very same.
            if e.reason is not Reason.FOREIGN_OUTPUT:
                raise
            if not has_bytes(self.out / target, data):
                self._refuse_collision(path, target)
                raise

    def finish(self, outcome: Outcome) -> None:
        """Note what became of an image; may be called from several threads."""
        self._learn(self._append(outcome.as_json()))

    def retract(self, path: str, target: str, in_sha256: str | None) -> None:
        """Remove our own output of an input that now fails, where it is not of this very version."""
        if self._is_outdated(path, target, in_sha256):
            self.withdraw(target)

    def withdraw(self, target: str) -> None:
        """Remove an output of which nobody but us knows, if it is there."""
        with self._reporting():
            withdraw(self.out, target)

    def sync(self) -> None:
        """Put every line on the disk."""
        with self._reporting():
            os.fsync(self._descriptor)

    def _append(self, line: dict[str, Any]) -> dict[str, Any]:
        """Write one line with one call, so that lines of several threads never mix; return it."""
        line = self._stamped(line)
        data = as_line(line)
        with self._write_lock, self._reporting():
            try:
                self._write(data)
            except OSError as e:
                if e.errno not in FULL or not self._reserve.exists():
                    raise
                self._reserve.unlink()  # this is what it was kept for; the next image will not fit
                self._write(data)
        return line

    def _write(self, data: bytes) -> None:
        written = os.write(self._descriptor, data)
        if written != len(data):  # a full disk: leave no half line for the next one to continue
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _drop_torn_line(self) -> None:
        """A crash can leave half a line at the end; it says nothing, and the next must not continue it."""
        size = end = os.fstat(self._descriptor).st_size
        while end and os.pread(self._descriptor, 1, end - 1) != b"\n":
            end -= 1
        if end != size:
            os.ftruncate(self._descriptor, end)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise OutputError(
                f"{shown(str(self.folder))}: cannot write the ledger: {e.strerror}; free the disk and run "
                "the same command again"
            ) from e
