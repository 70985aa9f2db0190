"""ShrinkPad: where the image goes, what is around it, and what shrinking does to it."""

import math
from collections import Counter

import pytest
import torch
from fakes import noise_per_image
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zipcli.config import MethodConfig
from zipcli.errors import ConfigError, InputError, Reason
from zipcli.methods.shrinkpad import default_pad, draw_placements, purify, shrink_pad


def random_images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def draws(*seeds: int) -> Tensor:
    """Two numbers for each image, from a generator of its own."""
    return noise_per_image([*seeds])(torch.empty(len(seeds), 2, 1, 1))


def places(*pairs: tuple[int, int]) -> Tensor:
    return torch.tensor(pairs)


PLACES_OF_4 = [(left, top) for left in range(5) for top in range(5)]


# Where


def test_all_25_placements_of_pad_4_are_drawn_equally_often_and_no_other() -> None:
    noise = torch.randn(5000, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    drawn = Counter((left, top) for left, top in draw_placements(4, noise).tolist())
    assert set(drawn) == set(PLACES_OF_4)
    assert all(abs(count - 200) < 5 * math.sqrt(200) for count in drawn.values())


def test_pad_0_has_one_placement() -> None:
    assert not draw_placements(0, draws(*range(20))).any()


@pytest.mark.parametrize("draw", [-40.0, -9.0, 9.0, 40.0])
def test_the_farthest_draws_are_within_the_padding(draw: float) -> None:
    assert draw_placements(4, torch.full((1, 2), draw)).tolist() == [[4 * (draw > 0)] * 2]


@given(pad=st.integers(0, 300), seed=st.integers(0, 2**32))
def test_every_draw_is_within_the_padding(pad: int, seed: int) -> None:
    drawn = draw_placements(pad, draws(seed, seed + 1))
    assert drawn.shape == (2, 2)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) <= pad


def test_each_image_draws_from_its_own_generator() -> None:
    together = draw_placements(32, draws(5, 6, 7))
    alone = torch.cat([draw_placements(32, draws(seed)) for seed in (5, 6, 7)])
    assert torch.equal(together, alone)
    assert len(set(map(tuple, together.tolist()))) == 3


def test_left_and_top_place_the_image_within_black() -> None:
    white = torch.ones(25, 3, 32, 32)
    padded = shrink_pad(white, 4, places(*PLACES_OF_4))
    for (left, top), image in zip(PLACES_OF_4, padded, strict=True):
        wanted = torch.full((3, 32, 32), -1.0)
        wanted[:, top : top + 28, left : left + 28] = 1
        assert torch.allclose(image, wanted, atol=1e-6)  # white shrinks to white but for rounding


def test_every_image_has_its_own_placement() -> None:
    x = random_images(3, 3, 16, 16)
    placements = places((0, 4), (3, 1), (2, 2))
    together = shrink_pad(x, 4, placements)
    for n in range(3):
        assert torch.equal(together[n : n + 1], shrink_pad(x[n : n + 1], 4, placements[n : n + 1]))


# What


def resized_by_loop(image: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Bilinear without antialiasing, pixel centres at k + 1/2, edges repeated."""
    H, W = len(image), len(image[0])

    def corners(k: int, new: int, old: int) -> tuple[int, int, float]:
        position = max(0.0, (k + 0.5) * old / new - 0.5)
        first = int(position)
        return first, min(first + 1, old - 1), position - first

    out = []
    for i in range(height):
        a, b, down = corners(i, height, H)
        row = []
        for j in range(width):
            c, d, right = corners(j, width, W)
            upper = (1 - right) * image[a][c] + right * image[a][d]
            lower = (1 - right) * image[b][c] + right * image[b][d]
            row.append((1 - down) * upper + down * lower)
        out.append(row)
    return out


@pytest.mark.parametrize(("H", "W", "pad"), [(9, 9, 1), (12, 12, 4), (16, 16, 11), (9, 12, 3)])
def test_shrink_pad_equals_the_loop_that_pads_zeros_in_0_to_1(H: int, W: int, pad: int) -> None:
    x = random_images(1, 2, H, W)
    left, top = pad, pad // 3
    found = (shrink_pad(x, pad, places((left, top))) + 1) / 2
    for c in range(2):
        small = resized_by_loop(((x[0, c] + 1) / 2).tolist(), H - pad, W - pad)
        wanted = [[0.0] * W for _ in range(H)]
        for i, row in enumerate(small):
            for j, value in enumerate(row):
                wanted[top + i][left + j] = value
        assert torch.allclose(found[0, c], torch.tensor(wanted, dtype=x.dtype), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pad_0_is_the_identity(dtype: torch.dtype) -> None:
    x = random_images(2, 3, 17, 17, dtype=dtype)
    assert torch.equal(shrink_pad(x, 0, places((0, 0), (0, 0))), x)


@pytest.mark.parametrize("placement", PLACES_OF_4)
def test_padding_is_black_in_0_to_1(placement: tuple[int, int]) -> None:
    padded = (shrink_pad(random_images(1, 3, 32, 32), 4, places(placement)) + 1) / 2
    outside = torch.ones(32, 32, dtype=torch.bool)
    left, top = placement
    outside[top : top + 28, left : left + 28] = False
    assert outside.sum() == 32 * 32 - 28 * 28
    assert (padded[..., outside] == 0).all()


def test_output_keeps_shape_range_and_dtype_and_leaves_the_input_alone() -> None:
    x = random_images(2, 3, 32, 32, dtype=torch.float32)
    before = x.clone()
    padded = shrink_pad(x, 4, places((0, 0), (4, 4)))
    assert padded.shape == x.shape
    assert padded.dtype == torch.float32
    assert padded.min() == -1
    assert padded.max() <= 1 + 1e-6
    assert torch.equal(x, before)


# Settings


def test_default_pad_is_4_at_32_and_an_eighth_of_larger_images() -> None:
    assert [default_pad(side) for side in (16, 32, 36, 44, 64, 224, 256)] == [4, 4, 5, 6, 8, 28, 32]


def test_default_pad_leaves_a_pixel_of_the_smallest_images() -> None:
    assert [default_pad(side) for side in (1, 2, 4, 5, 6)] == [0, 1, 3, 4, 4]


# The method


@pytest.mark.parametrize(("pad", "used"), [(None, 4), (7, 7)])
def test_the_method_is_the_two_parts(pad: int | None, used: int) -> None:
    x = random_images(3, 3, 20, 17, dtype=torch.float32)
    config = MethodConfig(pad=pad)
    found = purify(x, None, (), config, noise=noise_per_image([5, 6, 7]))
    assert torch.equal(found, shrink_pad(x, used, draw_placements(used, draws(5, 6, 7))))


def test_an_image_is_the_same_alone_and_in_a_batch() -> None:
    x = random_images(3, 3, 20, 17, dtype=torch.float32)
    together = purify(x, None, (), MethodConfig(), noise=noise_per_image([5, 6, 7]))
    for n in range(3):
        alone = purify(x[n : n + 1], None, (), MethodConfig(), noise=noise_per_image([5 + n]))
        assert torch.equal(together[n : n + 1], alone)


def test_an_image_of_which_nothing_would_be_left_is_refused_as_one_image() -> None:
    with pytest.raises(InputError, match="pad: 12 leaves nothing of an image of 12x20") as caught:
        purify(torch.zeros(1, 3, 20, 12), None, (), MethodConfig(pad=12), noise=noise_per_image([1]))
    assert caught.value.reason is Reason.METHOD_UNFIT


@pytest.mark.parametrize("pad", [-1, 8, 9])
def test_a_pad_that_leaves_no_image_is_refused(pad: int) -> None:
    with pytest.raises(ConfigError, match=rf"pad: {pad} is not from 0 to 7"):
        shrink_pad(torch.zeros(1, 3, 8, 9), pad, places((0, 0)))


def test_the_largest_pad_leaves_one_pixel() -> None:
    padded = shrink_pad(torch.ones(1, 1, 8, 8), 7, places((7, 0)))
    assert (padded == 1).nonzero().tolist() == [[0, 0, 0, 7]]


def test_a_negative_pad_cannot_be_drawn() -> None:
    with pytest.raises(ConfigError, match="-1 is negative"):
        draw_placements(-1, draws(0))


@pytest.mark.parametrize("placement", [(-1, 0), (0, -1), (5, 0), (0, 5)])
def test_a_placement_outside_the_padding_is_a_bug(placement: tuple[int, int]) -> None:
    with pytest.raises(AssertionError):
        shrink_pad(torch.zeros(1, 3, 16, 16), 4, places(placement))
