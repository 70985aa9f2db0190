"""What a worker does: it takes units of images from a driver, purifies them, and says what became of each.

A worker is a process of its own, on this machine (`processes.py`) or on another (`ray_actors.py`); the
driver is `crew.py`. A worker loads the models once. It writes outputs and no ledger: `started` is on the
disk before a unit reaches it, and the driver writes the rest. All that goes back and forth is plain data.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from zipcli import __version__
from zipcli.config import FolderConfig
from zipcli.errors import DeviceLostError, InputError, NonFiniteError, OutputError, Reason, ZipcliError, shown
from zipcli.images.write import publish
from zipcli.models.hub import Listener
from zipcli.pipeline.detection import Screening, open_detector
from zipcli.pipeline.device import is_device_lost
from zipcli.pipeline.folder import FolderRun
from zipcli.pipeline.messages import Answer, Changed, Failed, Gone, Job, Ready, Unit
from zipcli.pipeline.outcome import Outcome
from zipcli.pipeline.plan import Entry, Plan
from zipcli.pipeline.purifier import Purifier, asked_classifier
from zipcli.pipeline.resume import DECISIONS, Decision, find, has_bytes
from zipcli.pipeline.streams import Room
from zipcli.system import keep_freed_memory

SMALL_IMAGE = (32, 32)
"""Size of images of which the most fit into a batch: a unit should hold as many."""


class Outlet(Protocol):
    """Where a worker puts its outputs."""

    def publish(self, target: str, data: bytes, *, replace: bool) -> None:
        """Make an output appear, whole and durable.

        Args:
            target: Its name, relative to the output folder.
            data: Its content.
            replace: Whether what is there gives way; the same bytes may always be there.

        Raises:
            InputError: Something else is in the way, or the name is not possible there.
            OutputError: The next output would not fare better.
        """


@dataclass(frozen=True, kw_only=True)
class LocalOutlet:
    """A folder of a file system that driver and workers share.

    Attributes:
        out: The output folder.
        scratch: For unfinished files; made by the driver, for this worker alone.
    """

    out: Path
    scratch: Path

    def publish(self, target: str, data: bytes, *, replace: bool) -> None:
        """Make an output appear, whole and durable."""
        if not self.scratch.is_dir():  # another disk of the same name, or a run that has ended without us
            raise OutputError(
                f"{shown(str(self.out))}: a worker does not see there what the run made; all need the same "
                "folders at the same places"
            )
        try:
            publish(data, self.out, target, self.scratch, replace=replace)
        except InputError as e:
            if e.reason is not Reason.FOREIGN_OUTPUT or not has_bytes(self.out / target, data):
                raise


class UnitSource:
    """The images of one unit, as a `Source`."""

    def __init__(self, plan: Plan, unit: Unit) -> None:
        """Take images that belong to a plan."""
        self.plan = plan
        self.unit = unit

    @property
    def config(self) -> FolderConfig:
        """How they are read and written."""
        return self.plan.config

    def entries(self) -> Iterator[Entry | Outcome]:
        """The images."""
        for task in self.unit.tasks:
            yield task.entry

    def read(self, entry: Entry) -> bytes:
        """The bytes of one file; raises `InputError` where there are none."""
        return self.plan.read(entry)


class UnitSink:
    """Where the images of one unit go, as a `Sink`: what concerns the ledger is left to the driver.

    Attributes:
        changed: Images that were to be compared only, and are not what an earlier run has done.
    """

    def __init__(self, out: Path, unit: Unit, outlet: Outlet) -> None:
        """Publish the images of a unit."""
        self.changed: set[str] = set()
        self._out = out
        self._unit = unit
        self._outlet = outlet
        self._tasks = {task.entry.path: task for task in unit.tasks}

    def decide(
        self, path: str, target: str, in_sha256: str | None, *, overwrite: bool, paranoid: bool = False
    ) -> Decision:
        """Compare where we were asked to, by the table of the ledger; the driver has decided the rest."""
        task = self._tasks[path]
        if not task.look:
            return Decision.PURIFY
        found = find(self._out, target, task.record, in_sha256, self._unit.fingerprint, paranoid=paranoid)
        if DECISIONS[found] is not Decision.SKIP:
            self.changed.add(path)
        return Decision.SKIP  # what has changed comes again, once it is `started`

    def start(self, images: Iterable[tuple[str, str, str]], seed: int | None) -> None:
        """Nothing to do: the driver has noted it before the unit went out."""

    def publish(self, path: str, target: str, data: bytes) -> None:
        """Make an output appear, whole."""
        task = self._tasks[path]
        self._outlet.publish(target, data, replace=task.may_replace or task.is_orphan)

    def finish(self, outcome: Outcome) -> None:
        """Nothing to do: the driver notes what it is told."""

    def retract(self, path: str, target: str, in_sha256: str | None) -> None:
        """Nothing to do: the driver takes outputs back."""


class Worker:
    """A purifier and a detector that are ready for units."""

    def __init__(self, job: Job, purifier: Purifier, screening: Screening, listener: Listener) -> None:
        """Join the parts; `open_worker` makes them."""
        self._job = job
        self._purifier = purifier
        self._screening = screening
        self._check_stop = listener.check_stop
        self._room = Room()

    @property
    def ready(self) -> Ready:
        """What the driver must know before it hands out work."""
        return Ready(
            version=__version__,
            fingerprint_parts={**self._purifier.fingerprint_parts, **self._screening.fingerprint_parts},
            batch=self._purifier.batch_size(SMALL_IMAGE),
        )

    def work(self, unit: Unit, answer: Callable[[Answer], None]) -> None:
        """Purify a unit, and answer for each image as it is finished.

        Raises:
            ZipcliError: No image will fare better; there are no more answers.
        """
        outlet = LocalOutlet(out=self._job.out, scratch=unit.scratch)
        sink = UnitSink(self._job.out, unit, outlet)
        run = FolderRun(UnitSource(self._job.plan, unit), self._purifier, self._screening.detector, sink)
        run.room = self._room  # what fits the device holds for the next unit, too

        def tell(outcome: Outcome) -> None:
            answer(Changed(outcome.path) if outcome.path in sink.changed else outcome)

        run.run(tell, self._check_stop)


@contextlib.contextmanager
def open_worker(job: Job, listener: Listener) -> Iterator[Worker]:
    """Load the models of a job.

    Args:
        job: What to do.
        listener: Is told of downloads and notes; its `check_stop` is called often while a unit is done.

    Raises:
        ZipcliError: The models are missing, or the settings do not fit.
    """
    keep_freed_memory()
    with asked_classifier(job.config, listener.check_stop) as classifier:
        purifier = Purifier.from_config(job.config, listener)
        if purifier.device.type == "cpu":
            torch.set_num_threads(1)  # there are as many workers as the user wants cores to be busy
        purifier.stop_with(listener.check_stop)
        if classifier is not None:
            purifier.ask_with(classifier)
        with open_detector(job.detect, listener.note, listener.check_stop, classifier) as screening:
            yield Worker(job, purifier, screening, listener)


def last_words(error: Exception) -> Failed | Gone:
    """What a worker says when it cannot go on."""
    if isinstance(error, DeviceLostError) or is_device_lost(error):
        return Gone(" ".join(str(error).split())[:300])
    if isinstance(error, ZipcliError) and not isinstance(error, InputError | NonFiniteError):
        return Failed(error=type(error).__name__, message=str(error))
    return Failed(error=None, message="".join(traceback.format_exception(error)))
