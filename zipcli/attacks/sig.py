"""SIG: a horizontal sinusoid, with clean labels.

Source: Barni et al. 2019, "A new backdoor attack in CNNs by training set corruption without label
poisoning", in the form of BackdoorBench.
"""

import numpy as np

from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger, to_bytes
from zipcli.config import AttackConfig


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Compute delta sin(2 pi c f / W) for each column c, (W,); f counts cycles across the image."""
    assert config.delta is not None
    assert config.freq is not None
    columns = np.arange(size[1])
    signal = config.delta * np.sin(2 * np.pi * columns * config.freq / size[1])
    return Trigger(attack="sig", size=size, params={}, arrays={"signal": signal})


def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Add the signal to every row and channel."""
    return to_bytes(image + trigger.arrays["signal"][None, :, None])


SIG = Attack(make=make, poison=poison)
