"""Signals ask a run to stop; a second one stops it at once."""

import os
import signal
from types import FrameType

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

    def _receive(self, number: int, frame: FrameType | None) -> None:
        code = CODES[signal.Signals(number)]
        if self._received is not None:
            os._exit(int(code))  # what is on disk is consistent at every instant
        self._received = code
