"""Reads a folder of images into memory, to learn from some and measure with the others."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zipcli.config import FolderConfig, TrainConfig, check
from zipcli.errors import InputError, Reason, shown
from zipcli.images.guard import decode
from zipcli.images.load import Pixels, read_file
from zipcli.pipeline.plan import Entry, Plan, no_images
from zipcli.training.data import ImageBank, Source

PIECE = 512
"""Longest side of what is kept of an image: a random piece, so that large photos do not fill the memory."""

CROP = 64
SMALLEST_CROP = 8
BATCH_PIXELS = 96 * 32 * 32
GPU_FACTOR = 4
"""A step of a GPU takes this many times as many pixels: with fewer it would wait for us."""

VALIDATION_PIXELS = 2**19
MEMORY_SHARE = 0.2
"""Of all memory, for the pixels, which are there twice for a moment; of all and not of what is free, so that
a run that goes on has the same images."""

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""What a container may use, on Linux."""

FEW = 100
READERS = 8


class FileWatcher(Protocol):
    """Whoever is told what becomes of the files."""

    def skipped(self, path: str, reason: Reason, message: str) -> None:
        """A file cannot be used."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What is learned from, and what is held out.

    Attributes:
        source: Images to learn from, and the size of their crops.
        validation: Middles of images held out, (N, C, crop, crop) in [-1, 1].
        spread: Standard deviation of the pixels in [-1, 1].
        digest: Of the images and their order: another set has another one.
        facts: How many of what, for the model card.
    """

    source: Source
    validation: Tensor
    spread: float
    digest: str
    facts: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.validation.device


def read_training_set(
    files: "PictureFiles",
    config: TrainConfig,
    device: torch.device,
    *,
    channels: int,
    native_side: int | None,
) -> TrainingSet:
    """Read the images of a folder and divide them.

    Args:
        files: The folder.
        config: Crop, batch size, share to hold out, seed.
        device: Where the images go.
        channels: Of the network, 3 or 1.
        native_side: The only side that the network sees, in pixels, or None.

    Raises:
        ConfigError: There are fewer than two images that can be used.
    """
    check(
        native_side is None or config.crop in (None, native_side),
        f"crop: this model sees {native_side} pixels only; leave it out",
    )
    longest = max(PIECE, config.crop or native_side or 0)
    images, left_out = files.read(channels, longest, config.seed, memory_for(device))
    crop = config.crop or native_side or usual_crop(images)
    large = [image for image in images if min(image.shape[:2]) >= crop]
    check(
        len(large) >= 2,
        f"{shown(str(files.folder))}: {len(large)} of {files.found} files are images of at least {crop} "
        "pixels a side; two are needed, one to learn from and one to measure with, and hundreds are better",
    )
    too_small = len(images) - len(large)
    _say_what_is_missing(files.watcher, used=len(large), too_small=too_small, left_out=left_out, crop=crop)
    held_out = min(len(large) - 1, max(1, round(config.holdout * len(large))))
    measured = large[: min(held_out, max(8, VALIDATION_PIXELS // crop**2))]
    bank = ImageBank(large[held_out:], device)
    per_step = BATCH_PIXELS * (GPU_FACTOR if device.type == "cuda" else 1)
    batch = config.batch_size or max(2, per_step // crop**2)
    middles = torch.stack([middle(image, crop) for image in measured]).permute(0, 3, 1, 2)
    return TrainingSet(
        source=Source(images=bank, crop=crop, batch=batch),
        validation=middles.to(device) / 127.5 - 1,
        spread=spread(large[held_out:]),
        digest=digest_of(large),
        facts={
            "files": files.found,
            "images": len(bank),
            "held_out": held_out,
            "skipped": dict(files.skipped),
            "too_small": too_small,
            "left_out": left_out,
            "crop": crop,
            "batch_size": batch,
        },
    )


def _say_what_is_missing(
    watcher: FileWatcher, *, used: int, too_small: int, left_out: int, crop: int
) -> None:
    if left_out:
        watcher.note(f"{left_out} images are left out: the others fill the memory that they may take")
    if too_small:
        watcher.note(f"{too_small} images have less than {crop} pixels a side and are not used (--crop)")
    if used < FEW:
        watcher.note(f"{used} images are few: the model may learn them by heart")


class PictureFiles:
    """The files of a folder, those that can be used and those that cannot.

    Attributes:
        folder: Where they are.
        watcher: Who is told what cannot be used.
        found: How many there are.
        skipped: How many cannot be used, by reason.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, watcher: FileWatcher, check_stop: Callable[[], None]
    ) -> None:
        """Walk the folder; nothing is read yet.

        Args:
            folder: It and the folders in it are searched.
            config: Patterns of the files to take and to leave out.
            watcher: Who is told what cannot be used.
            check_stop: Raises where a signal asked us to stop.

        Raises:
            ConfigError: There is no file to take.
        """
        self.folder, self.watcher, self._check_stop = folder, watcher, check_stop
        self.found, self.skipped = 0, Counter[str]()
        self._entries: list[Entry] = []
        plan = Plan(base=folder, config=FolderConfig(include=config.include, exclude=config.exclude))
        for entry in plan.entries():
            check_stop()
            self.found += 1
            if isinstance(entry, Entry):
                self._entries.append(entry)
            elif entry.reason is not None:
                self._skip(entry.path, entry.reason, entry.message or "")
        check(self.found > 0, no_images(plan))

    def read(self, channels: int, longest: int, seed: int, memory: int) -> tuple[list[Tensor], int]:
        """Read uint8 images, (H, W, channels), in a random order until `memory` bytes are full.

        Of an image that is longer than `longest` pixels a piece is kept.

        Returns:
            The images, and how many did not fit.
        """
        order = torch.randperm(len(self._entries), generator=torch.Generator().manual_seed(seed)).tolist()
        images: list[Tensor] = []
        used = 0
        for number, (entry, read) in enumerate(
            _read_all([self._entries[k] for k in order], channels, longest, seed)
        ):
            self._check_stop()
            if isinstance(read, InputError):
                self._skip(entry.path, read.reason, str(read))
            elif used + read.size > memory:
                return images, len(order) - number
            else:
                used += read.size
                images.append(torch.from_numpy(read))
        return images, 0

    def _skip(self, path: str, reason: Reason, message: str) -> None:
        self.skipped[str(reason)] += 1
        self.watcher.skipped(path, reason, message)


def usual_crop(images: list[Tensor]) -> int:
    """64 pixels, or for smaller images the largest multiple of 8 that nine tenths of them have."""
    sides = sorted(min(image.shape[:2]) for image in images)
    nearly_all = sides[len(sides) // 10] if sides else CROP
    return max(SMALLEST_CROP, min(CROP, nearly_all // 8 * 8))


def memory_for(device: torch.device) -> int:
    """Bytes that the pixels of a training set may take, here and on a device."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):  # "max": no limit
        sizes.append(int(CGROUP_LIMIT.read_text()))
    if device.type == "cuda":
        sizes.append(torch.cuda.get_device_properties(device).total_memory)
    return int(MEMORY_SHARE * min(sizes))


def digest_of(images: list[Tensor]) -> str:
    """Digest of images and their order, 32 hex digits."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(tuple(image.shape)).encode())
        digest.update(image.numpy().data)
    return digest.hexdigest()[:32]


def middle(image: Tensor, side: int) -> Tensor:
    """The square of `side` pixels in the middle of (H, W, C)."""
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def spread(images: list[Tensor]) -> float:
    """Standard deviation of pixels in [-1, 1], of some images evenly chosen, to two digits."""
    some = images[:: max(1, len(images) // 1000)]
    pixels = torch.cat([image[::4, ::4].reshape(-1) for image in some]).float() / 127.5 - 1
    return min(1.0, max(0.1, round(pixels.std(correction=0).item(), 2)))


def _read_all(
    entries: list[Entry], channels: int, longest: int, seed: int
) -> Iterator[tuple[Entry, Pixels | InputError]]:
    """Read with several threads, a few ahead, in order."""

    def read(entry: Entry) -> Pixels | InputError:
        name = shown(entry.path)
        try:
            pixels = decode(read_file(entry.source, name=name), name).pixels
        except InputError as e:
            return e
        return with_channels(piece(pixels, longest, f"{seed} {entry.path}"), channels)

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(entries), 8 * READERS):
            some = entries[start : start + 8 * READERS]
            yield from zip(some, pool.map(read, some), strict=True)


def piece(pixels: Pixels, longest: int, key: str) -> Pixels:
    """A piece of at most `longest` pixels a side, at a place that depends on `key` alone."""
    place = hashlib.sha256(os.fsencode(key)).digest()
    height, width = pixels.shape[:2]
    top = int.from_bytes(place[:4], "little") % max(1, height - longest + 1)
    left = int.from_bytes(place[4:8], "little") % max(1, width - longest + 1)
    return pixels[top : top + longest, left : left + longest]


def with_channels(pixels: Pixels, channels: int) -> Pixels:
    """Make (H, W) or (H, W, 3) into (H, W, channels), whole in memory."""
    if channels == 1 and pixels.ndim == 3:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], channels, axis=2)
    return np.array(pixels, np.uint8, order="C")
