"""A classifier behind an HTTP address.

The protocol: zipcli sends `POST <address>` with `Content-Type: application/json` and

    {"images": ["<PNG file in base64>", ...]}

and the service answers with status 200 and

    {"labels": [3, "cat", ...], "probabilities": [[0.1, 0.9, ...], ...]}

in the same order: a class index from 0, or a class name, for each image. `probabilities` may be left
out. Status 429 and 5xx mean "not now": zipcli asks again, after the seconds that `Retry-After` names or
after a pause that grows. Any other status ends the run.

Where the environment has ZIPCLI_CLASSIFIER_TOKEN, it is sent as `Authorization: Bearer ...`, to the
address of --classifier only: redirects are never followed. Over http:// whoever is on the way can
read it.
"""

import base64
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from zipcli.classifiers.answers import AnswerReader
from zipcli.classifiers.pixels import Pixels, as_png, resize
from zipcli.config import ClassifierConfig
from zipcli.errors import ConfigError, shown
from zipcli.protocols import Prediction

TOKEN = "ZIPCLI_CLASSIFIER_TOKEN"
TIMEOUT = 60.0
"""Seconds for a batch where the user gave none."""

ANSWER_LIMIT = 64 * 2**20
"""Bytes; a thousand images of a thousand probabilities each are 20 MB."""

FIRST_PAUSE = 0.5
LOOK_SECONDS = 0.05
"""How often a wait looks up whether it should stop."""


class _NoRedirects(HTTPRedirectHandler):
    """Leaves a redirect as the error that it then is.

    Not even its address is looked at: an impossible one would end the exchange with the connection open.
    """

    def http_error_302(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _TryAgainError(Exception):
    """A failure that may be gone in a while."""

    def __init__(self, what: str, pause: float | None = None) -> None:
        super().__init__(what)
        self.pause = pause


@dataclass
class _Exchange:
    """What the thread of a request leaves behind."""

    done: threading.Event = field(default_factory=threading.Event)
    answer: bytes = b""
    error: BaseException | None = None


class HttpClassifier:
    """A service that answers."""

    def __init__(self, config: ClassifierConfig, check_stop: Callable[[], None]) -> None:
        """Look at the address and the token; nothing is sent yet.

        Raises:
            ConfigError: One of them is not possible.
        """
        self._config = config
        self._check_stop = check_stop
        self._address, name = _checked(config.classifier)
        self._reader = AnswerReader(name, config.classes)
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "zipcli",
        }
        if token := os.environ.get(TOKEN):
            if not (token.isascii() and token.isprintable()) or " " in token:
                raise ConfigError(
                    f"{TOKEN}: has a character that no token has, such as a space or line break"
                )
            self._headers["Authorization"] = f"Bearer {token}"
        self._opener = build_opener(_NoRedirects)
        self._seconds = config.timeout or TIMEOUT

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, from the options."""
        return self._config.classes

    def __call__(self, images: Sequence[Pixels], /) -> Prediction:
        """Send the images in batches.

        Raises:
            ClassifierError: The service cannot be reached, refuses, is too slow or answers nonsense.
        """
        side = self._config.input_size
        size = None if side is None else (side, side)
        parts = []
        for start in range(0, len(images), self._config.batch_size):
            batch = images[start : start + self._config.batch_size]
            indices = range(start, start + len(batch))
            sent = [base64.b64encode(as_png(resize(image, size))).decode() for image in batch]
            answer = self._ask(json.dumps({"images": sent}).encode())
            parts.append((indices, self._reader.words(*self._read(answer), len(batch))))
        return self._reader.join(parts, len(images))

    def _read(self, answer: bytes) -> tuple[Any, Any]:
        """Labels and probabilities of an answer."""
        try:
            content = json.loads(answer)
        except (ValueError, RecursionError) as e:
            start = shown(repr(answer[:80]))
            raise self._reader.error(f"its answer is not JSON; it begins with {start}") from e
        if not isinstance(content, dict) or "labels" not in content:
            raise self._reader.error('its answer is no object with "labels": {"labels": [...]}')
        return content["labels"], content.get("probabilities")

    def _ask(self, body: bytes) -> bytes:
        """Send a request until there is an answer, or patience ends."""
        pause = FIRST_PAUSE
        for left in range(self._config.retries, -1, -1):
            try:
                return self._ask_once(body)
            except _TryAgainError as e:
                tries = f" (asked {self._config.retries + 1} times)" if self._config.retries else ""
                if left == 0:
                    raise self._reader.error(f"{e}{tries}") from e
                if e.pause is not None and e.pause > self._seconds:
                    raise self._reader.error(f"{e}; it asks to wait {e.pause:.0f} seconds") from e
                self._wait(threading.Event(), pause if e.pause is None else e.pause)
                pause = min(2 * pause, self._seconds)
        raise AssertionError("the last failure was raised")

    def _ask_once(self, body: bytes) -> bytes:
        """Send one request, in a thread: only there can a dripping answer be abandoned."""
        exchange = _Exchange()
        threading.Thread(target=self._exchange, args=(body, exchange), daemon=True).start()
        if not self._wait(exchange.done, self._seconds):
            raise self._too_slow()
        if exchange.error is not None:
            raise exchange.error
        return exchange.answer

    def _too_slow(self) -> "_TryAgainError":
        return _TryAgainError(
            f"no answer within {self._seconds:g} seconds; raise --classifier-timeout or lower "
            "--classifier-batch"
        )

    def _wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for an event, giving up as soon as the work shall stop."""
        deadline = time.monotonic() + seconds
        while not event.wait(max(0.0, min(LOOK_SECONDS, deadline - time.monotonic()))):
            self._check_stop()
            if time.monotonic() >= deadline:
                return False
        return True

    def _exchange(self, body: bytes, exchange: _Exchange) -> None:
        try:
            exchange.answer = self._post(body)
        except BaseException as e:  # it is raised in the thread that waits
            exchange.error = e
        finally:
            exchange.done.set()

    def _post(self, body: bytes) -> bytes:
        request = Request(self._address, body, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._seconds) as response:
                data: bytes = response.read(ANSWER_LIMIT + 1)
                missing = response.length
        except HTTPError as e:
            with e:
                raise self._refusal(e) from e
        except (HTTPException, OSError, ValueError) as e:
            cause = e.reason if isinstance(e, URLError) else e
            if isinstance(cause, TimeoutError) and cause.errno is None:  # ours, not the network's
                raise self._too_slow() from e
            what = shown(str(cause)[:200] or type(cause).__name__)
            if isinstance(cause, ssl.SSLCertVerificationError) or not isinstance(
                cause, HTTPException | OSError
            ):
                raise self._reader.error(f"cannot be asked: {what}") from e
            raise _TryAgainError(f"cannot be reached: {what}") from e
        if len(data) > ANSWER_LIMIT:
            raise self._reader.error(f"its answer is longer than {ANSWER_LIMIT // 2**20} MB")
        if missing:
            raise _TryAgainError(f"it hung up in the middle of its answer, {missing} bytes before the end")
        return data

    def _refusal(self, e: HTTPError) -> Exception:
        """What a status means that is no success."""
        said = ""
        with suppress(HTTPException, OSError):  # the status says enough
            said = shown(" ".join(e.read(2000).decode("utf-8", "replace").split())[:200])
        what = f"it answered with status {e.code}" + (f": {said}" if said else "")
        if e.code == 429 or e.code >= 500:
            return _TryAgainError(what, _retry_after(e.headers.get("Retry-After")))
        if 300 <= e.code < 400:
            where = ""
            with suppress(ValueError):
                # Only the place: the rest of an address may hold a secret.
                to = urlsplit(e.headers.get("Location") or "")
                where = f" to {shown(f'{to.scheme}://{to.netloc}'[:200])}" if to.netloc else ""
            return self._reader.error(f"it redirects{where}, which is not followed; give the final address")
        hint = f"; is {TOKEN} right?" if e.code in (401, 403) else ""
        return self._reader.error(f"{what}{hint}")


def _checked(address: str) -> tuple[str, str]:
    """An address that can be asked, and how errors show it: without the part that may hold a key."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as e:
        raise ConfigError(f"classifier: {shown(address[:200])} is no address: {e}") from e
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"classifier: no passwords in an address, please; put a token into {TOKEN}")
    if (
        not parts.hostname
        or port == 0
        or not address.isascii()
        or not address.isprintable()
        or " " in address
    ):
        raise ConfigError(f"classifier: {shown(address[:200])} is no address such as http://127.0.0.1:8000/")
    return parts._replace(fragment="").geturl(), shown(parts._replace(query="", fragment="").geturl()[:200])


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After, which is a number or a date; None where there is none that makes sense."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
