"""Which objects below a URL a run takes, and where each goes: a listing, and what is known of names."""

import errno
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from zipcli.errors import ConfigError, InputError, Reason, shown
from zipcli.images.load import check_size
from zipcli.pipeline.outcome import Outcome
from zipcli.pipeline.plan import Entry, Selection, lost, selects
from zipcli.pipeline.remote import Store
from zipcli.pipeline.streams import map_ahead
from zipcli.pipeline.url import Url

LOOKS = 16
"""Listed names that are looked at together."""


@dataclass(frozen=True, kw_only=True)
class RemotePlan(Selection):
    """A folder below a URL, or a list of names below one.

    Attributes:
        base: The input folder.
        out: The output folder, where it is remote; it is left out where it lies in the input folder.
    """

    base: Url
    out: Url | None = None
    _looked: dict[str, int | OSError] = field(default_factory=dict, compare=False, repr=False)

    def read(self, entry: Entry) -> bytes:
        """The bytes of one object, if it still has the size that was listed.

        Raises:
            InputError: It cannot be read.
        """
        store, name, limits = Store(self.base), shown(entry.path), self.config.limits
        try:
            size = entry.size or store.size(entry.path)
            if size is None:
                message = f"{name}: the server does not say how large it is; copy it to a folder"
                raise InputError(Reason.UNREADABLE, message)
            check_size(size, name, limits)
            data = store.read(entry.path, size + 1)  # not all of what has grown to a terabyte since
        except OSError as e:
            raise InputError(_reason(e), f"{name}: cannot be read: {e.strerror}") from e
        if len(data) != size:
            raise InputError(Reason.CHANGED_DURING_READ, f"{name}: it changed while it was read; run again")
        return data

    def _walk(self, ignore: Callable[[str], None]) -> Iterator[Entry | Outcome]:
        """List folder by folder; objects are taken as they come, so that no list of all is held.

        Raises:
            ConfigError: The folder cannot be listed at all.
        """
        left_out = None if self.out is None else Store(self.base).contains(Store(self.out))
        folders = [""]
        while folders:
            folder, inner = folders.pop(), []
            try:
                for item in Store(self.base).list(folder):
                    path = f"{folder}/{item.name}" if folder else item.name
                    if item.name.startswith("."):
                        continue
                    if item.is_folder and item.name and path != left_out:
                        inner.append(path)
                    elif not item.is_folder and selects(self.config, path):
                        yield self._entry(path, item.size or 0)
                    elif not item.is_folder:
                        ignore(path)
                    elif not item.name:
                        message = "a name with // in it; no folder of another kind could hold it"
                        unnamed = lost(f"{path}/", Reason.NAME_UNSUPPORTED, message, failed=True)
                        yield replace(unnamed, is_folder=True)
            except OSError as e:
                if not folder:
                    raise ConfigError(f"{shown(str(self.base))}: cannot list it: {e.strerror}") from e
                message = f"cannot list the folder: {e.strerror}"
                yield replace(lost(folder, _reason(e), message, failed=True), is_folder=True)
            inner.sort(key=lambda path: path.encode("utf-8", "surrogatepass"))
            folders += reversed(inner)

    def _from_list(self, listed: Iterable[str], ignore: Callable[[str], None]) -> Iterator[Entry | Outcome]:
        names = self._selected(listed, ignore)
        with ThreadPoolExecutor(LOOKS, thread_name_prefix="zipcli-look") as pool:
            looked = map_ahead(pool, self._look, names, cost=lambda name: 1, budget=4 * LOOKS)
            for path, found in looked:
                if isinstance(found, int):
                    yield self._entry(path, found)
                    continue
                reason = _reason(found)
                failed = not (self.may_be_gone and reason is Reason.VANISHED)
                yield lost(path, reason, f"cannot read the file: {found.strerror}", failed=failed)

    def _look(self, path: str) -> tuple[str, int | OSError]:
        """Size of a listed name, asked for once in a run, or why there is none."""
        if path not in self._looked:
            try:
                self._looked[path] = Store(self.base).size(path) or 0
            except OSError as e:
                self._looked[path] = e
        return path, self._looked[path]

    def _entry(self, path: str, size: int) -> Entry | Outcome:
        if "\0" in path:
            return lost(path, Reason.NAME_UNSUPPORTED, "no file can have this name; rename it", failed=True)
        return Entry(path=path, source=Path(path), target=self._target(path), size=size)


def _reason(error: OSError) -> Reason:
    known = {errno.ENOENT: Reason.VANISHED, errno.ENAMETOOLONG: Reason.NAME_UNSUPPORTED}
    return known.get(error.errno or 0, Reason.UNREADABLE)


def check_urls(base: Url, out: Path | Url) -> None:
    """Refuse folders that cannot be read from and written to at once.

    Raises:
        ConfigError: They are the same, or the input lies inside the output, or a package is missing.
    """
    if isinstance(out, Path):
        return
    name = shown(str(out))
    inside = Store(out).contains(Store(base))
    if inside == "":
        raise ConfigError(f"{name}: the output folder is the input folder; choose a folder outside it")
    if inside is not None:
        words = "the input folder lies inside the output folder"
        raise ConfigError(f"{name}: {words} {shown(str(base))}; choose a folder outside it")


def remote_paths(listed: Iterable[str], base: Url, out: Path | Url) -> tuple[str, ...]:
    """Make listed names relative to the input folder; whole URLs must lie below it.

    Raises:
        ConfigError: A name leaves the folder, or lies in the output folder.
    """
    written = Store(base).contains(Store(out)) if isinstance(out, Url) else None
    paths = []
    for name in listed:
        path = name.removeprefix(f"{base}/").removeprefix("./")
        if {"", ".", ".."}.intersection(path.split("/")) or "://" in path:
            raise ConfigError(f"{shown(name)}: not below {shown(str(base))}; name the folder with --base")
        if written and path.startswith(f"{written}/"):
            raise ConfigError(f"{shown(name)}: lies in the output folder; leave it out of the list")
        paths.append(path)
    return tuple(dict.fromkeys(paths))
