"""Workers that start: who is waited for."""

import time
from collections.abc import Collection
from pathlib import Path

import pytest

from zipcli import __version__
from zipcli.config import FolderConfig
from zipcli.errors import ConfigError, WorkerLostError
from zipcli.models.hub import Listener
from zipcli.pipeline.crew import CrewRun, Hand
from zipcli.pipeline.ledger import Ledger
from zipcli.pipeline.messages import Failed, Message, Ready, Unit
from zipcli.pipeline.plan import Plan

READY = Ready(version=__version__, fingerprint_parts={"method": "blur"}, batch=1)


class Worker:
    """Says one thing, or is dead."""

    def __init__(self, name: str, says: Message | None) -> None:
        self.name, self._says = name, says

    def send(self, unit: Unit) -> None:
        raise AssertionError(unit)

    def receive(self) -> list[Message]:
        if self._says is None:
            raise WorkerLostError("was ended by SIGKILL")
        return [self._says]

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        pass


class Workers:
    """One worker says something at a time, in their order."""

    def __init__(self, *says: Message | None, at_once: bool = True) -> None:
        self._says, self.starts_at_once, self.size = says, at_once, len(says)
        self._turn = 0

    def hire(self, number: int) -> Worker:
        return Worker(f"cpu:{number}", self._says[number])

    def wait(self, hands: Collection[Hand], seconds: float) -> list[Hand]:
        self._turn += 1
        return [list(hands)[self._turn % len(hands)]]


def parts(tmp_path: Path, crew: Workers) -> dict[str, str]:
    (tmp_path / "in").mkdir()
    plan = Plan(base=tmp_path / "in", config=FolderConfig())
    began = time.monotonic()

    def check_stop() -> None:
        assert time.monotonic() - began < 10, "it waits for somebody who will never come"

    with CrewRun(plan, Ledger(tmp_path / "out"), crew, 0, Listener()) as run:
        return run.fingerprint_parts(check_stop)


def test_what_the_last_worker_refuses_is_heard_before_anything_begins(tmp_path: Path) -> None:
    refusal = Failed(error="ConfigError", message="there is no cuda:77")
    with pytest.raises(ConfigError, match="cuda:77"):
        parts(tmp_path, Workers(READY, READY, refusal))


def test_nobody_waits_for_a_place_that_was_given_up(tmp_path: Path) -> None:
    assert parts(tmp_path, Workers(READY, None, READY)) == READY.fingerprint_parts


def test_a_cluster_is_not_waited_for(tmp_path: Path) -> None:
    refusal = Failed(error="ConfigError", message="there is no cuda:77")
    crew = Workers(refusal, READY, refusal, at_once=False)
    assert parts(tmp_path, crew) == READY.fingerprint_parts
