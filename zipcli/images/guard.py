"""Decodes images in processes of their own, so that a file that breaks its decoder costs one image.

A decoder that crashes, hangs or takes too much memory takes its process along, and nothing else. One
that a file has taken over is handed no token and no model, and nothing it says is believed unchecked;
but this is a fence and no sandbox.
"""

import atexit
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import numpy as np

from zipcli.config import LIMITS, MIB, Limits
from zipcli.errors import InputError, Reason, ZipcliError, shown
from zipcli.images.load import (
    ALLOWED_FORMATS,
    MODES,
    Metadata,
    Picture,
    Pixels,
    check_data,
    checked_metadata,
    out_of_memory,
)
from zipcli.images.worker import LENGTH, NO_MEMORY

T = TypeVar("T")

PROGRAM = ("-P", "-m", "zipcli.images.worker")
"""What Python runs in a worker: nothing from the folder that we happen to stand in."""

ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
"""What a worker inherits; no token and no proxy is among it."""

START_SECONDS = 60
"""How long a worker may take to import what it needs."""

PATIENCE = 3
"""Seconds on the clock that a decode may take for each second of processor time that it may use."""

RECYCLE = 1000
"""Images after which a worker is replaced."""

SMALL_PIXELS = 128 * 128
"""An image that is decoded as soon as it is looked at: to ask twice would cost more than its memory."""

HEADER_BYTES = 2**14
TEXT_LENGTH = 1000
MOST_NOTES = 20
PIPE_BYTES = MIB
CHUNK_BYTES = 2**16


class _LateError(Exception):
    """A worker did not answer in time."""


class _Worker:
    """A process that decodes one image at a time, for one thread at a time."""

    def __init__(self, program: Sequence[str]) -> None:
        """Start it, without waiting until it is ready.

        Raises:
            OSError: That is not possible.
        """
        self.images = 0
        self.is_ready = False
        self._heard = b""
        self._patience = self._looked = 0.0
        self._process = subprocess.Popen(
            [sys.executable, *program],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_environment(),
            close_fds=True,
            start_new_session=True,  # Ctrl-C in the terminal is for us alone
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._requests, self._answers):
            os.set_blocking(pipe, False)
            with suppress(AttributeError, OSError):  # only Linux can, and not for every user
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def is_alive(self) -> bool:
        """Whether it is there; somebody may have ended it while it was idle."""
        return self._process.poll() is None

    @property
    def is_silent(self) -> bool:
        """Whether it has said no more than it was asked, so far."""
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        return not self._heard and not poll.poll(0)

    def await_ready(self) -> None:
        """Wait until it can be asked.

        Raises:
            OSError: It ended, said something else, or takes too long.
        """
        if self.is_ready:
            return
        try:
            self.allow(START_SECONDS)
            _require(self.receive().get("ready") is True)
        except (EOFError, ValueError, RecursionError) as e:
            message = f"it ended with code {self.exit_code()} before it was ready"
            raise OSError(0, message) from e
        except _LateError as e:
            raise OSError(0, f"it was not ready within {START_SECONDS} seconds") from e
        self.is_ready = True

    def allow(self, seconds: float) -> None:
        """Set how long all that follows may take."""
        self._patience, self._looked = seconds, time.monotonic()

    def send(self, header: dict[str, Any], data: bytes) -> None:
        """Send a request.

        Raises:
            OSError: It is gone.
            _LateError: It does not read.
        """
        text = json.dumps({**header, "bytes": len(data)}).encode()
        start = LENGTH.pack(len(text)) + text
        for part in (start + data,) if len(data) <= CHUNK_BYTES else (start, data):
            rest = memoryview(part)
            while rest:
                try:
                    rest = rest[os.write(self._requests, rest) :]
                except BlockingIOError:
                    self._wait(self._requests, select.POLLOUT)

    def receive(self) -> dict[str, Any]:
        """The header of its answer.

        Raises:
            EOFError: It is gone.
            ValueError: That is no header.
            RecursionError: Likewise.
            _LateError: It does not answer.
        """
        size = LENGTH.unpack(self._read(LENGTH.size))[0]
        _require(size <= HEADER_BYTES)
        header = json.loads(self._read(size))
        _require(isinstance(header, dict))
        return dict(header)

    def read_into(self, buffer: memoryview) -> None:
        """Fill a buffer with what it says next; raises like `receive`."""
        early = self._heard[: len(buffer)]
        self._heard = self._heard[len(buffer) :]
        buffer[: len(early)] = early
        buffer = buffer[len(early) :]
        while buffer:
            self._wait(self._answers, select.POLLIN)
            with suppress(BlockingIOError):
                count = os.readv(self._answers, [buffer])
                if count == 0:
                    raise EOFError
                buffer = buffer[count:]

    def _read(self, size: int) -> bytes:
        """Read a little; what comes along with it is kept for the next who reads."""
        while len(self._heard) < size:
            self._wait(self._answers, select.POLLIN)
            with suppress(BlockingIOError):
                more = os.read(self._answers, CHUNK_BYTES)
                if not more:
                    raise EOFError
                self._heard += more
        found, self._heard = self._heard[:size], self._heard[size:]
        return found

    def exit_code(self) -> int | None:
        """Exit code of a process that has closed its pipe, negative for a signal; None if it lives on."""
        try:
            return self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it at once, whoever is talking to it."""
        self._process.kill()

    def end(self) -> None:
        """End it at once and leave nothing behind."""
        self.kill()
        self.forget()
        self._process.wait()

    def forget(self) -> None:
        """Close our ends of the pipes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def disown(self) -> None:
        """Leave it to the process that we were forked from."""
        self.forget()
        self._process.returncode = 0  # it is no child of ours to wait for

    def _wait(self, pipe: int, event: int) -> None:
        """Wait until a pipe can be used, or is broken.

        Raises:
            _LateError: The time is over.
        """
        poll = select.poll()
        poll.register(pipe, event)
        while self._patience > 0:
            is_usable = poll.poll(1000 * min(self._patience, 1))
            now = time.monotonic()
            # No look takes longer, unless we ourselves were stopped (Ctrl-Z): that is nobody's fault.
            self._patience -= min(now - self._looked, 1)
            self._looked = now
            if is_usable:
                return
        raise _LateError


def _environment() -> dict[str, str]:
    """The environment of a worker: where modules are, and one thread."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [str(Path(path).absolute()) for path in sys.path if path]
    return {
        **{name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([*paths, here])),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # Memory of large images goes back to the system: its limit is for one image, not for all before.
        "MALLOC_MMAP_THRESHOLD_": str(MIB),
        "MALLOC_TRIM_THRESHOLD_": str(MIB),
    }


class Pool(AbstractContextManager["Pool"]):
    """Some workers, started when they are needed; any number of threads may ask at once."""

    def __init__(self, workers: int | None = None, *, program: Sequence[str] = PROGRAM) -> None:
        """Start nothing yet.

        Args:
            workers: Processes at most; None for one for each processor, but two at least, since one
                may be busy until its time is over.
            program: Arguments for Python.
        """
        self._program = program
        self._most = workers or max(2, os.cpu_count() or 1)
        self._changed = threading.Condition()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._places = 0  # workers, and those about to be started
        self._is_closed = False

    def decode(self, data: bytes, name: str, limits: Limits = LIMITS) -> Picture:
        """Decode the bytes of an image file as `load.decode` does, in a worker.

        Raises:
            InputError: The bytes are not one whole still image of an allowed format and size, or
                they crashed the decoder, took too long or too much memory.
            ZipcliError: No worker can be started.
        """
        return self._ask(data, name, limits, None, _read_picture)

    def declared_size(self, data: bytes, name: str, limits: Limits = LIMITS) -> tuple[int, int]:
        """Width and height that a file declares, found out in a worker.

        Raises:
            InputError: As `decode`, as far as the header tells.
            ZipcliError: No worker can be started.
        """
        return self._ask(data, name, limits, -1, _read_size)

    def glance(self, data: bytes, name: str, limits: Limits = LIMITS) -> Picture | tuple[int, int]:
        """A small image itself, in one go, and the declared size of a larger one.

        Raises:
            InputError: As `decode`, for a larger one as far as the header tells.
            ZipcliError: No worker can be started.
        """
        return self._ask(data, name, limits, SMALL_PIXELS, _read_either)

    def warm(self, count: int) -> None:
        """Start up to `count` workers now, so that they are ready when they are needed."""
        for _ in range(count):
            with self._changed:
                if self._is_closed or self._places >= min(count, self._most):
                    return
                self._places += 1
            try:
                worker = _Worker(self._program)
            except OSError:  # whoever needs it will see
                self._give_up_place()
                return
            with self._changed:
                if not self._is_closed:
                    self._idle.insert(0, worker)
                    self._changed.notify()
                    continue
            worker.end()

    def close(self) -> None:
        """End the workers at once, even those at work."""
        with self._changed:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.kill()  # the thread that uses it cleans up
            self._changed.notify_all()
        for worker in idle:
            worker.end()

    def disown(self) -> None:
        """Leave the workers to the process that we were forked from."""
        for worker in (*self._idle, *self._busy):
            worker.disown()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _ask(
        self,
        data: bytes,
        name: str,
        limits: Limits,
        at_most: int | None,
        read: "Callable[[dict[str, Any], _Worker, Limits], T]",
    ) -> T:
        """Let a worker do something; it stays in use only if it answered as it should."""
        check_data(data, name, limits)
        worker = self._take()
        keep = False
        try:
            worker.allow(PATIENCE * limits.seconds)
            worker.send({"name": name, "limits": vars(limits), "at_most": at_most}, data)
            answer = worker.receive()
            if "reason" in answer:
                error = _refusal(answer, name)
                keep = error.reason is not Reason.OUT_OF_MEMORY
                raise error
            result = read(answer, worker, limits)
            worker.images += isinstance(result, Picture)
            keep = worker.images < RECYCLE and worker.is_silent
            return result
        except _LateError as e:
            raise _timeout(name, limits) from e
        except (EOFError, OSError) as e:  # it is gone
            self._explain(worker.exit_code(), name, limits, e)
        # It said what no worker of ours says, in one of the ways in which that can go wrong.
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            self._explain(None, name, limits, e)
        finally:
            self._put_back(worker, keep=keep)

    def _explain(self, code: int | None, name: str, limits: Limits, error: Exception) -> NoReturn:
        """Raise what the exit code of a worker means for the image."""
        if self._is_closed:
            raise RuntimeError("the pool was closed while it decoded") from error
        if code == -signal.SIGXCPU:
            raise _timeout(name, limits) from error
        # Nobody but the system, for lack of memory, sends SIGKILL to a worker of ours.
        if code in (NO_MEMORY, -signal.SIGKILL):
            raise out_of_memory(name) from error
        message = f"{name}: the decoder crashed; do not trust this file, or restore it from its source"
        raise InputError(Reason.DECODE_CRASH, message) from error

    def _take(self) -> _Worker:
        """Wait for a worker that is ready; start one if there may be more.

        Raises:
            ZipcliError: None can be started.
        """
        while True:
            worker = self._next()
            try:
                worker = worker or self._started()
                worker.await_ready()
            except BaseException as e:  # nor may Ctrl-C keep a place for nobody
                if worker is not None:
                    self._put_back(worker, keep=False)
                else:
                    self._give_up_place()
                if not isinstance(e, OSError):
                    raise
                if self._places == 0:
                    raise _cannot_start(e) from e
                self._most = self._places  # those that are there have to do
            else:
                return worker

    def _next(self) -> _Worker | None:
        """An idle worker, or None and the right to start one."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._idle or self._places < max(1, self._most) or self._is_closed
                )
                if self._is_closed:
                    raise RuntimeError("the pool is closed")
                if not self._idle:
                    self._places += 1
                    return None
                worker = self._idle.pop()
                self._busy.add(worker)
            if worker.is_alive and (worker.is_silent or not worker.is_ready):
                return worker
            self._put_back(worker, keep=False)

    def _started(self) -> _Worker:
        worker = _Worker(self._program)
        with self._changed:
            self._busy.add(worker)
        return worker

    def _put_back(self, worker: _Worker, *, keep: bool) -> None:
        with self._changed:
            self._busy.discard(worker)
            keep = keep and not self._is_closed
            if keep:
                self._idle.append(worker)
                self._changed.notify()
        if not keep:
            worker.end()
            self._give_up_place()

    def _give_up_place(self) -> None:
        with self._changed:
            self._places -= 1
            self._changed.notify()


def _timeout(name: str, limits: Limits) -> InputError:
    message = f"{name}: decoding takes longer than the limit of {limits.seconds} s; leave it out"
    return InputError(Reason.DECODE_TIMEOUT, f"{message}, or raise --decode-seconds")


def _cannot_start(error: OSError) -> ZipcliError:
    return ZipcliError(
        f"no process can be started that decodes images: {error.strerror}; close other programs, or see what "
        f"`{shown(sys.executable)} {' '.join(PROGRAM)}` says"
    )


# What a worker answers. A file may have taken it over, so nothing is believed.


def _require(condition: bool) -> None:
    """Raise `ValueError` unless an answer is what it must be."""
    if not condition:
        raise ValueError("nonsense from a worker")


def _refusal(answer: dict[str, Any], name: str) -> InputError:
    """Why a worker refused a file."""
    return InputError(Reason(answer["reason"]), f"{name}: {_text(answer['text'])}")


def _text(value: Any) -> str:
    """Text that may be shown."""
    _require(isinstance(value, str) and len(value) <= TEXT_LENGTH and shown(value) == value)
    return str(value)


def _whole(value: Any, least: int, most: int) -> int:
    """A whole number."""
    _require(type(value) is int and least <= value <= most)
    return int(value)


def _read_size(answer: dict[str, Any], worker: _Worker, limits: Limits) -> tuple[int, int]:
    """The size that a worker found."""
    width, height = (_whole(side, 0, limits.max_side) for side in answer["size"])
    _require(width * height <= limits.max_pixels and answer["bytes"] == 0)
    return width, height


def _read_either(answer: dict[str, Any], worker: _Worker, limits: Limits) -> Picture | tuple[int, int]:
    """The one or the other."""
    return (_read_size if "size" in answer else _read_picture)(answer, worker, limits)


def _read_picture(answer: dict[str, Any], worker: _Worker, limits: Limits) -> Picture:
    """The picture that a worker decoded."""
    notes, format_, mode = answer["notes"], answer["format"], answer["mode"]
    _require(format_ in (*ALLOWED_FORMATS, "MPO") and mode in MODES)
    _require(isinstance(notes, list) and len(notes) <= MOST_NOTES)
    return Picture(
        pixels=_read_pixels(answer, worker, limits),
        format=format_,
        mode=mode,
        metadata=_metadata(answer["metadata"]),
        notes=tuple(_text(note) for note in notes),
    )


def _read_pixels(answer: dict[str, Any], worker: _Worker, limits: Limits) -> Pixels:
    """The pixels that follow the header of an answer."""
    height, width, *channels = (_whole(side, 1, limits.max_side) for side in answer["shape"])
    _require(height * width <= limits.max_pixels and channels in ([], [3]))
    pixels = np.empty((height, width, *channels), np.uint8)
    _require(answer["bytes"] == pixels.nbytes)
    worker.read_into(pixels.reshape(-1).data)
    return pixels


def _metadata(values: dict[str, Any]) -> Metadata:
    """What a worker found beside the pixels, checked once more."""
    dpi = values["dpi"]
    metadata = Metadata(**{**values, "dpi": tuple(dpi) if isinstance(dpi, list) else dpi})
    _require(checked_metadata(metadata) == metadata)
    return metadata


# The pool that everybody shares.

_lock = threading.Lock()
_shared: Pool | None = None
_inherited: list[Pool] = []


def shared_pool() -> Pool:
    """The workers of this process; they end with it."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = Pool()
        return _shared


def decode(data: bytes, name: str, limits: Limits = LIMITS) -> Picture:
    """`Pool.decode` of the shared pool."""
    return shared_pool().decode(data, name, limits)


def declared_size(data: bytes, name: str, limits: Limits = LIMITS) -> tuple[int, int]:
    """`Pool.declared_size` of the shared pool."""
    return shared_pool().declared_size(data, name, limits)


def glance(data: bytes, name: str, limits: Limits = LIMITS) -> Picture | tuple[int, int]:
    """`Pool.glance` of the shared pool."""
    return shared_pool().glance(data, name, limits)


def _close_shared() -> None:
    if _shared is not None:
        _shared.close()


def _after_fork() -> None:
    """Leave the workers to our parent: two processes that talk to one would get each other's answers."""
    global _lock, _shared
    _lock = threading.Lock()
    if _shared is not None:
        _shared.disown()
        _inherited.append(_shared)
        _shared = None


atexit.register(_close_shared)
os.register_at_fork(after_in_child=_after_fork)
