"""What a disk may hold after a power cut: replays a record of operations and drops what nothing made durable.

The model is the strict one of POSIX. The data of a file is safe once the file was synced, and a name once
the folder that it is in was synced, after the name was made. Whatever is not safe may be there, be missing,
or, for data, be there in part; each of them independently. A rename is a new name, which depends on the sync
of its folder, and the loss of the old one, which depends on the sync of the other and never comes first.
"""

import os
import random
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any


@dataclass(eq=False)
class File:
    """A file or folder; `safe` is what a power cut leaves of its data for certain."""

    data: bytes = b""
    safe: bytes = b""
    is_folder: bool = False
    names: dict[str, "File"] = field(default_factory=dict)
    safe_names: dict[str, "File"] = field(default_factory=dict)
    pending: list["Change"] = field(default_factory=list)

    def variants(self) -> list[bytes]:
        """What a power cut may leave of the data: all, what is safe, part of the rest, or a hole."""
        if self.data == self.safe:
            return [self.data]
        if self.data.startswith(self.safe):
            rest = len(self.data) - len(self.safe)
            half, hole = self.data[: len(self.safe) + rest // 2], self.safe + bytes(rest)
        else:
            half, hole = self.data[: len(self.data) // 2], bytes(len(self.data))
        return list(dict.fromkeys([self.data, self.safe, half, hole]))


@dataclass(eq=False)
class Change:
    """A name that appeared (`file`) or went away (None); `after` must be there for it to be there."""

    name: str
    file: File | None
    after: "Change | None" = None


Tree = dict[str, bytes | None]
"""Paths with their bytes; None for a folder."""


class Disk:
    """The files below one folder, as the operations of a record make them."""

    def __init__(self, root: str) -> None:
        """Begin with an empty folder that is safe itself."""
        self.root = root
        self.top = File(is_folder=True)
        self._open: dict[int, File] = {}

    def apply(self, line: dict[str, Any]) -> None:
        """Do one operation of the record."""
        getattr(self, f"do_{line['op']}")(line)

    def do_open(self, line: dict[str, Any]) -> None:
        self._open[line["fd"]] = self._opened(line["path"], line["flags"])

    def _opened(self, path: str, flags: int) -> File:
        folder, name = self._place(path)
        if not name:
            return folder
        if name not in folder.names and flags & os.O_CREAT:
            self._name(path, File())
        if flags & os.O_TRUNC:
            folder.names[name].data = b""
        return folder.names[name]

    def do_write(self, line: dict[str, Any]) -> None:
        file, data = self._open[line["fd"]], b64decode(line["data"])
        before = file.data[: line["at"]].ljust(line["at"], b"\0")
        file.data = before + data + file.data[line["at"] + len(data) :]

    do_pwrite = do_write

    def do_ftruncate(self, line: dict[str, Any]) -> None:
        file = self._open[line["fd"]]
        file.data = file.data[: line["size"]].ljust(line["size"], b"\0")

    def do_posix_fallocate(self, line: dict[str, Any]) -> None:
        file = self._open[line["fd"]]
        file.data = file.data.ljust(line["size"], b"\0")

    def do_fsync(self, line: dict[str, Any]) -> None:
        file = self._open[line["fd"]]
        file.safe, file.safe_names, file.pending = file.data, dict(file.names), []

    def do_mkdir(self, line: dict[str, Any]) -> None:
        self._name(line["path"], File(is_folder=True))

    def do_unlink(self, line: dict[str, Any]) -> None:
        self._forget(line["path"])

    do_remove = do_rmdir = do_unlink

    def do_link(self, line: dict[str, Any]) -> None:
        self._name(line["other"], self._find(line["path"]))

    def do_replace(self, line: dict[str, Any]) -> None:
        folder, name = self._place(line["other"])
        if folder.names.get(name) is self._find(line["path"]):
            return  # two names of one file: POSIX leaves both
        self._forget(line["path"], after=self._name(line["other"], self._find(line["path"])))

    do_rename = do_replace

    def _place(self, path: str) -> tuple[File, str]:
        *folders, name = PurePosixPath(path).relative_to(self.root).parts or ("",)
        folder = self.top
        for part in folders:
            folder = folder.names[part]
        return folder, name

    def _find(self, path: str) -> File:
        folder, name = self._place(path)
        return folder.names[name]

    def _name(self, path: str, file: File) -> Change:
        folder, name = self._place(path)
        folder.names[name] = file
        folder.pending.append(Change(name, file))
        return folder.pending[-1]

    def _forget(self, path: str, after: Change | None = None) -> None:
        folder, name = self._place(path)
        del folder.names[name]
        folder.pending.append(Change(name, None, after))

    def everything(self) -> Tree:
        """What is there when nothing is lost."""
        changes = {change for file in self._files() for change in file.pending}
        return self._tree(changes, {})

    def states(self, chance: random.Random) -> Iterator[Tree]:
        """What a power cut now may leave: everything, the least, and each unsafe thing alone."""
        changes = [change for file in self._files() for change in file.pending]
        dirty = [file for file in self._files() if file.data != file.safe]
        everything, newest = set(changes), dict.fromkeys(dirty, 0)
        for variant in range(4):
            data = {file: variant % len(file.variants()) for file in dirty}
            yield self._tree(everything, data)
            yield self._tree(set(), data)
        for change in changes:
            yield self._tree({change}, newest)
            yield self._tree(everything - {change}, newest)
        for _ in range(4):
            kept = {change for change in changes if chance.random() < 0.5}
            yield self._tree(kept, {file: chance.randrange(len(file.variants())) for file in dirty})

    def _files(self) -> list[File]:
        """Everything that has a name, or had one until something unsafe was done."""
        found: dict[File, None] = {self.top: None}
        for file in (queue := [self.top]):
            inner = [*file.names.values(), *file.safe_names.values()]
            for one in [*inner, *(change.file for change in file.pending if change.file)]:
                if one not in found:
                    found[one] = None
                    queue.append(one)
        return list(found)

    def _tree(self, kept: set[Change], data: dict[File, int]) -> Tree:
        tree: Tree = {}

        def fill(folder: File, prefix: str) -> None:
            names = dict(folder.safe_names)
            for change in folder.pending:
                if change in kept and (change.after is None or self._there(change.after, kept)):
                    if change.file is None:
                        names.pop(change.name, None)
                    else:
                        names[change.name] = change.file
            for name, file in sorted(names.items()):
                if file.is_folder:
                    tree[prefix + name] = None
                    fill(file, f"{prefix}{name}/")
                else:
                    tree[prefix + name] = file.variants()[data.get(file, 0)]

        fill(self.top, "")
        return tree

    def _there(self, change: Change, kept: set[Change]) -> bool:
        unsafe = any(change in file.pending for file in self._files())
        return change in kept or not unsafe


def materialise(tree: Tree, folder: Path) -> None:
    """Write a state to a folder."""
    folder.mkdir()
    for path, data in tree.items():
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)
