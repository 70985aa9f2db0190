"""Purifies a folder with several workers: the driver, who owns plan, lock and ledger, and hands out images.

An image goes through these steps, and what a crash leaves after any of them is known to be ours:

    1. the driver looks at what an earlier run has left; what seems to be done goes out to be compared only
    2. the others are `started` in the ledger, on the disk, before they go out
    3. a worker purifies and publishes (`worker.py`), and answers
    4. the driver writes `done`

There is one queue, so that a slow worker holds nobody up. Where a worker dies, what it had in its hands goes
out again, one image at a time: an image that kills whoever has it alone has failed, and its neighbours are
done. Nothing is written to the ledger twice, whoever answers twice.
"""

import contextlib
import hashlib
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from zipcli import __version__, errors
from zipcli.errors import ConfigError, OutputError, Reason, WorkerLostError, ZipcliError, shown
from zipcli.models.hub import Listener
from zipcli.pipeline.ledger import Ledger
from zipcli.pipeline.messages import Changed, Failed, Gone, Message, Ready, Said, Task, Unit
from zipcli.pipeline.outcome import Outcome, Summary
from zipcli.pipeline.plan import Entry, Plan
from zipcli.pipeline.resume import Decision

UNIT_IMAGES = 64
"""Images that go out together, or a batch of the device, should that be more."""

UNIT_BYTES = 2**20
"""Bytes of their files; a single one may have more. A unit of large images would be waited for at the end."""

RESTARTS = 3
"""How often a worker is started again in a row, without an image that was done in between."""

LONE_DEATHS = 2
"""Workers that an image may kill while they have no other, before it has failed. Once may be bad luck."""

POLL = 0.2
"""Seconds between two looks at the signals."""

WIND_UP = 2.0
"""Seconds for the workers to answer for what they were writing when a run is stopped."""

PATIENCE = 60.0
"""Seconds without a worker that is ready after which the user is told."""


class Hand(Protocol):
    """A worker as the driver sees it."""

    @property
    def name(self) -> str:
        """What messages call it, such as its device."""

    def send(self, unit: Unit) -> None:
        """Hand it a unit; one that is dead says so when it is asked the next time."""

    def receive(self) -> list[Message]:
        """What it has said since; may wait.

        Raises:
            WorkerLostError: It is dead, and has said no more.
        """

    def stop(self) -> None:
        """Ask it to answer for what it is writing, and to end."""

    def kill(self) -> None:
        """End it now, and wait until it has ended where that can be known."""


class Crew(Protocol):
    """Where workers come from."""

    @property
    def starts_at_once(self) -> bool:
        """Whether all workers can be waited for: a cluster may have no room for some for hours."""

    @property
    def size(self) -> int:
        """How many there shall be at once."""

    def hire(self, number: int) -> Hand:
        """Start a worker; `number` counts from 0 and tells on which device."""

    def wait(self, hands: Collection[Hand], seconds: float) -> Collection[Hand]:
        """Wait until some have something to say, or are dead."""


@dataclass
class Place:
    """One of the workers at a time.

    Attributes:
        number: Which.
        hand: Who works there; None when nobody does any more.
        is_ready: Whether the models are loaded.
        tasks: Images that have gone out and were not answered, by path.
        last: How many went out last.
        has_suspect: Whether the one image there may have killed a worker, and must be alone.
        deaths: Workers that died here since an image was done.
        scratch: Folder for unfinished files of this worker.
    """

    number: int
    hand: Hand | None
    is_ready: bool = False
    tasks: dict[str, Task] = field(default_factory=dict)
    last: int = 0
    has_suspect: bool = False
    deaths: int = 0
    scratch: Path | None = None


class CrewRun(contextlib.AbstractContextManager["CrewRun"]):
    """One run with several workers, which have ended when its block has."""

    def __init__(self, plan: Plan, ledger: Ledger, crew: Crew, seed: int, listener: Listener) -> None:
        """Start the workers.

        Args:
            plan: Which images.
            ledger: Must be open while `run` runs.
            crew: Where workers come from.
            seed: Of the run, for the ledger.
            listener: Is told what the workers' models have to say, and of workers that die.
        """
        self._entries = plan.entries()
        self._plan = plan
        self._ledger = ledger
        self._crew = crew
        self._seed = seed
        self._listener = listener
        self._notes: set[str] = set()
        self._suspects: deque[Task] = deque()
        self._changed: deque[Task] = deque()
        self._unit_images = UNIT_IMAGES
        self._parts: dict[str, Any] | None = None
        self._is_planned = False
        self._is_stopping = False
        self._ready_since = time.monotonic()
        self._places = [Place(number, None) for number in range(crew.size)]
        for place in self._places:
            place.hand = crew.hire(place.number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, whatever they do."""
        for place in self._places:
            self._dismiss(place)

    def fingerprint_parts(self, check_stop: Callable[[], None]) -> dict[str, Any]:
        """What decides the outputs besides the settings of the files, once a worker has loaded the models.

        Where they start at once, once all have: what one of them refuses is refused before anything is
        written.

        Raises:
            ZipcliError: The models are missing, or the settings do not fit.
        """
        while self._parts is None or (
            self._crew.starts_at_once and any(place.hand and not place.is_ready for place in self._places)
        ):
            for _ in self._answers(POLL):
                raise AssertionError("nobody has asked yet")
            check_stop()
        return self._parts

    def run(
        self, report: Callable[[Outcome], None], check_stop: Callable[[], None] = lambda: None
    ) -> Summary:
        """Purify everything, telling `report` of each image as it is finished.

        Args:
            report: Called once for each image that is in the ledger when this returns or raises.
            check_stop: Called often; it may raise to stop.

        Raises:
            WorkerLostError: No worker is left; everything written so far is complete.
            OutputError: The output cannot be written; likewise.
            StoppedError: A signal asked to stop; likewise.
        """
        summary = Summary()

        def tell(outcome: Outcome) -> None:
            summary.add(outcome)
            report(outcome)

        try:
            while self._hand_out(tell, check_stop):
                for outcome in self._answers(POLL):
                    self._note(outcome, tell)
                check_stop()
        except ZipcliError:
            self._wind_up(tell)
            raise
        return summary

    # Handing out

    def _hand_out(self, tell: Callable[[Outcome], None], check_stop: Callable[[], None]) -> bool:
        """Give work to whoever can take some; whether anybody has any."""
        for place in self._places:
            # Two units at most: one is done while the answers for the other are on their way.
            while place.is_ready and not place.has_suspect and len(place.tasks) <= place.last:
                tasks = self._next_tasks(place, tell, check_stop)
                if not tasks:
                    break
                self._send(place, tasks)
        waiting = self._suspects or self._changed or not self._is_planned
        return bool(waiting) or any(place.tasks for place in self._places)

    def _next_tasks(
        self, place: Place, tell: Callable[[Outcome], None], check_stop: Callable[[], None]
    ) -> list[Task]:
        """The next unit for a worker; a suspect goes to one whose hands are empty."""
        if self._suspects:
            if place.tasks:
                return []
            place.has_suspect = True
            return [self._suspects.popleft()]
        tasks: list[Task] = []
        size = 0
        while len(tasks) < self._unit_images and size < UNIT_BYTES:
            check_stop()
            task = self._changed.popleft() if self._changed else self._planned(tell)
            if task is None:
                break
            tasks.append(task)
            size += task.entry.size
        fresh = [task.entry for task in tasks if not task.look]
        if fresh:
            self._ledger.start([(entry.path, entry.target, None) for entry in fresh], self._seed)
        return tasks

    def _planned(self, tell: Callable[[Outcome], None]) -> Task | None:
        """The next image of the plan; what cannot be taken is noted on the way."""
        for entry in self._entries:
            if isinstance(entry, Entry):
                try:
                    return self._task(entry)
                except errors.InputError as e:
                    outcome = Outcome(path=entry.path, state="failed", reason=e.reason, message=str(e))
            else:
                outcome = entry
            if not outcome.is_folder:
                self._ledger.finish(outcome)
            tell(outcome)
        self._is_planned = True
        return None

    def _task(self, entry: Entry) -> Task:
        """Look at what is there of an image; its content is compared by the worker.

        Raises:
            InputError: This run has written its output for another image.
        """
        decision = self._ledger.decide(entry.path, entry.target, None, overwrite=False)
        return Task(
            entry=entry,
            record=self._ledger.records.get(entry.path),
            may_replace=self._ledger.may_replace(entry.path, entry.target),
            look=decision is Decision.SKIP,
            is_free=decision is not Decision.REFUSE,
        )

    def _send(self, place: Place, tasks: list[Task]) -> None:
        assert place.hand is not None
        place.tasks |= {task.entry.path: task for task in tasks}
        place.last = len(tasks)
        if place.scratch is None:
            place.scratch = self._ledger.scratch / f"worker-{secrets.token_hex(8)}"
            try:
                place.scratch.mkdir()
            except OSError as e:
                raise OutputError(f"{shown(str(place.scratch))}: cannot be made: {e.strerror}") from e
        unit = Unit(tasks=tuple(tasks), fingerprint=self._ledger.fingerprint, scratch=place.scratch)
        place.hand.send(unit)

    # Hearing what became of it

    def _answers(self, seconds: float) -> Iterator[Outcome]:
        """What became of images, from what the workers say within some seconds."""
        here = {id(place.hand): place for place in self._places if place.hand is not None}
        for hand in self._crew.wait([p.hand for p in here.values() if p.hand is not None], seconds):
            place = here[id(hand)]
            try:
                messages = hand.receive()
            except WorkerLostError as e:
                messages = [Gone(str(e))]
            for message in messages:
                yield from self._heard(place, message)
        self._complain()

    def _heard(self, place: Place, message: Message) -> Iterator[Outcome]:
        match message:
            case Said(kind=kind, values=values):
                if kind == "note":
                    self._say(*values)
                else:
                    getattr(self._listener, kind)(*values)
            case Ready():
                self._check_ready(place, message)
            case Failed(error=None, message=text):
                raise RuntimeError(f"in a worker:\n{text}")
            case Failed(error=str(error), message=text):
                raise getattr(errors, error)(text)
            case Gone(why=why):
                yield from self._lost(place, why)
            case Changed(path=path):
                if task := self._taken(place, path):
                    self._changed.append(replace(task, look=False))
            case Outcome(path=path):
                if task := self._taken(place, path):
                    place.deaths = 0
                    if message.state == "failed":
                        self._retract(task, message.in_sha256)
                    yield message

    def _taken(self, place: Place, path: str) -> Task | None:
        """Take an image out of a worker's hands; None where it has answered for it already."""
        task = place.tasks.pop(path, None)
        if not place.tasks:
            place.has_suspect = False
        return task

    def _note(self, outcome: Outcome, tell: Callable[[Outcome], None]) -> None:
        """Write down what became of an image; what was done already is in the ledger."""
        if outcome.state != "skipped":
            self._ledger.finish(outcome)
        tell(outcome)

    def _check_ready(self, place: Place, ready: Ready) -> None:
        """Refuse workers that would not write the same outputs."""
        assert place.hand is not None
        if ready.version != __version__:
            raise ConfigError(f"{place.hand.name}: has zipcli {shown(ready.version)}, not {__version__}")
        self._parts = self._parts or ready.fingerprint_parts
        differing = sorted(
            name
            for name in self._parts.keys() | ready.fingerprint_parts.keys()
            if self._parts.get(name) != ready.fingerprint_parts.get(name)
        )
        if differing:
            hint = " (--dtype float32 runs everywhere)" if differing == ["dtype"] else ""
            raise ConfigError(
                f"{place.hand.name}: would purify with another {', '.join(map(shown, differing))} than the "
                f"others; set it{hint}, or take devices of one kind"
            )
        self._unit_images = max(self._unit_images, ready.batch)
        place.is_ready = True

    # Where a worker dies

    def _lost(self, place: Place, why: str) -> Iterator[Outcome]:
        """Start another worker, and have the images that it had in its hands done alone."""
        name = place.hand.name if place.hand is not None else "a worker"
        tasks, place.tasks = list(place.tasks.values()), {}
        self._dismiss(place)
        if self._is_stopping:
            return
        for task in tasks:
            suspect = replace(task, deaths=task.deaths + (len(tasks) == 1), was_lost=True)
            if suspect.deaths < LONE_DEATHS:
                self._suspects.append(suspect)
            else:
                yield self._convicted(suspect, why)
        place.deaths += 1
        if place.deaths <= RESTARTS:
            self._say(f"worker on {name} {why}; starting another", once=False)
            place.hand = self._crew.hire(place.number)
        elif any(other.hand is not None for other in self._places):
            self._say(f"worker on {name} {why} again and again; going on without it")
        else:
            raise WorkerLostError(
                f"no worker is left: the one on {name} {why}; what is written is complete; run the same "
                "command again"
            )

    def _convicted(self, task: Task, why: str) -> Outcome:
        """Give up an image."""
        try:
            in_sha256 = hashlib.sha256(self._plan.read(task.entry)).hexdigest()
        except errors.InputError:
            in_sha256 = None
        self._retract(task, in_sha256)
        text = f"{shown(task.entry.path)}: two workers died that had no other image; the last one {why}"
        return Outcome(
            path=task.entry.path,
            state="failed",
            reason=Reason.WORKER_CRASH,
            message=text,
            in_sha256=in_sha256,
        )

    def _retract(self, task: Task, in_sha256: str | None) -> None:
        """An image that failed has no output, not even one that a dead worker could not speak of."""
        path, target = task.entry.path, task.entry.target
        if task.is_orphan and not self._ledger.owns(path, target):
            self._ledger.withdraw(target)
        else:
            self._ledger.retract(path, target, in_sha256)

    def _dismiss(self, place: Place) -> None:
        """End a worker, and remove what it has not finished."""
        if place.hand is not None:
            place.hand.kill()
        if place.scratch is not None:
            shutil.rmtree(place.scratch, ignore_errors=True)
        place.hand, place.scratch, place.is_ready, place.has_suspect, place.last = None, None, False, False, 0

    def _wind_up(self, tell: Callable[[Outcome], None]) -> None:
        """Note what was finished meanwhile, for a while; the next run does again what is not answered."""
        self._is_stopping = True
        end = time.monotonic() + WIND_UP
        for place in self._places:
            if place.hand is not None and place.tasks:
                place.hand.stop()
            else:
                self._dismiss(place)
        with contextlib.suppress(ZipcliError):  # the first error is the one to report
            while any(place.hand for place in self._places) and time.monotonic() < end:
                for outcome in self._answers(POLL):
                    self._note(outcome, tell)

    # What the user should know

    def _say(self, text: str, *, once: bool = True) -> None:
        """Every worker has the same to say of its model."""
        if not once or text not in self._notes:
            self._listener.note(text)
        self._notes.add(text)

    def _complain(self) -> None:
        """Say so where no worker is ready for long: a cluster may have no room, and nothing else tells."""
        now = time.monotonic()
        if any(place.is_ready for place in self._places):
            self._ready_since = now
        elif now - self._ready_since > PATIENCE:
            self._say(f"no worker has been ready for {PATIENCE:.0f} seconds; waiting")
