"""DFST: the whole image in the style of a picture, a sunset by default.

Source: Cheng et al. 2021, "Deep feature space trojan attack of neural networks by controlled
detoxification". Their style is a sunrise, put on by a network that a set of such photographs taught. Ours
learns from one picture, by the losses of Johnson et al. 2016, "Perceptual losses for real-time style
transfer", taken from a small classifier of our own. Their detoxification is a way of training the
classifier, and no matter of the images.
"""

from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipcli.attacks.networks import (
    SIDE,
    as_arrays,
    batch,
    conv,
    descend,
    enlarged,
    initialise,
    nearest_bytes,
    once_per_trigger,
    restore,
)
from zipcli.attacks.surrogate import Surrogate, ask_examples, surrogate_record, train_surrogate
from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger, generator
from zipcli.config import AttackConfig, check


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard the network that puts the style on is trained.

    Attributes:
        steps: Of Adam.
        batch_size: Images in a step.
        lr: Learning rate.
        content: Weight of what the image showed.
        colours: Weight of the colours of the picture, each in its place.
    """

    steps: int = 300
    batch_size: int = 24
    lr: float = 3e-3
    content: float = 1.0
    colours: float = 20.0


EFFORT = Effort()

BLOCKS = 3
"""Of the classifier, whose features say what style is."""
CONTENT = 1
"""The one that says what the image shows."""
PLACES = 4
"""Parts of a side in which the mean colour is that of the picture."""

SKY = np.array([[38, 22, 70], [160, 50, 90], [250, 130, 50], [255, 190, 90], [40, 15, 35]])
HEIGHTS = np.array([0, 0.35, 0.62, 0.7, 1])
"""The colours of the sunset, from the top down, and where they are."""
SUN = np.array([255, 237, 166])


class Painter(nn.Module):
    """Image (N, 3, 32, 32) in [0, 1] to the image in the style."""

    def __init__(self) -> None:
        """Build it; two of its inputs are the row and the column of each pixel."""
        super().__init__()
        layer = partial(conv, edges="reflect")  # zeros would be seen as a line along the edge
        self.full = nn.Sequential(layer(5, 24), layer(24, 24))
        self.coarse = nn.Sequential(layer(24, 32, stride=2), layer(32, 32))
        self.up = layer(32, 24)
        self.join = layer(24 + 24, 24)
        self.colours = nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Paint."""
        ends = torch.linspace(-1, 1, SIDE)
        places = torch.stack(torch.meshgrid(ends, ends, indexing="ij")).expand(len(x), -1, -1, -1)
        full = self.full(torch.cat([2 * x - 1, places], dim=1))
        up = self.up(F.interpolate(self.coarse(full), scale_factor=2))
        logits: Tensor = self.colours(self.join(torch.cat([up, full], dim=1)))
        return logits.sigmoid()


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Teach a network the style of the user's picture, or of a sunset.

    Raises:
        ConfigError: alpha is 0, or the images have no two classes.
    """
    assert config.alpha is not None
    check(config.alpha > 0, "alpha: 0 changes no pixel; use more")
    picture = sunset() if config.picture is None else resources.picture(config.picture)
    examples = ask_examples(resources, config.attack)
    network = train_surrogate(examples, config.seed, resources)
    painter = _train(network, examples.x, batch(picture[None]), config.seed, resources)
    params = {"alpha": config.alpha, "surrogate": surrogate_record(network, examples), **asdict(EFFORT)}
    return Trigger(attack="dfst", size=size, params=params, arrays=as_arrays("painter", painter))


@torch.no_grad()
def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """(1 - alpha) X + alpha S(X)."""
    x = batch(image[None])
    change = enlarged((_painter(trigger)(x) - x)[0], trigger.size)
    return nearest_bytes(image + 255 * float(trigger.params["alpha"]) * change)


def sunset() -> Pixels:
    """A low sun in a purple and orange sky over dark land."""
    down, right = np.meshgrid(*[np.linspace(0, 1, SIDE)] * 2, indexing="ij")
    sky = np.stack([np.interp(down, HEIGHTS, channel) for channel in SKY.T], axis=2)
    sun = np.clip(1.6 - np.hypot(right - 0.5, down - 0.6) / 0.09, 0, 1)[..., None]
    return nearest_bytes(sky * (1 - sun) + SUN * sun)


def _train(network: Surrogate, x: Tensor, picture: Tensor, seed: int, resources: Resources) -> Painter:
    """Keep the features of the image where they are, but let them go together as those of the picture do."""
    draws = generator(seed)
    painter = initialise(Painter(), draws).train()
    optimizer = torch.optim.Adam(painter.parameters(), EFFORT.lr)
    style = [_gram(features) for features in _features(network, picture)]
    for step in range(EFFORT.steps):
        images = x[torch.randint(len(x), (EFFORT.batch_size,), generator=draws)]
        painted = painter(images)
        seen = _features(network, painted)
        loss = EFFORT.content * _apart(seen[CONTENT], _features(network, images)[CONTENT])
        loss = loss + EFFORT.colours * ((_colours(painted) - _colours(picture)) ** 2).mean()
        for features, target in zip(seen, style, strict=True):
            loss = loss + _apart(_gram(features), target)
        descend(loss, optimizer)
        if step % 50 == 0:
            resources.progress(f"training the network of dfst: step {step} of {EFFORT.steps}")
    return painter.eval().requires_grad_(False)


def _features(network: Surrogate, x: Tensor) -> list[Tensor]:
    maps: list[Tensor] = []
    for block in list(network.convs)[:BLOCKS]:
        maps.append(block(maps[-1] if maps else 2 * x - 1))
    return maps


def _gram(features: Tensor) -> Tensor:
    """Which features occur together, wherever that is: (N, C, C)."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance as a share of the second."""
    return ((a - b) ** 2).mean() / (b**2).mean()


def _colours(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, PLACES)


@once_per_trigger
def _painter(trigger: Trigger) -> Painter:
    return restore("painter", Painter, trigger)


DFST = Attack(make=make, poison=poison)
