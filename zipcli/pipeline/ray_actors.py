"""Workers on a Ray cluster: the extra [ray].

Actors that take the units of `crew.py`, and not Ray Data: there, an image that kills its process is tried
again without end and its neighbours never come back (Ray 2.60: 32 of 40 rows, and no end after 100 seconds,
with `max_errored_blocks = -1`, too). And a data set goes out as a whole, while we note `started` before.
"""

import contextlib
import os
import platform
import signal
import socket
import threading
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from zipcli.errors import ConfigError, ExitCode, StoppedError, WorkerLostError, shown
from zipcli.models.hub import Listener
from zipcli.pipeline.crew import Hand
from zipcli.pipeline.messages import Job, Message, Said, Unit

if TYPE_CHECKING:
    from zipcli.pipeline.worker import Worker

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no network but the cluster's own
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what a later version does anyway, and warns of now
}
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what keeps Ray on 127.0.0.1: nobody else shall talk to it
    "RAY_worker_niceness": "0",  # its 15 lets actors starve where anybody else works
}
"""Settings of a cluster that we start."""

WHY_LENGTH = 200
CONNECT_SECONDS = 10.0


class Actor:
    """A worker, as Ray runs it; its methods answer with lists of messages."""

    def __init__(self, job: Job) -> None:
        """Keep what to do; the models are loaded by `begin`, which can say what went wrong."""
        self._job = job
        self._stack = ExitStack()
        self._worker: Worker | None = None
        self._is_stopped = threading.Event()

    def begin(self) -> list[Message]:
        """Load the models."""
        from zipcli.pipeline.worker import last_words, open_worker

        said: list[Message] = []
        listener = Listener(
            note=lambda text: said.append(Said(kind="note", values=(text,))), check_stop=self._check_stop
        )
        try:
            self._go_home()
            self._worker = self._stack.enter_context(open_worker(self._job, listener))
        except Exception as e:  # the driver decides what it means
            return [*said, last_words(e)]
        return [*said, self._worker.ready]

    def work(self, unit: Unit) -> list[Message]:
        """Purify a unit."""
        from zipcli.pipeline.worker import last_words

        assert self._worker is not None
        said: list[Message] = []
        try:
            self._worker.work(unit, said.append)
        except StoppedError:
            pass
        except Exception as e:  # likewise
            said.append(last_words(e))
        return said

    def stop(self) -> None:
        """Have `work` end soon; called in another thread."""
        self._is_stopped.set()

    def _check_stop(self) -> None:
        if self._is_stopped.is_set():
            raise StoppedError(ExitCode.TERMINATED)

    def _go_home(self) -> None:
        """Stand where the driver stands, so that relative paths lead to the same files."""
        try:
            os.chdir(self._job.folder)
        except OSError as e:
            raise ConfigError(
                f"{shown(str(self._job.folder))}: not a folder on {platform.node()}; every machine of the "
                "cluster needs the same folders at the same places"
            ) from e


class RayHand:
    """An actor, as the driver sees it."""

    def __init__(self, ray: Any, actor: Any, name: str) -> None:
        """Ask it to begin."""
        self.name = name
        self._ray = ray
        self._actor = actor
        self._pending: deque[Any] = deque([actor.begin.remote()])

    @property
    def next(self) -> Any:
        """The answer that will come next, for Ray; None when none is asked for."""
        return self._pending[0] if self._pending else None

    def send(self, unit: Unit) -> None:
        """Hand it a unit."""
        self._pending.append(self._actor.work.remote(unit))

    def receive(self) -> list[Message]:
        """The next answer.

        Raises:
            WorkerLostError: The actor or its machine is dead.
        """
        try:
            messages: list[Message] = self._ray.get(self._pending.popleft())
        except self._ray.exceptions.RayError as e:
            why = " ".join(str(e).split())[:WHY_LENGTH]
            raise WorkerLostError(f"is gone ({type(e).__name__}: {shown(why)})") from e
        return messages

    def stop(self) -> None:
        """Ask it to end."""
        self._actor.stop.remote()

    def kill(self) -> None:
        """End it now, without waiting for that."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor)


class RayCrew:
    """A `Crew` of actors, one for each GPU, or for each core where there are none.

    Attributes:
        size: How many actors there shall be; Ray starts them as there is room for them.
    """

    starts_at_once = False

    def __init__(self, ray: Any, job: Job, workers: int | None) -> None:
        """Look at the cluster that `ray` is connected to.

        Raises:
            ConfigError: It has no such device.
        """
        has = ray.cluster_resources()
        kind = job.config.device.partition(":")[0]
        if kind == "auto":
            kind = "cuda" if has.get("GPU") else "cpu"
        count = int(has.get("GPU" if kind == "cuda" else "CPU", 0))
        if not count or ":" in job.config.device or kind not in ("cpu", "cuda"):
            raise ConfigError(
                f"device: the cluster has no {shown(job.config.device)}; say cpu or cuda; Ray chooses which"
            )
        self.size = workers or count
        self._ray = ray
        self._kind = kind
        self._job = replace(
            job, config=job.config.changed(device=kind), detect=replace(job.detect, device=kind)
        )
        self._options = {
            "num_cpus": 1,
            "num_gpus": 1 if kind == "cuda" else 0,
            "max_restarts": 0,  # we count them
            "max_task_retries": 0,
            "max_concurrency": 2,  # so that `stop` gets through
        }

    def hire(self, number: int) -> Hand:
        """Start an actor, as soon as there is room."""
        actor = self._ray.remote(Actor).options(**self._options).remote(self._job)
        return RayHand(self._ray, actor, f"{self._kind} of the cluster (number {number + 1})")

    def wait(self, hands: Collection[Hand], seconds: float) -> list[Hand]:
        """Wait until some have something to say, or are dead."""
        by_answer = {hand.next: hand for hand in hands if isinstance(hand, RayHand) and hand.next is not None}
        if not by_answer:
            threading.Event().wait(seconds)
            return []
        answers = list(by_answer)
        self._ray.wait(answers, timeout=seconds)  # for one; and then for all that are here
        ready, _ = self._ray.wait(answers, num_returns=len(answers), timeout=0)
        return [by_answer[answer] for answer in ready]


@contextlib.contextmanager
def ray_crew(job: Job, workers: int | None) -> Iterator[RayCrew]:
    """Connect to the cluster of RAY_ADDRESS, or start one on this machine, until the end of the block.

    Args:
        job: What to do; its devices are those of the actors.
        workers: How many actors; None for as many as the cluster has GPUs, or else cores.

    Raises:
        ConfigError: Ray is missing, or the cluster is not there.
    """
    address = os.environ.get("RAY_ADDRESS")
    for name, value in {**QUIET, **({} if address else LOCAL)}.items():
        os.environ.setdefault(name, value)
    try:
        ray: Any = import_module("ray")
    except ImportError as e:
        raise ConfigError("engine ray: Ray is missing; run pip install 'zipcli[ray]'") from e
    if address:
        _refuse_silence(address)
    options: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
    with _keeping_signals():
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **options)
        except (ConnectionError, ValueError, RuntimeError) as e:
            raise ConfigError(f"engine ray: no cluster at {shown(str(address))}: {shown(str(e))}") from e
    try:
        yield RayCrew(ray, job, workers)
    finally:
        with _keeping_signals():
            ray.shutdown()


def _refuse_silence(address: str) -> None:
    """Look whether anybody listens at HOST:PORT; Ray itself would try for minutes.

    Raises:
        ConfigError: Nobody does.
    """
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not (port.isascii() and port.isdecimal()):
        return  # "auto", or a form that only Ray knows
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as e:
        raise ConfigError(f"engine ray: no cluster at {shown(address)}: {e}") from e


def _keeping_signals() -> AbstractContextManager[object]:
    """Ray takes SIGTERM for itself; give it back."""
    stack = ExitStack()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        stack.callback(signal.signal, number, signal.getsignal(number))
    return stack
