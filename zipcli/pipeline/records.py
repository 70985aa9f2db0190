"""Reads the ledgers of an output folder: what the last line about each input says.

    OUT/.zipcli/ledger-00003-of-00008.jsonl     of shard 3 of 8; a run without --shard is 1 of 1

One line for each image that is started and one for each that is finished. The ledger of a run without
shards is older than those of shards beside it: `merge` makes one of them all, and nothing else mixes.
"""

import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zipcli.config import Shard
from zipcli.errors import ConfigError, OutputError, Reason, shown
from zipcli.pipeline.looking import looking
from zipcli.pipeline.outcome import path_from_json
from zipcli.pipeline.settings import STATE_FOLDER, read_state

WHOLE = Shard(index=1, count=1)

DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What a line that is none of a ledger can raise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """An output that was finished, and what it was made of.

    Attributes:
        path: Where it is, relative to the output folder.
        bytes: Its size.
        sha256: Its digest.
        in_sha256: Digest of the input.
        fingerprint: Of the settings.
    """

    path: str
    bytes: int | None
    sha256: str | None
    in_sha256: str | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What the ledger says of one input.

    Attributes:
        state: started, done, passed, skipped or failed: what was said last.
        reason: Why the image was skipped or failed.
        time: When that was written, in ISO 8601.
        output: The last one that was finished; it may be of another version of the input.
        claim: Where a run has started to write, and nobody knows how far it came; None when it has ended.
        mark: What an object at `claim` is marked with if it is ours; None where nothing is marked.
        is_unread: Whether the claim was made before anybody had read the input, and nothing is known of an
            earlier one.
        tar: Of an image in a tar shard, the path of the tar, whose record has the output.
    """

    state: str
    reason: str | None = None
    time: str | None = None
    output: Output | None = None
    claim: str | None = None
    mark: str | None = None
    is_unread: bool = False
    tar: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the image was done, and nothing has happened to it since."""
        return self.state in ("done", "passed")

    @property
    def targets(self) -> tuple[str, ...]:
        """The names in the output folder that are ours."""
        finished = self.output.path if self.output else None
        return tuple(dict.fromkeys(path for path in (self.claim, finished) if path is not None))


@dataclass
class Records:
    """The last record of each input, by its path, and the lines that could not be understood."""

    by_path: dict[str, Record] = field(default_factory=dict)
    damaged_lines: int = 0

    def read(self, file: Path) -> None:
        """Add the lines of one ledger; half a line at its end says nothing and is no damage.

        Raises:
            OutputError: It cannot be read.
        """
        try:
            with file.open("rb") as lines:
                self.add_lines(lines)
        except FileNotFoundError:
            pass
        except OSError as e:
            raise OutputError(f"{shown(str(file))}: cannot read the ledger: {e.strerror}") from e

    def failed_paths(self) -> tuple[str, ...]:
        """The inputs that failed when they were last tried, sorted; of an image in a tar shard, the tar."""
        failed = {record.tar or path for path, record in self.by_path.items() if record.state == "failed"}
        return tuple(sorted(failed))

    def add_lines(self, lines: Iterable[bytes]) -> None:
        """Add lines with their line breaks; one without, at the end, may be half of one."""
        for raw in lines:
            try:
                self.add(json.loads(raw))
            except DAMAGE:
                self.damaged_lines += raw.endswith(b"\n")

    def add(self, line: dict[str, Any]) -> None:
        """Add one line.

        A start makes the output ours, since a crash may follow; a failure gives that back, since
        nothing was written.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: It is no line of a ledger.
        """
        path, state = path_from_json(line, "path"), sys.intern(str(line["state"]))
        last = self.by_path.get(path)
        output, claim, mark = (last.output, last.claim, last.mark) if last else (None, None, None)
        is_unread = False
        tar = sys.intern(path_from_json(line, "tar")) if "tar" in line else None
        if tar is not None:
            output, claim = None, None
        elif state == "started":
            is_first = claim is None or bool(last and last.is_unread)
            is_unread = is_first and line.get("in_sha256") is None
            claim, mark = path_from_json(line, "out_path"), _text(line.get("mark"))
        elif state in ("done", "passed"):
            output, claim = _output(line), None
        elif state == "failed" and line.get("reason") != Reason.NOT_STORED:
            # Nothing was written; but of what a store did not answer for, nobody knows, and an image that
            # could not even be read was not begun again: what an earlier run has begun is still ours.
            was_begun_here = "in_sha256" in line or bool(last and last.is_unread)
            claim = None if was_begun_here else claim
        self.by_path[path] = Record(
            state=state,
            reason=_text(line.get("reason")),
            time=_text(line.get("time")),
            output=output,
            claim=claim,
            mark=None if claim is None else mark,
            is_unread=is_unread,
            tar=tar,
        )


def _output(line: dict[str, Any]) -> Output:
    size = line.get("out_bytes")
    return Output(
        path=path_from_json(line, "out_path"),
        bytes=size if isinstance(size, int) else None,
        sha256=_text(line.get("out_sha256")),
        in_sha256=_text(line.get("in_sha256")),
        fingerprint=sys.intern(str(line["fingerprint"])),  # there may be a million of them
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def ledger_file(out: Path, shard: Shard) -> Path:
    """Where the ledger of a shard lies."""
    return out / STATE_FOLDER / f"ledger-{shard_suffix(shard)}.jsonl"


def shard_suffix(shard: Shard) -> str:
    """The end of the names of what belongs to a shard."""
    return f"{shard.index:05}-of-{shard.count:05}"


def heal(file: Path, scratch: Path) -> None:
    """Take the lines out of a ledger that cannot be understood; they are kept in a file beside it.

    What they said is not lost more than it was: an output that they spoke of is foreign now.

    Args:
        file: The ledger, of which we have the lock.
        scratch: Where unfinished files may lie.

    Raises:
        OSError: The folder cannot be written.
    """
    with file.open("rb") as lines:
        good, bad = sorted_out(lines)
    with open(file.with_suffix(".damaged"), "ab", opener=_open_no_link) as kept:
        kept.writelines(bad)
        os.fsync(kept.fileno())
    healed = scratch / f"{file.name}.part"
    with healed.open("wb") as part:
        part.writelines(good)
        part.flush()
        os.fsync(part.fileno())
    healed.replace(file)


def sorted_out(lines: Iterable[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The lines of a ledger that can be understood, and the others."""
    good, bad = [], []
    for raw in lines:
        try:
            Records().add(json.loads(raw))
        except DAMAGE:
            bad.append(raw)
        else:
            good.append(raw)
    return good, bad


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def scratch_folder(out: Path, shard: Shard) -> Path:
    """Where the files lie that a shard has not finished; the next run of it removes them."""
    return out / STATE_FOLDER / "tmp" / shard_suffix(shard)


def lock_file(out: Path, shard: Shard) -> Path:
    """What a run holds that works on a shard."""
    return out / STATE_FOLDER / f"lock-{shard_suffix(shard)}"


def shards_of(out: Path) -> list[Shard]:
    """The shards that have a ledger in an output folder; the one of runs without shards comes first.

    Raises:
        OutputError: Nobody can look there.
    """
    return _shards_with(out, "ledger-", ".jsonl")


def locks_of(out: Path) -> list[Shard]:
    """The shards that have or had a lock in an output folder.

    Raises:
        OutputError: Nobody can look there.
    """
    return _shards_with(out, "lock-", "")


def _shards_with(out: Path, prefix: str, suffix: str) -> list[Shard]:
    with looking(out, OutputError):
        names = [file.name for file in (out / STATE_FOLDER).glob(f"{prefix}*{suffix}")]
    return shards_named(names, prefix, suffix)


def shards_named(names: Iterable[str], prefix: str, suffix: str = "") -> list[Shard]:
    """The shards that names in a state folder speak of, sorted."""
    found = []
    for name in names:
        if not (name.startswith(prefix) and name.endswith(suffix)):
            continue
        numbers = re.fullmatch(r"(\d{5})-of-(\d{5})", name.removeprefix(prefix).removesuffix(suffix))
        if numbers and 1 <= int(numbers[1]) <= int(numbers[2]):
            found.append(Shard(index=int(numbers[1]), count=int(numbers[2])))
    return sorted(found, key=lambda shard: (shard.count, shard.index))


def refuse_other_shards(out: Path, shard: Shard) -> None:
    """Refuse a folder that was divided in another way: nobody could tell which line is the last.

    Raises:
        ConfigError: It was.
    """
    with looking(out, OutputError):
        # An empty ledger says nothing.
        counts = {there.count for there in shards_of(out) if ledger_file(out, there).stat().st_size}
    refuse_counts(counts, shard, shown(str(out)))


def refuse_counts(counts: set[int], shard: Shard, name: str) -> None:
    """Refuse to go on as `shard` in a folder, which messages call `name`, that `counts` shards have written.

    Raises:
        ConfigError: They divided it in another way.
    """
    others = counts - {shard.count, 1}
    if others:
        count = max(others)
        raise ConfigError(
            f"{name}: written by {count} shards; go on with --shard I/{count}, or join their "
            f"ledgers with: zipcli merge {name}"
        )


def read_records(out: Path, shards: Iterable[Shard] | None = None) -> Records:
    """Read the ledgers of some shards, or all there are.

    Raises:
        OutputError: One cannot be read.
    """
    records = Records()
    for shard in shards_of(out) if shards is None else shards:
        records.read(ledger_file(out, shard))
    return records


def failed_paths(out: Path) -> tuple[str, ...]:
    """The inputs that failed when they were last tried, sorted; of an image in a tar shard, the tar.

    Raises:
        ConfigError: `out` was not written by zipcli, or its state is damaged.
    """
    read_state(out)
    return read_records(out).failed_paths()
