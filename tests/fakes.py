"""A fake prior and replayed noise: instant, deterministic, no weights."""

from collections.abc import Callable

import torch
from torch import Tensor

from zipcli.config import NoiseSchedule
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
