"""What became of one image, and of a run."""

import base64
import json
import os
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from zipcli.errors import ExitCode, Reason

State = Literal["done", "passed", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one image, or of one tar of them; every file found ends in exactly one.

    Attributes:
        path: Relative path of the input.
        state: done (purified and written), passed (a detector cleared it, or the method is none; written
            unpurified), skipped, or failed (nothing is written).
        reason: Why it was skipped or failed; None where an earlier run has done it.
        message: The same for people.
        in_sha256: Digest of the input file.
        out_sha256: Digest of the output file.
        out_path: Relative path of the output.
        out_bytes: Size of the output file.
        mode: Mode of the input, in Pillow's words.
        size: Width and height of the output.
        seed: Seed of the run.
        ms: Milliseconds from reading to writing.
        psnr: Of the output against the input, in dB.
        device: Where the network ran.
        lossy: Whether the output format loses detail.
        score: Of the detector.
        threshold: Score from which the detector calls an image suspicious.
        queries: Images that the classifier was shown to purify it.
        is_folder: Whether it is a folder that cannot be listed; the ledger speaks of images alone.
        tar: Of an image in a tar shard, relative path of the tar; there its output is in a tar, too.
        is_tar: Whether it is a tar shard.
        images: How many images the output of a tar has.
        left_out: How many samples the output of a tar is without, since images of theirs failed.
        notes: What was changed in reading ("alpha flattened on white").
    """

    path: str
    state: State
    reason: Reason | None = None
    message: str | None = None
    in_sha256: str | None = None
    out_sha256: str | None = None
    out_path: str | None = None
    out_bytes: int | None = None
    mode: str | None = None
    size: tuple[int, int] | None = None
    seed: int | None = None
    ms: int | None = None
    psnr: float | None = None
    device: str | None = None
    lossy: bool | None = None
    score: float | None = None
    threshold: float | None = None
    queries: int | None = None
    is_folder: bool | None = None
    tar: str | None = None
    is_tar: bool | None = None
    images: int | None = None
    left_out: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """One word for scripts: ok, skipped (deliberately, with a reason) or failed."""
        if self.state == "failed" or (self.state == "skipped" and self.reason):
            return self.state
        return "ok"

    def as_json(self) -> dict[str, Any]:
        """The fields that are set, ready for JSON; names that are not UTF-8 also in base64."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        shown: dict[str, Any] = {"status": self.status}
        for name, value in values.items():
            if value is None or value == ():
                continue
            if name in ("path", "out_path", "tar"):
                shown |= json_path(name, value)
            else:
                shown[name] = value
        return shown


@dataclass
class Summary:
    """Counts of a run: found = done + passed + skipped + failed.

    Of those that are skipped, `already` were done by an earlier run; `ignored` files are no images, and
    `left` are images that a run which was stopped did not come to. Tar shards are counted apart. `queries`
    went to the classifier for the images that are done.
    """

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    ignored: int = 0
    already: int = 0
    left: int = 0
    tars: Counter[str] = field(default_factory=Counter)
    queries: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        if outcome.is_tar:
            self.tars[outcome.state] += 1
            return
        self.counts[outcome.state] += 1
        self.queries += outcome.queries or 0
        self.already += outcome.state == "skipped" and outcome.reason is None
        if outcome.reason:
            self.reasons[outcome.reason] += 1

    @property
    def found(self) -> int:
        """Files that the run looked at."""
        return self.counts.total()

    def exit_code(self, tolerated: float = 0.0) -> ExitCode:
        """0 unless a larger share of images, or of tars, than `tolerated` has failed; by default, any."""
        has_failed = any(c["failed"] > tolerated * c.total() for c in (self.counts, self.tars))
        return ExitCode.SOME_FAILED if has_failed else ExitCode.DONE

    def as_json(self) -> dict[str, Any]:
        """Counts for JSON."""
        states = {state: self.counts[state] for state in ("done", "passed", "skipped", "failed")}
        others = {"already": self.already, "left": self.left, "ignored": self.ignored}
        tars = {state: self.tars[state] for state in ("done", "skipped", "failed")}
        of_tars = {"tars": {"found": self.tars.total(), **tars}} if self.tars else {}
        asked = {"queries": self.queries} if self.queries else {}
        return {"found": self.found, **states, **others, **of_tars, **asked, "reasons": dict(self.reasons)}


def json_path(name: str, path: str) -> dict[str, str]:
    """A path as JSON fields: readable text, and the exact bytes where the text cannot hold them."""
    raw = os.fsencode(path)
    try:
        return {name: raw.decode()}
    except UnicodeDecodeError:
        return {name: raw.decode(errors="replace"), f"{name}_b64": base64.b64encode(raw).decode()}


def as_line(values: dict[str, Any]) -> bytes:
    """A line of a ledger."""
    return json.dumps(values).encode() + b"\n"


def path_from_json(record: dict[str, Any], name: str) -> str:
    """The path that `json_path` wrote.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: There is none, or none that a file could have.
    """
    encoded = record.get(f"{name}_b64")
    raw = base64.b64decode(encoded) if encoded else str(record[name]).encode()
    if b"\0" in raw or not isinstance(record[name], str):
        raise ValueError("this is no path")
    return os.fsdecode(raw)
