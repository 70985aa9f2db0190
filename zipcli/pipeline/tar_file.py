"""Reads one tar file with suspicion, and writes one that holds the same bytes whenever it is written.

What is read is hashed on the way, so that the digest is that of the bytes that were taken. A file that ends
early, or goes on behind its end, is refused: nobody knows what it holds besides.
"""

import gzip
import hashlib
import os
import stat
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any

from zipcli.errors import InputError, OutputError, Reason, shown
from zipcli.images.load import read_error
from zipcli.images.write import Fill
from zipcli.pipeline.tar import BROKEN, LATEST, Member

PART = 2**20
"""Bytes that are read and hashed at once."""

MOST_MEMBERS = 10**6
"""Members of one tar; what is known of each is held in memory."""

UNPACKED_SHARE = 100
UNPACKED_BYTES = 64 * 2**20
"""A compressed tar may be so many times as large when it is unpacked, or this large; images hardly shrink."""

GZIP_LEVEL = 1


@contextmanager
def open_tar(file: Path, name: str, check_stop: Callable[[], None]) -> Iterator["OpenTar"]:
    """Open a tar file, plain or by gzip; its digest is known when all of its members were read.

    Args:
        file: The file.
        name: What messages call it.
        check_stop: Called all the while; it may raise to stop.

    Raises:
        InputError: It cannot be read, is no tar file or not a whole one, or has changed meanwhile. In the
            middle of the block as well, and then what came before counts for nothing.
    """
    with _opened(file, name) as (raw, size):
        opened = OpenTar(raw, size, name, check_stop)
        try:
            yield opened
        except BROKEN as e:
            message = f"{name}: this is no tar file, or not a whole one ({e}); make it again"
            raise InputError(Reason.TRUNCATED, message) from e


def file_digest(file: Path, name: str, check_stop: Callable[[], None]) -> str:
    """SHA-256 of a file of any size.

    Raises:
        InputError: It cannot be read.
    """
    digest = hashlib.sha256()
    with _opened(file, name) as (raw, _):
        tap = _Tap(raw, name, digest.update)
        while tap.read(PART):
            check_stop()
    return digest.hexdigest()


@contextmanager
def _opened(file: Path, name: str) -> Iterator[tuple[IO[bytes], int]]:
    """A regular file and its size; whoever has changed it by the end of the block has spoiled it."""
    try:
        # A FIFO without a writer would block a plain open for ever.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise read_error(e, name) from e
    with open(descriptor, "rb", buffering=0) as raw:  # noqa: PTH123  # it has no path
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise InputError(Reason.NOT_A_FILE, f"{name}: not a regular file")
        if before.st_size == 0:
            raise InputError(Reason.EMPTY, f"{name}: the file is empty; copy it again from its source")
        yield raw, before.st_size
        after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(Reason.CHANGED_DURING_READ, f"{name}: it changed while it was read; run again")


class OpenTar:
    """A tar file that is being read."""

    def __init__(self, raw: IO[bytes], size: int, name: str, check_stop: Callable[[], None]) -> None:
        """Take an open file of `size` bytes."""
        self._name = name
        self._check_stop = check_stop
        self._digest = hashlib.sha256()
        self._packed = BufferedReader(_Tap(raw, name, self._digest.update), PART)
        self._most = max(UNPACKED_BYTES, UNPACKED_SHARE * size)

    @property
    def sha256(self) -> str:
        """Digest of the file, as far as it was read."""
        return self._digest.hexdigest()

    def members(self) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
        """Yield every member, and its content where it is a regular file; read it before the next one."""
        with tarfile.open(
            fileobj=self._unpacked(),
            mode="r|",
            tarinfo=Member,
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar:
            count = 0
            while (member := tar.next()) is not None:
                self._check_stop()
                count += 1
                if count > MOST_MEMBERS:
                    message = f"{self._name}: more than {MOST_MEMBERS:,} members; divide it"
                    raise InputError(Reason.BOMB_BYTES, message)
                if member.sparse is not None:
                    raise tarfile.ReadError("a sparse file; make it without --sparse")
                yield member, tar.extractfile(member) if member.isreg() else None
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all, which typeshed hides
            self._refuse_more(tar.fileobj)

    def _unpacked(self) -> IO[bytes]:
        """The tar inside, of which tarfile itself would not check the sum of gzip."""
        if self._packed.peek(2)[:2] != b"\x1f\x8b":
            return self._packed
        unpacked = 0

        def count(part: memoryview) -> None:
            nonlocal unpacked
            unpacked += len(part)
            if unpacked > self._most:
                message = f"{self._name}: unpacks to more than {self._most:,} bytes; unpack it yourself first"
                raise InputError(Reason.BOMB_BYTES, message)

        stream = gzip.GzipFile(fileobj=self._packed)
        return BufferedReader(_Tap(stream, self._name, count), PART)

    def _refuse_more(self, stream: Any) -> None:
        """Read what follows the mark of the end, which should be zeros.

        Raises:
            InputError: There is more, such as a second tar: its images would be lost without a word.
        """
        while part := stream.read(PART):
            self._check_stop()
            if part.strip(b"\0"):
                message = f"{self._name}: the tar file goes on behind its end; make it again, as one"
                raise InputError(Reason.CORRUPT, message)


class _Tap(RawIOBase):
    """A stream that somebody watches."""

    def __init__(self, stream: Any, name: str, see: Callable[[memoryview], None]) -> None:
        self._stream, self._name, self._see = stream, name, see

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; none at the end."""
        try:
            count: int = self._stream.readinto(buffer)
        except gzip.BadGzipFile:  # which is an OSError, too
            raise
        except OSError as e:
            raise read_error(e, self._name) from e
        self._see(memoryview(buffer)[:count])
        return count


@dataclass(kw_only=True, slots=True)
class Piece:
    """A member of a tar to write, in its place; it need not have its content yet.

    Attributes:
        name: What the member is called, with surrogates for bytes that are not UTF-8.
        sample: The sample that it belongs to.
        mtime: Seconds since 1970, as whatever was read says.
        is_folder: Whether it is a folder.
        start: Where its content lies in the spool.
        size: Bytes of it.
    """

    name: str
    sample: str
    mtime: float = 0
    is_folder: bool = False
    start: int = 0
    size: int = 0

    def header(self) -> bytes:
        """What stands before the content: nothing in it depends on who writes, or when."""
        member = tarfile.TarInfo(self.name)
        member.type = tarfile.DIRTYPE if self.is_folder else tarfile.REGTYPE
        member.mode = 0o755 if self.is_folder else 0o644
        member.mtime = int(self.mtime) if 0 <= self.mtime < LATEST else 0  # nor is NaN between
        member.size = self.size
        # This format stores the bytes of a name as they are, whatever they are.
        return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


class Spool:
    """The contents of members, in a file without a name: images are finished in any order.

    Several threads may add at the same time.
    """

    def __init__(self, folder: Path) -> None:
        """Make it.

        Raises:
            OutputError: The folder cannot be written.
        """
        self._folder = folder
        with self._reporting():
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # until `close`
        self._end = 0
        self._lock = threading.Lock()

    def add(self, piece: Piece, data: bytes) -> None:
        """Keep the content of a piece.

        Raises:
            OutputError: The folder cannot be written.
        """
        self._reserve(piece, len(data))
        self._write(data, piece.start)

    def copy(self, piece: Piece, stream: IO[bytes], size: int, start: bytes = b"") -> None:
        """Keep `size` bytes of a stream as the content of a piece; `start` was read before."""
        self._reserve(piece, size)
        at = piece.start
        part = start
        while part:
            self._write(part, at)
            at += len(part)
            part = stream.read(PART)

    def parts(self, piece: Piece) -> Iterator[bytes]:
        """The content of a piece again."""
        at, end = piece.start, piece.start + piece.size
        while at < end:
            part = os.pread(self._file.fileno(), min(PART, end - at), at)
            if not part:
                raise OSError(f"{end - at} bytes of an unfinished file are gone")
            yield part
            at += len(part)

    def close(self) -> None:
        """Give the room on the disk back."""
        self._file.close()

    def _reserve(self, piece: Piece, size: int) -> None:
        with self._lock:
            piece.start, piece.size = self._end, size
            self._end += size

    def _write(self, data: bytes, at: int) -> None:
        rest = memoryview(data)
        with self._reporting():
            while rest:
                count = os.pwrite(self._file.fileno(), rest, at)
                rest, at = rest[count:], at + count

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise OutputError(
                f"{shown(str(self._folder))}: cannot write there: {e.strerror}; free the disk and run the "
                "same command again"
            ) from e


def tar_of(pieces: Iterable[Piece], spool: Spool, *, compressed: bool) -> Fill:
    """What makes a tar of these pieces, by gzip if wanted, the same bytes each time."""

    def fill(write: Callable[[bytes], object]) -> None:
        if not compressed:
            _write_tar(write, pieces, spool)
            return
        with gzip.GzipFile("", "wb", GZIP_LEVEL, fileobj=_Writer(write), mtime=0) as packed:
            _write_tar(packed.write, pieces, spool)

    return fill


def _write_tar(write: Callable[[bytes], object], pieces: Iterable[Piece], spool: Spool) -> None:
    written = 0
    for piece in pieces:
        for part in (piece.header(), *spool.parts(piece), bytes(-piece.size % tarfile.BLOCKSIZE)):
            write(part)
            written += len(part)
    end = 2 * tarfile.BLOCKSIZE
    write(bytes(end + -(written + end) % tarfile.RECORDSIZE))


class _Writer(RawIOBase):
    """What gzip writes to."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, data: Any) -> int:
        """Hand it on."""
        self._write(bytes(data))
        return len(data)
