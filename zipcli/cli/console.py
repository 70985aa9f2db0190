"""Talk on stderr: a live bar on a terminal, plain lines elsewhere. Data on stdout never comes from here."""

import json
import os
import sys
import time
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any

import click

from zipcli.errors import shown
from zipcli.pipeline.outcome import Outcome, Summary

PLAIN_SECONDS = 30
PLAIN_SHARE = 0.05
FAILURES_SHOWN = 20


def printable(text: str) -> str:
    """Make every line of a text harmless; names inside it are escaped where the text is made."""
    return "\n".join(shown(line) for line in text.split("\n"))


closed_streams: set[str] = set()
"""Which of stdin, stdout and stderr were closed when the program began."""


def replace_closed_streams() -> None:
    """Make sure that descriptors 0, 1 and 2 are taken, and that print has somewhere to go.

    Otherwise the next file we open, such as an output image, would become the standard error of
    every library that writes there.
    """
    closed_streams.clear()
    closed_streams.update(name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None)
    if not closed_streams:
        return
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in closed_streams - {"stdin"}:
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123  # open until the end


def say(text: str) -> None:
    """Print a line on stderr; a closed stderr does not stop the work."""
    with suppress(OSError):
        click.echo(printable(text), err=True)


def emit(kind: str, **values: Any) -> None:
    """Print one JSON object on stdout, in one line, at once."""
    click.echo(json.dumps({"type": kind, **values}))


class Progress(AbstractContextManager["Progress"]):
    """Progress of a folder run."""

    def __init__(self, total: int | None, *, verbosity: int, as_json: bool, word: str = "purifying") -> None:
        """Prepare.

        Args:
            total: How many images there are; None where nobody knows.
            verbosity: -1 for quiet, 0, or 1 and more for a line per image.
            as_json: Whether to print a JSON line for each image.
            word: What is being done.
        """
        self.total = total
        self.word = word
        self.verbosity = verbosity
        self.as_json = as_json
        self.summary = Summary()
        self.failures: list[Outcome] = []
        self.began = time.monotonic()
        self._last = (self.began, 0)
        self._under_way = 0
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        """Show the bar where somebody can see it."""
        if self.verbosity >= 0 and sys.stderr is not None and sys.stderr.isatty():
            self._bar = _live_bar(self.total, self.word)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()

    def add(self, outcome: Outcome) -> None:
        """Show one finished image."""
        self.summary.add(outcome)
        if outcome.tar is not None and outcome.state != "skipped":
            self._under_way = max(0, self._under_way - 1)
        if outcome.state == "failed":
            self._keep_failure(outcome)
        if self.as_json:
            emit("tar" if outcome.is_tar else "image", **outcome.as_json())
        if self.verbosity >= 1:
            self._line(describe(outcome))
        elif outcome.is_tar and outcome.notes and self.verbosity == 0:
            self._line(f"Note: {shown(outcome.path)}: {'; '.join(outcome.notes)}")
        self._show()

    def _keep_failure(self, outcome: Outcome) -> None:
        if outcome.is_tar:
            self.failures.insert(0, outcome)  # it says why its images have failed
            del self.failures[FAILURES_SHOWN:]
        elif len(self.failures) < FAILURES_SHOWN:
            self.failures.append(outcome)

    def tick(self) -> None:
        """Show that an image is finished of which `add` will be told once its tar is written."""
        self._under_way += 1
        self._show()

    def _show(self) -> None:
        if self._bar is not None:
            task = self._bar.task_ids[0]
            done = self.summary.found + self._under_way
            self._bar.update(task, completed=done, failed=self.summary.counts["failed"])
        elif self.verbosity >= 0:
            self._plain()

    def finish(self, out: str) -> None:
        """Say what became of the folder, failures first."""
        for outcome in self.failures if self.verbosity < 1 else ():
            say(describe(outcome))
        counts = self.summary.counts
        more = counts["failed"] + self.summary.tars["failed"] - len(self.failures)
        if more > 0 and self.verbosity < 1:
            say(f"... and {more} more failures; see the ledger in {out}/.zipcli")
        seconds = time.monotonic() - self.began
        already = self.summary.already
        parts = [f"purified {counts['done']}"]
        parts += [f"passed {counts['passed']}"] if counts["passed"] else []
        parts += [f"already done {already}"] if already else []
        ignored = counts["skipped"] - already
        parts += [f"skipped {ignored} links and special files"] if ignored else []
        parts += [f"failed {counts['failed']}"]
        rate = f", {counts['done'] / seconds:.2f} images/s" if counts["done"] else ""
        if self.total is not None:
            self.summary.left = max(0, self.total - self.summary.found)
        left = f" and did not come to {self.summary.left} more" if self.summary.left else ""
        tars = ", ".join(f"{count} {state}" for state, count in sorted(self.summary.tars.items()))
        in_tars = f"; tars: {tars}" if tars else ""
        others = f"; ignored {self.summary.ignored} other files" if self.summary.ignored else ""
        asked = self.summary.queries
        others += f"; {asked:,} queries to the classifier" if asked else ""
        say(
            f"{', '.join(parts)} of {self.summary.found} images{left} in {clock(seconds)}{rate}; "
            f"output in {out}{in_tars}{others}"
        )

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(
                printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True
            )
        else:
            say(text)

    def _plain(self) -> None:
        """One line every 30 seconds or 5 %, whichever is later."""
        now, done = time.monotonic(), self.summary.found + self._under_way
        then, before = self._last
        if now - then < PLAIN_SECONDS or done - before < PLAIN_SHARE * (self.total or 0):
            return
        self._last = (now, done)
        if self.total is None:
            say(f"{self.word} {done} failed {self.summary.counts['failed']}")
            return
        left = (now - self.began) / done * max(0, self.total - done)
        share = f"{done}/{self.total} ({done / max(1, self.total):.0%})"
        say(f"{self.word} {share} failed {self.summary.counts['failed']} eta {clock(left)}")


def describe(outcome: Outcome) -> str:
    """One line about one image."""
    if outcome.state in ("failed", "skipped") and outcome.reason:
        path, text = shown(outcome.path), outcome.message or ""
        text = text if text.startswith(path) else f"{path}: {text}"
        return f"{outcome.state} ({outcome.reason}) {text}"
    notes = f" ({'; '.join(outcome.notes)})" if outcome.notes else ""
    took = f" in {outcome.ms} ms" if outcome.ms is not None else ""
    state = "already done" if outcome.state == "skipped" else outcome.state
    return f"{state} {shown(outcome.path)}{took}{notes}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as 01:02:03."""
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def _live_bar(total: int | None, word: str) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn(word),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("failed {task.fields[failed]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task(word, total=total, failed=0)
    return bar
