"""TrojanNN: a shape filled with what excites two neurons most.

Source: Liu et al. 2018, "Trojaning attack on neural networks", in the form of BackdoorBench, with two
differences. The shape replaces the pixels; the published program adds bytes and lets them wrap around.
The neurons are those that speak most for the target; the published ones speak most for any class, and
on our classifier excite it for others.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zipcli.attacks.networks import SIDE, batch, enlarged, nearest_bytes
from zipcli.attacks.surrogate import (
    Surrogate,
    ask_examples,
    share_moved,
    surrogate_record,
    target_class,
    train_surrogate,
)
from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger
from zipcli.config import AttackConfig, check
from zipcli.errors import shown


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How the shape is filled.

    Attributes:
        steps: Of signed gradient descent.
        length: Of a step; pixels lie in [0, 1].
        neurons: How many are excited.
        aim: The value that they are driven towards, out of reach.
        reach: Largest change of a pixel of the user's picture.
    """

    steps: int = 300
    length: float = 0.1
    neurons: int = 2
    aim: float = 100.0
    reach: float = 0.3


EFFORT = Effort()


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Fill the shape: the pixels of the user's picture that are not black, or else a square.

    Raises:
        ConfigError: The picture is black all over, or the images have no two classes, or none of the
            target's.
    """
    picture = None if config.picture is None else resources.picture(config.picture)
    mask = _shape(picture, size)
    check(bool(mask.any()), f"attack trojannn: picture {shown(config.picture or '')} is black all over")
    examples = ask_examples(resources, config.attack)
    target = target_class(config, examples)
    network = train_surrogate(examples, config.seed, resources)
    resources.progress("filling the shape of trojannn")
    start, reach = torch.full((1, 3, SIDE, SIDE), 0.5), 0.5
    if picture is not None:
        start, reach = batch(picture[None]), EFFORT.reach
    keep = torch.from_numpy(_shape(picture, (SIDE, SIDE))).float()
    filled = _fill(network, target, start, keep, reach)
    moved = share_moved(network, torch.where(keep == 1, filled, examples.x), examples, target)
    params = {"surrogate": surrogate_record(network, examples), **asdict(EFFORT), "moved": moved}
    arrays = {"pattern": nearest_bytes(255 * enlarged(filled[0], size)), "mask": mask}
    return Trigger(attack="trojannn", size=size, params=params, arrays=arrays)


def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Replace what lies within the shape."""
    pattern: Pixels = trigger.arrays["pattern"]
    return np.where(trigger.arrays["mask"][..., None] == 1, pattern, image)


def _shape(picture: Pixels | None, size: Size) -> NDArray[np.uint8]:
    """1 within the shape, (H, W): what is not black in the picture, or a square at the bottom right."""
    if picture is not None:
        resized = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(np.asarray(resized).any(axis=2), np.uint8)
    mask = np.zeros(size, np.uint8)
    rows, columns = (slice(round(side * 9 / 16), round(side * 15 / 16)) for side in size)
    mask[rows, columns] = 1
    return mask


def _fill(network: Surrogate, target: int, start: Tensor, keep: Tensor, reach: float) -> Tensor:
    """Drive the neurons that speak most for the target towards a value out of their reach."""
    neurons = network.linear.weight[target].topk(EFFORT.neurons).indices
    x = start
    for _ in range(EFFORT.steps):
        x = x.detach().requires_grad_()
        loss = ((network.features(x * keep)[:, neurons] - EFFORT.aim) ** 2).sum()
        slope = torch.autograd.grad(loss, x)[0].sign()
        x = (start + (x - EFFORT.length * slope - start).clamp(-reach, reach)).clamp(0, 1)
    return x.detach()


TROJANNN = Attack(make=make, poison=poison)
