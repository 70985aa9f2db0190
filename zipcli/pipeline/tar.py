"""Images in a tar stream, and purified ones out into another: a folder that never lies on a disk.

Nothing is ever extracted here, and a name that would leave the folder of whoever does is refused.
"""

import lzma
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO, RawIOBase
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from zipcli.config import FolderConfig
from zipcli.errors import InputError, Reason, shown
from zipcli.pipeline.outcome import Outcome
from zipcli.pipeline.plan import Entry, folders_of, lost, selects, target_of
from zipcli.pipeline.resume import Decision

BROKEN = (tarfile.TarError, EOFError, ValueError, OSError, RecursionError, zlib.error, lzma.LZMAError)
"""What reading a tar stream that is damaged can raise."""

_EXTENSIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
EXTENSION_BYTES = 2**20
"""Most bytes of a header that says more about a member, such as a long name; it is held in memory."""

LATEST = 2**33
"""Seconds since 1970 that the header of a tar file has room for."""


class TarSource:
    """The images of a tar stream, in its order; gzip, bzip2 and xz are seen by their first bytes."""

    def __init__(self, read_some: Callable[[], bytes], config: FolderConfig) -> None:
        """Take the stream.

        Args:
            read_some: Returns what the stream has next, and nothing at its end.
            config: Patterns and output format.
        """
        self.config = config
        self.mtimes: dict[str, float] = {}
        self._stream = _Stream(read_some)
        self._data: dict[str, bytes] = {}

    def entries(self) -> Iterator[Entry | Outcome]:
        """Yield the images with their bytes read, and an outcome for each member that cannot be taken.

        A stream that ends early ends in a failure of its own: nobody knows what it still held.
        """
        taken: dict[str, str] = {}
        folders: set[str] = set()
        try:
            # The names are bytes; surrogates stand for those that are not UTF-8.
            with tarfile.open(
                fileobj=self._stream,
                mode="r|*",
                tarinfo=Member,
                encoding="utf-8",
                errors="surrogateescape",
            ) as tar:
                for member in tar:
                    yield from self._entry(tar, member, taken, folders)
        except BROKEN as e:
            yield lost("-", Reason.TRUNCATED, f"this is no tar stream, or not a whole one ({e})", failed=True)
        self._stream.drain()  # who writes there shall not find it closed

    def _entry(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, taken: dict[str, str], folders: set[str]
    ) -> Iterator[Entry | Outcome]:
        path = PurePosixPath(member.name)
        name = str(path)
        if member.isdir() or not (selects(self.config, name) and not _is_hidden(path)):
            return
        target = target_of(name, self.config)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            yield lost(name, Reason.NAME_UNSUPPORTED, "the name leads out of the folder", failed=True)
        elif member.issym():
            yield lost(name, Reason.SYMLINK, "a link in a tar stream is not followed")
        elif member.islnk():
            message = "a hard link in a tar stream has no bytes; make it with tar --hard-dereference"
            yield lost(name, Reason.NOT_A_FILE, message, failed=True)
        elif not member.isreg():
            yield lost(name, Reason.NOT_A_FILE, "not a regular file")
        elif taken.keys() & {target, *folders_of(target)} or target in folders:
            message = f"another image has {shown(target)}, or has a folder in its place"
            yield lost(name, Reason.COLLISION, message, failed=True)
        elif member.size > self.config.limits.max_bytes:
            message = f"{member.size:,} bytes are more than the limit of --max-bytes"
            yield lost(name, Reason.BOMB_BYTES, message, failed=True)
        else:
            taken[target] = name
            folders.update(folders_of(target))
            file = tar.extractfile(member)
            assert file is not None  # it is a regular file
            self._data[name] = file.read()
            self.mtimes[name] = member.mtime if 0 <= member.mtime < LATEST else 0  # nor is NaN between
            yield Entry(path=name, source=Path(name), target=target, size=member.size)

    def read(self, entry: Entry) -> bytes:
        """The bytes of one image; they are given once.

        Raises:
            InputError: It is empty.
        """
        return given_once(self._data, entry)


def given_once(held: dict[str, bytes], entry: Entry) -> bytes:
    """Take the bytes of an image from those that are held by path.

    Raises:
        InputError: There are none in it.
    """
    data = held.pop(entry.path)
    if not data:
        raise InputError(Reason.EMPTY, f"{shown(entry.path)}: the file is empty")
    return data


class TarSink:
    """A tar stream of purified images. An image that fails is not in it."""

    def __init__(self, stream: IO[bytes], source: TarSource) -> None:
        """Take the stream; members keep the times that `source` gave them."""
        self._mtimes = source.mtimes
        self._lock = threading.Lock()
        # This format stores the bytes of a name as they are, whatever they are.
        self._tar = tarfile.open(  # noqa: SIM115  # `close` says that the stream is complete
            fileobj=stream,
            mode="w|",
            format=tarfile.GNU_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
        )

    def decide(
        self, path: str, target: str, in_sha256: str | None, *, overwrite: bool, paranoid: bool = False
    ) -> Decision:
        """Purify: there is no earlier run."""
        return Decision.PURIFY

    def start(self, images: Iterable[tuple[str, str, str]], seed: int | None) -> None:
        """Nothing to note."""

    def publish(self, path: str, target: str, data: bytes) -> None:
        """Write one member, whole."""
        member = tarfile.TarInfo(target)
        member.size = len(data)
        member.mode = 0o644
        with self._lock:
            member.mtime = self._mtimes.pop(path, 0)
            self._tar.addfile(member, BytesIO(data))

    def finish(self, outcome: Outcome) -> None:
        """Forget what was noted of an image."""
        self._mtimes.pop(outcome.path, None)

    def retract(self, path: str, target: str, in_sha256: str | None) -> None:
        """Nothing to take back."""

    def close(self) -> None:
        """Say that the stream is complete; without it, it was broken off."""
        self._tar.close()


class Member(tarfile.TarInfo):
    """A member whose header is whole and modest.

    By itself tarfile takes a damaged or missing one for the end, and holds names of any length.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header from its block.

        Raises:
            ReadError: It announces an extension that is too large, or a sparse file, whose map has no limit.
        """
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENSIONS and member.size > EXTENSION_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file; make the stream without --sparse")
        return member

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """Read the next header.

        Raises:
            EOFHeaderError: Here the end of the stream is marked.
            ReadError: There is no header, and no such mark.
        """
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed does not know it
            raise
        except tarfile.HeaderError as e:
            raise tarfile.ReadError(f"{e}; the end is not marked") from e

    def _proc_gnusparse_10(self, *_: object) -> None:
        """Refuse the newest kind of sparse file, whose map has no limit either.

        Raises:
            ReadError: Always.
        """
        raise tarfile.ReadError("a sparse file; make the stream without --sparse")


class _Stream(RawIOBase):
    """What tarfile reads from."""

    def __init__(self, read_some: Callable[[], bytes]) -> None:
        self._read_some = read_some
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; none at the end."""
        self._rest = self._rest or memoryview(self._read_some())
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def drain(self) -> None:
        """Read to the end."""
        while self._read_some():
            pass


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") and part != ".." for part in path.parts)
