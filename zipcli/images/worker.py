"""Decodes images in a process that may crash or be killed; `guard` starts it and talks to it.

Messages go both ways in one form: the length of a header in four bytes, the header in JSON, and
as many raw bytes as the header says in `bytes`.
"""

import contextlib
import fcntl
import json
import math
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# All that decoding needs is loaded now: later neither Pillow's search for plugins nor anything else
# may be the first to need memory. Its other plugins are not even here.
from PIL import (
    BmpImagePlugin,  # noqa: F401 (registers itself)
    GifImagePlugin,  # noqa: F401 (likewise)
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from zipcli.config import Limits
from zipcli.errors import InputError
from zipcli.images.load import Picture, declared_size, decode

LENGTH = struct.Struct(">I")
"""How the length of a header is written."""

NO_MEMORY = 99
"""Exit code of a worker that could not even say that its memory is used up."""


def main() -> None:
    """Answer requests until standard input ends, as it does when our parent is gone."""
    with contextlib.suppress(OSError):  # if somebody must go, then we, and not the run
        Path("/proc/self/oom_score_adj").write_text("1000")
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(kind, (0, 0))
    own_memory = _own_memory()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    fcntl.fcntl(source.fileno(), fcntl.F_SETOWN, os.getpid())  # to whom SIGIO goes
    for number in (signal.SIGXCPU, signal.SIGIO):  # even if whoever started us ignores them
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGXCPU, signal.SIGIO))
    try:
        _send(sink, {"ready": True})
        while (request := _receive(source)) is not None:
            limits = Limits(**request["limits"])
            _set_limit(resource.RLIMIT_AS, own_memory and own_memory + limits.memory)
            data = source.read(request["bytes"])
            with _processor_time(limits.seconds), _ending_with_the_parent(source.fileno()):
                header, body = _answer(data, request["name"], limits, request["at_most"])
            _send(sink, header, body)
    except MemoryError:
        sys.exit(NO_MEMORY)


def _answer(
    data: bytes, name: str, limits: Limits, at_most: int | None
) -> tuple[dict[str, Any], bytes | memoryview]:
    """Decode an image of at most so many pixels, or tell the size of a larger one: header and raw bytes."""
    try:
        if at_most is not None:
            width, height = declared_size(data, name, limits)
            if width * height > at_most:
                return {"size": (width, height)}, b""
        picture = decode(data, name, limits)
    except InputError as e:
        return {"reason": e.reason, "text": str(e).removeprefix(f"{name}: ")}, b""
    return _described(picture), picture.pixels.reshape(-1).data


def _described(picture: Picture) -> dict[str, Any]:
    return {
        "shape": picture.pixels.shape,
        "format": picture.format,
        "mode": picture.mode,
        "metadata": vars(picture.metadata),
        "notes": picture.notes,
    }


def _receive(source: IO[bytes]) -> dict[str, Any] | None:
    """The header of the next request, or None at the end."""
    length = source.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    request: dict[str, Any] = json.loads(source.read(*LENGTH.unpack(length)))
    return request


def _send(sink: IO[bytes], header: dict[str, Any], body: bytes | memoryview = b"") -> None:
    text = json.dumps({**header, "bytes": len(body)}).encode()
    sink.write(LENGTH.pack(len(text)) + text)
    sink.write(body)
    sink.flush()


def _own_memory() -> int:
    """Bytes of address space that we have before any image comes; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _set_limit(kind: int, value: int) -> None:
    """Set a soft limit, which the kernel enforces; 0 lifts it. A lower hard limit stays in force."""
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value or hard, hard)
    resource.setrlimit(kind, (value or resource.RLIM_INFINITY, hard))


@contextlib.contextmanager
def _processor_time(seconds: int) -> Iterator[None]:
    """Be ended by SIGXCPU after this much processor time."""
    _set_limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds))
    yield
    _set_limit(resource.RLIMIT_CPU, 0)


@contextlib.contextmanager
def _ending_with_the_parent(source: int) -> Iterator[None]:
    """Be ended by SIGIO when the other end of a pipe is closed while we are too busy to read.

    Nothing else can happen to the pipe meanwhile: our parent waits for the answer. (The signal of
    PR_SET_PDEATHSIG would come as soon as the thread ends that started us.)
    """
    fcntl.fcntl(source, fcntl.F_SETFL, os.O_ASYNC)
    yield
    fcntl.fcntl(source, fcntl.F_SETFL, 0)


if __name__ == "__main__":
    main()
