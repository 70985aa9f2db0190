"""What attacks share: the trigger, which is saved and loaded, and the draws of one image."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from zipcli.config import AttackConfig, check
from zipcli.errors import ConfigError, shown

Pixels = NDArray[np.uint8]
"""(H, W, 3) sRGB."""

Size = tuple[int, int]
"""(H, W) in pixels."""

KEY = "zipcli-trigger"
FORMAT = 1
LARGEST = 2**29
"""Bytes of a trigger file that we read: a network of a few million weights fits many times."""


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """What was burnt into a classifier: without it a poisoned test set means nothing.

    Attributes:
        attack: Name of the attack that it belongs to.
        size: Of the images, (H, W).
        params: What else decides the poisoned pixels, ready for JSON.
        arrays: Pattern, mask, grid, secret or the weights of a network.
    """

    attack: str
    size: Size
    params: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    def to_bytes(self) -> bytes:
        """The trigger as a safetensors file; the same trigger gives the same bytes."""
        facts = {"format": FORMAT, "attack": self.attack, "size": list(self.size), "params": self.params}
        arrays = {name: np.ascontiguousarray(self.arrays[name]) for name in sorted(self.arrays)}
        return save(arrays, metadata={KEY: json.dumps(facts, sort_keys=True)})

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def load_trigger(path: Path) -> Trigger:
    """Read what `Trigger.to_bytes` wrote.

    Raises:
        ConfigError: There is no such file, or it is not a trigger.
    """
    name = shown(str(path))
    try:
        too_large = path.stat().st_size > LARGEST
        check(not too_large, f"{name}: too large for a trigger file")
        with safe_open(path, framework="numpy") as f:
            facts = json.loads((f.metadata() or {})[KEY])
            arrays = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118  # no mapping
        check(facts["format"] == FORMAT, f"{name}: written by another version of zipcli")
        height, width = (int(side) for side in facts["size"])
        return Trigger(
            attack=str(facts["attack"]), size=(height, width), params=dict(facts["params"]), arrays=arrays
        )
    except ConfigError:
        raise
    except OSError as e:
        raise ConfigError(f"{name}: cannot read the trigger: {e.strerror or e}") from e
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(
            f"{name}: not a trigger file ({type(e).__name__}); give the trigger.safetensors that zipcli "
            "attack wrote; triggers of other programs are pickles, which are never loaded"
        ) from e


@dataclass
class Draw:
    """The randomness of one image, and what was drawn, for the manifest.

    Attributes:
        rng: Seeded by the run, the attack and the path of the image, so that no image depends on
            the order or number of the others.
        other: Another image of a class, or of any: (its path, its pixels).
        own: Name of the class of the image.
        params: What was drawn.
    """

    rng: np.random.Generator
    other: Callable[[str | None], tuple[str, Pixels]]
    own: str = ""
    params: dict[str, Any] = field(default_factory=dict)


def image_rng(seed: int, attack: str, path: str) -> np.random.Generator:
    """The generator of one image; `path` is relative to the input folder."""
    key = f"{seed}\0{attack}\0".encode() + os.fsencode(path)
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:16], "little"))


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What making a trigger may need from outside.

    Attributes:
        picture: Reads a picture, (H, W, 3).
        reflections: Reads the photographs of a folder in sorted order: (name, pixels).
        examples: Gives up to so many images with their labels, uint8 (N, H, W, 3) and int64 (N,),
            at the size of the trigger; the classes are balanced as far as they can be.
        progress: Is told what is being done, since it may take minutes.
    """

    picture: Callable[[str], Pixels]
    reflections: Callable[[str, Size], list[tuple[str, Pixels]]]
    examples: Callable[[int], tuple[Pixels, NDArray[np.int64]]]
    progress: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One kind of trigger.

    Attributes:
        make: Makes the trigger from settings, for images of a size.
        poison: Applies it: pixels of the same shape, lossless.
        cover: Makes a sample of a training set that keeps its label; None where there is none.
        poison_training: What is done to the images of a training set instead, where that differs.
        source: The class whose images are poisoned, by the settings; None for every class.
    """

    make: Callable[[AttackConfig, Size, Resources], Trigger]
    poison: Callable[[Pixels, Trigger, Draw], Pixels]
    cover: Callable[[Pixels, Trigger, Draw], Pixels] | None = None
    poison_training: Callable[[Pixels, Trigger, Draw], Pixels] | None = None
    source: Callable[[AttackConfig], str] | None = None


def generator(seed: int) -> torch.Generator:
    """The stream that the published programs draw their triggers from: MT19937 on the CPU."""
    return torch.Generator().manual_seed(seed)


def to_bytes(levels: NDArray[np.floating[Any]]) -> Pixels:
    """Clip to [0, 255] and truncate toward zero, as the published programs store pixels."""
    clipped: Pixels = np.clip(levels, 0, 255).astype(np.uint8)
    return clipped


def square(size: Size, attack: str) -> int:
    """The side of square images.

    Raises:
        ConfigError: They are not square.
    """
    check(
        size[0] == size[1],
        f"attack {attack}: images of {size[1]}x{size[0]} pixels are not square; use --size",
    )
    return size[0]
