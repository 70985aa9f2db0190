"""Clean accuracy and attack success of a black box, before and after purification."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zipcli import metrics
from zipcli.config import check
from zipcli.errors import ConfigError, InputError, shown
from zipcli.images.load import Pixels
from zipcli.images.write import psnr
from zipcli.metrics import Labels, Share
from zipcli.pipeline.dataset import read_rgb
from zipcli.pipeline.outcome import path_from_json
from zipcli.pipeline.plan import Entry
from zipcli.pipeline.poisoned_set import Picture, PoisonedSet, read_picture
from zipcli.pipeline.purifier import Purifier
from zipcli.pipeline.settings import STATE_FOLDER
from zipcli.protocols import Classifier

SCHEMA = 1
"""Version of the JSON of an evaluation."""

CHUNK = 256
"""Images that are in memory at once."""

SHOWN = 5
AGAIN = "purify the folder again with --paranoid, which reads what is there"
SMALLEST_SSIM = 11
"""Side of the window of SSIM in pixels; smaller images have none."""


class Purify(Protocol):
    """Gives the purified images of a chunk: by doing it, or from files that are there.

    Attributes:
        is_timed: Whether its time is that of a purification.
    """

    is_timed: bool

    def __call__(self, images: Sequence[Pixels], digests: Sequence[str], /) -> list[Pixels]:
        """Purify images, each (H, W, 3), whose files have these SHA-256 digests."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """The settings, ready for JSON."""
        ...

    def flagged(self, digests: Sequence[str], /) -> list[bool] | None:
        """Which images a detector did not let pass; None where there was none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a detector before the purification did.

    Attributes:
        flagged: Images that were purified, of all; an image costs at least this share of a purification.
        tpr: Poisoned images that were purified; the others reach the classifier with their trigger.
        fpr: Clean images that were purified.
    """

    flagged: Share
    tpr: Share | None
    fpr: Share | None

    def as_json(self) -> dict[str, Any]:
        """The shares, and how much faster the detector can make a run at most, its own cost left out."""
        share = self.flagged.value
        return {
            **{"flagged": share_json(self.flagged), "tpr": share_json(self.tpr), "fpr": share_json(self.fpr)},
            "speedup_at_most": round(1 / share, 3) if share else None,
        }


@dataclass(frozen=True, kw_only=True)
class Side:
    """What the classifier makes of the images, before or after purification.

    Attributes:
        ca: Clean accuracy.
        asr: Attack success rate over images of other classes than the target.
        asr_all: The same over all poisoned images, as BackdoorBox counts.
        pa: Poisoned images with their own label, of all of them, as in the ZIP paper.
        ra: The same over images of other classes than the target, as BackdoorBench counts.
        per_class: CA, ASR and PA of the images of each class.
    """

    ca: Share | None
    asr: Share | None
    asr_all: Share | None
    pa: Share | None
    ra: Share | None
    per_class: tuple[tuple[str, Share | None, Share | None, Share | None], ...]


@dataclass
class Fidelity:
    """How near images are to others: means over the images that differ, equal ones counted.

    Attributes:
        psnr: Of each image that differs, in decibels.
        ssim: Of the same, where it can be had.
        images: How many were compared.
    """

    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    images: int = 0

    def add(self, a: Pixels, b: Pixels, ssim: "Ssim | None") -> None:
        """Compare two images; those of other sizes, such as cropped ones, have no fidelity."""
        if a.shape != b.shape:
            return
        self.images += 1
        decibels = psnr(np.ascontiguousarray(a), np.ascontiguousarray(b))
        if not np.isfinite(decibels):
            return
        self.psnr.append(decibels)
        if ssim is not None and min(a.shape[:2]) >= SMALLEST_SSIM:
            self.ssim.append(ssim(a, b))

    def as_json(self) -> dict[str, Any]:
        """Means for JSON; null where there is nothing to average."""
        return {
            "psnr": round(float(np.mean(self.psnr)), 3) if self.psnr else None,
            "ssim": round(float(np.mean(self.ssim)), 4) if self.ssim else None,
            "images": self.images,
            "identical": self.images - len(self.psnr),
        }


Ssim = Callable[[Pixels, Pixels], float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result.

    Attributes:
        name: What was done to the images.
        classes: Names in the order of their indices.
        target: Name of the attacker's class, or None.
        before: Without a defence.
        after: Of purified images; None where nothing was purified.
        purified_clean: Purified clean images against the clean ones.
        poisoned: Poisoned images against the clean ones.
        purified_poisoned: Purified poisoned images against the clean ones.
        settings: Of the attack and of the purification.
        cost: Milliseconds for each image.
        gate: What a detector did; None where there was none.
        notes: What the reader should know.
    """

    name: str
    classes: tuple[str, ...]
    target: str | None
    before: Side
    after: Side | None
    purified_clean: Fidelity
    poisoned: Fidelity
    purified_poisoned: Fidelity
    settings: dict[str, Any]
    cost: dict[str, float | None]
    gate: Gate | None = None
    notes: tuple[str, ...]

    @property
    def der(self) -> float | None:
        """Defence effectiveness rating."""
        if self.after is None:
            return None
        return metrics.defence_effectiveness(self.before.ca, self.after.ca, self.before.asr, self.after.asr)

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON; an empty denominator is null."""
        der = self.der
        return {
            "type": "evaluation",
            "schema": SCHEMA,
            "name": self.name,
            "classes": list(self.classes),
            "target": self.target,
            "before": side_json(self.before),
            "after": side_json(self.after) if self.after else None,
            "der": round(der, 4) if der is not None else None,
            "fidelity": {
                "purified_clean": self.purified_clean.as_json() if self.after else None,
                "poisoned": self.poisoned.as_json(),
                "purified_poisoned": self.purified_poisoned.as_json() if self.after else None,
            },
            "cost_ms": self.cost,
            "gate": self.gate.as_json() if self.gate else None,
            "settings": self.settings,
            "notes": list(self.notes),
        }


def side_json(side: Side) -> dict[str, Any]:
    """One side for JSON."""
    return {
        "ca": share_json(side.ca),
        "asr": share_json(side.asr),
        "asr_all": share_json(side.asr_all),
        "pa": share_json(side.pa),
        "ra": share_json(side.ra),
        "per_class": [
            {"class": name, "ca": share_json(ca), "asr": share_json(asr), "pa": share_json(pa)}
            for name, ca, asr, pa in side.per_class
        ],
    }


def share_json(share: Share | None) -> dict[str, Any] | None:
    """A proportion for JSON: value, counts and the 95 % interval of Wilson."""
    if share is None:
        return None
    low, high = share.interval
    return {
        "value": round(share.value, 6),
        "count": share.count,
        "total": share.total,
        "low": round(low, 6),
        "high": round(high, 6),
    }


def evaluate(
    images: PoisonedSet,
    classifier: Classifier,
    purify: Purify | None,
    *,
    ssim: Ssim | None,
    progress: Callable[[int, int], None],
    check_stop: Callable[[], None],
) -> Evaluation:
    """Show every image to the classifier, before and after purification.

    Args:
        images: What `read_poisoned_set` read.
        classifier: The black box.
        purify: The defence, or None for the figures without one.
        ssim: Structural similarity of two images, or None where no library has it.
        progress: Is told (images done, images in all).
        check_stop: Raises where a signal asked us to stop.

    Raises:
        ConfigError: Something is missing or does not belong together; it says what.
        ClassifierError: The classifier failed.
    """
    total = len(images.clean) + len(images.poisoned)
    run = _Run(images, _Named(classifier, images.classes), purify, ssim)
    done = 0
    for kind, pictures in (("clean", images.clean), ("poisoned", images.poisoned)):
        for start in range(0, len(pictures), CHUNK):
            check_stop()
            run.chunk(kind, pictures[start : start + CHUNK])
            done += min(CHUNK, len(pictures) - start)
            progress(done, total)
    return run.result()


class _Run:
    """Predictions of the images, as they come."""

    def __init__(
        self, images: PoisonedSet, classifier: "_Named", purify: Purify | None, ssim: Ssim | None
    ) -> None:
        self.images, self.classifier, self.purify, self.ssim = images, classifier, purify, ssim
        self.predictions: dict[tuple[str, str], list[Labels]] = {}
        self.fidelity = {name: Fidelity() for name in ("purified_clean", "poisoned", "purified_poisoned")}
        self.clean_of = {picture.id: picture for picture in images.clean}
        self.seconds = {"classify": 0.0, "purify": 0.0}
        self.counts = {"classify": 0, "purify": 0}
        self.flagged: dict[str, list[bool]] = {"clean": [], "poisoned": []}

    def chunk(self, kind: str, pictures: Sequence[Picture]) -> None:
        read = [read_picture(self.images.base, picture) for picture in pictures]
        pixels, digests = [p for p, _ in read], [d for _, d in read]
        originals = pixels if kind == "clean" else self._originals(pictures)
        self._predict("before", kind, pixels)
        if kind == "poisoned":
            self._compare("poisoned", pixels, originals)
        if self.purify is None:
            return
        began = time.monotonic()
        purified = self.purify(pixels, digests)
        if self.purify.is_timed:
            self.seconds["purify"] += time.monotonic() - began
            self.counts["purify"] += len(pixels)
        self.flagged[kind] += self.purify.flagged(digests) or []
        self._predict("after", kind, purified)
        self._compare(f"purified_{kind}", purified, originals)

    def _originals(self, pictures: Sequence[Picture]) -> list[Pixels | None]:
        """The clean images of poisoned ones, paired by their id."""
        found = [self.clean_of.get(picture.id) for picture in pictures]
        return [read_picture(self.images.base, one)[0] if one is not None else None for one in found]

    def _predict(self, when: str, kind: str, pixels: list[Pixels]) -> None:
        began = time.monotonic()
        self.predictions.setdefault((when, kind), []).append(self.classifier(pixels))
        self.seconds["classify"] += time.monotonic() - began
        self.counts["classify"] += len(pixels)

    def _compare(self, name: str, images: Sequence[Pixels], originals: Sequence[Pixels | None]) -> None:
        for image, original in zip(images, originals, strict=True):
            if original is not None:
                self.fidelity[name].add(image, original, self.ssim)

    def result(self) -> Evaluation:
        images = self.images
        notes = list(self.classifier.notes)
        if not images.clean:
            notes.append("the set has no clean images, so there is no clean accuracy")
        settings: dict[str, Any] = {"attack": images.facts.get("settings")}
        if self.purify is not None:
            settings["purification"] = self.purify.facts
        return Evaluation(
            name=images.name,
            classes=images.classes,
            target=None if images.target is None else images.classes[images.target],
            before=self._side("before"),
            after=self._side("after") if self.purify is not None else None,
            purified_clean=self.fidelity["purified_clean"],
            poisoned=self.fidelity["poisoned"],
            purified_poisoned=self.fidelity["purified_poisoned"],
            settings=settings,
            cost={
                name: round(1000 * self.seconds[name] / count, 3) if count else None
                for name, count in self.counts.items()
            },
            gate=self._gate(),
            notes=tuple(notes),
        )

    def _gate(self) -> Gate | None:
        clean, poisoned = self.flagged["clean"], self.flagged["poisoned"]
        flagged = metrics.share(np.array(clean + poisoned, bool))
        if flagged is None:
            return None
        return Gate(
            flagged=flagged,
            tpr=metrics.share(np.array(poisoned, bool)),
            fpr=metrics.share(np.array(clean, bool)),
        )

    def _side(self, when: str) -> Side:
        images = self.images
        target = -1 if images.target is None else images.target
        clean, poisoned = (
            np.array([p.label for p in pictures], np.int64) for pictures in (images.clean, images.poisoned)
        )
        of_clean, of_poisoned = (
            np.concatenate(self.predictions.get((when, kind), [np.array([], np.int64)]))
            for kind in ("clean", "poisoned")
        )
        per_class = []
        for index, name in enumerate(images.classes):
            own, own_poisoned = clean == index, poisoned == index
            per_class.append(
                (
                    name,
                    metrics.clean_accuracy(clean[own], of_clean[own]),
                    metrics.attack_success(poisoned[own_poisoned], of_poisoned[own_poisoned], target),
                    metrics.poisoned_accuracy(poisoned[own_poisoned], of_poisoned[own_poisoned]),
                )
            )
        return Side(
            ca=metrics.clean_accuracy(clean, of_clean),
            asr=metrics.attack_success(poisoned, of_poisoned, target),
            asr_all=metrics.attack_success_of_all(of_poisoned, target),
            pa=metrics.poisoned_accuracy(poisoned, of_poisoned),
            ra=metrics.robust_accuracy(poisoned, of_poisoned, target),
            per_class=tuple(per_class),
        )


class _Named:
    """A classifier whose outputs are indices of our classes."""

    def __init__(self, classifier: Classifier, classes: tuple[str, ...]) -> None:
        self._classifier, self._classes = classifier, classes
        self.notes: list[str] = []
        self._ours: NDArray[np.int64] | None = None
        theirs = classifier.classes
        if theirs is None:
            self.notes.append(
                "the classifier does not name its classes; its labels are taken in the order of the folders"
            )
            return
        missing = [name for name in classes if name not in theirs]
        check(
            not missing,
            f"classifier: it has no class {', '.join(map(shown, missing[:SHOWN]))}; name its classes in the "
            "order of its labels, as the folders are called, with --classes",
        )
        # What is none of our classes is simply wrong.
        self._ours = np.array([classes.index(name) if name in classes else -1 for name in theirs], np.int64)

    def __call__(self, images: Sequence[Pixels]) -> Labels:
        labels = self._classifier(images).labels
        if self._ours is not None:
            ours: Labels = self._ours[labels]
            return ours
        beyond = labels[labels >= len(self._classes)]
        check(
            not len(beyond),
            f"classifier: it says class {beyond[:1]}, and there are {len(self._classes)} class folders; "
            "name its classes in the order of its labels with --classes",
        )
        return labels


class PurifyNow:
    """Purifies on the fly."""

    is_timed = True

    def __init__(self, purifier: Purifier) -> None:
        """Take a purifier that has its model."""
        self._purifier = purifier

    @property
    def facts(self) -> dict[str, Any]:
        """The settings, ready for JSON."""
        return dict(self._purifier.fingerprint_parts)

    def flagged(self, digests: Sequence[str], /) -> list[bool] | None:
        """None: everything is purified."""
        return None

    def __call__(self, images: Sequence[Pixels], digests: Sequence[str], /) -> list[Pixels]:
        """Purify images of any sizes, each size in batches of its own."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for k, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(k)
        clean: dict[int, Pixels] = {}
        for shape, members in by_size.items():
            size = self._purifier.batch_size((shape[0], shape[1]))
            for start in range(0, len(members), size):
                some = members[start : start + size]
                clean |= zip(some, self._purifier.purify_pixels([images[k] for k in some]), strict=True)
        return [clean[k] for k in range(len(images))]


class PurifiedFolders:
    """Takes what `zipcli purify` wrote, found by the digest of its input, never by name or place."""

    is_timed = False

    def __init__(self, folders: Sequence[Path]) -> None:
        """Read the ledgers of folders.

        Raises:
            ConfigError: A folder has none, or two have other settings.
        """
        self._files: dict[str, tuple[Path, str, int | None]] = {}
        self._failed: dict[str, str] = {}
        self._passed: set[str] = set()
        self._names = ", ".join(shown(str(folder)) for folder in folders)
        runs = [(folder, self._read(folder)) for folder in folders]
        first, self.facts = runs[0]
        for folder, facts in runs[1:]:
            changed = [
                f"{key}: {self.facts.get(key)!r} there, {facts.get(key)!r} here"
                for key in sorted(self.facts.keys() | facts.keys())
                if self.facts.get(key) != facts.get(key)
            ]
            check(
                not changed,
                f"{shown(str(folder))}: purified with other settings than {shown(str(first))} "
                f"({'; '.join(changed)}); compare what belongs together",
            )

    def _read(self, folder: Path) -> dict[str, Any]:
        name = shown(str(folder))
        state = folder / STATE_FOLDER
        try:
            run = json.loads((state / "run.json").read_bytes())
            settings, fingerprint = dict(run["settings"]), run["fingerprint"]
            files = sorted(state.glob("ledger-*.jsonl"))
            lines = [line for file in files for line in file.read_bytes().splitlines()]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ConfigError(f"{name}: no folder that zipcli purify wrote ({e})") from e
        check(not settings.get("tar_shards"), f"{name}: its images are in tar shards; unpack and purify them")
        latest: dict[str, dict[str, Any]] = {}
        for line in lines:
            try:
                record = json.loads(line)
                latest[path_from_json(record, "path")] = record
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # half a line of a run that was killed
        for path, record in latest.items():
            digest = record.get("in_sha256")
            if record.get("state") in ("done", "passed") and record.get("fingerprint") == fingerprint:
                self._files[str(digest)] = (
                    folder,
                    path_from_json(record, "out_path"),
                    record.get("out_bytes"),
                )
                if record["state"] == "passed":
                    self._passed.add(str(digest))
            elif record.get("state") == "failed" and digest:
                self._failed[str(digest)] = f"{shown(path)}: {record.get('message', '')}"
        return settings

    def flagged(self, digests: Sequence[str], /) -> list[bool] | None:
        """What the detector of the run purified; None where it had none."""
        if self.facts.get("detector", "none") == "none":
            return None
        return [digest not in self._passed for digest in digests]

    def __call__(self, images: Sequence[Pixels], digests: Sequence[str], /) -> list[Pixels]:
        """Read the purified images."""
        missing = [digest for digest in digests if digest not in self._files]
        reasons = [self._failed[digest] for digest in missing if digest in self._failed]
        check(
            not missing,
            f"{self._names}: at least {len(missing)} of these images were not purified there, or otherwise"
            + (f" ({'; '.join(reasons[:SHOWN])})" if reasons else "")
            + "; purify the folder that you evaluate, all of it: nothing is left out",
        )
        return [self._load(digest) for digest in digests]

    def _load(self, digest: str) -> Pixels:
        folder, path, size = self._files[digest]
        try:
            pixels, data = read_rgb(Entry(path=path, source=folder / path, target=path, size=0), None)
        except InputError as e:
            raise ConfigError(f"{shown(str(folder))}: {e}; {AGAIN}") from e
        check(
            size in (None, len(data)),
            f"{shown(str(folder / path))}: changed since it was purified; {AGAIN}",
        )
        return pixels


def library_ssim() -> Iterator[Ssim]:
    """SSIM of scikit-image where it is installed: Gaussian window of 11 pixels, the borders included."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return

    def ssim(a: Pixels, b: Pixels) -> float:
        _, values = structural_similarity(  # type: ignore[no-untyped-call]  # it ships no types
            a,
            b,
            data_range=255,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        # Its own mean leaves out 5 pixels at each side, and with them a trigger in the corner.
        return float(values.mean())

    yield ssim
