"""Fixtures that several test files share. No network, no weights."""

from collections.abc import Callable

import pytest
import torch
from fakes import FakeEps, noise_per_image
from torch import Tensor

# Images here are tiny: a second thread does no work, and waiting for it costs 7 ms per call on busy cores.
torch.set_num_threads(1)


@pytest.fixture
def fake_eps() -> FakeEps:
    return FakeEps()


@pytest.fixture
def fixed_noise() -> Callable[[list[int]], Callable[[Tensor], Tensor]]:
    """Build a noise source from one seed per image."""
    return noise_per_image
