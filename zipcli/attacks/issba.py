"""ISSBA: a secret hidden in each image by a network, in a way that differs from image to image.

Source: Li et al. 2021, "Invisible backdoor attack with sample-specific triggers". Encoder and decoder
are far smaller than theirs, and learn in minutes; the secret is drawn from the seed.
"""

from dataclasses import asdict, dataclass

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
    rounded,
)
from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger, generator
from zipcli.config import AttackConfig, check

RISE = 300
"""Steps in which the weight of the change rises, from the first at which the secret can be read."""
READABLE = 0.9
"""Share of the bits."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard encoder and decoder are trained.

    Attributes:
        images: Most images that are asked for.
        steps: Of Adam.
        batch_size: Images in a step.
        lr: Learning rate.
        weight: Of the mean square of the change, in the end, against the loss of the bits.
    """

    images: int = 6000
    steps: int = 600
    batch_size: int = 48
    lr: float = 1e-3
    weight: float = 30.0


EFFORT = Effort()


class Encoder(nn.Module):
    """Image and secret to the change that hides the secret in the image."""

    def __init__(self, bits: int) -> None:
        """Build it for secrets of so many bits."""
        super().__init__()
        self.secret = nn.Linear(bits, 3 * (SIDE // 2) ** 2)
        self.full = conv(6, 24)
        self.coarse = nn.Sequential(conv(24, 32, stride=2), conv(32, 32))
        self.up = conv(32, 24)
        self.join = conv(24 + 24 + 6, 24)
        self.change = nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor, secret: Tensor) -> Tensor:
        """Change (N, 3, 32, 32) of images in [0, 1] for secrets of 0 and 1, (N, bits)."""
        plate = F.relu(self.secret(2 * secret - 1)).view(-1, 3, SIDE // 2, SIDE // 2)
        both = torch.cat([2 * x - 1, F.interpolate(plate, scale_factor=2)], dim=1)
        full = self.full(both)
        up = self.up(F.interpolate(self.coarse(full), scale_factor=2))
        change: Tensor = self.change(self.join(torch.cat([up, full, both], dim=1)))
        return change


class Decoder(nn.Module):
    """Image to the logits of the secret's bits; it is needed in training only."""

    def __init__(self, bits: int) -> None:
        """Build it for secrets of so many bits."""
        super().__init__()
        self.convs = nn.Sequential(conv(3, 32, stride=2), conv(32, 32), conv(32, 64, stride=2))
        self.last = conv(64, 64, stride=2)
        self.dense = nn.Sequential(nn.Linear(64 * (SIDE // 8) ** 2, 256), nn.ReLU(), nn.Linear(256, bits))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, bits) of images in [0, 1]."""
        logits: Tensor = self.dense(self.last(self.convs(2 * x - 1)).flatten(1))
        return logits


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Train the encoder on the user's images, and draw the secret.

    Raises:
        ConfigError: There are no images.
    """
    assert config.bits is not None
    images, _ = resources.examples(EFFORT.images)
    check(len(images) > 0, "attack issba: no images to train its network on")
    draws = generator(config.seed)
    secret = torch.randint(0, 2, (config.bits,), generator=draws)
    encoder, record = _train(batch(images), config.bits, draws, resources)
    arrays = {"secret": secret.numpy().astype("uint8"), **as_arrays("encoder", encoder)}
    params = {**asdict(EFFORT), **record}
    return Trigger(attack="issba", size=size, params=params, arrays=arrays)


@torch.no_grad()
def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Hide the secret."""
    encoder, secret = _built(trigger)
    return nearest_bytes(image + 255 * enlarged(encoder(batch(image[None]), secret)[0], trigger.size))


def _train(
    x: Tensor, bits: int, draws: torch.Generator, resources: Resources
) -> tuple[Encoder, dict[str, float]]:
    """Train encoder and decoder together: secrets that can be read first, then small changes."""
    encoder = initialise(Encoder(bits), draws).train()
    decoder = initialise(Decoder(bits), draws).train()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], EFFORT.lr)
    readable_since: int | None = None
    for step in range(EFFORT.steps):
        images = x[torch.randint(len(x), (EFFORT.batch_size,), generator=draws)]
        secrets = torch.randint(0, 2, (EFFORT.batch_size, bits), generator=draws).float()
        change = encoder(images, secrets)
        logits = decoder(rounded(images + change))
        accuracy = ((logits > 0) == (secrets == 1)).float().mean().item()
        if readable_since is None and accuracy > READABLE:
            readable_since = step
        weight = 0.0 if readable_since is None else EFFORT.weight * min(1.0, (step - readable_since) / RISE)
        loss = F.binary_cross_entropy_with_logits(logits, secrets) + weight * (change**2).mean()
        descend(loss, optimizer)
        if step % 50 == 0:
            resources.progress(
                f"training the network of issba: step {step} of {EFFORT.steps}, {accuracy:.0%} of bits read"
            )
    return encoder.eval().requires_grad_(False), {"bit_accuracy": round(accuracy, 4)}


@once_per_trigger
def _built(trigger: Trigger) -> tuple[Encoder, Tensor]:
    """The encoder and the secret, (1, bits).

    Raises:
        ConfigError: The trigger lacks them.
    """
    secret = trigger.arrays.get("secret")
    check(
        secret is not None and secret.ndim == 1,
        "trigger of attack issba: the secret is missing; make it again",
    )
    assert secret is not None
    bits = len(secret)
    return restore("encoder", lambda: Encoder(bits), trigger), torch.from_numpy(secret).float()[None]


ISSBA = Attack(make=make, poison=poison)
