"""Fixtures that several test files share. No network, no weights."""

import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from fakes import FakeEps, noise_per_image
from hypothesis import HealthCheck, settings
from torch import Tensor

if TYPE_CHECKING:  # most tests can do without
    from s3_server import S3, Bucket

# A shell's background job, as CI may be one, ignores these, and so would every process that it starts.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Images here are tiny: a second thread does no work, and waiting for it costs 7 ms per call on busy cores.
torch.set_num_threads(1)


# An example of milliseconds may take a second where other programs have the processor.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


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


@pytest.fixture(scope="session")
def server() -> "Iterator[S3]":
    """An S3 on loopback."""
    from s3_server import S3

    with S3() as s3:
        yield s3


@pytest.fixture
def s3(server: "S3", monkeypatch: pytest.MonkeyPatch) -> "S3":
    """The server without faults, and the environment that leads to it."""
    from zipcli.pipeline import remote

    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    server.faults, server.requests, server.pages = [], [], None
    return server


@pytest.fixture
def bucket(s3: "S3", request: pytest.FixtureRequest) -> "Bucket":
    """A bucket of this test alone."""
    from s3_server import Bucket

    return Bucket(f"bucket-{abs(hash(request.node.nodeid)) % 10**12}")
