"""Sees what a process asks of the files in some folders, and can answer in the system's place.

Works inside a child of `faults.forked`. Files that Python's `open` would hand to C are opened by its
twin in Python (`_pyio`), so that their reads and writes pass here as well. Two things stay out of sight:
what entries that `scandir` has returned are asked, and `access`, which answers no to every error.

EINTR is not worth injecting: Python retries a call that a signal interrupted by itself (PEP 475), so a
wrapper that raised it would test what cannot happen.
"""

import _pyio
import atexit
import builtins
import errno
import fcntl
import io
import json
import os
import threading
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OF_ONE_PATH = (
    *("open", "stat", "lstat", "mkdir", "unlink", "remove", "rmdir", "scandir", "listdir", "statvfs"),
    *("chmod", "utime", "truncate"),
)
OF_TWO_PATHS = ("rename", "replace", "link", "symlink")
OF_A_DESCRIPTOR = (
    *("read", "pread", "readv", "write", "pwrite", "writev", "fsync", "fdatasync", "ftruncate", "fstat"),
    *("fchmod", "posix_fallocate", "sendfile", "copy_file_range"),
)
LOCKS = ("flock", "lockf")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call that concerns a watched folder.

    Attributes:
        name: Of the function, such as "open".
        path: What it is about, absolute.
        other: Where it goes to, for a rename or a link.
        args: The arguments as they were given.
    """

    name: str
    path: str
    other: str | None
    args: tuple[Any, ...]


Hook = Callable[[Call, Callable[[], Any]], Any]


class Watch:
    """Passes every call about `folders` to a hook, which may let it proceed."""

    def __init__(self, folders: list[str], hook: Hook) -> None:
        """Take over the functions, for the rest of this process."""
        self._folders = folders
        self._hook = hook
        self._paths: dict[int, str] = {}  # of descriptors
        self._lock = threading.RLock()
        for name in OF_ONE_PATH:
            self._replace(os, name, self._of_one_path)
        for name in OF_TWO_PATHS:
            self._replace(os, name, self._of_two_paths)
        for name in OF_A_DESCRIPTOR:
            self._replace(os, name, self._of_a_descriptor)
        for name in LOCKS:
            self._replace(fcntl, name, self._of_a_descriptor)
        self._replace(os, "close", self._closing)
        self._open = builtins.open
        io.open = builtins.open = self._open_in_python  # type: ignore[assignment]

    def _replace(self, module: Any, name: str, wrap: Callable[..., Callable[..., Any]]) -> None:
        real = getattr(module, name, None)
        if real is None:  # not on this system
            return
        wrapped = wrap(name, real)
        setattr(module, name, wrapped)
        for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if real in known:
                known.add(wrapped)

    def _of_one_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *args: Any, **options: Any) -> Any:
            where = self._resolve(path, options.get("dir_fd"))
            seen = None if where is None else Call(name=name, path=where, other=None, args=(path, *args))
            result = self._passed_on(seen, lambda: real(path, *args, **options))
            if name == "open" and where is not None:
                self._paths[result] = where
            return result

        return call

    def _of_two_paths(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, other: Any, *args: Any, **options: Any) -> Any:
            here = self._resolve(path, options.get("src_dir_fd"))
            there = self._resolve(other, options.get("dst_dir_fd", options.get("dir_fd")))
            seen = None
            if here is not None or there is not None:
                seen = Call(name=name, path=here or "", other=there, args=(path, other, *args))
            return self._passed_on(seen, lambda: real(path, other, *args, **options))

        return call

    def _of_a_descriptor(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, *args: Any, **options: Any) -> Any:
            number = file if isinstance(file, int) else file.fileno()
            where = self._paths.get(number)
            seen = None if where is None else Call(name=name, path=where, other=None, args=(number, *args))
            return self._passed_on(seen, lambda: real(file, *args, **options))

        return call

    def _closing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def close(number: int) -> None:
            with self._lock:  # else the number could be somebody else's before it is forgotten
                self._paths.pop(number, None)
                real(number)

        return close

    def _passed_on(self, call: Call | None, proceed: Callable[[], Any]) -> Any:
        if call is None:
            return proceed()
        with self._lock:
            return self._hook(call, proceed)

    def _open_in_python(self, file: Any, *args: Any, **options: Any) -> Any:
        if self._resolve(file, None) is None or isinstance(file, int):
            return self._open(file, *args, **options)
        return _pyio.open(file, *args, **options)

    def _resolve(self, path: Any, folder: int | None) -> str | None:
        """The absolute path if it is watched, else None."""
        if isinstance(path, int):
            return self._paths.get(path)
        base = str(Path.cwd()) if folder is None else self._paths.get(folder)
        if base is None:
            return None
        where = os.path.normpath(os.path.join(base, os.fsdecode(path)))  # noqa: PTH118  # any bytes
        watched = any(where == top or where.startswith(f"{top}/") for top in self._folders)
        return where if watched else None


def fail_nth(*, folders: list[str], n: int, number: int, lasting: bool, report: str) -> None:
    """Let the `n`-th call fail with an errno; if `lasting`, all that write fail from there on.

    Args:
        folders: Absolute paths of the watched folders.
        n: From 1.
        number: The errno.
        lasting: Whether it is a state of the disk, not one hiccup.
        report: File that gets the number of calls, and which one failed, at the end.
    """
    count = 0
    failed: list[str] = []

    def hook(call: Call, proceed: Callable[[], Any]) -> Any:
        nonlocal count
        count += 1
        if count == n or (lasting and count > n and _writes(call)):
            failed.append(f"{call.name} {call.other or call.path}")
            raise OSError(number, os.strerror(number), call.other or call.path)
        return proceed()

    Watch(folders, hook)
    atexit.register(lambda: _save(report, {"calls": count, "failed": failed[:1]}))


def _writes(call: Call) -> bool:
    if call.name == "open":
        return bool(call.args[1] & (os.O_CREAT | os.O_TRUNC))
    return call.name in ("write", "pwrite", "writev", "mkdir", "fsync", "ftruncate", "posix_fallocate")


def record(*, folders: list[str], report: str) -> None:
    """Write down every operation that changes something in `folders` or makes it durable."""
    log: list[dict[str, Any]] = []

    def hook(call: Call, proceed: Callable[[], Any]) -> Any:
        line = {"op": call.name, "path": call.path, "other": call.other}
        if call.name in ("write", "pwrite"):
            line["at"] = _offset(call)
        result = proceed()
        if call.name == "open":
            log.append({**line, "fd": result, "flags": call.args[1]})
        elif call.name in ("write", "pwrite"):
            data = bytes(memoryview(call.args[1])[:result])
            log.append({**line, "fd": call.args[0], "data": b64encode(data).decode()})
        elif call.name in ("ftruncate", "truncate", "posix_fallocate"):
            log.append({**line, "fd": call.args[0], "size": call.args[-1]})
        elif call.name in ("fsync", "fdatasync"):
            log.append({**line, "op": "fsync", "fd": call.args[0]})
        elif call.name in ("rename", "replace", "link", "mkdir", "rmdir", "unlink", "remove"):
            log.append(line)
        elif call.name in ("symlink", "writev", "sendfile", "copy_file_range"):
            raise NotImplementedError(f"the record has no word for {call.name}")
        return result

    Watch(folders, hook)
    atexit.register(lambda: _save(report, log))


def _offset(call: Call) -> int:
    if call.name == "pwrite":
        return int(call.args[2])
    if fcntl.fcntl(call.args[0], fcntl.F_GETFL) & os.O_APPEND:
        return os.lseek(call.args[0], 0, os.SEEK_END)
    return os.lseek(call.args[0], 0, os.SEEK_CUR)


def _save(report: str, what: Any) -> None:
    Path(report).write_text(json.dumps(what))


ERRORS = {
    name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EACCES", "EMFILE", "EROFS", "EDQUOT", "ESTALE")
}
