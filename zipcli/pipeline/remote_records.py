"""Reads the state folder of a remote output folder. Objects cannot be appended to, so a ledger is in parts.

    OUT/.zipcli/run.json
    OUT/.zipcli/ledger-00001-of-00001/000017.jsonl      lines as in a local ledger, those of a part at once
    OUT/.zipcli/ledger-00001-of-00001/000017.damaged    lines that could not be understood, set aside
    OUT/.zipcli/lock-00001-of-00001                     there while a run writes, and after a crash

The parts together, in the order of their numbers, are the ledger. Parts may be joined to one with a higher
number before they are removed: lines that are there twice, in the same order, say the same.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from zipcli.config import Shard
from zipcli.errors import ConfigError, shown
from zipcli.pipeline.lock import owner_from_json
from zipcli.pipeline.records import Records, shard_suffix, shards_named, sorted_out
from zipcli.pipeline.remote import Item, Store, telling
from zipcli.pipeline.settings import STATE_FOLDER, State, no_ledger, parse_state
from zipcli.pipeline.streams import map_ahead
from zipcli.pipeline.url import Url

RUN_FILE = f"{STATE_FOLDER}/run.json"
AHEAD_BYTES = 2**28
"""Bytes of parts that may be read ahead."""

BEGUN = "begun"

LOOKS = 5
"""How often to look again when another run has joined parts while we read them."""


def ledger_folder(shard: Shard) -> str:
    """Where the parts of a ledger lie, below the URL."""
    return f"{STATE_FOLDER}/ledger-{shard_suffix(shard)}"


def lock_object(shard: Shard) -> str:
    """What a run creates that works on a shard."""
    return f"{STATE_FOLDER}/lock-{shard_suffix(shard)}"


def remote_shards(url: Url) -> list[Shard]:
    """The shards that have a ledger there.

    Raises:
        OutputError: The store does not tell.
    """
    found = shards_named(_names(url, is_folder=True), "ledger-")
    with telling(url):
        return [shard for shard in found if _has_begun(url, shard)]


def _has_begun(url: Url, shard: Shard) -> bool:
    """Whether a run has been there: a folder may also be left with lines that were set aside alone."""
    items = Store(url).list(ledger_folder(shard))
    return any(item.name == BEGUN or _number(item) is not None for item in items)


def begun_object(shard: Shard) -> str:
    """What says that a shard has run, for one without images writes no part."""
    return f"{ledger_folder(shard)}/{BEGUN}"


def remote_locks(url: Url) -> list[Shard]:
    """The shards that have a lock there.

    Raises:
        OutputError: The store does not tell.
    """
    return shards_named(_names(url, is_folder=False), "lock-")


def _names(url: Url, *, is_folder: bool) -> list[str]:
    with telling(url):
        return [item.name for item in Store(url).list(STATE_FOLDER) if item.is_folder == is_folder]


def remote_state(url: Url) -> State | None:
    """What run.json says there; None where there is none.

    Raises:
        ConfigError: It is damaged or of a newer version.
        OutputError: The store does not tell.
    """
    with telling(url):
        try:
            data = Store(url).read(RUN_FILE)
        except FileNotFoundError:
            return None
    return parse_state(data, shown(f"{url}/{RUN_FILE}"))


def remote_owner(url: Url, shard: Shard, *, force: bool = False) -> str | None:
    """Who is writing there as a shard, in words; a run on another machine may have crashed.

    With `force` one that cannot be seen from here counts as ended.

    Raises:
        OutputError: The store does not tell.
    """
    with telling(url):
        try:
            owner = owner_from_json(Store(url).read(lock_object(shard)))
        except FileNotFoundError:
            return None
    if owner and owner.is_here:
        return str(owner) if owner.is_alive else None
    return None if force else str(owner or "unknown")


def parts(url: Url, shard: Shard) -> list[tuple[int, int]]:
    """Number and size of the parts of a ledger, sorted.

    Raises:
        OSError: The store does not tell.
    """
    items = Store(url).list(ledger_folder(shard))
    return sorted((number, item.size or 0) for item in items if (number := _number(item)) is not None)


def _number(item: Item) -> int | None:
    match = re.fullmatch(r"(\d{6,18})\.jsonl", item.name)
    return int(match[1]) if match and not item.is_folder else None


def part_object(shard: Shard, number: int) -> str:
    """Where a part lies, below the URL."""
    return f"{ledger_folder(shard)}/{number:06}.jsonl"


def read_parts(url: Url, shard: Shard, numbers: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """Read some parts, several at once; they come in order.

    Raises:
        OSError: One cannot be read.
    """
    store = Store(url)
    with ThreadPoolExecutor(16, thread_name_prefix="zipcli-ledger") as pool:
        yield from map_ahead(
            pool,
            lambda part: (part[0], store.read(part_object(shard, part[0]))),
            numbers,
            cost=lambda part: part[1],
            budget=AHEAD_BYTES,
        )


def lines_of(data: bytes) -> list[bytes]:
    """The lines of a part; it was written at once, so half a line at its end, or no line, is damage."""
    return [line + b"\n" for line in data.removesuffix(b"\n").split(b"\n")]


def read_remote(url: Url, shards: Iterable[Shard]) -> Records:
    """Read the ledgers of some shards.

    Raises:
        OutputError: One cannot be read.
    """
    shards = list(shards)
    with telling(url, "cannot read the ledger"):
        for _ in range(LOOKS - 1):
            try:
                return _read(url, shards)
            except FileNotFoundError:  # parts were joined meanwhile: look again
                continue
        return _read(url, shards)


def _read(url: Url, shards: list[Shard]) -> Records:
    records = Records()
    for shard in shards:
        for _, data in read_parts(url, shard, parts(url, shard)):
            records.add_lines(lines_of(data))
    return records


def heal_remote(url: Url, shard: Shard) -> None:
    """Take the lines out of a ledger that cannot be understood; they are kept beside it.

    What they said is not lost more than it was: an output that they spoke of is foreign now.

    Raises:
        OutputError: The store cannot be written.
    """
    store = Store(url)
    with telling(url, "cannot write the ledger"):
        for number, data in read_parts(url, shard, parts(url, shard)):
            good, bad = sorted_out(lines_of(data))
            if bad:
                part = part_object(shard, number)
                store.put(f"{part.removesuffix('.jsonl')}.damaged", data)
                if good:
                    store.put(part, b"".join(good))
                else:
                    store.remove(part)


class RemoteFolder:
    """A remote output folder to look at; nothing is changed."""

    def __init__(self, url: Url) -> None:
        """Take the URL of the output folder."""
        self.url = url
        self.store = Store(url)

    def __str__(self) -> str:
        """As messages name it."""
        return str(self.url)

    def state(self) -> State:
        """What run.json says.

        Raises:
            ConfigError: There is none, or it is damaged or of a newer version.
            OutputError: The store does not tell.
        """
        state = remote_state(self.url)
        if state is None:
            raise no_ledger(shown(str(self.url)))
        return state

    def shards(self) -> list[Shard]:
        """The shards that have a ledger there."""
        return remote_shards(self.url)

    def records(self, shards: Iterable[Shard] | None = None) -> Records:
        """What the ledgers of some shards say, or of all."""
        return read_remote(self.url, self.shards() if shards is None else shards)

    def owner(self, shard: Shard) -> str | None:
        """Who is writing there as a shard."""
        return remote_owner(self.url, shard)

    def size(self, target: str) -> int | None:
        """Size of an output; None where there is none.

        Raises:
            OSError: The store does not tell.
        """
        try:
            return self.store.size(target)
        except FileNotFoundError:
            return None

    def sha256(self, target: str) -> str | None:
        """Digest of an output.

        Raises:
            OSError: It cannot be read.
        """
        return hashlib.sha256(self.store.read(target)).hexdigest()

    def files(self) -> Iterator[str]:
        """Paths of everything there but the state folder, sorted within each folder.

        Raises:
            ConfigError: The store does not tell.
        """
        folders = [""]
        while folders:
            folder = folders.pop()
            inner = []
            try:
                for item in self.store.list(folder):
                    path = f"{folder}/{item.name}" if folder else item.name
                    if not item.is_folder:
                        yield path
                    elif path != STATE_FOLDER and item.name:
                        inner.append(path)
            except OSError as e:
                raise ConfigError(f"{shown(str(self.url))}: cannot list it: {e.strerror}") from e
            folders += sorted(inner, reverse=True)
