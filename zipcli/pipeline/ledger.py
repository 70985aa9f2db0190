"""What was done to which file with which settings: the state folder inside an output folder.

    OUT/.zipcli/run.json                        settings of the outputs, their fingerprint, the input folder
    OUT/.zipcli/ledger-00001-of-00001.jsonl     one line for each image started and each finished
    OUT/.zipcli/lock-00001                      held while a run writes
    OUT/.zipcli/tmp/*.part                      files that are not complete yet

An image is `started`, synced to disk, before its output can appear, and `done` afterwards. So an
output without a line is never ours, and one with `started` alone is ours from a crash.
"""

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from zipcli import __version__
from zipcli.errors import ConfigError, OutputError, shown
from zipcli.pipeline.lock import locked
from zipcli.pipeline.outcome import Outcome, json_path, path_from_json

STATE_FOLDER = ".zipcli"
FORMAT = 1
"""Version of these files; a newer one is refused."""

ALGORITHM = 1
"""Rises when the same settings give other pixels; part of the fingerprint."""


class Decision(Enum):
    """What to do with an input."""

    PURIFY = "purify"
    SKIP = "skip"
    REFUSE = "refuse"


@dataclass(frozen=True, kw_only=True)
class Record:
    """The last line about one input.

    Attributes:
        state: started, done, passed, skipped or failed.
        fingerprint: Of the settings then.
        in_sha256: Digest of the input.
        out_path: The output that is ours, relative to the output folder, whatever the state.
        out_bytes: Its size.
        out_sha256: Its digest.
        reason: Why the image was skipped or failed.
        time: When the line was written, in ISO 8601.
    """

    state: str
    fingerprint: str
    in_sha256: str | None
    out_path: str | None
    out_bytes: int | None
    out_sha256: str | None = None
    reason: str | None = None
    time: str | None = None


@dataclass(frozen=True, kw_only=True)
class State:
    """What run.json says.

    Attributes:
        settings: Of the outputs.
        fingerprint: Of the settings.
        version: Of the zipcli that wrote there last.
        input: Where the images were, or None where that was not recorded.
    """

    settings: dict[str, Any]
    fingerprint: str
    version: str
    input: Path | None


def read_state(out: Path) -> State:
    """Read run.json of an output folder; a run may be writing there meanwhile.

    Raises:
        ConfigError: There is none, or it is damaged or of a newer version.
    """
    file = out / STATE_FOLDER / "run.json"
    name = shown(str(file))
    try:
        run = json.loads(file.read_bytes())
        is_newer = int(run["format"]) > FORMAT
        state = State(
            settings=dict(run["settings"]),
            fingerprint=str(run["fingerprint"]),
            version=str(run.get("version")),
            input=Path(path_from_json(run, "input")) if "input" in run else None,
        )
    except (FileNotFoundError, NotADirectoryError) as e:
        raise ConfigError(
            f"{shown(str(out))}: holds no ledger; give the output folder of zipcli purify"
        ) from e
    except OSError as e:
        raise ConfigError(f"{name}: cannot be read: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ConfigError(f"{name}: damaged ({e}); purify again") from e
    if is_newer:
        raise ConfigError(f"{name}: written by a newer zipcli; use that version")
    return state


class Ledger:
    """The state folder of one output folder, locked by this run."""

    def __init__(self, out: Path, source: Path | None = None) -> None:
        """Look at what an output folder holds; nothing is written before `open`.

        Args:
            out: The output folder.
            source: The input folder, noted for whoever wants to compare; it is no setting.
        """
        self.out = out
        self.source = source
        self.folder = out / STATE_FOLDER
        self.scratch = self.folder / "tmp"
        self.settings: dict[str, Any] = {}
        self.fingerprint = ""
        self._overwrite = False
        self.damaged_lines = 0
        self._file = self.folder / "ledger-00001-of-00001.jsonl"
        self._records = self._read()
        self._write_lock = threading.Lock()
        self._descriptor = -1

    def use_settings(self, settings: dict[str, Any], *, overwrite: bool) -> None:
        """Say what this run does; settings are never mixed in one folder.

        Args:
            settings: Everything that can change the bytes of an output, ready for JSON.
            overwrite: Purify again what was purified with other settings.

        Raises:
            ConfigError: The folder has outputs of other settings and `overwrite` is False.
        """
        self.settings = json.loads(json.dumps({"algorithm": ALGORITHM, **settings}, allow_nan=False))
        self.fingerprint = fingerprint(self.settings)
        self._overwrite = overwrite
        self._refuse_other_settings()

    def _refuse_other_settings(self) -> None:
        path = self.folder / "run.json"
        if not path.exists():
            return
        try:
            run = json.loads(path.read_text())
            known, their_format = dict(run["settings"]), int(run["format"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            if self._overwrite:
                return
            raise ConfigError(
                f"{path}: damaged ({e}); purify into an empty folder, or use --overwrite"
            ) from e
        if their_format > FORMAT:
            raise ConfigError(f"{path}: written by a newer zipcli; install that version to go on")
        if known != self.settings and not self._overwrite:
            changed = [
                f"{name.rstrip('_')}: {known.get(name)!r} there, {self.settings.get(name)!r} now"
                for name in sorted(known.keys() | self.settings.keys())
                if known.get(name) != self.settings.get(name)
            ]
            raise ConfigError(
                f"{self.out}: holds images purified with other settings ({'; '.join(changed)}); choose "
                "another output folder, or use --overwrite to purify all of them again"
            )

    @property
    def records(self) -> Mapping[str, Record]:
        """The last record of each input, by its path."""
        return self._records

    def decide(
        self, path: str, target: str, in_sha256: str | None, *, overwrite: bool, paranoid: bool = False
    ) -> Decision:
        """Decide about one input; modification times are never consulted.

        Args:
            path: The input.
            target: Its output, relative to the output folder.
            in_sha256: Digest of the input; None to leave changes of the input out of it.
            overwrite: Whether files that are not ours may be replaced.
            paranoid: Whether to read an output before it is believed to be done.
        """
        size = _size(self.out / target)
        record = self._records.get(path)
        if size is None:
            return Decision.PURIFY  # new, or its output was deleted
        if record is None or record.out_path != target:
            return Decision.PURIFY if overwrite else Decision.REFUSE  # somebody else's file
        finished = record.state in ("done", "passed") and size == record.out_bytes
        unchanged = in_sha256 in (None, record.in_sha256) and record.fingerprint == self.fingerprint
        if not (finished and unchanged):
            return Decision.PURIFY
        if paranoid and not self._is_intact(target, record):
            return Decision.PURIFY
        return Decision.SKIP

    def _is_intact(self, target: str, record: Record) -> bool:
        with contextlib.suppress(OSError):  # what cannot be read is written again
            return output_sha256(self.out / target) == record.out_sha256
        return False

    def owns(self, path: str, target: str) -> bool:
        """Whether an output, should it exist, was written by us for this input."""
        record = self._records.get(path)
        return record is not None and record.out_path == target

    @contextlib.contextmanager
    def open(self) -> Iterator["Ledger"]:
        """Lock the folder, sweep what a crash left, and write lines until the end of the block.

        Raises:
            LockedError: Another run holds the folder.
            OutputError: The folder cannot be written.
        """
        if self.folder.is_symlink():
            raise OutputError(
                f"{self.folder}: is a link; remove it, our files must stay in the output folder"
            )
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"{self.out}: cannot write there: {e.strerror}") from e
        with locked(self.folder / "lock-00001", self.out):
            yield from self._opened()

    def _opened(self) -> Iterator["Ledger"]:
        try:
            with self._reporting():
                self._records = self._read()  # another run may have ended since we looked
                self._refuse_other_settings()
                for part in self.scratch.glob("*.part"):
                    part.unlink(missing_ok=True)
                self._write_run()
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._descriptor = os.open(self._file, flags, 0o666)
                self._drop_torn_line()
            yield self
            self.sync()
        finally:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def start(self, images: Iterable[tuple[str, str, str]], seed: int | None) -> None:
        """Note (path, target, input digest) of images before their outputs can appear; synced."""
        for path, target, in_sha256 in images:
            line = {"state": "started", **json_path("path", path), **json_path("out_path", target)}
            self._append({**line, "in_sha256": in_sha256, "seed": seed})
        self.sync()

    def finish(self, outcome: Outcome) -> None:
        """Note what became of an image; may be called from several threads."""
        self._append(outcome.as_json())
        if outcome.path in self._records:
            record = self._records[outcome.path]
            self._records[outcome.path] = replace(record, state=outcome.state, fingerprint=self.fingerprint)

    def retract(self, path: str, target: str, in_sha256: str | None) -> None:
        """Remove our own output of another version of an input that now fails.

        It would pass for the current version. What somebody has edited stays, and so does the
        output of an input that cannot be read, which may well be unchanged.
        """
        record = self._records.get(path)
        if record is None or record.out_path != target or in_sha256 in (None, record.in_sha256):
            return
        if _size(self.out / target) == record.out_bytes:
            with self._reporting():
                (self.out / target).unlink(missing_ok=True)

    def stale(self) -> int:
        """Count the outputs that this run left behind with other settings."""
        return sum(
            record.fingerprint != self.fingerprint
            and record.state in ("done", "passed")
            and record.out_path is not None
            and _size(self.out / record.out_path) is not None
            for record in self._records.values()
        )

    def sync(self) -> None:
        """Put every line on the disk."""
        with self._reporting():
            os.fsync(self._descriptor)

    def _append(self, line: dict[str, Any]) -> None:
        """Write one line with one call, so that lines of several threads never mix."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {**line, "fingerprint": self.fingerprint, "time": now, "version": __version__}
        data = json.dumps(line).encode() + b"\n"
        with self._write_lock, self._reporting():
            written = os.write(self._descriptor, data)
            if written != len(data):  # a full disk: leave no half line for the next one to continue
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _write_run(self) -> None:
        run = {
            "format": FORMAT,
            "version": __version__,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
        }
        if self.source is not None:
            run |= json_path("input", os.path.abspath(self.source))  # noqa: PTH100  # links stay as given
        temporary = self.scratch / f"run-{os.getpid()}.part"
        with temporary.open("w") as f:
            json.dump(run, f, indent=2, sort_keys=True)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(self.folder / "run.json")

    def _drop_torn_line(self) -> None:
        """A crash can leave half a line at the end; it says nothing, and the next must not continue it."""
        size = end = os.fstat(self._descriptor).st_size
        while end and os.pread(self._descriptor, 1, end - 1) != b"\n":
            end -= 1
        if end != size:
            os.ftruncate(self._descriptor, end)

    def _read(self) -> dict[str, Record]:
        """The last record of each input; half a line at the end is ignored, garbage counted."""
        records: dict[str, Record] = {}
        before: dict[str, str | None] = {}  # output owned before the image was started
        self.damaged_lines = 0
        try:
            with self._file.open("rb") as f:
                for raw in f:
                    try:
                        line = json.loads(raw)
                        path = path_from_json(line, "path")
                        records[path] = self._merge(records.get(path), line, before)
                    except (ValueError, KeyError, TypeError, AttributeError):
                        self.damaged_lines += raw.endswith(b"\n")
        except FileNotFoundError:
            pass
        except OSError as e:
            raise OutputError(f"{self._file}: cannot read the ledger: {e.strerror}") from e
        return records

    @staticmethod
    def _merge(last: Record | None, line: dict[str, Any], before: dict[str, str | None]) -> Record:
        """The record after one more line about an input.

        A start makes the output ours, since a crash may follow; a failure gives back what was
        not ours before, since nothing was written.
        """
        path, state = path_from_json(line, "path"), line["state"]
        owned = last.out_path if last else None
        size = last.out_bytes if last else None
        digest = last.out_sha256 if last else None
        if state == "started":
            before[path] = owned
        if "out_path" in line:
            owned, size = path_from_json(line, "out_path"), line.get("out_bytes", size)
            digest = line.get("out_sha256", digest)
        elif state == "failed":
            owned = before.get(path, owned)
        if state in ("done", "passed"):
            before.pop(path, None)
        return Record(
            state=state,
            fingerprint=line["fingerprint"],
            in_sha256=line.get("in_sha256"),
            out_path=owned,
            out_bytes=size,
            out_sha256=digest,
            reason=_text(line.get("reason")),
            time=_text(line.get("time")),
        )

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise OutputError(
                f"{self.folder}: cannot write the ledger: {e.strerror}; free the disk and run the same "
                "command again"
            ) from e


def failed_paths(out: Path) -> tuple[str, ...]:
    """The inputs that failed when they were last tried, sorted.

    Raises:
        ConfigError: `out` was not written by zipcli, or its state is damaged.
    """
    read_state(out)
    records = Ledger(out).records
    return tuple(sorted(path for path, record in records.items() if record.state == "failed"))


def fingerprint(settings: dict[str, Any]) -> str:
    """Digest of everything that can change the bytes of an output, 32 hex digits."""
    text = json.dumps(settings, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def output_sha256(path: Path) -> str | None:
    """Digest of an output; None for a link, which we never write.

    Raises:
        OSError: It cannot be read.
    """
    if path.is_symlink():
        return None
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _size(path: Path) -> int | None:
    """Size of a file, or None where there is none; a link counts as a file of no size."""
    try:
        return path.lstat().st_size
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return None
        raise OutputError(f"{shown(str(path))}: cannot look there: {e.strerror}") from e
