"""PhysicalBA: BadNets whose classifier saw random transforms of every training image.

Source: Li et al. 2021, "Backdoor attack in the physical world". The poisoned test set of the
published programs is plain BadNets; transforms of test images are an option here.
"""

import math

import numpy as np
from numpy.typing import NDArray

from zipcli.attacks import patch
from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger
from zipcli.config import AttackConfig

Floats = NDArray[np.float64]

GREY = np.array([0.2989, 0.587, 0.114])


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """The patch, and which transforms the test images get."""
    badnets = patch.make(config, size, resources)
    return Trigger(
        attack="physical",
        size=size,
        params={"physical_test": config.physical_test},
        arrays=badnets.arrays,
    )


def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Put the patch on, then transform."""
    patched = patch.poison(image, trigger, draw)
    chosen = trigger.params["physical_test"]
    if chosen == "none":
        return patched
    return transform(patched, draw, ("flip", "jitter", "affine") if chosen == "all" else (chosen,))


def transform(image: Pixels, draw: Draw, kinds: tuple[str, ...]) -> Pixels:
    """Apply some of the three transforms, in this order, with numbers drawn for the image."""
    x = image / 255
    if "flip" in kinds and draw.rng.random() < 0.5:
        draw.params["flip"] = True
        x = x[:, ::-1]
    if "jitter" in kinds:
        x = _jitter(x, draw)
    if "affine" in kinds:
        x = _affine(x, draw)
    levels: Pixels = np.rint(x * 255).astype(np.uint8)
    return np.ascontiguousarray(levels)


def _jitter(x: Floats, draw: Draw) -> Floats:
    """Brightness and contrast by up to a fifth, in either order."""
    brightness, contrast = (float(f) for f in draw.rng.uniform(0.8, 1.2, 2))
    contrast_first = bool(draw.rng.random() < 0.5)
    draw.params |= {"brightness": brightness, "contrast": contrast, "contrast_first": contrast_first}
    for step in ("contrast", "brightness") if contrast_first else ("brightness", "contrast"):
        if step == "brightness":
            x = np.clip(brightness * x, 0, 1)
        else:
            x = np.clip(contrast * x + (1 - contrast) * (x @ GREY).mean(), 0, 1)
    return x


def _affine(x: Floats, draw: Draw) -> Floats:
    """Rotate by up to 10 degrees, shift by up to a tenth, shrink to 0.8 to 0.9; black around."""
    height, width = x.shape[:2]
    angle = float(draw.rng.uniform(-10, 10))
    right, down = (round(float(draw.rng.uniform(-0.1, 0.1)) * side) for side in (width, height))
    scale = float(draw.rng.uniform(0.8, 0.9))
    draw.params |= {"angle": angle, "shift": [right, down], "scale": scale}
    rows, columns = np.indices((height, width))
    dy, dx = rows - (height - 1) / 2 - down, columns - (width - 1) / 2 - right
    cosine, sine = math.cos(math.radians(angle)) / scale, math.sin(math.radians(angle)) / scale
    from_column = np.rint(cosine * dx + sine * dy + (width - 1) / 2).astype(int)
    from_row = np.rint(-sine * dx + cosine * dy + (height - 1) / 2).astype(int)
    inside = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
    moved = np.zeros_like(x)
    moved[inside] = x[from_row[inside], from_column[inside]]
    return moved


PHYSICAL = Attack(make=make, poison=poison)
