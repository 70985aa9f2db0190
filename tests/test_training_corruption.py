"""What a network learns to take out of images."""

import pytest
import torch
from torch import Tensor

from zipcli.training.corruption import AGAIN, ALTERATIONS, CLEAN, Alter, corrupted


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(count: int, channels: int = 3, side: int = 32) -> Tensor:
    """Clean images whose values are levels of 256: soft ramps."""
    g = generator(9)
    ramp = torch.linspace(-0.6, 0.6, side)
    slopes = torch.rand(2, count, channels, 1, 1, generator=g)
    x = slopes[0] * ramp[:, None] + slopes[1] * ramp
    return ((x + 1) * 127.5).round() / 127.5 - 1


def test_images_are_altered_the_same_way_by_the_same_generator() -> None:
    x = smooth(32)
    first, again, other = corrupted(x, generator(1)), corrupted(x, generator(1)), corrupted(x, generator(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_comes_out_are_levels_of_256_and_the_input_is_left_alone() -> None:
    x = smooth(64)
    before = x.clone()
    levels = (corrupted(x, generator(1)) + 1) * 127.5
    assert torch.equal(x, before)
    assert (levels - levels.round()).abs().max() < 1e-4
    assert levels.min() > -1e-4
    assert levels.max() < 255 + 1e-4


def test_some_images_stay_as_they_are() -> None:
    x = smooth(400)
    same = (corrupted(x, generator(3)) - x).abs().amax((1, 2, 3)) < 1e-4
    assert same.float().mean().item() == pytest.approx(CLEAN * (1 - AGAIN), abs=0.07)


def test_the_weights_are_shares() -> None:
    assert sum(weight for _, weight in ALTERATIONS) == pytest.approx(1)


@pytest.mark.parametrize("alter", [alter for alter, _ in ALTERATIONS], ids=lambda alter: alter.__name__)
@pytest.mark.parametrize(("count", "channels", "side"), [(1, 3, 32), (5, 1, 12), (16, 3, 33)])
def test_every_alteration_takes_any_batch_and_is_seen(
    alter: Alter, count: int, channels: int, side: int
) -> None:
    x = smooth(count, channels, side)
    altered = alter(x, generator(4))
    assert altered.shape == x.shape
    assert altered.isfinite().all()
    if count > 1:  # alone, an image has no other one to shine through
        assert (altered - x).abs().amax((1, 2, 3)).median() > 0.02
