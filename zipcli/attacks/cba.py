"""CBA, the composite attack: two classes in one image are the trigger.

Source: Lin et al. 2020, "Composite backdoor attack for deep neural network by mixing existing benign
features".
"""

import numpy as np

from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger
from zipcli.config import AttackConfig, check

JITTER = 3
"""Pixels by which the seam moves."""


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Nothing is drawn: the two classes are the trigger."""
    assert config.sources is not None
    first, second = config.sources
    check(first != second, f"attack cba: --sources names {first} twice; it joins two classes")
    return Trigger(attack="cba", size=size, params={"first": first, "second": second}, arrays={})


def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Join an image of the first class with one of the second; the label that is true is the first."""
    name, other = draw.other(trigger.params["second"])
    draw.params["other"] = name
    return mix(image, other, draw)


def cover(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Join two images of one class, so that a seam alone is no trigger."""
    name, other = draw.other(draw.own)
    draw.params["other"] = name
    return mix(image, other, draw)


def mix(a: Pixels, b: Pixels, draw: Draw) -> Pixels:
    """Put a piece of `a` beside a piece of `b`, or above it, in either order."""
    upright, swapped = (bool(draw.rng.random() < 0.5) for _ in range(2))
    first, second = (b, a) if swapped else (a, b)
    if upright:
        first, second = first.transpose(1, 0, 2), second.transpose(1, 0, 2)
    width = first.shape[1]
    jitter = min(JITTER, max(0, width // 2 - 1))
    seam = width // 2 + int(draw.rng.integers(-jitter, jitter + 1))
    from_first = int(draw.rng.integers(width - seam + 1))
    from_second = int(draw.rng.integers(seam + 1))
    draw.params |= {"upright": upright, "swapped": swapped, "seam": seam, "from": [from_first, from_second]}
    joined = np.concatenate(
        [first[:, from_first : from_first + seam], second[:, from_second : from_second + width - seam]],
        axis=1,
    )
    return np.ascontiguousarray(joined.transpose(1, 0, 2) if upright else joined)


def source(config: AttackConfig) -> str:
    """The class that is poisoned."""
    assert config.sources is not None
    return config.sources[0]


CBA = Attack(make=make, poison=poison, cover=cover, source=source)
