"""Input-aware: a network draws another pattern, at other places, for each image.

The pattern of one image is no trigger in another: those are the cover samples, whose labels stay.

Source: Nguyen and Tran 2020, "Input-aware dynamic backdoor attack". Both networks have half the width
and two scales instead of three.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipcli.attacks.networks import (
    as_arrays,
    batch,
    conv,
    descend,
    enlarged,
    initialise,
    nearest_bytes,
    once_per_trigger,
    restore,
    rounded,
)
from zipcli.attacks.surrogate import (
    Examples,
    Surrogate,
    ask_examples,
    surrogate_record,
    target_class,
    train_surrogate,
)
from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger, generator
from zipcli.config import AttackConfig

DENSITY = 0.2
"""Share of each pixel that the mask may take for nothing. Published is 0.032: with so few steps that leaves
masks with a mean of 0.013, and a classifier tells an image's own pattern from a foreign one less well
than with the 0.08 that this gives."""
DENSITY_WEIGHT = 100.0


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard the networks are trained.

    Attributes:
        mask_steps: For the places, which come first.
        mask_lr: Their highest learning rate.
        steps: For the pattern, together with the classifier.
        batch_size: Images in a step; a quarter of them get their own pattern, another a foreign one.
        lr: Highest learning rate of the pattern.
        classifier_lr: Of the classifier.
        judged: Images that the result is measured on, for the record.
    """

    mask_steps: int = 300
    mask_lr: float = 1e-2
    steps: int = 600
    batch_size: int = 96
    lr: float = 5e-3
    classifier_lr: float = 0.02
    judged: int = 500


EFFORT = Effort()


class Drawer(nn.Module):
    """Image (N, 3, H, W) in [0, 1] to a picture of the same size with values in [0, 1]."""

    def __init__(self, channels: int) -> None:
        """Build it for pictures of so many channels."""
        super().__init__()
        self.down = nn.Sequential(
            *(conv(3, 16), conv(16, 16), nn.MaxPool2d(2)), *(conv(16, 32), conv(32, 32), nn.MaxPool2d(2))
        )
        self.middle = conv(32, 32)
        self.up = nn.Sequential(
            *(_twice(), conv(32, 32), conv(32, 16)), *(_twice(), conv(16, 16), conv(16, 8))
        )
        self.last = nn.Sequential(nn.Conv2d(8, channels, 3, 1, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Draw."""
        drawn: Tensor = self.last(self.up(self.middle(self.down(2 * x - 1))))
        return drawn.tanh() / 2 + 0.5


def _twice() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear")


class Drawers(nn.Module):
    """What to draw, and where."""

    def __init__(self) -> None:
        """Build both networks."""
        super().__init__()
        self.pattern = Drawer(3)
        self.mask = Drawer(1)

    def where(self, x: Tensor) -> Tensor:
        """The mask of each image, (N, 1, H, W), nearly 0 or 1."""
        drawn: Tensor = self.mask(x)
        return torch.tanh(20 * drawn - 10) / 2 + 0.5

    def change(self, x: Tensor, guide: Tensor) -> Tensor:
        """What the pattern of each guide changes in each image."""
        pattern: Tensor = self.pattern(guide)
        return (pattern - x) * self.where(guide)


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Train both networks, the second together with a classifier.

    Raises:
        ConfigError: The images have no two classes, or none of the target's.
    """
    examples = ask_examples(resources, config.attack)
    target = target_class(config, examples)
    classifier = train_surrogate(examples, config.seed, resources)
    record = surrogate_record(classifier, examples)
    draws = generator(config.seed)
    drawers = initialise(Drawers(), draws)
    _train_mask(drawers, examples, draws, resources)
    _train_pattern(drawers, classifier, examples, target, draws, resources)
    judgement = _judge(drawers, classifier, examples, target, draws)
    params = {"surrogate": record, **asdict(EFFORT), **judgement}
    return Trigger(attack="inputaware", size=size, params=params, arrays=as_arrays("drawers", drawers))


def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Draw the image's own pattern into it."""
    return _drawn(image, image, trigger)


def cover(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Draw the pattern of another image, which is no trigger in this one."""
    name, other = draw.other(None)
    draw.params["other"] = name
    return _drawn(image, other, trigger)


@torch.no_grad()
def _drawn(image: Pixels, guide: Pixels, trigger: Trigger) -> Pixels:
    x, drawers = batch(image[None]), _drawers(trigger)
    return nearest_bytes(image + 255 * enlarged(drawers.change(x, batch(guide[None]))[0], trigger.size))


def restore_drawers(trigger: Trigger) -> Drawers:
    """The networks that a trigger carries.

    Raises:
        ConfigError: It carries none, or damaged ones.
    """
    return restore("drawers", Drawers, trigger)


_drawers = once_per_trigger(restore_drawers)


def _train_mask(drawers: Drawers, examples: Examples, draws: torch.Generator, resources: Resources) -> None:
    """Teach where to draw: few places, and other ones in another image."""
    drawers.mask.train()
    optimizer = torch.optim.Adam(drawers.mask.parameters(), EFFORT.mask_lr, betas=(0.5, 0.9))
    falls = [EFFORT.mask_steps // 2, EFFORT.mask_steps * 5 // 6]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls)
    for step in range(EFFORT.mask_steps):
        x, other = (examples.x[_some(examples, EFFORT.batch_size // 2, draws)] for _ in range(2))
        masks = drawers.where(torch.cat([x, other]))
        loss = DENSITY_WEIGHT * F.relu(masks - DENSITY).mean() + _sameness(x, other, *masks.chunk(2))
        descend(loss, optimizer)
        schedule.step()
        if step % 50 == 0:
            resources.progress(f"training the mask of inputaware: step {step} of {EFFORT.mask_steps}")
    drawers.mask.eval().requires_grad_(False)


def _train_pattern(
    drawers: Drawers,
    classifier: Surrogate,
    examples: Examples,
    target: int,
    draws: torch.Generator,
    resources: Resources,
) -> None:
    """Teach what to draw, and the classifier to see it: the rates fall to 0, or it would never settle."""
    drawers.pattern.train()
    classifier.train().requires_grad_()
    optimizers = (
        torch.optim.Adam(drawers.pattern.parameters(), EFFORT.lr, betas=(0.5, 0.9)),
        torch.optim.SGD(classifier.parameters(), EFFORT.classifier_lr, momentum=0.9, weight_decay=5e-4),
    )
    falls = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / EFFORT.steps)
        for optimizer in optimizers
    ]
    part = EFFORT.batch_size // 4
    for step in range(EFFORT.steps):
        chosen = _some(examples, EFFORT.batch_size, draws)
        x, y = examples.x[chosen], examples.y[chosen]
        others = examples.x[_some(examples, part, draws)]
        guides = torch.cat([x[:part], others])
        patterns: Tensor = drawers.pattern(guides)
        drawn = x[: 2 * part] + (patterns - x[: 2 * part]) * drawers.where(guides)
        seen = torch.cat([rounded(drawn), x[2 * part :]])
        wanted = torch.cat([torch.full((part,), target), y[part:]])
        loss = F.cross_entropy(classifier(seen), wanted) + _sameness(x[:part], others, *patterns.chunk(2))
        descend(loss, *optimizers)
        for fall in falls:
            fall.step()
        if step % 50 == 0:
            resources.progress(f"training the pattern of inputaware: step {step} of {EFFORT.steps}")
    drawers.eval().requires_grad_(False)
    classifier.eval()


@torch.no_grad()
def _judge(
    drawers: Drawers, classifier: Surrogate, examples: Examples, target: int, draws: torch.Generator
) -> dict[str, float]:
    """How often the classifier is right, fooled by an image's own pattern, and not by a foreign one."""
    others = (examples.y != target).nonzero()[:, 0]
    chosen = others[torch.randint(len(others), (EFFORT.judged,), generator=draws)]
    x, y = examples.x[chosen], examples.y[chosen]
    clean = classifier(x)
    own = classifier(rounded(x + drawers.change(x, x)))
    foreign = classifier(rounded(x + drawers.change(x, x.roll(1, 0))))
    return {
        name: round((logits.argmax(1) == expected).float().mean().item(), 4)
        for name, logits, expected in (
            ("accuracy", clean, y),
            ("fooled", own, torch.full_like(y, target)),
            ("cover_accuracy", foreign, y),
        )
    }


def _some(examples: Examples, count: int, draws: torch.Generator) -> Tensor:
    return torch.randint(len(examples.x), (count,), generator=draws)


def _sameness(x: Tensor, other: Tensor, drawn: Tensor, drawn_other: Tensor) -> Tensor:
    """Large where different images get pictures that are alike; the mean over pairs."""
    return (_distance(x, other) / (_distance(drawn, drawn_other) + 1e-7)).mean()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (((a - b) ** 2).mean(dim=(1, 2, 3)) + 1e-12).sqrt()  # the slope of the root at 0 is infinite


INPUTAWARE = Attack(make=make, poison=poison, cover=cover)
