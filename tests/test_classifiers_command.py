"""cmd: and cmd-paths: with real programs: those that answer, and those that do not."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cli.shell import ENVIRONMENT, PATIENCE

from zipcli.classifiers import open_classifier
from zipcli.config import ClassifierConfig
from zipcli.errors import ClassifierError, ConfigError, ExitCode, StoppedError

HERE = Path(__file__).parent
PROGRAM = shlex.join([sys.executable, "-I", "-S", str(HERE / "classifier_program.py")])
NAMES = ("red", "green", "blue")


def plain(*labels: int, size: tuple[int, int] = (4, 6)) -> list[np.ndarray]:
    """Images whose label is their strongest channel, and no two are equal."""
    images = []
    for number, label in enumerate(labels):
        image = np.full((*size, 3), 20 + number, np.uint8)
        image[..., label] = 200
        images.append(image)
    return images


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Temporary files go here, and none of them may be left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@contextmanager
def opened(word: str, **settings: object):
    with open_classifier(ClassifierConfig(classifier=word, **settings)) as classifier:
        yield classifier


LABELS = (2, 0, 1, 1, 2, 0)


@pytest.mark.parametrize("mode", ["plain", "backwards", "sure"])
@pytest.mark.parametrize("batch_size", [3, 32])
def test_a_program_is_asked_in_lines_of_json(mode: str, batch_size: int) -> None:
    with opened(f"cmd:{PROGRAM} {mode}", batch_size=batch_size) as classifier:
        assert classifier.classes is None
        for _ in range(2):
            prediction = classifier(plain(*LABELS))
            assert prediction.labels.dtype == np.int64
            assert tuple(prediction.labels) == LABELS
            assert (prediction.probabilities is None) == (mode != "sure")
        assert classifier([]).labels.shape == (0,)
    if prediction.probabilities is not None:
        assert prediction.probabilities.dtype == np.float32
        assert prediction.probabilities[0] == pytest.approx([20 / 240, 20 / 240, 200 / 240])


def test_names_become_indices() -> None:
    with opened(f"cmd:{PROGRAM} names", classes=NAMES) as classifier:
        assert tuple(classifier(plain(*LABELS)).labels) == LABELS
        assert classifier.classes == NAMES


@pytest.mark.parametrize("end", ["", " braces {} after", " words"])
def test_a_program_is_given_paths(end: str) -> None:
    with opened(f"cmd-paths:{PROGRAM}{end}", batch_size=4, classes=NAMES) as classifier:
        assert tuple(classifier(plain(*LABELS)).labels) == LABELS


def test_a_printed_number_is_a_class_name_first() -> None:
    with opened(f"cmd-paths:{PROGRAM}", classes=("2", "1", "0")) as classifier:
        assert tuple(classifier(plain(2, 1)).labels) == (0, 1)


@pytest.mark.parametrize("word", ["cmd", "cmd-paths"])
def test_images_are_resized_where_a_size_is_given(word: str, tmp_path: Path) -> None:
    script = tmp_path / "size.py"
    script.write_text(
        "import json, sys\n"
        "side = lambda path: int.from_bytes(open(path, 'rb').read(24)[16:20])\n"
        "for path in sys.argv[1:]: print(side(path))\n"
        "for line in () if sys.argv[1:] else sys.stdin:\n"
        "    q = json.loads(line)\n"
        "    print(json.dumps({'id': q['id'], 'label': side(q['path'])}), flush=True)\n"
    )
    command = shlex.join([sys.executable, str(script)])
    for input_size, expected in ((None, (6, 9)), (5, (5, 5))):
        with opened(f"{word}:{command}", input_size=input_size) as classifier:
            images = plain(0, size=(4, 6)) + plain(0, size=(8, 9))
            assert tuple(classifier(images).labels) == expected


@pytest.fixture
def dying_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has closed its output ends soon after it, on a busy machine later."""
    monkeypatch.setattr("zipcli.classifiers.command.LAST_WORDS_SECONDS", 60.0)


@pytest.mark.usefixtures("dying_takes_time")
@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (
            "crash",
            r"answered 2 of 4 images and ended with exit code 7; its last words: no \\x1b\[31mmemory left",
        ),
        ("kill", r"answered 0 of 4 images and was ended by SIGKILL"),
        ("early", r"answered 1 of 4 images and ended with exit code 0"),
        ("twice", r"answered id 0 twice"),
        ("stranger", r"answered id 1000, which nobody asked for"),
        ("text-id", r"answered id '0', which nobody asked for"),
        ("no-label", r"no object with \"id\" and \"label\""),
        ("number", r"printed 3, no object"),
        ("noise", r"printed 'loading .x1b\[31m model', which is no line of JSON"),
        ("deep", r"which is no line of JSON"),
        ("unknown", r"unknown label 'violet.+n'; the 3 classes are red, green, blue"),
        ("negative", r"label -1 is not between 0 and 2"),
        ("true", r"label True is neither a whole number nor a class name"),
        ("partly-sure", r"probabilities for 3 of 4 images; give all or none"),
        ("endless", r"a line is longer than 16 MB"),
    ],
)
def test_a_program_that_answers_nonsense(mode: str, message: str) -> None:
    with (
        pytest.raises(ClassifierError, match=message) as caught,
        opened(f"cmd:{PROGRAM} {mode}", classes=NAMES) as classifier,
    ):
        classifier(plain(0, 1, 2, 0))
    assert str(caught.value).startswith("cmd:")
    assert str(caught.value).isprintable()
    assert caught.value.exit_code == ExitCode.MODEL


def test_an_answer_too_many_is_noticed_with_the_next_batch() -> None:
    with opened(f"cmd:{PROGRAM} twice") as classifier:
        assert tuple(classifier(plain(1)).labels) == (1,)
        with pytest.raises(ClassifierError, match="answered id 0 twice"):
            classifier(plain(1))


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("few", "printed 3 labels for 4 images"),
        ("many", "printed more lines than the 4 images"),
        ("fail", r"printed 4 labels for 4 images and ended with exit code 1; its last words: out of \\x1b"),
        ("blank", "unknown label ''"),
        ("bytes", "which is no text"),
    ],
)
def test_a_program_that_prints_nonsense(mode: str, message: str) -> None:
    with (
        opened(f"cmd-paths:{PROGRAM} {mode}", classes=NAMES) as classifier,
        pytest.raises(ClassifierError, match=message),
    ):
        classifier(plain(0, 1, 2, 0))


def test_names_need_to_be_told() -> None:
    with (
        opened(f"cmd-paths:{PROGRAM} words") as classifier,
        pytest.raises(ClassifierError, match="'red', and nobody told the class names; give --classes"),
    ):
        classifier(plain(0))


@pytest.mark.parametrize("word", ["cmd", "cmd-paths"])
@pytest.mark.parametrize(
    ("command", "error", "message"),
    [
        ("", ConfigError, "needs a program"),
        ("  ", ConfigError, "needs a program"),
        ("a 'b", ConfigError, "No closing quotation"),
        ("/no/such/program", ClassifierError, "cannot be started: No such file or directory"),
        (str(HERE), ClassifierError, "cannot be started: Permission denied"),
    ],
)
def test_a_command_that_is_none(word: str, command: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), opened(f"{word}:{command}") as classifier:
        classifier(plain(0))


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    with (
        opened(f"cmd-paths:{PROGRAM} ';' touch {touched} $(touch {touched})") as classifier,
        pytest.raises(ClassifierError),
    ):
        classifier(plain(0))
    assert not touched.exists()


class Watch:
    """Knows whether any of the processes that opened a pipe for writing is left."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self.said = b""
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def program(self, tmp_path: Path) -> str:
        """A program that never answers and has a child, and neither minds SIGTERM."""
        script = tmp_path / "hang.sh"
        script.write_text(
            f"trap '' TERM INT HUP\nexec 9>{shlex.quote(str(self.path))}\necho begun >&9\n"
            "sleep 300 &\nwhile :; do sleep 300; done\n"
        )
        return shlex.join(["sh", str(script)])

    def has_begun(self) -> bool:
        """Whether the program has said so."""
        self.read()
        return self.said == b"begun\n"

    def read(self) -> bool:
        """Take what was written, and say whether a writer is left."""
        try:
            part = os.read(self.descriptor, 100)
        except BlockingIOError:
            return True
        self.said += part
        return bool(part)

    def wait_for_the_end(self) -> None:
        """Wait until every writer is gone."""
        deadline = time.monotonic() + 10
        while self.read():
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.02)
        assert self.said == b"begun\n", "no process was there"


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    watch = Watch(tmp_path / "watched")
    yield watch
    os.close(watch.descriptor)


@pytest.mark.parametrize("word", ["cmd", "cmd-paths"])
def test_a_program_that_hangs_is_ended_with_its_children(word: str, watch: Watch, tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        pytest.raises(ClassifierError, match="no answer within 5 seconds"),
        opened(f"{word}:{watch.program(tmp_path)}", timeout=5.0) as classifier,
    ):
        classifier(plain(0, 1))
    assert time.monotonic() - began < 30
    watch.wait_for_the_end()


def test_a_program_that_does_not_flush_is_told_so() -> None:
    with (
        pytest.raises(ClassifierError, match="does it flush"),
        opened(f"cmd:{PROGRAM} silent", timeout=0.5) as classifier,
    ):
        classifier(plain(0))


def test_what_a_program_leaves_running_is_ended_too(watch: Watch, tmp_path: Path) -> None:
    script = tmp_path / "leaves.sh"
    script.write_text(f"exec 9>{watch.path}\necho begun >&9\nsleep 300 &\nfor p; do echo 1; done\n")
    with opened(f"cmd-paths:sh {script}") as classifier:
        assert tuple(classifier(plain(0, 2)).labels) == (1, 1)
    watch.wait_for_the_end()


def test_a_wait_stops_when_it_is_asked_to(watch: Watch, tmp_path: Path) -> None:
    began = time.monotonic()

    def check_stop() -> None:
        if watch.has_begun():
            raise StoppedError(ExitCode.INTERRUPTED)

    config = ClassifierConfig(classifier=f"cmd:{watch.program(tmp_path)}")
    with pytest.raises(StoppedError), open_classifier(config, check_stop) as classifier:
        classifier(plain(0))
    assert time.monotonic() - began < 30
    watch.wait_for_the_end()


ZIPCLI = """
import sys, tempfile
import numpy as np
from zipcli.classifiers import open_classifier
from zipcli.cli.signals import StopSignals
from zipcli.config import ClassifierConfig
tempfile.tempdir = sys.argv[1]
stop = StopSignals()
with open_classifier(ClassifierConfig(classifier=sys.argv[2]), stop.check) as classifier:
    classifier([np.zeros((4, 4, 3), np.uint8)])
"""


@pytest.mark.parametrize("word", ["cmd", "cmd-paths"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_leaves_no_process_and_no_file(
    word: str, number: int, watch: Watch, tmp_path: Path, temporary: Path
) -> None:
    words = [sys.executable, "-c", ZIPCLI, str(temporary), f"{word}:{watch.program(tmp_path)}"]
    with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not list(temporary.glob("*/*.png")) or not watch.has_begun():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(2)  # the guard hears of a program just after it has begun
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
    assert ("StoppedError" in said) == (number != signal.SIGKILL)
    deadline = time.monotonic() + 10
    while list(temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    watch.wait_for_the_end()
