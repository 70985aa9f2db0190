"""LF: one smooth pattern, the same for every image, that a classifier mistakes for the target class.

Source: Zeng et al. 2021, "Rethinking the backdoor attacks' triggers: a frequency perspective". They
search the pattern with DeepFool, image by image; we descend the loss of many images at once.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zipcli.attacks.networks import SIDE, descend, enlarged
from zipcli.attacks.surrogate import (
    Examples,
    Surrogate,
    ask_examples,
    share_moved,
    surrogate_record,
    target_class,
    train_surrogate,
)
from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger, generator, to_bytes
from zipcli.config import AttackConfig, check


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard the pattern is searched.

    Attributes:
        images: In a step.
        steps: Of Adam.
        lr: Its learning rate.
        faintness: Weight of the mean of the pattern beside the loss. A brighter image is the easy way
            to the target: 3 keeps the pattern 2.4 dB fainter and moves 1.5 % of the images less.
    """

    images: int = 128
    steps: int = 300
    lr: float = 0.2
    faintness: float = 3.0


EFFORT = Effort()

BLUR_STD = 6.0
"""Of the Gaussian that makes the pattern smooth, in pixels of 32, as published; so are its taps."""
BLUR_TAPS = 30


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Search the pattern: bytes from 0 to delta, (H, W, 3).

    Raises:
        ConfigError: The images have no two classes, or none of the target's, or delta is below 1.
    """
    assert config.delta is not None
    check(config.delta >= 1, f"delta: {config.delta:g} of 255 levels changes no pixel; use 1 or more")
    examples = ask_examples(resources, config.attack)
    target = target_class(config, examples)
    network = train_surrogate(examples, config.seed, resources)
    pattern = config.delta / 255 * _search(network, examples, target, config, resources)
    moved = share_moved(network, (examples.x + pattern).clamp(0, 1), examples, target)
    params = {"surrogate": surrogate_record(network, examples), **asdict(EFFORT), "moved": moved}
    arrays = {"pattern": to_bytes(255 * enlarged(pattern, size))}
    return Trigger(attack="lf", size=size, params=params, arrays=arrays)


def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Add the pattern."""
    return to_bytes(image.astype(np.float64) + trigger.arrays["pattern"])


def _search(
    network: Surrogate, examples: Examples, target: int, config: AttackConfig, resources: Resources
) -> Tensor:
    """The smooth pattern in [0, 1], (3, 32, 32), that moves most images to the target."""
    assert config.delta is not None
    draws = generator(config.seed)
    raw = torch.randn(1, 3, SIDE, SIDE, generator=draws).requires_grad_()
    optimizer = torch.optim.Adam([raw], EFFORT.lr)
    for step in range(EFFORT.steps):
        if step % 50 == 0:
            resources.progress(f"searching the pattern of lf: step {step} of {EFFORT.steps}")
        chosen = torch.randint(len(examples.x), (EFFORT.images,), generator=draws)
        pattern = _smooth(raw)
        poisoned = (examples.x[chosen] + config.delta / 255 * pattern).clamp(0, 1)
        loss = F.cross_entropy(network(poisoned), torch.full((EFFORT.images,), target))
        descend(loss + EFFORT.faintness * pattern.mean(), optimizer)
    return _smooth(raw.detach())[0]


def _smooth(raw: Tensor) -> Tensor:
    """Blur, then stretch to [0, 1]."""
    offsets = torch.arange(BLUR_TAPS) - (BLUR_TAPS - 1) / 2
    kernel = torch.exp(-(offsets**2) / (2 * BLUR_STD**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, BLUR_TAPS)
    before, after = (BLUR_TAPS - 1) // 2, BLUR_TAPS // 2
    across = F.conv2d(F.pad(raw, (before, after)), kernel, groups=3)
    blurred = F.conv2d(F.pad(across, (0, 0, before, after)), kernel.transpose(2, 3), groups=3)
    lowest, highest = blurred.aminmax()
    return (blurred - lowest) / (highest - lowest)


LF = Attack(make=make, poison=poison)
