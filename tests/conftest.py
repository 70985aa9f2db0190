"""What several test files share: a fake prior and replayed noise. No network, no weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zipcli.config import NoiseSchedule

# Images here are tiny: a second thread does no work, and waiting for it costs 7 ms per call on busy cores.
torch.set_num_threads(1)


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


@pytest.fixture
def fake_eps() -> FakeEps:
    return FakeEps()


def noise_per_image(seeds: list[int]) -> Callable[[Tensor], Tensor]:
    """One generator per image of a batch, so that an image's noise does not depend on its neighbours."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise(x_t: Tensor, /) -> Tensor:
        return torch.stack([torch.randn(x_t.shape[1:], generator=g, dtype=x_t.dtype) for g in generators])

    return noise


@pytest.fixture
def fixed_noise() -> Callable[[list[int]], Callable[[Tensor], Tensor]]:
    """Build a noise source from one seed per image."""
    return noise_per_image
