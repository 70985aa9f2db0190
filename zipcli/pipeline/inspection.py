"""Looks at an output folder and changes nothing: is every output what the ledger says, and how far is it."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zipcli.config import IMAGE_PATTERNS, TAR_PATTERNS, Shard
from zipcli.errors import ConfigError, shown
from zipcli.pipeline.lock import holder
from zipcli.pipeline.outcome import json_path
from zipcli.pipeline.plan import matches
from zipcli.pipeline.records import Record, Records, lock_file, read_records, shards_of
from zipcli.pipeline.resume import output_sha256
from zipcli.pipeline.settings import STATE_FOLDER, State, read_state
from zipcli.pipeline.url import Url


class Place(Protocol):
    """An output folder to look at, local or remote; `str` of it is how messages name it."""

    def state(self) -> State:
        """What run.json says."""

    def shards(self) -> list[Shard]:
        """The shards that have a ledger there."""

    def records(self, shards: Iterable[Shard] | None = None, /) -> Records:
        """What the ledgers of some shards say, or of all."""

    def owner(self, shard: Shard, /) -> str | None:
        """Who is writing there as a shard."""

    def size(self, target: str, /) -> int | None:
        """Size of an output; None where there is none, -1 for what is no file."""

    def sha256(self, target: str, /) -> str | None:
        """Digest of an output, or None."""

    def files(self) -> Iterator[str]:
        """Paths of everything there but the state folder."""


class Folder:
    """An output folder of this machine."""

    def __init__(self, out: Path) -> None:
        """Take the folder."""
        self.out = out

    def __str__(self) -> str:
        """As messages name it."""
        return str(self.out)

    def state(self) -> State:
        """As `read_state`."""
        return read_state(self.out)

    def shards(self) -> list[Shard]:
        """As `shards_of`."""
        return shards_of(self.out)

    def records(self, shards: Iterable[Shard] | None = None) -> Records:
        """As `read_records`."""
        return read_records(self.out, shards)

    def owner(self, shard: Shard) -> str | None:
        """Who holds the lock of a shard."""
        return holder(lock_file(self.out, shard))

    def size(self, target: str) -> int | None:
        """Size of an output.

        Raises:
            OSError: Nobody can look there.
        """
        try:
            status = (self.out / target).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else -1

    def sha256(self, target: str) -> str | None:
        """As `output_sha256`."""
        return output_sha256(self.out / target)

    def files(self) -> Iterator[str]:
        """Links are included, and those to folders not followed."""
        for folder, folders, files in os.walk(self.out):
            folders[:] = sorted(name for name in folders if name != STATE_FOLDER)
            for name in sorted(files):
                yield os.path.relpath(os.path.join(folder, name), self.out)  # noqa: PTH118  # names of any bytes


def place(out: Path | Url) -> Place:
    """What to look at an output folder with.

    Raises:
        ConfigError: The protocol of a URL needs a package that is not here.
    """
    if isinstance(out, Url):
        from zipcli.pipeline.remote_records import RemoteFolder

        return RemoteFolder(out)
    return Folder(out)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of one output since it was written.

    Attributes:
        out_path: The output, relative to the output folder.
        path: Its input, relative to the input folder; None for a file that is not ours.
        state: intact; changed, missing or unreadable; unfinished (a crash left it, or a run is at work);
            outdated (its input has failed since); other-settings; or foreign (an image that is not ours).
        message: The same for people; None where it is intact.
    """

    out_path: str
    path: str | None
    state: str
    message: str | None = None


def verify(out: Place, check_stop: Callable[[], None] = lambda: None) -> Iterator[Finding]:
    """Compare every output with its digest in the ledger, and name images or tars that are not in it.

    Yields:
        A finding for each output, sorted by input, then one for each foreign image.

    Raises:
        ConfigError: `out` was not written by zipcli, or its state is damaged.
    """
    state = out.state()
    fingerprint, patterns = state.fingerprint, (*IMAGE_PATTERNS, *(TAR_PATTERNS if state.has_tars else ()))
    records = out.records()
    if records.damaged_lines:
        raise ConfigError(
            f"{shown(str(out))}: {records.damaged_lines} damaged lines in the ledger, so nobody knows what "
            f"they said; run {_healer(out)}, then verify"
        )
    ours = set()
    for path, record in sorted(records.by_path.items()):
        check_stop()
        for name in record.targets:
            ours.add(name)
            finding = _verdict(out, path, record, name, fingerprint)
            if finding is not None:
                yield finding
    for name in out.files():
        check_stop()
        # What a reader of the folder would take for an output.
        if name not in ours and matches(name, patterns):
            message = f"{'a file' if state.has_tars else 'an image'} that no run here has written"
            yield Finding(out_path=name, path=None, state="foreign", message=message)


def _healer(out: Place) -> str:
    """The command that sets damaged lines aside: of several ledgers, nobody but `merge` has them all."""
    has_shards = any(shard.count > 1 for shard in out.shards())
    return f"zipcli merge {shown(str(out))}" if has_shards else "the same zipcli purify again"


def _verdict(out: Place, path: str, record: Record, name: str, fingerprint: str) -> Finding | None:
    """What a record and the file that it speaks of say together; None where nothing should be there."""

    def finding(state: str, message: str | None = None) -> Finding:
        return Finding(out_path=name, path=path, state=state, message=message)

    try:
        size = out.size(name)
    except OSError as e:
        return finding("unreadable", f"{e.strerror}")
    if size is None:
        if name == record.claim:
            return finding("unfinished", "begun and not finished; run the same zipcli purify again")
        if not record.is_finished:
            return None
        return finding("missing", "it was written, and is not there any more")
    output = record.output
    if name == record.claim or output is None:
        return finding("unfinished", "begun and not finished; run the same zipcli purify again")
    if output.fingerprint != fingerprint:
        return finding("other-settings", "purified with other settings than the folder has now")
    if not record.is_finished:
        return finding("outdated", "its input has failed since; it may be of an earlier version")
    if size < 0 or size != output.bytes:
        return finding("changed", "not the file that was written")
    try:
        sha256 = out.sha256(name)
    except OSError as e:
        return finding("unreadable", f"{e.strerror}")
    if sha256 != output.sha256:
        return finding("changed", "not the bytes that were written")
    return finding("intact")


def status(out: Place) -> dict[str, Any]:
    """How far an output folder is, ready for JSON.

    Returns:
        `settings`, `fingerprint` and `version` of the last run, `input`, `counts` of the last state of
        every image, and of every tar shard as `tars`, `reasons` of those that failed or were skipped,
        `out_bytes`, `first` and `last` time of
        a line, `damaged_lines`, `running`: who is writing there now, or None, and `shards`: where there
        are some, who is writing and the counts of each.

    Raises:
        ConfigError: `out` was not written by zipcli, or its state is damaged.
    """
    state, read = out.state(), out.records()
    records = read.by_path.values()
    outputs = [record.output for record in records if record.is_finished and record.output]
    times = sorted(record.time for record in records if record.time)
    shards = [_shard_status(out, shard, has_tars=state.has_tars) for shard in out.shards()]
    return {
        **json_path("folder", str(out)),
        **({} if state.input is None else json_path("input", str(state.input))),
        **({} if state.input_url is None else {"input": state.input_url}),
        "version": state.version,
        "settings": state.settings,
        "fingerprint": state.fingerprint,
        **_counts(read, has_tars=state.has_tars),
        "reasons": dict(Counter(r.reason for r in records if r.reason)),
        "other_settings": sum(output.fingerprint != state.fingerprint for output in outputs),
        "out_bytes": sum(output.bytes or 0 for output in outputs),
        "first": times[0] if times else None,
        "last": times[-1] if times else None,
        "damaged_lines": read.damaged_lines,
        "running": ", ".join(shard["running"] for shard in shards if shard["running"]) or None,
        **({"shards": shards} if len(shards) > 1 else {}),
    }


def _shard_status(out: Place, shard: Shard, *, has_tars: bool) -> dict[str, Any]:
    counts = _counts(out.records([shard]), has_tars=has_tars)
    return {"shard": str(shard), "running": out.owner(shard), **counts}


def _counts(records: Records, *, has_tars: bool) -> dict[str, dict[str, int]]:
    """The `counts` of images, and those of `tars` where the images are in such."""
    states = ("done", "passed", "skipped", "failed", "started")
    counts = {"counts": dict.fromkeys(states, 0), "tars": dict.fromkeys(states, 0)}
    for record in records.by_path.values():
        what = "tars" if has_tars and record.tar is None else "counts"
        if record.state in states:
            counts[what][record.state] += 1
    return counts if has_tars else {"counts": counts["counts"]}
