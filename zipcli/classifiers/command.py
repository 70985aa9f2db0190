"""A classifier that is a program of the user's.

`cmd:PROGRAM ARGS` is started once. For each image it reads a line of JSON from standard input,

    {"id": 7, "path": "/tmp/.../7.png"}

and prints a line of JSON, in any order and flushed, before it waits for more lines than it was given:

    {"id": 7, "label": 3, "probabilities": [0.1, ...]}

`label` is a class index from 0 or a class name; `probabilities` may be left out. Standard input ends when
there are no more images.

`cmd-paths:PROGRAM ARGS` is run once for each batch, with the paths of the images as its last arguments, or
in place of an argument `{}`. It prints one label per line, in the order of the paths, and exits with 0.

Neither goes through a shell. Images are PNG files that are removed after their batch. Standard output is
for answers only; what is printed on standard error is shown when something goes wrong.
"""

import json
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from zipcli.classifiers.answers import AnswerReader, brief
from zipcli.classifiers.pixels import Pixels, as_png, resize
from zipcli.classifiers.program import (
    FAREWELL_SECONDS,
    LAST_WORDS_SECONDS,
    Program,
    Workplace,
    open_workplace,
)
from zipcli.config import ClassifierConfig
from zipcli.errors import ConfigError, shown
from zipcli.protocols import Prediction

TIMEOUT = 60.0
"""Seconds for a batch where the user gave none."""

Talk = Callable[[Sequence[Path]], Prediction]
"""Shows a program the pictures at some paths."""


@contextmanager
def open_command(config: ClassifierConfig, check_stop: Callable[[], None]) -> Iterator["CommandClassifier"]:
    """Run a program as a classifier, and leave no process and no file behind.

    Raises:
        ConfigError: The words are no command.
        ClassifierError: The program cannot be started.
    """
    prefix, _, line = config.classifier.partition(":")
    try:
        words = shlex.split(line)
    except ValueError as e:
        raise ConfigError(f"classifier: {shown(line[:200])}: {e}") from e
    if not words:
        raise ConfigError(f"classifier: {prefix}: needs a program, such as {prefix}:./classify.py")
    reader = AnswerReader(shown(f"{prefix}:{line}"[:100]), config.classes)
    seconds = config.timeout or TIMEOUT
    with open_workplace() as workplace:
        if config.kind == "cmd-paths":

            def start(paths: Sequence[Path]) -> Program:
                return Program(reader.name, _with_paths(words, paths), workplace, check_stop, talks=False)

            yield CommandClassifier(config, reader, workplace, PathsTalk(start, reader, seconds))
            return
        with Program(reader.name, words, workplace, check_stop, talks=True) as program:
            yield CommandClassifier(config, reader, workplace, JsonTalk(program, reader, seconds))


class CommandClassifier:
    """A program that answers."""

    def __init__(
        self, config: ClassifierConfig, reader: AnswerReader, workplace: Workplace, talk: Talk
    ) -> None:
        """Join a way to talk with a place for pictures."""
        self._config = config
        self._reader = reader
        self._workplace = workplace
        self._talk = talk
        self._numbers = count()

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, from the options."""
        return self._config.classes

    def __call__(self, images: Sequence[Pixels], /) -> Prediction:
        """Show the images in batches.

        Raises:
            ClassifierError: The program crashed, hung or answered nonsense, or there is no room for
                its pictures.
        """
        parts = []
        for start in range(0, len(images), self._config.batch_size):
            batch = images[start : start + self._config.batch_size]
            with self._pictures(batch) as paths:
                parts.append((range(start, start + len(batch)), self._talk(paths)))
        return self._reader.join(parts, len(images))

    @contextmanager
    def _pictures(self, images: Sequence[Pixels]) -> Iterator[list[Path]]:
        """Write images as files that are there for the block; no name is ever used twice."""
        side = self._config.input_size
        size = None if side is None else (side, side)
        paths = [self._workplace.folder / f"{next(self._numbers)}.png" for _ in images]
        try:
            for path, image in zip(paths, images, strict=True):
                try:
                    path.write_bytes(as_png(resize(image, size)))
                except OSError as e:
                    raise self._reader.error(
                        f"no room for a temporary picture ({e.strerror}); set TMPDIR to a folder with some"
                    ) from e
            yield paths
        finally:
            for path in paths:
                path.unlink(missing_ok=True)


class JsonTalk:
    """Asks a program that keeps running, and finds the answers by their ids."""

    def __init__(self, program: Program, reader: AnswerReader, seconds: float) -> None:
        """Talk to a program that runs; `seconds` are for each batch."""
        self._program = program
        self._reader = reader
        self._seconds = seconds
        self._next = 0

    def __call__(self, paths: Sequence[Path], /) -> Prediction:
        """Ask, and wait for as many answers."""
        ids = range(self._next, self._next + len(paths))
        self._next = ids.stop
        asked = (json.dumps({"id": i, "path": str(p)}) + "\n" for i, p in zip(ids, paths, strict=True))
        self._program.send("".join(asked).encode())
        answers: dict[int, dict[str, Any]] = {}
        for line in self._program.lines(self._seconds):
            answer = self._answer(line)
            identity = answer["id"]
            if identity in answers or (type(identity) is int and 0 <= identity < ids.start):
                raise self._program.error(f"it answered id {identity} twice")
            if type(identity) is not int or identity not in ids:
                raise self._program.error(f"it answered id {brief(identity)}, which nobody asked for")
            answers[identity] = answer
            if len(answers) == len(ids):
                break
        if len(answers) < len(ids):
            code = self._program.end(LAST_WORDS_SECONDS)
            raise self._program.error(f"it answered {len(answers)} of {len(ids)} images and {_ending(code)}")
        return self._prediction([answers[i] for i in ids])

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise self._program.error(
                f"it printed {brief(line.decode('utf-8', 'replace'))}, which is no line of JSON; print "
                "answers only on standard output"
            ) from e
        if not isinstance(answer, dict) or not {"id", "label"} <= answer.keys():
            raise self._program.error(f'it printed {brief(answer)}, no object with "id" and "label"')
        return answer

    def _prediction(self, answers: list[dict[str, Any]]) -> Prediction:
        labels = [answer["label"] for answer in answers]
        rows = [answer.get("probabilities") for answer in answers]
        given = sum(row is not None for row in rows)
        if 0 < given < len(rows):
            raise self._program.error(
                f"it gave probabilities for {given} of {len(rows)} images; give all or none"
            )
        return self._reader.words(labels, rows if given else None, len(answers))


class PathsTalk:
    """Runs a program once for each batch, and takes the lines that it prints in order."""

    def __init__(
        self, start: Callable[[Sequence[Path]], Program], reader: AnswerReader, seconds: float
    ) -> None:
        """Keep how the program is started with some paths; `seconds` are for each run of it."""
        self._start = start
        self._reader = reader
        self._seconds = seconds

    def __call__(self, paths: Sequence[Path], /) -> Prediction:
        """Run the program on some paths."""
        labels: list[bytes] = []
        with self._start(paths) as program:
            for line in program.lines(self._seconds):
                labels.append(line)
                if len(labels) > len(paths):
                    raise program.error(
                        f"it printed more lines than the {len(paths)} images that it was given; print one "
                        "label per image on standard output and nothing else"
                    )
            code = program.end(FAREWELL_SECONDS)
            if code != 0:
                raise program.error(
                    f"it printed {len(labels)} labels for {len(paths)} images and {_ending(code)}"
                )
            if len(labels) < len(paths):
                raise program.error(f"it printed {len(labels)} labels for {len(paths)} images")
        return self._reader.words([self._index(label) for label in labels], None, len(paths))

    def _index(self, line: bytes) -> int:
        try:
            return self._reader.index_of_text(line.decode().strip())
        except UnicodeDecodeError as e:
            raise self._reader.error(f"it printed {shown(repr(line[:60]))}, which is no text") from e


def _with_paths(words: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """The command with the paths at `{}`, or at the end where there is none."""
    if "{}" not in words:
        return [*words, *map(str, paths)]
    return [w for word in words for w in (map(str, paths) if word == "{}" else [word])]


def _ending(code: int | None) -> str:
    if code is None:
        return "stopped printing, but did not end"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
