"""Signals ask a run to stop; a second one, or a network that does not let go, stops it at once."""

import atexit
import math
import os
import select
import signal
import threading
from contextlib import suppress
from io import UnsupportedOperation
from types import FrameType
from typing import IO

from zipcli.errors import ExitCode, StoppedError

CODES = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGHUP: ExitCode.HANGUP,
}

GRACE = 4.0
"""Seconds in which a run stops by itself: whoever sends SIGTERM may follow it with SIGKILL soon."""


class StopSignals:
    """Remembers the first signal; `check` raises where it is safe to stop.

    Raising inside the handler could tear a line of the ledger or a rename. Python's default turns
    Ctrl-C into exit code 1 through Click and leaves SIGTERM to kill us without a word.

    Python runs a handler between two steps of the main thread, which may spend a minute in one call of
    a large network. So a thread hears the signals: it ends the process at the second one, and when the
    first was not heeded in time. What is on the disk is consistent at every instant.

    Attributes:
        last_words: What to print when the process is ended.
    """

    def __init__(self, grace: float | None = GRACE) -> None:
        """Take over SIGINT, SIGTERM and SIGHUP; an ignored signal stays ignored (nohup, cmd &).

        Args:
            grace: Seconds to stop in; None for as long as it takes.
        """
        self.last_words = str(StoppedError(ExitCode.INTERRUPTED))
        self._grace = grace
        self._received: ExitCode | None = None
        self._stop, self._tell = _pipe()
        self._heard = False
        _listen(self)
        for number in CODES:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _note)

    def __del__(self) -> None:
        """Give the descriptors back."""
        for descriptor in (self._stop, self._tell):
            with suppress(OSError):
                os.close(descriptor)

    def check(self) -> None:
        """Raise `StoppedError` if a signal came."""
        if self._received is not None:
            raise StoppedError(self._received)

    def wait(self, seconds: float) -> None:
        """Sleep, or raise `StoppedError` as soon as a signal comes."""
        select.select([self._stop], [], [], seconds)
        self.check()

    def read(self, stream: IO[bytes], at_most: float = math.inf) -> bytes:
        """Read a stream to its end or a little more than `at_most` bytes, until a signal comes."""
        try:
            descriptor = stream.fileno()
        except UnsupportedOperation:  # in memory: nothing to wait for
            return stream.read()
        parts: list[bytes] = []
        while at_most >= 0 and (part := self.read_some(descriptor)):
            parts.append(part)
            at_most -= len(part)
        return b"".join(parts)

    def read_some(self, descriptor: int) -> bytes:
        """Read what a descriptor has next, nothing at its end, giving up as soon as a signal comes."""
        select.select([descriptor, self._stop], [], [])
        self.check()
        return os.read(descriptor, 2**20)

    def note(self, code: ExitCode) -> None:
        """Remember a signal, in the main thread: its next `check` raises."""
        self._received = self._received or code

    def hear(self, code: ExitCode) -> None:
        """Take a signal, in the thread that listens."""
        if self._heard:
            os._exit(int(code))
        self._heard = True
        self.note(code)
        os.write(self._tell, b"!")
        if self._grace is not None:
            timer = threading.Timer(self._grace, self._end, [code])
            timer.daemon = True
            timer.start()

    def turn_deaf(self) -> None:
        """Ignore what still comes, if the run has been stopped: the exit code is decided.

        While Python takes itself apart it gives signals their default back, which would be to die of them.
        """
        for number in CODES:
            if self._received is not None and signal.getsignal(number) is _note:
                signal.signal(number, signal.SIG_IGN)

    def _end(self, code: ExitCode) -> None:
        with suppress(OSError):
            _, can_be_told, _ = select.select([], [2], [], 0)
            if can_be_told:  # a full pipe would hold us
                os.write(2, f"{self.last_words}\n".encode(errors="replace"))
        os._exit(int(code))


def _note(number: int, frame: FrameType | None) -> None:
    """The handler; the number of the signal has gone to the thread that listens, too."""
    if _listener is not None and _listener.of is not None:
        _listener.of.note(CODES[signal.Signals(number)])


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    os.set_blocking(write, False)
    return read, write


class _Listener(threading.Thread):
    """Hears signals for whoever asked last; there is one in a process."""

    def __init__(self) -> None:
        super().__init__(name="zipcli-signals", daemon=True)
        self.of: StopSignals | None = None
        self.pid = os.getpid()
        self.ear, self.mouth = _pipe()

    def run(self) -> None:
        while numbers := os.read(self.ear, 64):
            for number in numbers:
                if self.of is not None and signal.getsignal(number) is _note:  # else none of ours
                    self.of.hear(CODES[signal.Signals(number)])


_listener: _Listener | None = None


def _turn_deaf() -> None:
    if _listener is not None and _listener.of is not None:
        _listener.of.turn_deaf()


def _listen(stop: StopSignals) -> None:
    """Make `stop` the one that signals go to."""
    global _listener
    if _listener is None or _listener.pid != os.getpid():  # a thread does not survive a fork
        _listener = _Listener()
        _listener.start()
        atexit.register(_turn_deaf)
    _listener.of = stop
    signal.set_wakeup_fd(_listener.mouth, warn_on_full_buffer=False)
