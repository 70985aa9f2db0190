"""Signals ask a run to stop; a second one stops it at once."""

import os
import select
import signal
from io import UnsupportedOperation
from types import FrameType
from typing import IO

from zipcli.errors import ExitCode, StoppedError

CODES = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGHUP: ExitCode.HANGUP,
}


class StopSignals:
    """Remembers the first signal; `check` raises where it is safe to stop.

    Raising inside the handler could tear a line of the ledger or a rename. Python's default turns
    Ctrl-C into exit code 1 through Click and leaves SIGTERM to kill us without a word.
    """

    def __init__(self) -> None:
        """Take over SIGINT, SIGTERM and SIGHUP; an ignored signal stays ignored (nohup, cmd &)."""
        self._received: ExitCode | None = None
        for number in CODES:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    def check(self) -> None:
        """Raise `StoppedError` if a signal came."""
        if self._received is not None:
            raise StoppedError(self._received)

    def read(self, stream: IO[bytes]) -> bytes:
        """Read a stream to its end, giving up as soon as a signal comes.

        A plain read would miss a signal that arrives between two system calls and then wait on.
        """
        try:
            descriptor = stream.fileno()
        except UnsupportedOperation:  # in memory: nothing to wait for
            return stream.read()
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        parts: list[bytes] = []
        try:
            while True:
                self.check()
                ready, _, _ = select.select([descriptor, woken], [], [])
                self.check()
                if descriptor in ready:
                    part = os.read(descriptor, 2**20)
                    if not part:
                        return b"".join(parts)
                    parts.append(part)
        finally:
            signal.set_wakeup_fd(before)
            os.close(woken)
            os.close(wake)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        code = CODES[signal.Signals(number)]
        if self._received is not None:
            os._exit(int(code))  # what is on disk is consistent at every instant
        self._received = code
