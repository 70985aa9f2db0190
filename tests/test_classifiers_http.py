"""http:// with a real server process that misbehaves on demand."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest

from zipcli.classifiers import http_service, open_classifier
from zipcli.config import ClassifierConfig
from zipcli.errors import ClassifierError, ConfigError, ExitCode, StoppedError

SERVER = Path(__file__).parent / "classifier_server.py"
NAMES = ("red", "green", "blue")
TOKEN = "a-secret-0123456789"


def plain(*labels: int) -> list[np.ndarray]:
    """Images of different sizes whose label is their strongest channel."""
    images = []
    for number, label in enumerate(labels):
        image = np.full((4 + number, 6, 3), 20, np.uint8)
        image[..., label] = 200
        images.append(image)
    return images


class Server:
    """A server process, and what it was asked."""

    def __init__(self, log: Path) -> None:
        self._log = log
        log.touch()
        self._process = subprocess.Popen([sys.executable, SERVER, log], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def asked(self) -> list[dict]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def forget(self) -> None:
        urlopen(f"http://127.0.0.1:{self.port}/forget", b'{"images": []}').close()
        self._log.write_text("")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", http_service.TOKEN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http_service, "FIRST_PAUSE", 0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Server]]:
    servers: list[Server] = []

    def start() -> Server:
        servers.append(Server(tmp_path / f"log{len(servers)}"))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "log")
    yield server
    server.stop()


@pytest.fixture
def server(shared: Server, surroundings: None) -> Server:
    shared.forget()
    return shared


@contextmanager
def opened(server: Server, path: str, **settings: object):
    word = f"http://127.0.0.1:{server.port}/{path}"
    with open_classifier(ClassifierConfig(classifier=word, **settings)) as classifier:
        yield classifier


LABELS = (2, 0, 1, 1, 2)


def test_a_service_is_asked_in_batches(server: Server) -> None:
    with opened(server, "ok?key=value", batch_size=2) as classifier:
        assert classifier.classes is None
        prediction = classifier(plain(*LABELS))
        assert tuple(prediction.labels) == LABELS
        assert prediction.probabilities is None
        assert classifier([]).labels.shape == (0,)
    assert [request["path"] for request in server.asked()] == ["/ok?key=value"] * 3
    assert "Authorization" not in server.asked()[0]["headers"]
    assert server.asked()[0]["headers"]["Content-Type"] == "application/json"


def test_probabilities_are_used_when_offered(server: Server) -> None:
    with opened(server, "sure", classes=NAMES, input_size=3) as classifier:
        prediction = classifier(plain(*LABELS))
    assert tuple(prediction.labels) == LABELS
    assert prediction.probabilities is not None
    assert prediction.probabilities[0] == pytest.approx([20 / 240, 20 / 240, 200 / 240], abs=1e-6)
    assert prediction.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-6)


def test_names_become_indices(server: Server) -> None:
    with opened(server, "names", classes=NAMES) as classifier:
        assert tuple(classifier(plain(*LABELS)).labels) == LABELS


def test_the_token_goes_to_the_service(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(http_service.TOKEN, TOKEN)
    with opened(server, "ok") as classifier:
        classifier(plain(0))
    assert server.asked()[0]["headers"]["Authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "sch\u00f6n", "nul\0"[:-1] + "\x7f"])
def test_an_impossible_token_is_refused_and_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(http_service.TOKEN, token)
    with pytest.raises(ConfigError, match=http_service.TOKEN) as caught:
        http_service.HttpClassifier(ClassifierConfig(classifier="http://127.0.0.1:9/"), lambda: None)
    assert token not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(
    status: int, start: Callable[[], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(http_service.TOKEN, TOKEN)
    first, second = start(), start()
    elsewhere = f"http://localhost:{second.port}/ok?key=secret"
    with (
        opened(first, f"redirect?status={status}&to={quote(elsewhere)}") as classifier,
        pytest.raises(
            ClassifierError, match=f"redirects to http://localhost:{second.port}, which is not"
        ) as e,
    ):
        classifier(plain(0))
    assert second.asked() == []
    assert len(first.asked()) == 1
    assert "secret" not in str(e.value)


@pytest.mark.parametrize("status", [300, 302, 304])
@pytest.mark.parametrize("to", ["", "http://[", "ftp://127.0.0.1/", "/ok"])
def test_a_redirect_to_nowhere_is_an_error(server: Server, status: int, to: str) -> None:
    with (
        opened(server, f"redirect?status={status}&to={quote(to) or '%20'}") as classifier,
        pytest.raises(ClassifierError, match=r"it redirects|cannot be asked: Invalid IPv6 URL"),
    ):
        classifier(plain(0))
    assert len(server.asked()) == 1


@pytest.mark.parametrize(
    "path",
    ["flaky", "flaky?status=503", "flaky?status=429", "flaky?status=429&Retry_After=0", "hangup", "cut"],
)
def test_what_passes_is_tried_again(server: Server, path: str) -> None:
    with opened(server, path) as classifier:
        assert tuple(classifier(plain(*LABELS)).labels) == LABELS
    assert len(server.asked()) == (3 if path.startswith("flaky") else 2)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_service_says_how_long_to_wait(server: Server, form: str) -> None:
    began = time.monotonic()
    wait = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
    with opened(server, f"flaky?status=429&fails=1&Retry_After={quote(wait)}") as classifier:
        classifier(plain(0))
    assert 0.9 <= time.monotonic() - began < 10


def test_a_service_that_asks_for_too_much_patience(server: Server) -> None:
    with (
        opened(server, "flaky?status=429&Retry_After=3600") as classifier,
        pytest.raises(ClassifierError, match=r"status 429: .*; it asks to wait 3600 seconds"),
    ):
        classifier(plain(0))
    assert len(server.asked()) == 1


def test_retries_end(server: Server) -> None:
    with (
        opened(server, "flaky?fails=99&status=502", retries=2) as classifier,
        pytest.raises(ClassifierError, match=r"status 502.*asked 3 times") as caught,
    ):
        classifier(plain(0))
    assert len(server.asked()) == 3
    assert "come\\x1b[31m back later" in str(caught.value)
    assert str(caught.value).startswith(f"http://127.0.0.1:{server.port}/flaky: ")
    assert caught.value.exit_code == ExitCode.MODEL


@pytest.mark.parametrize(("status", "hint"), [(400, ""), (401, http_service.TOKEN), (404, ""), (413, "")])
def test_a_refusal_is_not_tried_again(server: Server, status: int, hint: str) -> None:
    with (
        opened(server, f"refuse?status={status}") as classifier,
        pytest.raises(ClassifierError, match=f"status {status}: no.*{hint}"),
    ):
        classifier(plain(0))
    assert len(server.asked()) == 1


@pytest.mark.parametrize("path", ["hang", "drip"])
def test_a_slow_service_is_given_up(server: Server, path: str) -> None:
    began = time.monotonic()
    with (
        opened(server, path, timeout=0.5, retries=1) as classifier,
        pytest.raises(ClassifierError, match=r"no answer within 0\.5 seconds; raise --classifier-timeout"),
    ):
        classifier(plain(0))
    assert 1 <= time.monotonic() - began < 25  # the service sleeps for half a minute


def test_a_wait_stops_when_it_is_asked_to(server: Server) -> None:
    began = time.monotonic()

    def check_stop() -> None:
        if time.monotonic() > began + 0.3:
            raise StoppedError(ExitCode.INTERRUPTED)

    config = ClassifierConfig(classifier=f"http://127.0.0.1:{server.port}/hang")
    with open_classifier(config, check_stop) as classifier, pytest.raises(StoppedError):
        classifier(plain(0))
    assert time.monotonic() - began < 25


def test_nobody_listens(start: Callable[[], Server]) -> None:
    server = start()
    server.stop()
    with (
        opened(server, "ok", retries=1) as classifier,
        pytest.raises(ClassifierError, match=r"cannot be reached: .*refused.*asked 2 times"),
    ):
        classifier(plain(0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html>", "is not JSON; it begins with b'<html>'"),
        ("\x1b[31m", r"is not JSON; it begins with b'.+x1b"),
        ("", "is not JSON"),
        ("[" * 5000, "is not JSON|no object"),
        ("[1]", 'no object with "labels"'),
        ("{}", 'no object with "labels"'),
        ('{"labels": 3}', "labels are 3, not a list"),
        ('{"labels": {"0": 1}}', "not a list"),
        ('{"labels": [1]}', "1 labels for 2 images"),
        ('{"labels": [1, 2, 0]}', "3 labels for 2 images"),
        ('{"labels": [1, 3]}', "label 3 is not between 0 and 2"),
        ('{"labels": [1, 1.0]}', "label 1.0 is neither"),
        ('{"labels": [1, null]}', "label None is neither"),
        ('{"labels": [1, [0]]}', r"label \[0\] is neither"),
        ('{"labels": [1, "Red"]}', "unknown label 'Red'; the 3 classes are red, green, blue"),
        ('{"labels": [1, 2], "probabilities": 3}', "probabilities are no list of 2"),
        ('{"labels": [1, 2], "probabilities": [[1, 0, 0]]}', "probabilities are no list of 2"),
        ('{"labels": [1, 2], "probabilities": [[1, 0, 0], [1, 0]]}', "probabilities are no list of 2"),
        ('{"labels": [1, 2], "probabilities": [[1, 0, 0], ["1", 0, 0]]}', "probabilities are no list of 2"),
        ('{"labels": [1, 1], "probabilities": [[1, 0], [1, 0]]}', "knows 2 classes, and 3 class names"),
        ('{"labels": [1, 2], "probabilities": [[1, 0, 0], [NaN, 0, 1]]}', "add up to 1"),
        ('{"labels": [1, 2], "probabilities": [[1, 0, 0], [1, 0, 1]]}', "add up to 1"),
        ('{"labels": [1, 2], "probabilities": [[1, 0, 0], [-1, 1, 1]]}', "add up to 1"),
        ('{"labels": [1, 2], "probabilities": [[1, 0, 0], [3, 2, 1]]}', "add up to 1"),
    ],
)
def test_an_answer_that_is_nonsense(server: Server, text: str, message: str) -> None:
    with (
        opened(
            server, f"say?text={quote(text)}" if text else "refuse?status=200", classes=NAMES
        ) as classifier,
        pytest.raises(ClassifierError, match=message) as caught,
    ):
        classifier(plain(0, 1))
    assert len(server.asked()) == 1
    assert str(caught.value).isprintable()


def test_an_answer_that_never_ends_is_refused(server: Server) -> None:
    with opened(server, "flood") as classifier, pytest.raises(ClassifierError, match="longer than 64 MB"):
        classifier(plain(0))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("http://", "is no address"),
        ("http:///path", "is no address"),
        ("http://127.0.0.1:99999/", "is no address"),
        ("http://127.0.0.1:0/", "is no address"),
        ("http://127.0.0.1:http/", "is no address"),
        ("http://[::1/", "is no address"),
        ("http://127.0.0.1/a b", "is no address"),
        ("http://127.0.0.1/\r\nX: y", "is no address"),
        ("http://me:secret@127.0.0.1/", "no passwords"),
    ],
)
def test_an_address_that_is_none(word: str, message: str) -> None:
    with (
        pytest.raises(ConfigError, match=message) as caught,
        open_classifier(ClassifierConfig(classifier=word)),
    ):
        pass
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)


def test_a_key_in_the_address_is_not_shown(server: Server) -> None:
    with (
        opened(server, "refuse?status=403&key=secret", retries=0) as classifier,
        pytest.raises(ClassifierError) as e,
    ):
        classifier(plain(0))
    assert "secret" not in str(e.value)
