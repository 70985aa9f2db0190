"""Purifies a folder: loader, detector, tiler and sampler, writer; `stream` is the whole of it."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from zipcli.config import FolderConfig
from zipcli.errors import InputError, MemoryExhaustedError, NonFiniteError, Reason, shown
from zipcli.images.guard import decode, glance
from zipcli.images.load import Picture, broken_promise
from zipcli.images.write import encode, is_lossy, output_format, psnr
from zipcli.pipeline.detection import bunches, score_all
from zipcli.pipeline.outcome import Outcome, Summary
from zipcli.pipeline.plan import Entry
from zipcli.pipeline.purifier import Purifier
from zipcli.pipeline.resume import Decision
from zipcli.pipeline.streams import Batches, Room, map_through
from zipcli.protocols import Detector

READ_BYTES = 64 * 2**20
"""Bytes of files that may be read ahead."""

DECODED_PIXELS = 32 * 10**6
"""Pixels that may be decoded ahead, wait for a batch, or wait to be written; each of the three."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One file in memory; hash, size and pixels all come from the same bytes.

    A small image is decoded already, as `picture`.
    """

    entry: Entry
    data: bytes
    sha256: str
    pixels: int
    began: float
    picture: Picture | None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One decoded image on its way; `score` is set by a detector, `clean` once it is purified or cleared.

    `queries` are those that its purification took.
    """

    entry: Entry
    sha256: str
    picture: Picture
    began: float
    score: float | None = None
    queries: int | None = None
    clean: np.ndarray | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and, of a colour image, 3."""
        return self.picture.pixels.shape

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.shape[0], self.shape[1]

    @property
    def pixels(self) -> int:
        """Pixels of the image."""
        return math.prod(self.size)


class Source(Protocol):
    """Where images come from: a folder (`Plan`) or a tar stream."""

    @property
    def config(self) -> FolderConfig:
        """How they are read and written."""

    def entries(self) -> Iterator[Entry | Outcome]:
        """The images, and an outcome for each file that cannot be taken."""

    def read(self, entry: Entry, /) -> bytes:
        """The bytes of an image; raises `InputError` where there are none."""


class Sink(Protocol):
    """Where purified images go, and where it is noted: a folder (`Ledger`) or a tar stream."""

    def decide(
        self, path: str, target: str, in_sha256: str | None, *, overwrite: bool, paranoid: bool = False
    ) -> Decision:
        """What to do with an image."""

    def start(self, images: Iterable[tuple[str, str, str]], seed: int | None) -> None:
        """Note (path, target, input digest) of images whose outputs may appear from now on."""

    def publish(self, path: str, target: str, data: bytes) -> None:
        """Make an output appear, whole."""

    def finish(self, outcome: Outcome) -> None:
        """Note what became of an image; called from several threads."""

    def retract(self, path: str, target: str, in_sha256: str | None) -> None:
        """Take back the output of an earlier version of an image that has failed."""


class FolderRun:
    """One run: a source, a purifier, a detector and a sink that belong together."""

    def __init__(self, source: Source, purifier: Purifier, detector: Detector, sink: Sink) -> None:
        """Join the parts; a `Ledger` must be open while `stream` is read."""
        self.source = source
        self.config = source.config
        self.purifier = purifier
        self.detector = detector
        self.sink = sink
        self.room = Room()
        self._unreported: dict[str, Outcome] = {}

    def run(
        self, report: Callable[[Outcome], None], check_stop: Callable[[], None] = lambda: None
    ) -> Summary:
        """Purify everything, telling `report` of each image as it is finished.

        Args:
            report: Called once for each image that is in the ledger when this returns or raises.
            check_stop: Called between images; it may raise to stop.

        Raises:
            OutputError: The output cannot be written; everything written so far is complete.
            StoppedError: A signal asked to stop; likewise.
        """
        summary = Summary()
        pool = ThreadPoolExecutor(self.config.jobs, thread_name_prefix="zipcli")
        try:
            for outcome in self.stream(pool):
                self._unreported.pop(outcome.path, None)
                summary.add(outcome)
                report(outcome)
                check_stop()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for outcome in self._unreported.values():  # written while we were stopping
                report(outcome)
        return summary

    def stream(self, pool: ThreadPoolExecutor) -> Iterator[Outcome]:
        """Read, decode, detect, purify and write; each stage pulls from the one before it.

        Reading, decoding and writing work in the threads of `pool` while the network computes in
        this one. Every queue is bounded by the memory that it stands for. An image that fails
        becomes an `Outcome` on the spot, and the later stages let it through.
        """
        loaded = map_through(pool, self.load, self.find(), cost=lambda e: e.size, budget=READ_BYTES)
        decoded = map_through(pool, self.decode, loaded, cost=lambda d: d.pixels, budget=DECODED_PIXELS)
        screened = self.screen(decoded)
        purified = self.purify(screened)
        return map_through(pool, self.write, purified, cost=lambda i: i.pixels, budget=DECODED_PIXELS)

    def find(self) -> Iterator[Entry | Outcome]:
        """Yield the files of the source, recording those that cannot be taken."""
        for entry in self.source.entries():
            if isinstance(entry, Outcome) and not entry.is_folder:
                self._finish(entry)
            yield entry

    def load(self, entry: Entry) -> Loaded | Outcome:
        """Read one file, unless the ledger says that it is done."""
        began = time.monotonic()
        sha256 = None
        try:
            data = self.source.read(entry)
            sha256 = hashlib.sha256(data).hexdigest()
            decision = self.sink.decide(
                entry.path,
                entry.target,
                sha256,
                overwrite=self.config.overwrite,
                paranoid=self.config.paranoid,
            )
            if decision is Decision.SKIP:
                return Outcome(path=entry.path, state="skipped", in_sha256=sha256, out_path=entry.target)
            # What is in the way although the plan found it free may be the same, from another run at
            # work where locks do not work: `publish` compares, and never replaces it.
            seen = glance(data, shown(entry.path), self.config.limits)
        except InputError as e:
            if e.reason is Reason.EMPTY:
                sha256 = hashlib.sha256(b"").hexdigest()
            return self.failed(entry, e, sha256)
        picture = seen if isinstance(seen, Picture) else None
        pixels = seen.pixels.size if isinstance(seen, Picture) else math.prod(seen)
        return Loaded(entry=entry, data=data, sha256=sha256, pixels=pixels, began=began, picture=picture)

    def decode(self, loaded: Loaded) -> Item | Outcome:
        """Decode one file from the bytes that were hashed."""
        picture = loaded.picture
        try:
            picture = picture or decode(loaded.data, shown(loaded.entry.path), self.config.limits)
        except InputError as e:
            return self.failed(loaded.entry, e, loaded.sha256)
        return Item(entry=loaded.entry, sha256=loaded.sha256, picture=picture, began=loaded.began)

    def screen(self, items: Iterable[Item | Outcome]) -> Iterator[Item | Outcome]:
        """Mark what the detector clears: such an item is `clean` as it is."""
        if self.config.detector == "none":
            yield from items
            return
        for bunch in bunches(items, lambda item: item.picture.pixels if isinstance(item, Item) else None):
            yield from self.screen_bunch(bunch)

    def screen_bunch(self, bunch: list[Item | Outcome]) -> Iterator[Item | Outcome]:
        """Let the detector see some images at once; one that it cannot score has failed, not passed."""
        images = [item.picture.pixels for item in bunch if isinstance(item, Item)]
        found = iter(score_all(self.detector, images))
        screened: list[Item | Outcome] = []
        for item in bunch:
            if isinstance(item, Item):
                suspicion = next(found)
                if suspicion is None:
                    error = InputError(Reason.NONFINITE, "the detector gave no finite score")
                    screened.append(self.failed(item.entry, error, item.sha256))
                    continue
                cleared = suspicion.score < self.detector.threshold
                clean = item.picture.pixels if cleared else None
                screened.append(replace(item, score=suspicion.score, clean=clean))
            else:
                screened.append(item)
        passed = [item for item in screened if isinstance(item, Item) and item.clean is not None]
        if passed:
            self.sink.start([(item.entry.path, item.entry.target, item.sha256) for item in passed], None)
        yield from screened

    def purify(self, items: Iterable[Item | Outcome]) -> Iterator[Item | Outcome]:
        """Purify in batches of one size; what needs no purification overtakes."""
        batches: Batches[Item] = Batches(
            key=lambda item: item.shape,
            count=lambda item: self.room.limit(item.shape, self.purifier.batch_size(item.size)),
            cost=lambda item: item.pixels,
            budget=DECODED_PIXELS,
        )
        for item in items:
            if isinstance(item, Outcome) or item.clean is not None:
                yield item
                continue
            for batch in batches.add(item):
                yield from self.purify_batch(batch)
        for batch in batches.rest():
            yield from self.purify_batch(batch)

    def purify_batch(self, batch: list[Item]) -> Iterator[Item | Outcome]:
        """Purify images of one size; one that fails does not take its neighbours along."""
        self.sink.start(
            [(item.entry.path, item.entry.target, item.sha256) for item in batch],
            self.purifier.config.seed,
        )
        try:
            clean = self.purifier.purify_pixels([item.picture.pixels for item in batch])
        except NonFiniteError as e:
            lost = set(e.images)
            error = InputError(Reason.NONFINITE, f"the model gave no finite image: {e}")
        except InputError as e:
            lost, error = set(range(len(batch))), e
        except MemoryExhaustedError as e:
            self.room.exceeded(batch[0].shape, len(batch))
            lost = set() if len(batch) > 1 else {0}
            error = InputError(Reason.OUT_OF_MEMORY, str(e))
        else:
            self.room.fitted(batch[0].shape)
            batch = self._asked(batch)
            yield from (self.checked(item, pixels) for item, pixels in zip(batch, clean, strict=True))
            return
        # Past the handlers, so that the memory of the failed attempt is free again.
        batch = self._asked(batch)
        yield from (self.purify_again(batch[n], error) for n in sorted(lost))
        rest = [item for n, item in enumerate(batch) if n not in lost]
        half = len(rest) if lost else len(rest) // 2
        for part in (rest[:half], rest[half:]):
            if part:
                yield from self.purify_batch(part)

    def _asked(self, batch: list[Item]) -> list[Item]:
        """Note what was asked about the images of an attempt, beside what earlier ones have asked."""
        queries = self.purifier.queries_for(len(batch))
        if queries is None:
            return batch
        return [replace(item, queries=(item.queries or 0) + queries) for item in batch]

    def purify_again(self, item: Item, error: InputError) -> Item | Outcome:
        """Purify an image in full precision that was lost to a short format; any other has failed."""
        try:
            careful = self.purifier.in_float32() if error.reason is Reason.NONFINITE else None
            if careful is None:
                return self.failed(item.entry, error, item.sha256)
            (clean,) = careful.purify_pixels([item.picture.pixels])
        except NonFiniteError:
            return self.failed(item.entry, error, item.sha256)
        except MemoryExhaustedError as e:
            no_memory = InputError(Reason.OUT_OF_MEMORY, f"{error}; in float32 {e}")
            return self.failed(item.entry, no_memory, item.sha256)
        notes = (*item.picture.notes, "purified in float32, since a shorter format overflowed")
        picture = replace(item.picture, notes=notes)
        return self.checked(replace(item, picture=picture, queries=careful.queries_for(1)), clean)

    def checked(self, item: Item, clean: np.ndarray) -> Item | Outcome:
        """A purified image, or a failure where nothing of the picture is left."""
        if self.purifier.config.needs_model and _is_blank(clean) and not _is_blank(item.picture.pixels):
            error = InputError(Reason.SUSPECT_OUTPUT, "the model gave an image of one colour")
            return self.failed(item.entry, error, item.sha256)
        if self.purifier.config.method == "none":
            return replace(item, clean=item.picture.pixels)  # and so it is recorded as passed
        return replace(item, clean=clean)

    def write(self, item: Item) -> Outcome:
        """Encode one image and publish it under its final name."""
        assert item.clean is not None
        entry, picture, clean = item.entry, item.picture, item.clean
        passed = clean is picture.pixels
        out_format = self.output_format(item)
        metadata = picture.metadata if self.config.metadata == "safe" else None
        try:
            data = encode(
                clean, out_format, quality=self.config.quality, metadata=metadata, name=shown(entry.path)
            )
            self.sink.publish(entry.path, entry.target, data)
        except InputError as e:
            return self.failed(entry, e, item.sha256)
        outcome = Outcome(
            path=entry.path,
            state="passed" if passed else "done",
            in_sha256=item.sha256,
            out_sha256=hashlib.sha256(data).hexdigest(),
            out_path=entry.target,
            out_bytes=len(data),
            mode=picture.mode,
            size=(clean.shape[1], clean.shape[0]),
            seed=self.purifier.config.seed,
            ms=round((time.monotonic() - item.began) * 1000),
            psnr=_psnr(picture.pixels, clean),
            device=str(self.purifier.device),
            lossy=is_lossy(out_format),
            score=None if item.score is None else round(item.score, 6),
            threshold=None if item.score is None else round(self.detector.threshold, 6),
            queries=item.queries,
            notes=(*picture.notes, *_misnamed(entry.path, picture.format)),
        )
        return self._finish(outcome)

    def output_format(self, item: Item) -> str:
        """The format to write; a name was planned for PNG where its format cannot be kept."""
        if self.config.format == "same" and item.entry.path.lower().endswith(".gif"):
            return "PNG"
        return output_format(self.config.format, item.picture.format)

    def failed(self, entry: Entry, error: InputError, sha256: str | None) -> Outcome:
        """Record that an image failed; it has no output, not even one of an earlier version."""
        self.sink.retract(entry.path, entry.target, sha256)
        outcome = Outcome(
            path=entry.path, state="failed", reason=error.reason, message=str(error), in_sha256=sha256
        )
        return self._finish(outcome)

    def _finish(self, outcome: Outcome) -> Outcome:
        """Record what became of an image, in any thread."""
        self.sink.finish(outcome)
        self._unreported[outcome.path] = outcome
        return outcome


def _is_blank(pixels: np.ndarray) -> bool:
    """Whether an image that is large enough to show something has hardly two levels."""
    return pixels.size >= 192 and int(pixels.max()) - int(pixels.min()) <= 1


def _psnr(before: np.ndarray, after: np.ndarray) -> float | None:
    """PSNR in dB, rounded; None for equal or differently sized images."""
    decibels = psnr(before, after) if before.shape == after.shape else math.inf
    return None if math.isinf(decibels) else round(decibels, 2)


def _misnamed(path: str, image_format: str) -> tuple[str, ...]:
    """A note where a name promises another format than the content has."""
    broken = broken_promise(path, image_format)
    return (f"the content is {broken[1]}",) if broken else ()
