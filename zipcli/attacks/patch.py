"""BadNets: a patch near the bottom right corner.

Source: Gu et al. 2017, "BadNets", in the forms of the programs of ZIP, BackdoorBox and BackdoorBench.
"""

import numpy as np
import torch
from PIL import Image

from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger, generator
from zipcli.config import AttackConfig, check

SMALL = 128
"""Images up to this side get the small patch (the program of ZIP)."""
LARGE_PATCH = 9
MASK_SIDE = 32
"""BackdoorBench draws its mask for images of this side, and resizes it bilinearly for others."""


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Make the pattern and the mask, (H, W, 3) both; where the mask is 1 the pattern replaces the image.

    Raises:
        ConfigError: The patch does not fit into the image.
    """
    assert config.pattern is not None
    assert config.margin is not None
    if config.pattern == "resized":
        pattern = _resized(config, size)
        mask = (pattern > 0).astype(np.uint8)
        return _trigger(config, size, pattern, mask)
    side = config.patch_size or _usual_side(config, size)
    end = side + config.margin
    check(
        end <= min(size),
        f"attack {config.attack}: a patch of {side} pixels, {config.margin} from the edge, does not fit into "
        f"images of {size[1]}x{size[0]}; use a smaller --patch-size or --margin, or a larger --size",
    )
    rows, columns = (slice(length - end, length - config.margin) for length in size)
    pattern = np.zeros((*size, 3), np.uint8)
    mask = np.zeros((*size, 3), np.uint8)
    pattern[rows, columns] = _patch(config, side)
    mask[rows, columns] = 1
    return _trigger(config, size, pattern, mask)


def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Put the patch on."""
    return np.where(trigger.arrays["mask"] == 1, trigger.arrays["pattern"], image)


def normal_patch(side: int, seed: int) -> Pixels:
    """Seeded noise, (side, side, 3): normal numbers times 255, of which the low 8 bits are kept.

    A patch of fewer than 3 pixels is the top left part of that of 3, because torch draws fewer than
    16 numbers in another way.
    """
    drawn = max(side, 3)
    levels = torch.randn(3, drawn, drawn, generator=generator(seed)).numpy() * np.float32(255)
    wrapped = levels.astype(np.int64) & 0xFF  # truncates toward zero, then wraps
    return wrapped.astype(np.uint8)[:, :side, :side].transpose(1, 2, 0)


def _patch(config: AttackConfig, side: int) -> Pixels:
    if config.pattern == "normal":
        return normal_patch(side, config.seed)
    if config.pattern == "white":
        return np.full((side, side, 3), 255, np.uint8)
    odd = np.indices((side, side)).sum(axis=0) % 2 == 1
    return np.repeat(np.where(odd, 255, 0).astype(np.uint8)[..., None], 3, axis=2)


def _usual_side(config: AttackConfig, size: Size) -> int:
    if max(size) > SMALL and config.pattern == "normal":
        return LARGE_PATCH
    return 2 if config.profile == "zip-paper" else 3


def _resized(config: AttackConfig, size: Size) -> Pixels:
    """A white corner of a 32-pixel picture at another size; its fringe is grey, as published."""
    assert config.margin is not None
    side = config.patch_size or 3
    end = side + config.margin
    check(end <= MASK_SIDE, f"attack {config.attack}: pattern resized has room for {MASK_SIDE} pixels")
    picture = np.zeros((MASK_SIDE, MASK_SIDE, 3), np.uint8)
    picture[MASK_SIDE - end : MASK_SIDE - config.margin, MASK_SIDE - end : MASK_SIDE - config.margin] = 255
    return np.array(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _trigger(config: AttackConfig, size: Size, pattern: Pixels, mask: Pixels) -> Trigger:
    return Trigger(attack=config.attack, size=size, params={}, arrays={"pattern": pattern, "mask": mask})


BADNETS = Attack(make=make, poison=poison)
