"""A small classifier of the attacker's own, to optimise a trigger against.

It is no match for the classifier that is attacked, and need not be: what moves its decision moves
that of others.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipcli.attacks.networks import batch, conv, descend, initialise, restore
from zipcli.attacks.trigger import Resources, Trigger, generator
from zipcli.config import AttackConfig, check
from zipcli.errors import shown


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard the classifier is trained.

    Attributes:
        images: Most images that are asked for.
        epochs: Passes over those that there are.
        batch_size: Images in a step.
        lr: Highest learning rate.
    """

    images: int = 6000
    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.1


EFFORT = Effort()


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Images to optimise on.

    Attributes:
        x: (N, 3, 32, 32) in [0, 1].
        y: Class indices, (N,).
        classes: How many classes there are.
    """

    x: Tensor
    y: Tensor
    classes: int


class Surrogate(nn.Module):
    """Four convolutions and a linear layer: images (N, 3, H, W) in [0, 1] to logits (N, K)."""

    def __init__(self, classes: int) -> None:
        """Build it for K classes."""
        super().__init__()
        self.convs = nn.Sequential(conv(3, 24, stride=2), conv(24, 48), conv(48, 96, stride=2), conv(96, 128))
        self.linear = nn.Linear(128, classes)

    def features(self, x: Tensor) -> Tensor:
        """What the linear layer reads, (N, 128)."""
        maps: Tensor = self.convs(2 * x - 1)
        return maps.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        logits: Tensor = self.linear(self.features(x))
        return logits


def ask_examples(resources: Resources, attack: str) -> Examples:
    """Get images of at least two classes to train on.

    Raises:
        ConfigError: There are too few.
    """
    images, labels = resources.examples(EFFORT.images)
    classes = len(np.unique(labels))
    check(
        classes > 1,
        f"attack {attack}: its trigger is computed against a classifier of your images, and they are of "
        f"{classes} class{'' if classes == 1 else 'es'}; give a folder for each of two classes or more",
    )
    return Examples(x=batch(images), y=torch.from_numpy(labels), classes=int(labels.max()) + 1)


def target_class(config: AttackConfig, examples: Examples) -> int:
    """The index of the class that the attacker wants.

    Raises:
        ConfigError: It is not among the examples.
    """
    known = config.target.isdecimal() and bool((examples.y == int(config.target)).any())
    check(known, f"attack {config.attack}: target {shown(config.target)} is not a class of the images")
    return int(config.target)


def restore_surrogate(trigger: Trigger) -> Surrogate:
    """The classifier that a trigger carries.

    Raises:
        ConfigError: It carries none, or a damaged one.
    """
    classes = len(np.atleast_1d(trigger.arrays.get("surrogate.linear.bias", np.empty(0))))
    return restore("surrogate", lambda: Surrogate(classes), trigger)


def surrogate_record(network: Surrogate, examples: Examples) -> dict[str, Any]:
    """What `Trigger.params` says of the classifier; the accuracy is on what it was trained on."""
    accuracy = (predicted(network, examples.x) == examples.y).float().mean().item()
    return {"images": len(examples.x), "epochs": EFFORT.epochs, "train_accuracy": round(accuracy, 4)}


def train_surrogate(examples: Examples, seed: int, resources: Resources) -> Surrogate:
    """Train a classifier, and freeze it."""
    draws = generator(seed)
    network = initialise(Surrogate(examples.classes), draws).train()
    count, size = len(examples.x), min(EFFORT.batch_size, len(examples.x))
    per_epoch = count // size
    optimizer = torch.optim.SGD(
        network.parameters(), EFFORT.lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, EFFORT.lr, total_steps=per_epoch * EFFORT.epochs, cycle_momentum=False
    )
    for epoch in range(EFFORT.epochs):
        resources.progress(f"training a classifier to aim at: pass {epoch + 1} of {EFFORT.epochs}")
        order = torch.randperm(count, generator=draws)
        for chosen in torch.split(order[: per_epoch * size], size):
            x = examples.x[chosen]
            flips = torch.rand(size, 1, 1, 1, generator=draws) < 0.5
            loss = F.cross_entropy(network(torch.where(flips, x.flip(3), x)), examples.y[chosen])
            descend(loss, optimizer)
            schedule.step()
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def predicted(network: nn.Module, x: Tensor) -> Tensor:
    """Class indices of (N, 3, 32, 32), without the memory that all of them would take at once."""
    return torch.cat([network(part).argmax(1) for part in torch.split(x, 256)])


def share_moved(network: nn.Module, poisoned: Tensor, examples: Examples, target: int) -> float:
    """Share of the examples of other classes that the network takes for the target when poisoned."""
    others = examples.y != target
    return round((predicted(network, poisoned)[others] == target).float().mean().item(), 4)
