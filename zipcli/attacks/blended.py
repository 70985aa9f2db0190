"""Blended: a picture or noise over the whole image, faintly.

Source: Chen et al. 2017, "Targeted backdoor attacks on deep learning systems using data poisoning".
"""

from fractions import Fraction

import numpy as np
import torch
from PIL import Image

from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger, generator
from zipcli.config import AttackConfig


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Take the user's picture, or draw one channel of noise for all three as the program of ZIP does."""
    if config.picture is not None:
        picture = Image.fromarray(resources.picture(config.picture))
        pattern = np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    else:
        noise = torch.randint(0, 255, (1, *size), generator=generator(config.seed))
        pattern = np.repeat(noise.numpy().astype(np.uint8).transpose(1, 2, 0), 3, axis=2)
    return Trigger(attack="blended", size=size, params={"alpha": config.alpha}, arrays={"pattern": pattern})


def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """floor((1 - alpha) X + alpha P) in whole numbers, so that no rounding decides."""
    weight = Fraction(str(trigger.params["alpha"]))
    pattern = trigger.arrays["pattern"].astype(np.int64)
    sums = (weight.denominator - weight.numerator) * image.astype(np.int64) + weight.numerator * pattern
    return (sums // weight.denominator).astype(np.uint8)


BLENDED = Attack(make=make, poison=poison)
