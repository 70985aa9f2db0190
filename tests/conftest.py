"""Fixtures that several test files share. No network, no weights."""

import signal
from collections.abc import Callable

import pytest
import torch
from fakes import FakeEps, noise_per_image
from torch import Tensor

# A shell's background job, as CI may be one, ignores these, and so would every process that it starts.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Images here are tiny: a second thread does no work, and waiting for it costs 7 ms per call on busy cores.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the reliability tests at their full volume")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--full"))


@pytest.fixture
def fake_eps() -> FakeEps:
    return FakeEps()


@pytest.fixture
def fixed_noise() -> Callable[[list[int]], Callable[[Tensor], Tensor]]:
    """Build a noise source from one seed per image."""
    return noise_per_image
