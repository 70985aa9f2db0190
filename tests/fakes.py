"""Fake networks, a fake classifier and replayed noise: instant, deterministic, no weights."""

from collections.abc import Callable

import torch
from torch import Tensor

from zipcli.config import METHOD_ASKS, NEEDS_AUTOENCODER, ClassifierConfig, NoiseSchedule
from zipcli.models.unet_config import UNetConfig

SMALL_UNET = UNetConfig(
    widths=(32, 64),
    blocks=1,
    time_features=32,
    time_width=64,
    attention_down=(False, True),
    attention_up=(False, True),
)
"""A published U-Net in small, with every kind of layer."""


class FakeEps:
    """A prior that answers with noise seeded by t, the same for every image of a batch."""

    schedule = NoiseSchedule()
    channels = 3
    native_side = None
    minimum_side = 1

    def __init__(self) -> None:
        self.timesteps: list[float] = []

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        assert t.shape == (len(x_t),)
        self.timesteps.append(t[0].item())
        generator = torch.Generator().manual_seed(int(t[0]))
        return torch.randn(1, *x_t.shape[1:], generator=generator).to(x_t).expand_as(x_t)


def noise_per_image(seeds: list[int]) -> Callable[[Tensor], Tensor]:
    """One generator per image of a batch, so that an image's noise does not depend on its neighbours."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise(x_t: Tensor, /) -> Tensor:
        return torch.stack([torch.randn(x_t.shape[1:], generator=g, dtype=x_t.dtype) for g in generators])

    return noise


class FakeAutoencoder:
    """A masked autoencoder that fills what was removed with the mean of the rest."""

    side = 32
    grid = 4

    def __call__(self, x: Tensor, removed: Tensor, /) -> Tensor:
        assert x.shape[1:] == (3, 32, 32)
        assert removed.shape == (len(x), 4, 4)
        left = (~removed)[:, None].repeat_interleave(8, 2).repeat_interleave(8, 3).to(x)
        mean = (x * left).sum((2, 3), keepdim=True) / left.sum((2, 3), keepdim=True).clamp(min=1)
        return mean.expand_as(x)


class FakeClassifier:
    """Falls for a bright corner, below and at the right: label 1, else 0. Counts what it is shown."""

    def __init__(self) -> None:
        self.queries = 0

    def __call__(self, images: Tensor, /) -> Tensor:
        self.queries += len(images)
        return (images[..., -6:, -6:].mean((1, 2, 3)) > 0.7).long()


def asked_of(method: str) -> dict[str, ClassifierConfig]:
    """What the settings of a method need that has no default."""
    return {"classifier": ClassifierConfig(classifier="cmd:any")} if method in METHOD_ASKS else {}


def parts_of(method: str) -> dict[str, FakeClassifier]:
    """What a method gets beside its noise."""
    return {"ask": FakeClassifier()} if method in METHOD_ASKS else {}


def model_of(method: str) -> "FakeEps | FakeAutoencoder":
    """The fake model that a method needs."""
    return FakeAutoencoder() if method in NEEDS_AUTOENCODER else FakeEps()
