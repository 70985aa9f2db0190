"""Runs a program of the user's so that it can neither be waited for for ever nor outlive us."""

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from zipcli.classifiers import guard
from zipcli.errors import ClassifierError, shown

FAREWELL_SECONDS = 5.0
"""How long a program may take to end by itself when nothing more is asked of it."""

LAST_WORDS_SECONDS = 0.5
"""How long one that failed may go on to say why."""

LOOK_SECONDS = 0.05
"""How often a wait looks up whether it should stop."""

LINE_LIMIT = 16 * 2**20
LAST_WORDS = 1000
"""Bytes of standard error that an error shows."""


@dataclass(frozen=True)
class Workplace:
    """A folder for temporary pictures, and the guard that removes it even if we are killed."""

    folder: Path
    _guard_input: IO[bytes]

    def watch(self, group: int) -> None:
        """Tell the guard which process group to end if we go; 0 for none."""
        with suppress(BrokenPipeError):  # somebody ended the guard; we still clean up ourselves
            self._guard_input.write(b"%d\n" % group)
            self._guard_input.flush()


@contextmanager
def open_workplace() -> Iterator[Workplace]:
    """Make a folder that only the user can read, and remove it at the end of the block.

    Raises:
        ClassifierError: There is no room for temporary files.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="zipcli-"))
    except OSError as e:
        raise ClassifierError(f"no folder for temporary pictures: {e.strerror}; set TMPDIR to one") from e
    try:
        # A session of its own: Ctrl-C in the terminal is not for the guard.
        with subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            assert process.stdin is not None
            yield Workplace(folder, process.stdin)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Program(AbstractContextManager["Program"]):
    """A running program, in a process group of its own; it ends with the block."""

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        workplace: Workplace,
        check_stop: Callable[[], None],
        *,
        talks: bool,
    ) -> None:
        """Start it.

        Args:
            name: What errors call it, harmless already.
            words: The program and its arguments.
            workplace: Whose guard watches over it.
            check_stop: Called often while it is waited for; it may raise.
            talks: Whether it reads what we send; otherwise its standard input is empty.

        Raises:
            ClassifierError: It cannot be started.
        """
        self._name = name
        self._check_stop = check_stop
        self._workplace = workplace
        self._unsent = bytearray()
        self._partial = bytearray()
        self._lines: deque[bytes] = deque()
        self._last_words = b""
        self._is_silent = False
        self._is_over = False
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as e:
            raise ClassifierError(
                f"{name}: cannot be started: {shown(getattr(e, 'strerror', None) or str(e))}; is the program "
                "there, and may it be run?"
            ) from e
        workplace.watch(self._process.pid)  # a SIGKILL that comes just before this finds no guard
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ, self._hear)
        self._selector.register(self._process.stderr, selectors.EVENT_READ, self._overhear)

    def send(self, data: bytes) -> None:
        """Let the program read this while its lines are waited for."""
        if not self._unsent and data:
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
            self._selector.register(self._process.stdin, selectors.EVENT_WRITE, self._tell)
        self._unsent += data

    def lines(self, seconds: float) -> Iterator[bytes]:
        """What the program prints, line by line, until it is done printing.

        Raises:
            ClassifierError: The seconds are over.
        """
        deadline = time.monotonic() + seconds
        while True:
            while self._lines:
                yield self._lines.popleft()
            if self._is_silent:
                return
            self._check_stop()
            if time.monotonic() >= deadline:
                raise self.error(
                    f"no answer within {seconds:g} seconds; does it flush what it prints? Otherwise raise "
                    "--classifier-timeout or lower --classifier-batch"
                )
            if not self._look(LOOK_SECONDS) and self._process.poll() is not None:
                self._fall_silent()  # one of its children still holds standard output

    def end(self, seconds: float) -> int | None:
        """Ask for nothing more and wait for the program to end.

        Returns:
            Its exit code, negative for a signal; None where it had to be killed.
        """
        self._stop_telling()
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            self._look(LOOK_SECONDS)
            self._lines.clear()
        while self._look(0) and time.monotonic() < deadline:
            pass  # what it said last
        code = self._process.poll()
        self._kill()
        return code

    def error(self, text: str) -> ClassifierError:
        """An error with the last words of the program."""
        said = " ".join(self._last_words.decode("utf-8", "replace").split())
        return ClassifierError(f"{self._name}: {text}" + (f"; its last words: {shown(said)}" if said else ""))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the program and all that it started: politely, unless something went wrong."""
        try:
            self.end(FAREWELL_SECONDS if kind is None else 0.0)
        finally:
            self._kill()
            self._selector.close()
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()

    def _look(self, seconds: float) -> bool:
        """Wait for the streams, and say whether one had something to do."""
        events = self._selector.select(seconds)
        for key, _ in events:
            key.data(key.fd)
        return bool(events)

    def _hear(self, descriptor: int) -> None:
        part = os.read(descriptor, 2**16)
        if not part:
            self._fall_silent()
            return
        first, *others = part.split(b"\n")
        self._partial += first
        for other in others:
            self._lines.append(bytes(self._partial))
            self._partial = bytearray(other)
        if len(self._partial) > LINE_LIMIT:
            raise self.error(f"a line is longer than {LINE_LIMIT // 2**20} MB")

    def _fall_silent(self) -> None:
        assert self._process.stdout is not None
        self._selector.unregister(self._process.stdout)
        self._is_silent = True
        if self._partial:
            self._lines.append(bytes(self._partial))  # a last line may lack its end
            self._partial.clear()

    def _overhear(self, descriptor: int) -> None:
        part = os.read(descriptor, 2**16)
        self._last_words = (self._last_words + part)[-LAST_WORDS:]
        if not part:
            self._selector.unregister(descriptor)

    def _tell(self, descriptor: int) -> None:
        try:
            del self._unsent[: os.write(descriptor, self._unsent[: 2**16])]
        except BrokenPipeError:  # it reads no more; what it printed will tell why
            self._unsent.clear()
        if not self._unsent:
            self._selector.unregister(descriptor)

    def _stop_telling(self) -> None:
        if self._process.stdin is None or self._process.stdin.closed:
            return
        if self._unsent:
            self._selector.unregister(self._process.stdin)
            self._unsent.clear()
        self._process.stdin.close()

    def _kill(self) -> None:
        """End what is left of the group, also where its first process is gone."""
        if self._is_over:
            return
        self._is_over = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._workplace.watch(0)
