"""A table of names whose code is loaded on first use."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import TypeVar, cast

from zipcli.errors import ConfigError

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Names of one kind of thing, each with the place of its code ("package.module:attribute").

    Listing the names costs nothing; `registry[name]` imports. An unknown name raises
    `ConfigError` with the nearest known one.
    """

    def __init__(self, kind: str, places: Mapping[str, str]) -> None:
        """Name the kind ("method") and give the table."""
        self.kind = kind
        self._places = dict(places)

    def __getitem__(self, name: str) -> T:
        """Import and return the entry."""
        if name not in self._places:
            raise ConfigError(unknown_name(self.kind, name, self))
        module, attribute = self._places[name].split(":")
        return cast(T, getattr(import_module(module), attribute))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of the table."""
        return iter(self._places)

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        """Say whether a name is known, without importing it."""
        return name in self._places


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, what was probably meant, and what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{guess} Known: {', '.join(known)}."
