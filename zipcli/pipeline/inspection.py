"""Looks at an output folder and changes nothing: is every output what the ledger says, and how far is it."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zipcli.config import IMAGE_PATTERNS, Shard
from zipcli.errors import ConfigError, shown
from zipcli.pipeline.lock import holder
from zipcli.pipeline.outcome import json_path
from zipcli.pipeline.plan import matches
from zipcli.pipeline.records import Record, Records, lock_file, read_records, shards_of
from zipcli.pipeline.resume import output_sha256
from zipcli.pipeline.settings import STATE_FOLDER, read_state


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


def verify(out: Path, check_stop: Callable[[], None] = lambda: None) -> Iterator[Finding]:
    """Compare every output with its digest in the ledger, and name images that are not in it.

    Yields:
        A finding for each output, sorted by input, then one for each foreign image.

    Raises:
        ConfigError: `out` was not written by zipcli, or its state is damaged.
    """
    fingerprint = read_state(out).fingerprint
    records = read_records(out)
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
    for name in _images(out):
        check_stop()
        if name not in ours:
            message = "an image that no run here has written"
            yield Finding(out_path=name, path=None, state="foreign", message=message)


def _healer(out: Path) -> str:
    """The command that sets damaged lines aside: of several ledgers, nobody but `merge` has them all."""
    has_shards = any(shard.count > 1 for shard in shards_of(out))
    return f"zipcli merge {shown(str(out))}" if has_shards else "the same zipcli purify again"


def _verdict(out: Path, path: str, record: Record, name: str, fingerprint: str) -> Finding | None:
    """What a record and the file that it speaks of say together; None where nothing should be there."""

    def finding(state: str, message: str | None = None) -> Finding:
        return Finding(out_path=name, path=path, state=state, message=message)

    try:
        status = (out / name).lstat()
    except (FileNotFoundError, NotADirectoryError):
        if name == record.claim:
            return finding("unfinished", "begun and not finished; run the same zipcli purify again")
        if not record.is_finished:
            return None
        return finding("missing", "it was written, and is not there any more")
    except OSError as e:
        return finding("unreadable", f"{e.strerror}")
    output = record.output
    if name == record.claim or output is None:
        return finding("unfinished", "begun and not finished; run the same zipcli purify again")
    if output.fingerprint != fingerprint:
        return finding("other-settings", "purified with other settings than the folder has now")
    if not record.is_finished:
        return finding("outdated", "its input has failed since; it may be of an earlier version")
    if not stat.S_ISREG(status.st_mode) or status.st_size != output.bytes:
        return finding("changed", "not the file that was written")
    try:
        sha256 = output_sha256(out / name)
    except OSError as e:
        return finding("unreadable", f"{e.strerror}")
    if sha256 != output.sha256:
        return finding("changed", "not the bytes that were written")
    return finding("intact")


def _images(out: Path) -> Iterator[str]:
    """Relative paths of the files that a reader of the folder would take for images, links included."""
    for folder, folders, files in os.walk(out):
        folders[:] = sorted(name for name in folders if name != STATE_FOLDER)
        for name in sorted(files):
            path = os.path.relpath(os.path.join(folder, name), out)  # noqa: PTH118  # names of any bytes
            if matches(path, IMAGE_PATTERNS):
                yield path


def status(out: Path) -> dict[str, Any]:
    """How far an output folder is, ready for JSON.

    Returns:
        `settings`, `fingerprint` and `version` of the last run, `input`, `counts` of the last state of
        every image, `reasons` of those that failed or were skipped, `out_bytes`, `first` and `last` time of
        a line, `damaged_lines`, `running`: who is writing there now, or None, and `shards`: where there
        are some, who is writing and the counts of each.

    Raises:
        ConfigError: `out` was not written by zipcli, or its state is damaged.
    """
    state, read = read_state(out), read_records(out)
    records = read.by_path.values()
    outputs = [record.output for record in records if record.is_finished and record.output]
    times = sorted(record.time for record in records if record.time)
    shards = [_shard_status(out, shard) for shard in shards_of(out)]
    return {
        **json_path("folder", str(out)),
        **({} if state.input is None else json_path("input", str(state.input))),
        "version": state.version,
        "settings": state.settings,
        "fingerprint": state.fingerprint,
        "counts": _counts(read),
        "reasons": dict(Counter(r.reason for r in records if r.reason)),
        "other_settings": sum(output.fingerprint != state.fingerprint for output in outputs),
        "out_bytes": sum(output.bytes or 0 for output in outputs),
        "first": times[0] if times else None,
        "last": times[-1] if times else None,
        "damaged_lines": read.damaged_lines,
        "running": ", ".join(shard["running"] for shard in shards if shard["running"]) or None,
        **({"shards": shards} if len(shards) > 1 else {}),
    }


def _shard_status(out: Path, shard: Shard) -> dict[str, Any]:
    running = holder(lock_file(out, shard))
    return {"shard": str(shard), "running": running, "counts": _counts(read_records(out, [shard]))}


def _counts(records: Records) -> dict[str, int]:
    counts = Counter(record.state for record in records.by_path.values())
    return {name: counts[name] for name in ("done", "passed", "skipped", "failed", "started")}
