"""What a driver and its workers say to each other: plain data, without torch, that any process can hold."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zipcli.config import DetectConfig, PurifyConfig
from zipcli.pipeline.outcome import Outcome
from zipcli.pipeline.plan import Entry, Plan
from zipcli.pipeline.records import Record


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker of a run must know.

    Attributes:
        plan: How files are read and written; the driver keeps its lists to itself.
        out: The output folder.
        config: Settings of the purification, with the device of this worker.
        detect: Settings of the detector, likewise.
        folder: Where relative paths begin.
    """

    plan: Plan
    out: Path
    config: PurifyConfig
    detect: DetectConfig
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Task:
    """One image.

    Attributes:
        entry: Where it is, and where its output goes.
        record: What the ledger says of it, if anything.
        may_replace: Whether what is at the name of the output may give way.
        look: Whether to compare it with the record only, since an earlier run has done it.
        is_free: Whether nothing foreign was at the name of the output before the image was `started`.
        was_lost: Whether a worker died that had it.
        deaths: Workers that died while they had this image alone.
    """

    entry: Entry
    record: Record | None
    may_replace: bool
    look: bool
    is_free: bool
    was_lost: bool = False
    deaths: int = 0

    @property
    def is_orphan(self) -> bool:
        """Whether what is at the name of the output, if anything, is ours from a worker that died."""
        return self.was_lost and self.is_free and not self.look


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Images that go to a worker together.

    Attributes:
        tasks: The images.
        fingerprint: Of the settings of the run.
        scratch: Folder for unfinished files, for this worker alone.
    """

    tasks: tuple[Task, ...]
    fingerprint: str
    scratch: Path


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Finish what is being written, answer for it, and end."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The models are loaded.

    Attributes:
        version: Of zipcli.
        fingerprint_parts: What decides the outputs besides the settings of the files, for JSON.
        batch: Small images that are purified together.
    """

    version: str
    fingerprint_parts: dict[str, Any]
    batch: int


@dataclass(frozen=True, kw_only=True)
class Said:
    """A call of the `Listener` that a worker's models have: which method, with which arguments."""

    kind: Literal["progress", "ended", "note"]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Changed:
    """An image was to be compared only, and is not what the ledger says."""

    path: str


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The run cannot go on: an error of `zipcli.errors` by its name, or a bug (None) with its traceback."""

    error: str | None
    message: str


@dataclass(frozen=True)
class Gone:
    """This worker can do no more, but another may."""

    why: str


Answer = Outcome | Changed
Message = Ready | Said | Answer | Failed | Gone
