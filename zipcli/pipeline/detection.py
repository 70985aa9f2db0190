"""Joins a detector with what it needs, and lets it judge the images of a folder."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from zipcli.classifiers import identity, open_classifier
from zipcli.config import DetectConfig, FolderConfig, Limits, check
from zipcli.detectors import DETECTORS
from zipcli.detectors.calibration import MOST
from zipcli.detectors.parts import Parts
from zipcli.detectors.shipped import DIGESTS
from zipcli.errors import InputError, NonFiniteError, OutputError, Reason, shown
from zipcli.images.guard import declared_size, decode
from zipcli.images.load import Pixels, read_file
from zipcli.images.write import encode, publish
from zipcli.models.loading import load_model
from zipcli.models.packed import for_inference, is_batch_invariant
from zipcli.pipeline.dataset import class_names, read_rgb
from zipcli.pipeline.device import pick_device
from zipcli.pipeline.outcome import Outcome, json_path
from zipcli.pipeline.plan import Entry, Plan, check_folder, check_folders, no_images
from zipcli.pipeline.staging import check_free
from zipcli.pipeline.streams import map_ahead
from zipcli.pipeline.windows import DEFAULT_OVERLAP, DEFAULT_WINDOW, WindowedModel
from zipcli.protocols import Classifier, Detector, Suspicion

T = TypeVar("T")

BUNCH = 64
"""Images that a detector is shown together at most."""

BUNCH_PIXELS = 2**20
"""Their pixels; a single image may have more."""

READ_BYTES = 64 * 2**20
"""Bytes of files that may be read ahead."""

DECODED_PIXELS = 32 * 10**6
"""Pixels that may be decoded ahead."""

FULL_SCALE = 8.0
"""Standard deviations above the usual that are white in the picture of a map."""

CLASSES_SHOWN = 5


class Screening:
    """A detector that becomes ready when it is first asked for: to find its threshold may take minutes.

    Attributes:
        fingerprint_parts: What decides its judgement, for JSON: settings, the digest of the clean
            images, and the digest of what we ship.
    """

    def __init__(self, make: Callable[[], Detector], fingerprint_parts: dict[str, Any]) -> None:
        """Join a way to build the detector with what decides its judgement."""
        self._make = make
        self.fingerprint_parts = fingerprint_parts

    @functools.cached_property
    def detector(self) -> Detector:
        """The detector.

        Raises:
            ConfigError: The clean images do not fit.
            ClassifierError: The classifier failed.
            ModelError: The weights are damaged.
        """
        return self._make()


@contextlib.contextmanager
def open_detector(
    config: DetectConfig,
    note: Callable[[str], None] = lambda text: None,
    check_stop: Callable[[], None] = lambda: None,
    classifier: Classifier | None = None,
) -> Iterator[Screening]:
    """Open what a detector needs; a classifier that is opened here ends with the block.

    Args:
        config: The settings.
        note: Is told what the user should know, such as clean images that cannot be used.
        check_stop: Called often; it may raise to stop.
        classifier: That of the settings, where somebody has opened it already.

    Raises:
        ConfigError: A setting does not fit, or there are no clean images.
        ClassifierError: The classifier is missing.
    """
    with contextlib.ExitStack() as stack:
        parts: dict[str, Any] = {"device": pick_device(config.device)}
        named = {f"detector_{name}": value for name, value in config.settings().items() if value is not None}
        if config.detector in DIGESTS:
            named["detector_weights"] = DIGESTS[config.detector]
        if config.classifier is not None:
            named["detector_classifier"] = identity(config.classifier)
            parts["classifier"] = classifier or stack.enter_context(
                open_classifier(config.classifier, check_stop)
            )
        if config.clean is not None:
            parts["clean"] = clean = CleanFolder(config.clean, parts.get("classifier"), note, check_stop)
            named["detector_clean"] = clean.sha256

        def make() -> Detector:
            if config.detector == "residual":
                loaded = load_model("builtin", parts["device"], "float32")
                model = for_inference(loaded.model)
                invariant = is_batch_invariant(model)
                prior = WindowedModel(model, DEFAULT_WINDOW, DEFAULT_OVERLAP, batch_invariant=invariant)
                prior.before_call = check_stop
                parts.update(prior=prior, prior_sha256=loaded.sha256)
            return DETECTORS[config.detector](config, Parts(**parts))

        yield Screening(make, named)


class CleanFolder:
    """The images of --clean, in an order that is mixed and always the same.

    Attributes:
        sha256: Digest of their files.
    """

    def __init__(
        self,
        folder: Path,
        classifier: Classifier | None,
        note: Callable[[str], None],
        check_stop: Callable[[], None],
    ) -> None:
        """Look for images; the classifier tells the classes of the folders they lie in.

        Raises:
            ConfigError: There are none, or their class folders are not classes of the classifier.
        """
        check_folder(folder)
        plan = Plan(base=folder, config=FolderConfig())
        entries = [entry for entry in plan.entries() if isinstance(entry, Entry)]
        check(bool(entries), no_images(plan))
        mixed = np.random.default_rng(0).permutation(len(entries))[:MOST]
        self._entries = [entries[k] for k in mixed]
        self._labels = _labels(folder, classifier, note)
        self._check_stop = check_stop
        self._usable: list[Entry] = []
        digest = hashlib.sha256()
        for entry in self._entries:
            check_stop()
            try:
                _, data = read_rgb(entry, None)
            except InputError as e:
                note(f"clean: {e}; left out")
                continue
            self._usable.append(entry)
            digest.update(hashlib.sha256(entry.path.encode(errors="surrogateescape") + b"\0" + data).digest())
        self.sha256 = digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[Pixels, int | None]]:
        """Read the images again, with the index of their class where they lie in a class folder."""
        for entry in self._usable:
            self._check_stop()
            folder, slash, _ = entry.path.partition("/")
            yield read_rgb(entry, None)[0], self._labels.get(folder) if slash else None


def _labels(folder: Path, classifier: Classifier | None, note: Callable[[str], None]) -> dict[str, int]:
    """The index of the class that each folder is named after."""
    names = class_names(folder)
    if classifier is None or not names:
        return {}
    known = classifier.classes
    if known is None:
        note("the classifier does not name its classes; its labels are taken in the order of the folders")
        return {name: k for k, name in enumerate(names)}
    missing = [name for name in names if name not in known]
    check(
        not missing,
        f"clean: the classifier has no class {', '.join(map(shown, missing[:CLASSES_SHOWN]))}; name its "
        "classes in the order of its labels, as the folders are called, with --classes",
    )
    return {name: known.index(name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a detector says of one file.

    Attributes:
        path: Relative path of the file.
        state: clear, suspicious, skipped (a link, say) or failed.
        score: Higher is more suspicious.
        threshold: Score from which a file is suspicious.
        reason: Why there is no score.
        message: The same for people.
        in_sha256: Digest of the file.
        size: Width and height.
        map: How suspicious each pixel is.
    """

    path: str
    state: Literal["clear", "suspicious", "skipped", "failed"]
    score: float | None = None
    threshold: float | None = None
    reason: Reason | None = None
    message: str | None = None
    in_sha256: str | None = None
    size: tuple[int, int] | None = None
    map: "NDArray[np.float32] | None" = field(default=None, repr=False)

    def as_json(self) -> dict[str, Any]:
        """The fields that are set, ready for JSON."""
        values = {
            "state": self.state,
            "score": self.score,
            "threshold": self.threshold,
            "reason": self.reason,
            "message": self.message,
            "in_sha256": self.in_sha256,
            "size": self.size,
        }
        return json_path("path", self.path) | {k: v for k, v in values.items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    entry: Entry
    data: bytes
    pixels: int


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    entry: Entry
    pixels: Pixels
    sha256: str


def detect_folder(
    plan: Plan, detector: Detector, check_stop: Callable[[], None] = lambda: None
) -> Iterator[Verdict]:
    """Judge every file of a plan, in its order.

    Args:
        plan: Which files.
        detector: Who judges.
        check_stop: Called between images; it may raise to stop.

    Raises:
        ClassifierError: The classifier that the detector asks failed.
    """
    load = functools.partial(_load, limits=plan.config.limits)
    decode_ = functools.partial(_decode, limits=plan.config.limits)
    with ThreadPoolExecutor(plan.config.jobs, thread_name_prefix="zipcli") as pool:
        loaded = map_ahead(pool, load, plan.entries(), cost=_bytes, budget=READ_BYTES)
        decoded = map_ahead(pool, decode_, loaded, cost=_pixels, budget=DECODED_PIXELS)
        for bunch in bunches(decoded, lambda item: item.pixels if isinstance(item, _Decoded) else None):
            check_stop()
            images = [item for item in bunch if isinstance(item, _Decoded)]
            found = iter(score_all(detector, [item.pixels for item in images]))
            for item in bunch:
                yield item if isinstance(item, Verdict) else _verdict(item, next(found), detector.threshold)


def bunches(items: Iterable[T], pixels: Callable[[T], Pixels | None]) -> Iterator[list[T]]:
    """Join consecutive items, so that a detector sees many images at once.

    Args:
        items: Images, and what has become of others.
        pixels: The image of an item, or None.
    """
    bunch: list[T] = []
    held = 0
    for item in items:
        image = pixels(item)
        if image is None and not bunch:  # it need not wait for anybody
            yield [item]
            continue
        bunch.append(item)
        held += 0 if image is None else image.shape[0] * image.shape[1]
        if len(bunch) >= BUNCH or held >= BUNCH_PIXELS:
            yield bunch
            bunch, held = [], 0
    if bunch:
        yield bunch


def score_all(detector: Detector, images: Sequence[Pixels]) -> list[Suspicion | None]:
    """Let a detector score images, grey ones as RGB; None for one that has no score."""
    if not images:
        return []
    try:
        return list(detector([as_rgb(image) for image in images]))
    except NonFiniteError as e:
        lost = set(e.images)
    rest = iter(score_all(detector, [image for k, image in enumerate(images) if k not in lost]))
    return [None if k in lost else next(rest) for k in range(len(images))]


def as_rgb(pixels: Pixels) -> Pixels:
    """uint8 (H, W) or (H, W, 3) as (H, W, 3)."""
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def map_picture(map: "NDArray[np.float32]") -> Pixels:
    """A map as a grey picture, uint8 (H, W): black is usual."""
    levels: Pixels = (np.clip(map / FULL_SCALE, 0, 1) * 255 + 0.5).astype(np.uint8)
    return levels


def make_map_folder(folder: Path, base: Path, *, overwrite: bool) -> None:
    """Make the folder of the maps, which must be new or empty unless `overwrite`.

    Raises:
        ConfigError: It holds something, or lies in `base`, whose images are judged.
        OutputError: It cannot be made.
    """
    check_folders(base, folder)
    if not overwrite:
        check_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{shown(str(folder))}: cannot write there: {e.strerror}") from e


def write_map(verdict: Verdict, folder: Path, *, replace: bool) -> None:
    """Write the map of a file as `folder`/PATH.png.

    Raises:
        InputError: Something is in the way.
        OutputError: The folder cannot be written.
    """
    assert verdict.map is not None
    data = encode(map_picture(verdict.map), "PNG", name=shown(verdict.path))
    publish(data, folder, f"{verdict.path}.png", folder, replace=replace)


def _load(entry: Entry | Outcome, limits: Limits) -> _Loaded | Verdict:
    if isinstance(entry, Outcome):
        assert entry.state in ("skipped", "failed")
        state: Literal["skipped", "failed"] = "skipped" if entry.state == "skipped" else "failed"
        return Verdict(path=entry.path, state=state, reason=entry.reason, message=entry.message)
    try:
        data = read_file(entry.source, limits, name=shown(entry.path))
        width, height = declared_size(data, shown(entry.path), limits)
    except InputError as e:
        return Verdict(path=entry.path, state="failed", reason=e.reason, message=str(e))
    return _Loaded(entry=entry, data=data, pixels=width * height)


def _decode(loaded: _Loaded | Verdict, limits: Limits) -> _Decoded | Verdict:
    if isinstance(loaded, Verdict):
        return loaded
    try:
        pixels = decode(loaded.data, shown(loaded.entry.path), limits).pixels
    except InputError as e:
        return Verdict(path=loaded.entry.path, state="failed", reason=e.reason, message=str(e))
    return _Decoded(entry=loaded.entry, pixels=pixels, sha256=hashlib.sha256(loaded.data).hexdigest())


def _bytes(entry: Entry | Outcome) -> int:
    return entry.size if isinstance(entry, Entry) else 0


def _pixels(loaded: _Loaded | Verdict) -> int:
    return loaded.pixels if isinstance(loaded, _Loaded) else 0


def _verdict(item: _Decoded, found: Suspicion | None, threshold: float) -> Verdict:
    if found is None:
        message = "the prior gave no finite answer"
        return Verdict(path=item.entry.path, state="failed", reason=Reason.NONFINITE, message=message)
    return Verdict(
        path=item.entry.path,
        state="suspicious" if found.score >= threshold else "clear",
        score=round(found.score, 6),
        threshold=round(threshold, 6),
        in_sha256=item.sha256,
        size=(item.pixels.shape[1], item.pixels.shape[0]),
        map=found.map,
    )
