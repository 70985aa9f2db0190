"""A folder with one folder for each class: which images there are, and what each class is called."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zipcli.config import FolderConfig, check
from zipcli.errors import ConfigError, Reason, shown
from zipcli.images.guard import decode
from zipcli.images.load import Pixels, read_file
from zipcli.pipeline.outcome import Outcome
from zipcli.pipeline.plan import Entry, Plan, collisions, no_images
from zipcli.registry import unknown_name


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and its class.

    Attributes:
        index: Place in the data set.
        entry: The file.
        label: Index of its class.
    """

    index: int
    entry: Entry
    label: int


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The images of a folder, class by class, and within a class by name.

    Attributes:
        base: The folder.
        classes: Names in the order of their indices: by number where all are numbers, else by name.
        samples: The images.
        lost: Files that cannot be taken.
    """

    base: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    lost: tuple[Outcome, ...]

    def class_index(self, word: str, option: str) -> int:
        """Index of the class that a word names, or counts.

        Raises:
            ConfigError: There is no such class.
        """
        if word in self.classes:
            return self.classes.index(word)
        if word.isdecimal() and int(word) < len(self.classes):
            return int(word)
        check(
            not word.isdecimal(),
            f"{option}: {word} is not among the {len(self.classes)} classes, which count from 0",
        )
        raise ConfigError(f"{option}: {unknown_name('class', word, self.classes)}")


def read_dataset(base: Path, config: FolderConfig, check_stop: Callable[[], None]) -> Dataset:
    """Walk a folder; nothing is read yet.

    Args:
        base: It has one folder for each class.
        config: Patterns of the files to take.
        check_stop: Raises where a signal asked us to stop.

    Raises:
        ConfigError: There are no class folders, no images, or two images would share a name.
    """
    plan = Plan(base=base, config=config)
    entries, lost = [], []
    for entry in plan.entries():
        check_stop()
        if isinstance(entry, Outcome):
            lost.append(entry)
        elif "/" not in entry.path:
            message = f"lies in no class folder; put it into {shown(str(base))}/CLASS/"
            lost.append(
                Outcome(path=entry.path, state="failed", reason=Reason.NAME_UNSUPPORTED, message=message)
            )
        else:
            entries.append(entry)
    check(
        bool(entries) or not lost,
        f"{shown(str(base))}: no class folders; put the images of each class into a folder of its own",
    )
    check(bool(entries), no_images(plan))
    for first, second, target in collisions(entries)[:1]:
        raise ConfigError(
            f"{shown(first)} and {shown(second)} would both become {shown(target)}; rename one of them"
        )
    classes = class_names(base)
    of = {name: index for index, name in enumerate(classes)}
    ordered = sorted(entries, key=lambda e: of[e.path.split("/")[0]])  # stable: by name within a class
    samples = tuple(
        Sample(index=k, entry=entry, label=of[entry.path.split("/")[0]]) for k, entry in enumerate(ordered)
    )
    return Dataset(base=base, classes=classes, samples=samples, lost=tuple(lost))


def class_names(base: Path) -> tuple[str, ...]:
    """The folders of a folder: 2 before 10 where all are numbers, else as text, as torchvision does."""
    names = sorted(p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else names)


def read_rgb(entry: Entry, size: int | None) -> tuple[Pixels, bytes]:
    """Read an image as (H, W, 3), and its file; resized to a square of `size` pixels where given.

    Resizing is bilinear and antialiased, and does not keep the aspect, as the published programs do.

    Raises:
        InputError: The file cannot be used.
    """
    name = shown(entry.path)
    data = read_file(entry.source, name=name)
    pixels = decode(data, name).pixels
    rgb = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    if size is not None and rgb.shape[:2] != (size, size):
        rgb = np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR))
    return np.array(rgb, order="C"), data
