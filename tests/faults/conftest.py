"""Fixtures of the fault tests: processes that start in milliseconds, and a board for the scores."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import as_user, finished, finished_run, here, small_disk  # noqa: F401  # fixtures
from cli.shell import BLUR, ENVIRONMENT, pictures
from faults.forked import Forks

SCORES: list[str] = []


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command inside this process takes the signals over; undo it."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A server that has imported what `purify`, `verify` and `status` need."""
    folder = tmp_path_factory.mktemp("warm-up")
    pictures(folder / "in", 2)
    with closing(Forks(ENVIRONMENT)) as server:
        server.warm_up("purify", "in", "out", *BLUR, cwd=folder)
        server.warm_up("purify", "in", "prior", "--device", "cpu", "--steps", "20", cwd=folder)
        server.warm_up("verify", "out", cwd=folder)
        server.warm_up("status", "out", cwd=folder)
        yield server


@pytest.fixture(scope="session")
def scoreboard() -> Callable[..., None]:
    """Publish the numbers of a test, and fail it if something was wrong.

    The numbers are shown in the report. The file that ZIPCLI_SCOREBOARD names gets them as a line of
    JSON, with everything that was wrong.
    """

    def publish(test: str, wrong: list[str], **numbers: Any) -> None:
        numbers["violations"] = len(wrong)
        SCORES.append(f"{test}: " + ", ".join(f"{name} {value}" for name, value in numbers.items()))
        if file := os.environ.get("ZIPCLI_SCOREBOARD"):
            with Path(file).open("a") as f:
                f.write(json.dumps({"test": test, **numbers, "wrong": wrong}) + "\n")
        assert not wrong, f"{len(wrong)} violations, such as\n" + "\n".join(wrong[:40])

    return publish


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if SCORES:
        terminalreporter.section("faults")
        for line in SCORES:
            terminalreporter.write_line(line)
