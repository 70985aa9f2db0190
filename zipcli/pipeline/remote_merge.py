"""Joins the ledgers of all shards of a remote output folder into one, as `merge.py` does for a local one."""

from contextlib import ExitStack

from zipcli.config import Shard
from zipcli.pipeline.merge import joined, refuse_incomplete, refuse_mixed
from zipcli.pipeline.records import WHOLE, Records
from zipcli.pipeline.remote import telling
from zipcli.pipeline.remote_lock import remotely_locked
from zipcli.pipeline.remote_records import (
    RemoteFolder,
    begun_object,
    heal_remote,
    lock_object,
    part_object,
    parts,
    read_parts,
)
from zipcli.pipeline.url import Url


def merge_remote(url: Url) -> Records:
    """Join the ledgers of a remote output folder; a crash in between leaves what can be joined again.

    Returns:
        The records of the joined ledger; without shards, of the one there is.

    Raises:
        ConfigError: zipcli did not write there, a shard has not run, two shards had the same image, or
            some outputs have other settings.
        LockedError: A run is writing there.
        OutputError: The store cannot be written.
    """
    out = RemoteFolder(url)
    fingerprint = out.state().fingerprint
    shards = out.shards()
    with ExitStack() as stack:
        for shard in dict.fromkeys((WHOLE, *shards)):
            lock = lock_object(shard)
            remedy = f"if it has ended, remove the object {lock} there"
            stack.enter_context(remotely_locked(out.store, lock, force=False, remedy=remedy))
        pieces = [shard for shard in shards if shard.count > 1]
        for shard in shards:
            if out.records([shard]).damaged_lines:
                heal_remote(url, shard)
        with telling(url, "cannot read the ledger"):
            whole = b"".join(data for _, data in read_parts(url, WHOLE, parts(url, WHOLE)))
            ledgers = [
                b"".join(data for _, data in read_parts(url, shard, parts(url, shard))) for shard in pieces
            ]
        is_merged = any(ledgers) and all(ledger in whole for ledger in ledgers)
        if not is_merged:
            refuse_incomplete(str(url), pieces)
        records = joined(out, shards)
        refuse_mixed(str(url), records, fingerprint)
        with telling(url, "cannot write the ledger"):
            if pieces and not is_merged:
                number = max((number for number, _ in parts(url, WHOLE)), default=0) + 1
                out.store.create(part_object(WHOLE, number), b"".join(ledgers))
            for shard in pieces:
                _remove(out, shard)
    return records


def _remove(out: RemoteFolder, shard: Shard) -> None:
    """Remove the ledger of a shard, whose lines are in the one of the whole."""
    for number, _ in parts(out.url, shard):
        out.store.remove(part_object(shard, number))
    out.store.remove(begun_object(shard))
