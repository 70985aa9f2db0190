"""Joins the ledgers of all shards of an output folder into one, so that a run without shards can go on."""

import contextlib
import os
import secrets
from contextlib import ExitStack
from pathlib import Path

from zipcli.config import Shard
from zipcli.errors import ConfigError, OutputError, shown
from zipcli.images.write import sync_folder
from zipcli.pipeline.inspection import Folder, Place
from zipcli.pipeline.lock import locked
from zipcli.pipeline.records import (
    WHOLE,
    Records,
    heal,
    ledger_file,
    lock_file,
    read_records,
    scratch_folder,
    shards_of,
)
from zipcli.pipeline.settings import STATE_FOLDER, read_state


def merge(out: Path) -> Records:
    """Join the ledgers of an output folder; a crash in between leaves what can be joined again.

    Returns:
        The records of the joined ledger; without shards, of the one there is.

    Raises:
        ConfigError: `out` was not written by zipcli, a shard has not run, two shards had the same image,
            or some outputs have other settings.
        LockedError: A run is writing there.
        OutputError: The folder cannot be written.
    """
    fingerprint = read_state(out).fingerprint
    shards = shards_of(out)
    with ExitStack() as stack:
        for shard in dict.fromkeys((WHOLE, *shards)):
            stack.enter_context(locked(lock_file(out, shard), out))
        parts = [shard for shard in shards if shard.count > 1]
        is_merged = _are_merged(out, parts)
        if not is_merged:
            refuse_incomplete(str(out), parts)
        try:
            scratch_folder(out, WHOLE).mkdir(parents=True, exist_ok=True)
            _heal(out, shards)
            records = joined(Folder(out), shards)
            refuse_mixed(str(out), records, fingerprint)
            if parts and not is_merged:
                _write(out, shards)
                sync_folder(out / STATE_FOLDER)  # before the parts go
        except OSError as e:
            raise OutputError(f"{shown(str(out))}: cannot write there: {e.strerror}") from e
        if parts:
            for shard in parts:
                ledger_file(out, shard).unlink()
    return records


def _are_merged(out: Path, parts: list[Shard]) -> bool:
    """Whether a merge that was interrupted has joined these ledgers, and not removed them yet."""
    try:
        whole = ledger_file(out, WHOLE).read_bytes()
        ledgers = [ledger_file(out, shard).read_bytes() for shard in parts]
        return any(ledgers) and all(ledger in whole for ledger in ledgers)
    except FileNotFoundError:
        return False
    except OSError as e:
        raise OutputError(f"{shown(str(out))}: cannot read the ledgers: {e.strerror}") from e


def refuse_incomplete(out: str, parts: list[Shard]) -> None:
    """Refuse to join the ledgers of shards when not all have run.

    Raises:
        ConfigError: So it is, or the folder was divided in several ways.
    """
    counts = {shard.count for shard in parts}
    name = shown(out)
    if len(counts) > 1:
        words = " and ".join(str(count) for count in sorted(counts))
        raise ConfigError(f"{name}: has ledgers of {words} shards; remove those that are of no use")
    missing = [
        str(shard)
        for count in counts
        for shard in (Shard(index=n + 1, count=count) for n in range(count))
        if shard not in parts
    ]
    if missing:
        raise ConfigError(f"{name}: shards {', '.join(missing[:20])} have not run yet; run them first")


def joined(out: Place, shards: list[Shard]) -> Records:
    """The records of all ledgers together.

    Raises:
        ConfigError: An image does not belong to the shard that has it.
        OutputError: A ledger cannot be read.
    """
    for shard in shards:
        own = out.records([shard])
        files = {record.tar or path: path for path, record in own.by_path.items()}
        strays = [path for file, path in files.items() if shard.count > 1 and not shard.takes(file)]
        if strays:
            raise ConfigError(
                f"{shown(str(out))}: {shown(strays[0])} does not belong to shard {shard}, whose ledger has it"
            )
    return out.records(shards)


def _heal(out: Path, shards: list[Shard]) -> None:
    """Take damaged lines out; whoever runs `verify` afterwards sees which outputs they spoke of."""
    for shard in shards:
        if read_records(out, [shard]).damaged_lines:
            heal(ledger_file(out, shard), scratch_folder(out, WHOLE))


def refuse_mixed(out: str, records: Records, fingerprint: str) -> None:
    """Refuse to call a folder done that has outputs of several settings.

    Raises:
        ConfigError: It has.
    """
    name = shown(out)
    finished = [r.output for r in records.by_path.values() if r.is_finished and r.output]
    others = sum(output.fingerprint != fingerprint for output in finished)
    if others:
        raise ConfigError(f"{name}: {others} images have other settings than the folder; purify again first")


def _write(out: Path, shards: list[Shard]) -> None:
    target = ledger_file(out, WHOLE)
    part = scratch_folder(out, WHOLE) / f"merged-{secrets.token_hex(8)}.part"
    try:
        with part.open("xb") as f:
            for shard in shards:
                data = ledger_file(out, shard).read_bytes()
                f.write(data[: data.rfind(b"\n") + 1])  # half a line at the end says nothing
            f.flush()
            os.fsync(f.fileno())
        part.replace(target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
