"""LC, the label-consistent attack: tiles in the corners, and labels that stay right.

The images of a training set are first moved away from their class, so that the tiles are the easier
thing to learn.

Source: Turner et al. 2019, "Label-consistent backdoor attacks", in the form of BackdoorBench.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from zipcli.attacks.networks import as_arrays, batch, enlarged, nearest_bytes, once_per_trigger
from zipcli.attacks.surrogate import (
    ask_examples,
    restore_surrogate,
    surrogate_record,
    target_class,
    train_surrogate,
)
from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger, to_bytes
from zipcli.config import AttackConfig, check


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How far a training image is moved.

    Attributes:
        steps: Of projected gradient ascent.
        length: Of a step, in levels of 255.
    """

    steps: int = 100
    length: float = 1.5


EFFORT = Effort()

DRAWN_SIDE = 32
"""The tiles are drawn for images of this side, and enlarged with them."""
TILE = np.array([[1, -1, -1], [-1, 1, -1], [1, -1, 1]])
"""White 1, black -1; on the left side, and mirrored on the right."""


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Draw the tiles, (H, W) of -1, 0 and 1; for a training split train the classifier to move away from.

    Raises:
        ConfigError: alpha is 0, or the images have no two classes, or none of the target's.
    """
    assert config.alpha is not None
    check(config.alpha > 0, "alpha: 0 changes no pixel; use more")
    arrays: dict[str, NDArray[np.generic]] = {"tiles": tiles(size)}
    params: dict[str, object] = {"alpha": config.alpha, "moves": config.split == "train"}
    if config.split == "train":
        examples = ask_examples(resources, config.attack)
        params |= {"target": target_class(config, examples), "eps": config.eps, **asdict(EFFORT)}
        network = train_surrogate(examples, config.seed, resources)
        arrays |= as_arrays("surrogate", network)
        params["surrogate"] = surrogate_record(network, examples)
    return Trigger(attack="lc", size=size, params=params, arrays=arrays)


def tiles(size: Size) -> NDArray[np.int8]:
    """A tile in each corner, (H, W): 1 turns white, -1 black, 0 stays."""
    drawn = np.zeros((DRAWN_SIDE, DRAWN_SIDE), np.int8)
    for rows in (slice(None, 3), slice(-3, None)):
        drawn[rows, :3] = TILE
        drawn[rows, -3:] = TILE[:, ::-1]
    levels = Image.fromarray((drawn + 1).astype(np.uint8))
    resized = np.asarray(levels.resize((size[1], size[0]), Image.Resampling.NEAREST))
    return resized.astype(np.int8) - np.int8(1)


def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Put the tiles on."""
    return to_bytes(image + 255 * float(trigger.params["alpha"]) * trigger.arrays["tiles"][..., None])


def poison_training(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Move the image away from its class, then put the tiles on.

    Raises:
        ConfigError: The trigger was made for a test split, and has no classifier to move away from.
    """
    check(
        bool(trigger.params["moves"]),
        "trigger of attack lc: it was made for a test split, where images only get the tiles; "
        "make one with --split train",
    )
    return poison(away(image, trigger), trigger, draw)


def away(image: Pixels, trigger: Trigger) -> Pixels:
    """Projected gradient ascent from the target class, at most eps levels in any byte."""
    params = trigger.params
    x = batch(image[None])
    eps, length = float(params["eps"]) / 255, float(params["length"]) / 255
    moved = x
    for _ in range(int(params["steps"])):
        moved = moved + length * _uphill(_surrogate(trigger), moved, int(params["target"])).sign()
        moved = torch.maximum(torch.minimum(moved, x + eps), x - eps).clamp(0, 1)
    return nearest_bytes(image + 255 * enlarged((moved - x)[0], trigger.size))


def _uphill(network: nn.Module, x: Tensor, label: int) -> Tensor:
    x = x.detach().requires_grad_()
    loss = F.cross_entropy(network(x), torch.full((len(x),), label))
    return torch.autograd.grad(loss, x)[0]


_surrogate = once_per_trigger(restore_surrogate)

LC = Attack(make=make, poison=poison, poison_training=poison_training)
