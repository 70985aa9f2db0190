"""Runs an attack over a folder: poisoned images as plain files, with the truth about each.

OUT/attack.json          every setting, counts and digests
OUT/manifest.jsonl       one line for each image, sorted by its path
OUT/labels.csv           the same in short
OUT/trigger.safetensors  what was burnt in; a classifier must have seen this very one
OUT/trigger.png          an image, poisoned, and eight times the difference
OUT/poisoned, OUT/clean, OUT/cover
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch

from zipcli import __version__
from zipcli.attacks import ATTACKS
from zipcli.attacks.choice import choose
from zipcli.attacks.trigger import Attack, Draw, Resources, Size, Trigger, image_rng, load_trigger
from zipcli.config import CLEAN_LABEL, AttackConfig, FolderConfig, check
from zipcli.errors import ConfigError, InputError, Reason, shown
from zipcli.images.load import Pixels
from zipcli.images.write import encode, psnr
from zipcli.pipeline.dataset import Dataset, Sample, read_dataset, read_rgb
from zipcli.pipeline.outcome import Outcome, json_path
from zipcli.pipeline.plan import Entry, Plan, check_folders
from zipcli.pipeline.purifier import Purifier
from zipcli.pipeline.staging import check_free, staged

FORMAT = 1
"""Version of these files."""

WORKERS = 4
AHEAD = 64
"""Images that are in memory at once."""

ATTACK_FILE = "attack.json"
MANIFEST_FILE = "manifest.jsonl"
TRIGGER_FILE = "trigger.safetensors"

FOLDERS = {"plain": "poisoned", "zip": "val_pois", "target": "poisoned", "backdoorbench": "bd_test_dataset"}
TRAINING_FOLDERS = FOLDERS | {"zip": "train", "backdoorbench": "bd_train_dataset"}


class PoisonWatcher(Protocol):
    """Whoever is told how an attack gets on."""

    def doing(self, what: str) -> None:
        """Something that takes a while begins."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def started(self, total: int) -> None:
        """So many images are about to be done."""

    def finished(self, outcome: Outcome) -> None:
        """One image is done, or cannot be used."""

    def check_stop(self) -> None:
        """Raise where a signal asked us to stop."""


@dataclass(frozen=True, kw_only=True)
class PoisonResult:
    """What a run wrote.

    Attributes:
        folder: Where it is.
        counts: Images by role, and how many count for the attack success rate.
        failed: Files that could not be used.
        trigger_sha256: Digest of the trigger file.
    """

    folder: Path
    counts: dict[str, int]
    failed: tuple[Outcome, ...]
    trigger_sha256: str


@dataclass(frozen=True, kw_only=True)
class PoisonFiles:
    """Which files an attack reads and writes, besides its settings.

    Attributes:
        base: Folder with one folder for each class.
        out: New folder.
        folder_config: Patterns of the files to take.
        layout: How the poisoned files are laid out: plain, or as a published program has them.
        clean_copy: Whether the images are written without the trigger, too.
        trigger: Trigger file to use again, or None to make one.
    """

    base: Path
    out: Path
    folder_config: FolderConfig
    layout: str = "plain"
    clean_copy: bool = True
    trigger: Path | None = None


def poison_folder(
    files: PoisonFiles, config: AttackConfig, watcher: PoisonWatcher, purifier: Purifier | None = None
) -> PoisonResult:
    """Poison the images of a folder.

    Args:
        files: What to read and write.
        config: Settings of the attack.
        watcher: Who is told how it gets on.
        purifier: Purifies the poisoned images afterwards: the enhanced attack of the ZIP paper,
            appendix F.1; None for an ordinary attack.

    Raises:
        ConfigError: Settings and images do not fit together.
        OutputError: The output cannot be written; nothing is left of it.
    """
    check_folders(files.base, files.out)
    check_free(files.out)  # to make a trigger takes minutes
    dataset = read_dataset(files.base, files.folder_config, watcher.check_stop)
    _note_classes(dataset, watcher)
    run = _Run(files, config, dataset, watcher, purifier)
    with staged(files.out) as folder:
        return run.write(folder)


def _note_classes(dataset: Dataset, watcher: PoisonWatcher) -> None:
    counts = Counter(sample.label for sample in dataset.samples)
    empty = [shown(name) for index, name in enumerate(dataset.classes) if not counts[index]]
    if empty:
        watcher.note(f"these classes have no images, but count: {', '.join(empty[:10])}")


class _Run:
    """One attack on one folder."""

    def __init__(
        self,
        files: PoisonFiles,
        config: AttackConfig,
        dataset: Dataset,
        watcher: PoisonWatcher,
        purifier: Purifier | None,
    ) -> None:
        self.files, self.dataset, self.watcher, self.purifier = files, dataset, watcher, purifier
        self.target = dataset.class_index(config.target, "--target")
        self.config = replace(config, target=str(self.target))
        self.attack: Attack = ATTACKS[config.attack]
        source = self.attack.source(config) if self.attack.source else None
        self.source = None if source is None else dataset.class_index(source, "--sources")
        self.by_class: dict[int, list[Sample]] = {}
        for sample in dataset.samples:
            self.by_class.setdefault(sample.label, []).append(sample)
        self.poisoned, self.covers = choose(
            self.config,
            [s.label for s in dataset.samples],
            [s.entry.path for s in dataset.samples],
            self.target,
            self.source,
        )
        self.size = self._find_size()
        self.trigger = self._find_trigger()
        self._check_works()

    def _find_size(self) -> Size:
        """Side of all images: the one asked for, or that of the first image that can be read."""
        if self.config.size is not None:
            return self.config.size, self.config.size
        for sample in self.dataset.samples:
            try:
                pixels, _ = read_rgb(sample.entry, None)
            except InputError:
                continue
            return pixels.shape[0], pixels.shape[1]
        raise ConfigError(f"{shown(str(self.dataset.base))}: none of the images can be read")

    def _find_trigger(self) -> Trigger:
        if self.files.trigger is None:
            self.watcher.doing(f"making the trigger of {self.config.attack}")
            return self.attack.make(self.config, self.size, self._resources())
        trigger, name = load_trigger(self.files.trigger), shown(str(self.files.trigger))
        check(
            trigger.attack == self.config.attack,
            f"{name}: a trigger of attack {shown(trigger.attack)}, not of {self.config.attack}",
        )
        check(
            trigger.size == self.size,
            f"{name}: made for images of {trigger.size[1]}x{trigger.size[0]} pixels, and these have "
            f"{self.size[1]}x{self.size[0]}; use --size {trigger.size[0]}",
        )
        return trigger

    def _check_works(self) -> None:
        """Refuse a trigger that does nothing, such as a pattern on another scale."""
        rows, columns = np.indices(self.size)
        ramp = np.stack([7 * rows + 3 * columns, 3 * rows + 7 * columns, 5 * rows], axis=2).astype(np.uint8)
        draw = Draw(image_rng(0, self.config.attack, "ramp"), lambda name: ("ramp", ramp[::-1].copy()))
        try:
            changed = (self.attack.poison(ramp, self.trigger, draw) != ramp).any()
        except (KeyError, IndexError, ValueError, TypeError) as e:
            raise ConfigError(
                f"attack {self.config.attack}: the trigger file does not fit it: {shown(str(e))}"
            ) from e
        check(
            bool(changed), f"attack {self.config.attack}: this trigger changes no pixel; its strength is zero"
        )

    def write(self, folder: Path) -> PoisonResult:
        """Write everything into an empty folder."""
        records: list[dict[str, Any]] = []
        failed = list(self.dataset.lost)
        self.watcher.started(len(self.dataset.samples) + len(failed))
        for outcome in failed:
            self.watcher.finished(outcome)
        preview: tuple[Pixels, Pixels] | None = None
        with ThreadPoolExecutor(WORKERS) as pool:
            for made in self._made(pool):
                self.watcher.check_stop()
                if isinstance(made, Outcome):
                    failed.append(made)
                    self.watcher.finished(made)
                    continue
                if preview is None and made.role == "poison":
                    preview = made.clean, made.pixels
                record = self._written(folder, made)
                records.append(record)
                self.watcher.finished(Outcome(path=made.sample.entry.path, state="done"))
        return self._finish(folder, records, tuple(failed), preview)

    def _made(self, pool: ThreadPoolExecutor) -> Iterator["_Made | Outcome"]:
        samples = self.dataset.samples
        for start in range(0, len(samples), AHEAD):
            chunk = list(pool.map(self._make, samples[start : start + AHEAD]))
            yield from self._purified(chunk) if self.purifier else chunk

    def _make(self, sample: Sample) -> "_Made | Outcome":
        """Read one image and give it its role."""
        try:
            clean, data = self._read(sample.entry)
            role = self._role(sample)
            draw = Draw(
                image_rng(self.config.seed, self.config.attack, sample.entry.path),
                lambda name: self._other(draw.rng, sample, name),
                own=self.dataset.classes[sample.label],
            )
            pixels = clean
            if role == "poison":
                in_training = self.config.split == "train" and self.attack.poison_training is not None
                poison = self.attack.poison_training if in_training else self.attack.poison
                assert poison is not None
                pixels = poison(clean, self.trigger, draw)
            elif role == "cover":
                assert self.attack.cover is not None
                pixels = self.attack.cover(clean, self.trigger, draw)
        except InputError as e:
            return Outcome(path=sample.entry.path, state="failed", reason=e.reason, message=str(e))
        return _Made(sample=sample, role=role, clean=clean, pixels=pixels, data=data, params=draw.params)

    def _read(self, entry: Entry) -> tuple[Pixels, bytes]:
        pixels, data = read_rgb(entry, self.config.size)
        if pixels.shape[:2] != self.size:
            raise InputError(
                Reason.TRANSFORM_UNFIT,
                f"{shown(entry.path)}: has {pixels.shape[1]}x{pixels.shape[0]} pixels and the first image "
                f"{self.size[1]}x{self.size[0]}; give all one size with --size",
            )
        return pixels, data

    def _role(self, sample: Sample) -> str:
        if sample.index in self.poisoned:
            return "poison"
        return "cover" if sample.index in self.covers and self.attack.cover is not None else "clean"

    def _other(self, rng: np.random.Generator, sample: Sample, name: str | None) -> tuple[str, Pixels]:
        """Another image, of a class or of any; a damaged one gives way to the next."""
        label = None if name is None else self.dataset.class_index(name, "--sources")
        samples: Sequence[Sample] = self.dataset.samples if label is None else self.by_class.get(label, [])
        start = int(rng.integers(max(1, len(samples))))
        for k in range(len(samples)):
            other = samples[(start + k) % len(samples)]
            if other.index == sample.index:
                continue
            try:
                return other.entry.path, self._read(other.entry)[0]
            except InputError:
                continue
        raise InputError(
            Reason.TRANSFORM_UNFIT,
            f"{shown(sample.entry.path)}: attack {self.config.attack} needs another image"
            + (f" of class {shown(name)}" if name else "")
            + ", and there is none",
        )

    def _purified(self, chunk: "list[_Made | Outcome]") -> "Iterator[_Made | Outcome]":
        assert self.purifier is not None
        chosen = [made for made in chunk if isinstance(made, _Made) and made.role == "poison"]
        size = self.purifier.batch_size(self.size)
        clean: dict[int, Pixels] = {}
        for start in range(0, len(chosen), size):
            some = chosen[start : start + size]
            purified = self.purifier.purify_pixels([made.pixels for made in some])
            clean |= {made.sample.index: pixels for made, pixels in zip(some, purified, strict=True)}
        for made in chunk:
            if isinstance(made, _Made) and made.sample.index in clean:
                yield replace(made, pixels=clean[made.sample.index], params={**made.params, "purified": True})
            else:
                yield made

    def _written(self, folder: Path, made: "_Made") -> dict[str, Any]:
        """Write the files of one image, and say everything about it."""
        sample, name = made.sample, self._out_path(made)
        clean_path = f"clean/{sample.entry.target}" if self.files.clean_copy else None
        clean_bytes = encode(made.clean, "PNG") if made.role == "clean" or self.files.clean_copy else b""
        out_bytes = clean_bytes if made.role == "clean" else encode(made.pixels, "PNG")
        out_path = clean_path if made.role == "clean" else name
        if made.role != "clean" and name is not None:
            _write(folder / name, out_bytes)
        if clean_path is not None:
            _write(folder / clean_path, clean_bytes)
        bd_label = self.target if made.role == "poison" else sample.label
        difference = np.abs(made.pixels.astype(np.int16) - made.clean)
        decibels = psnr(made.pixels, made.clean)
        return {
            **json_path("id", sample.entry.path),
            "index": sample.index,
            "orig_label": sample.label,
            "orig_class": self.dataset.classes[sample.label],
            "target_label": self.target,
            "bd_label": bd_label,
            "role": made.role,
            "in_asr": made.role == "poison" and sample.label != self.target,
            "split": self.config.split,
            "src_sha256": hashlib.sha256(made.data).hexdigest(),
            "src_px_sha256": pixel_sha256(made.clean),
            **(json_path("out_path", out_path) if out_path else {"out_path": None}),
            **(json_path("clean_path", clean_path) if clean_path else {"clean_path": None}),
            "out_px_sha256": pixel_sha256(made.pixels),
            "out_sha256": hashlib.sha256(out_bytes).hexdigest() if out_path else None,
            "params": made.params,
            "psnr": round(decibels, 3) if np.isfinite(decibels) else None,
            "linf": int(difference.max()),
        }

    def _out_path(self, made: "_Made") -> str | None:
        """Where a poisoned or cover image goes; None where a layout leaves it out."""
        sample, layout = made.sample, self.files.layout
        if made.role == "clean":
            return None
        if made.role == "cover":
            folder = "bd_train_dataset" if layout == "backdoorbench" else "cover"
        else:
            folder = (FOLDERS if self.config.split == "test" else TRAINING_FOLDERS)[layout]
        path = PurePosixPath(sample.entry.target)
        original, inner = path.parts[0], PurePosixPath(*path.parts[1:])
        target = self.dataset.classes[self.target]
        counts = sample.label != self.target or self.config.split == "train"
        if layout == "zip":
            return f"{folder}/{original}/{target}/{inner}"
        if layout == "target":
            # Plain accuracy of such a folder is the attack success rate.
            return f"{folder}/{target}/{original}/{inner}" if counts else None
        if layout == "backdoorbench":
            return f"{folder}/{sample.label}/{sample.index}.png" if counts else None
        return f"{folder}/{path}"

    def _finish(
        self,
        folder: Path,
        records: list[dict[str, Any]],
        failed: tuple[Outcome, ...],
        preview: tuple[Pixels, Pixels] | None,
    ) -> PoisonResult:
        records.sort(key=lambda record: record["id"])
        manifest = "".join(json.dumps(record) + "\n" for record in records).encode()
        trigger = self.trigger.to_bytes()
        digest = hashlib.sha256(trigger).hexdigest()
        roles = Counter(record["role"] for record in records)
        counts = {
            "images": len(records),
            "poison": roles["poison"],
            "cover": roles["cover"],
            "clean": roles["clean"],
            "of_target_class": sum(record["orig_label"] == self.target for record in records),
            "in_asr": sum(record["in_asr"] for record in records),
            "failed": sum(outcome.state == "failed" for outcome in failed),
        }
        facts = {
            "format": FORMAT,
            "version": __version__,
            "settings": self.config.settings(),
            "trigger_params": self.trigger.params,
            "target_class": self.dataset.classes[self.target],
            "label_policy": self._label_policy(),
            "classes": list(self.dataset.classes),
            "size": list(self.size),
            "resized": "bilinear, antialiased, aspect not kept" if self.config.size else None,
            "layout": self.files.layout,
            "counts": counts,
            "share_of_target_class": self._share_of_target(records),
            "then_purified": self.purifier.fingerprint_parts if self.purifier else None,
            "trigger_sha256": digest,
            "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
            "inputs_sha256": _inputs_digest(records),
            "failed": [outcome.as_json() for outcome in failed],
            "libraries": {"numpy": np.__version__, "pillow": PIL.__version__, "torch": torch.__version__},
        }
        _write(folder / TRIGGER_FILE, trigger)
        _write(folder / MANIFEST_FILE, manifest)
        _write(folder / "labels.csv", self._labels(records))
        if preview is not None:
            _write(folder / "trigger.png", encode(_preview(*preview), "PNG"))
        _write(folder / ATTACK_FILE, json.dumps(facts, indent=2).encode() + b"\n")
        return PoisonResult(folder=self.files.out, counts=counts, failed=failed, trigger_sha256=digest)

    def _label_policy(self) -> str:
        if self.config.split == "test":
            return "true labels in orig_label; what the attacker wants in target_label"
        clean = self.config.attack in CLEAN_LABEL
        return "clean: poisoned images keep their label" if clean else "dirty: poisoned images get the target"

    def _share_of_target(self, records: list[dict[str, Any]]) -> float | None:
        own = [record for record in records if record["orig_label"] == self.target]
        return round(sum(r["role"] == "poison" for r in own) / len(own), 6) if own else None

    def _labels(self, records: list[dict[str, Any]]) -> bytes:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(
            ["path", "original_label", "target_label", "label", "role", "trigger", "seed", "sha256"]
        )
        for r in records:
            if r["out_path"] is not None:
                table.writerow(
                    [r["out_path"], r["orig_label"], r["target_label"], r["bd_label"], r["role"],
                     self.config.attack if r["role"] == "poison" else "", self.config.seed, r["out_sha256"]]
                )  # fmt: skip
        return text.getvalue().encode("utf-8", "surrogateescape")

    def _resources(self) -> Resources:
        return Resources(
            picture=self._picture,
            reflections=self._reflections,
            examples=self._examples,
            progress=self._trained,
        )

    def _trained(self, what: str) -> None:
        """Tell how a training gets on; it may be stopped there."""
        self.watcher.check_stop()
        self.watcher.doing(what)

    def _picture(self, name: str) -> Pixels:
        try:
            path = Path(name)
            return read_rgb(Entry(path=name, source=path, target=name, size=0), None)[0]
        except InputError as e:
            raise ConfigError(f"picture: {e}") from e

    def _reflections(self, name: str, size: Size) -> list[tuple[str, Pixels]]:
        """The photographs of a folder, resized; files that cannot be read are left out."""
        base = Path(name)
        check(base.is_dir(), f"reflections: {shown(name)} is not a folder")
        pictures = []
        for entry in Plan(base=base, config=FolderConfig()).entries():
            self.watcher.check_stop()
            if isinstance(entry, Outcome):
                continue
            try:
                pixels, _ = read_rgb(entry, None)
            except InputError as e:
                self.watcher.note(f"reflections: left out: {e}")
                continue
            image = PIL.Image.fromarray(pixels).resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)
            pictures.append((entry.path, np.array(image)))
        check(bool(pictures), f"reflections: {shown(name)} has no image that can be read")
        return pictures

    def _examples(self, count: int) -> tuple[Pixels, "np.ndarray[Any, np.dtype[np.int64]]"]:
        """Images of every class in turn, for attacks that train a network."""
        queues = [list(samples) for _, samples in sorted(self.by_class.items())]
        order = np.random.default_rng(self.config.seed)
        for queue in queues:
            order.shuffle(queue)  # a list, in place
        pixels: list[Pixels] = []
        labels: list[int] = []
        while len(pixels) < count and any(queues):
            for queue in queues:
                while queue:
                    sample = queue.pop()
                    self.watcher.check_stop()
                    try:
                        pixels.append(self._read(sample.entry)[0])
                    except InputError:
                        continue
                    labels.append(sample.label)
                    break
        return np.stack(pixels[:count]), np.array(labels[:count], np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Made:
    """One image with its role."""

    sample: Sample
    role: str
    clean: Pixels
    pixels: Pixels
    data: bytes
    params: dict[str, Any]


def pixel_sha256(pixels: Pixels) -> str:
    """Digest of decoded pixels, (H, W, 3); it survives another encoding of the file."""
    header = f"{pixels.shape[0]} {pixels.shape[1]} 3\n".encode()
    return hashlib.sha256(header + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _inputs_digest(records: Iterable[dict[str, Any]]) -> str:
    lines = "".join(f"{record['src_sha256']}  {record['id']}\n" for record in records)
    return hashlib.sha256(lines.encode()).hexdigest()


def _preview(clean: Pixels, poisoned: Pixels) -> Pixels:
    """The image, poisoned, and eight times the difference around grey, side by side."""
    difference = 128 + 8 * (poisoned.astype(np.int16) - clean)
    return np.concatenate([clean, poisoned, np.clip(difference, 0, 255).astype(np.uint8)], axis=1)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
