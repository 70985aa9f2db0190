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
from zipcli.errors import ConfigError, OutputError, shown
from zipcli.pipeline.looking import looking
from zipcli.pipeline.outcome import path_from_json
from zipcli.pipeline.settings import STATE_FOLDER, read_state

WHOLE = Shard(index=1, count=1)

DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What a line that is none of a ledger can raise."""


@dataclass(frozen=True, kw_only=True, slots=True)
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

    @property
    def is_finished(self) -> bool:
        """Whether it has an output that is complete."""
        return self.state in ("done", "passed")


@dataclass
class Records:
    """The last record of each input, by its path, and the lines that could not be understood."""

    by_path: dict[str, Record] = field(default_factory=dict)
    damaged_lines: int = 0
    _owned_before: dict[str, str | None] = field(default_factory=dict, repr=False)

    def read(self, file: Path) -> None:
        """Add the lines of one ledger; half a line at its end says nothing and is no damage.

        Raises:
            OutputError: It cannot be read.
        """
        try:
            with file.open("rb") as lines:
                for raw in lines:
                    try:
                        self.add(json.loads(raw))
                    except DAMAGE:
                        self.damaged_lines += raw.endswith(b"\n")
        except FileNotFoundError:
            pass
        except OSError as e:
            raise OutputError(f"{shown(str(file))}: cannot read the ledger: {e.strerror}") from e

    def add(self, line: dict[str, Any]) -> None:
        """Add one line.

        A start makes the output ours, since a crash may follow; a failure gives back what was
        not ours before, since nothing was written.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: It is no line of a ledger.
        """
        path, state = path_from_json(line, "path"), str(line["state"])
        last = self.by_path.get(path)
        owned = last.out_path if last else None
        size = last.out_bytes if last else None
        digest = last.out_sha256 if last else None
        if state == "started":
            self._owned_before[path] = owned
        if "out_path" in line:
            owned = path_from_json(line, "out_path")
            size, digest = line.get("out_bytes", size), line.get("out_sha256", digest)
        elif state == "failed":
            owned = self._owned_before.get(path, owned)
        if state in ("done", "passed"):
            self._owned_before.pop(path, None)
        self.by_path[path] = Record(
            state=sys.intern(state),  # there may be a million records
            fingerprint=sys.intern(str(line["fingerprint"])),
            in_sha256=_text(line.get("in_sha256")),
            out_path=owned,
            out_bytes=size if isinstance(size, int) else None,
            out_sha256=_text(digest),
            reason=_text(line.get("reason")),
            time=_text(line.get("time")),
        )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def ledger_file(out: Path, shard: Shard) -> Path:
    """Where the ledger of a shard lies."""
    return out / STATE_FOLDER / f"ledger-{shard.index:05}-of-{shard.count:05}.jsonl"


def heal(file: Path, scratch: Path) -> None:
    """Take the lines out of a ledger that cannot be understood; they are kept in a file beside it.

    What they said is not lost more than it was: an output that they spoke of is foreign now.

    Args:
        file: The ledger, of which we have the lock.
        scratch: Where unfinished files may lie.

    Raises:
        OSError: The folder cannot be written.
    """
    good, bad = [], []
    with file.open("rb") as lines:
        for raw in lines:
            try:
                Records().add(json.loads(raw))
            except DAMAGE:
                bad.append(raw)
            else:
                good.append(raw)
    with file.with_suffix(".damaged").open("ab") as kept:
        kept.writelines(bad)
        os.fsync(kept.fileno())
    healed = scratch / f"{file.name}.part"
    with healed.open("wb") as part:
        part.writelines(good)
        part.flush()
        os.fsync(part.fileno())
    healed.replace(file)


def scratch_folder(out: Path, shard: Shard) -> Path:
    """Where the files lie that a shard has not finished; the next run of it removes them."""
    return out / STATE_FOLDER / "tmp" / f"{shard.index:05}-of-{shard.count:05}"


def lock_file(out: Path, shard: Shard) -> Path:
    """What a run holds that works on a shard."""
    return out / STATE_FOLDER / f"lock-{shard.index:05}-of-{shard.count:05}"


def shards_of(out: Path) -> list[Shard]:
    """The shards that have a ledger in an output folder; the one of runs without shards comes first."""
    found = []
    with looking(out, OutputError):
        files = list((out / STATE_FOLDER).glob("ledger-*.jsonl"))
    for file in files:
        if name := re.fullmatch(r"ledger-(\d{5})-of-(\d{5})\.jsonl", file.name):
            index, count = int(name[1]), int(name[2])
            if 1 <= index <= count:
                found.append(Shard(index=index, count=count))
    return sorted(found, key=lambda shard: (shard.count, shard.index))


def refuse_other_shards(out: Path, shard: Shard) -> None:
    """Refuse a folder that was divided in another way: nobody could tell which line is the last.

    Raises:
        ConfigError: It was.
    """
    others = {there.count for there in shards_of(out)} - {shard.count, 1}
    if others:
        count = max(others)
        raise ConfigError(
            f"{shown(str(out))}: written by {count} shards; go on with --shard I/{count}, or join their "
            f"ledgers with: zipcli merge {shown(str(out))}"
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
    """The inputs that failed when they were last tried, sorted.

    Raises:
        ConfigError: `out` was not written by zipcli, or its state is damaged.
    """
    read_state(out)
    records = read_records(out).by_path
    return tuple(sorted(path for path, record in records.items() if record.state == "failed"))
