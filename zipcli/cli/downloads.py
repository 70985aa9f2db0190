"""Shows what happens while a model is fetched."""

import sys
import time
from typing import Any

from zipcli.cli.console import PLAIN_SECONDS, say
from zipcli.cli.signals import StopSignals
from zipcli.errors import shown
from zipcli.models.hub import Listener

SMALL = 1_000_000
"""Files below it come and go without a word."""


def model_listener(stop: StopSignals, *, quiet: bool = False) -> Listener:
    """Tell the user on stderr, and stop when a signal comes; `quiet` keeps the notes only."""
    shown = DownloadProgress()
    return Listener(
        progress=Listener.progress if quiet else shown.show,
        ended=shown.end,
        note=lambda text: say(f"Note: {text}"),
        check_stop=stop.check,
    )


class DownloadProgress:
    """Progress of downloads: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._bar: Any = None
        self._file = ""
        self._said = 0.0

    def show(self, file: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes of a file are here."""
        if total < SMALL:
            return
        if sys.stderr is not None and sys.stderr.isatty():
            self._show_bar(file, done, total)
        else:
            self._show_line(file, done, total)

    def _show_bar(self, file: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = _live_bar()
            self._bar.start()
        if file != self._file:
            self._file = file
            self._bar.add_task(shown(file[-40:]), total=total)
        self._bar.update(self._bar.task_ids[-1], completed=done)

    def end(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._file = None, ""

    def _show_line(self, file: str, done: int, total: int) -> None:
        now = time.monotonic()
        if file != self._file or done >= total or now - self._said >= PLAIN_SECONDS:
            self._file, self._said = file, now
            say(f"downloading {shown(file)}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB ({done / total:.0%})")


def _live_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as SpeedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        SpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
