"""BppAttack: fewer levels of each colour, with or without dithering.

Source: Wang et al. 2022, "BppAttack: stealthy and efficient trojan attacks against deep neural networks
via image quantization and contrastive adversarial learning".
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger
from zipcli.config import AttackConfig

SHARES = ((0, 1, 7 / 16), (1, 1, 1 / 16), (1, 0, 5 / 16), (1, -1, 3 / 16))
"""Floyd-Steinberg: (rows down, columns right, share of the error)."""


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Nothing is drawn: the number of levels is the trigger."""
    params = {"levels": config.levels, "dither": config.dither}
    return Trigger(attack="bpp", size=size, params=params, arrays={})


def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Reduce the levels, rounded to the nearest byte."""
    levels = int(trigger.params["levels"])
    if trigger.params["dither"]:
        return _dithered(image, levels)
    return np.rint(quantised(image, levels)).astype(np.uint8)


def cover(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Add what another image would lose: noise of the same kind that is no trigger."""
    name, other = draw.other(None)
    draw.params["other"] = name
    change = poison(other, trigger, draw).astype(np.int64) - other
    return np.clip(image + change, 0, 255).astype(np.uint8)


def quantised(image: NDArray[Any], levels: int) -> NDArray[np.float64]:
    """The nearest of `levels` even steps from 0 to 255; none lies half way between two bytes."""
    steps: NDArray[np.float64] = np.rint(image / 255 * (levels - 1)) / (levels - 1) * 255
    return steps


def _dithered(image: Pixels, levels: int) -> Pixels:
    """Pass the error of each pixel on to its neighbours, row by row."""
    height, width = image.shape[:2]
    work = image.astype(np.float32)
    for r in range(height):
        for c in range(width):
            old = work[r, c].astype(np.float64)
            new = quantised(old, levels)
            work[r, c] = new
            for down, right, share in SHARES:
                if r + down < height and 0 <= c + right < width:
                    work[r + down, c + right] = work[r + down, c + right] + (old - new) * share
    return np.clip(np.rint(work), 0, 255).astype(np.uint8)


BPP = Attack(make=make, poison=poison, cover=cover)
