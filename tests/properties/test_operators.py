"""Every transform is linear and its A+ is a right inverse, at every size (acceptance test 2).

All in float64 with values of order 1. Tolerance 1e-12: sums of up to 256 x 256 numbers.
"""

import numpy as np
import pytest
import torch
from golden import transcription as paper
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from zipcli.errors import InputError, Reason
from zipcli.protocols import LinearOperator
from zipcli.transforms import TRANSFORMS, make_operator

SIDES = st.integers(1, 40)
SIZES = st.tuples(SIDES, SIDES)
BLOCKS = st.sampled_from([1, 2, 3, 4, 8])
SEEDS = st.integers(0, 2**32 - 1)
BOUND = 1e-12

# N and M stand for blocks. The mask of the last two keeps or forgets whole blocks.
ONTO = ("identity", "blur", "blur:N", "gray", "blur:N+gray", "gray+blur:N")  # A A+ = I on every y
SYMMETRIC = (
    *ONTO,
    "mask:any",
    "mask:any+gray",
    "gray+mask:any",
    "mask:blocks+blur:N",
    "mask:blocks+gray+blur:N",
)
EVERY = (*SYMMETRIC, "blur:N+blur:M", "blur:N+blur:M+gray")  # ragged blocks of blocks weigh pixels unevenly


def random(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def any_mask(seed: int, size: tuple[int, int]) -> Tensor:
    return (random(seed, 1, 1, *size) > 0).double()


def block_mask(seed: int, size: tuple[int, int], n: int) -> Tensor:
    blocks = any_mask(seed, (-(-size[0] // n), -(-size[1] // n)))
    return blocks.repeat_interleave(n, -1).repeat_interleave(n, -2)[..., : size[0], : size[1]]


def build(pattern: str, size: tuple[int, int], n: int, m: int, seed: int) -> LinearOperator:
    masks = {"any": any_mask(seed, size), "blocks": block_mask(seed, size, n)}
    return make_operator(pattern.replace("N", str(n)).replace("M", str(m)), masks.__getitem__)


def near(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=BOUND)


def test_every_registered_transform_is_tested_here() -> None:
    assert {word.split(":")[0] for pattern in EVERY for word in pattern.split("+")} == set(TRANSFORMS)


@pytest.mark.parametrize("pattern", EVERY)
@settings(max_examples=40)
@given(size=SIZES, n=BLOCKS, m=BLOCKS, seed=SEEDS)
@example(size=(13, 18), n=4, m=3, seed=0)
@example(size=(32, 32), n=8, m=2, seed=0)
@example(size=(1, 1), n=8, m=8, seed=0)
def test_what_the_pseudo_inverse_restores_looks_the_same(
    pattern: str, size: tuple[int, int], n: int, m: int, seed: int
) -> None:
    """A A+ A = A, and so P = A+ A is a projection: P^2 = P."""
    A = build(pattern, size, n, m, seed)
    x = random(seed, 2, 3, *size)
    y = A.forward(x)
    restored = A.pinv(y, size)
    assert restored.shape == x.shape
    near(A.forward(restored), y)
    near(A.pinv(A.forward(restored), size), restored)


@pytest.mark.parametrize("pattern", ONTO)
@settings(max_examples=40)
@given(size=SIZES, n=BLOCKS, seed=SEEDS)
@example(size=(13, 18), n=4, seed=0)
@example(size=(32, 32), n=3, seed=0)
def test_any_target_can_be_reached(pattern: str, size: tuple[int, int], n: int, seed: int) -> None:
    """A A+ = I on the whole output space, where A forgets without leaving holes."""
    A = build(pattern, size, n, 1, seed)
    y = random(seed, *A.forward(torch.zeros(2, 3, *size, dtype=torch.float64)).shape)
    near(A.forward(A.pinv(y, size)), y)


@pytest.mark.parametrize("pattern", SYMMETRIC)
@settings(max_examples=40)
@given(size=SIZES, n=BLOCKS, seed=SEEDS)
@example(size=(13, 18), n=4, seed=0)
@example(size=(32, 32), n=8, seed=0)
def test_the_projection_is_orthogonal(pattern: str, size: tuple[int, int], n: int, seed: int) -> None:
    """<P u, v> = <u, P v>, divided by the number of pixels."""
    A = build(pattern, size, n, 1, seed)
    u, v = random(seed, 2, 1, 3, *size)
    P_u, P_v = (A.pinv(A.forward(x), size) for x in (u, v))
    near((P_u * v).mean(), (u * P_v).mean())


@pytest.mark.parametrize("pattern", EVERY)
@settings(max_examples=20)
@given(size=SIZES, n=BLOCKS, m=BLOCKS, seed=SEEDS, factor=st.floats(-3, 3))
def test_transforms_are_linear(
    pattern: str, size: tuple[int, int], n: int, m: int, seed: int, factor: float
) -> None:
    A = build(pattern, size, n, m, seed)
    u, v = random(seed, 2, 2, 3, *size)
    near(A.forward(u + factor * v), A.forward(u) + factor * A.forward(v))


@pytest.mark.parametrize("pattern", EVERY)
def test_large_images_keep_the_laws(pattern: str) -> None:
    size = (256, 256)
    A = build(pattern, size, 8, 3, seed=0)
    u, v = random(0, 2, 1, 3, *size)
    P_u, P_v = (A.pinv(A.forward(x), size) for x in (u, v))
    near(A.forward(P_u), A.forward(u))
    if pattern in SYMMETRIC:
        near((P_u * v).mean(), (u * P_v).mean())


@settings(max_examples=60)
@given(size=SIZES, n=BLOCKS, seed=SEEDS)
def test_blur_and_gray_commute(size: tuple[int, int], n: int, seed: int) -> None:
    x = random(seed, 2, 3, *size)
    one, other = (build(pattern, size, n, 1, seed) for pattern in ("blur:N+gray", "gray+blur:N"))
    near(one.forward(x), other.forward(x))
    near(one.pinv(one.forward(x), size), other.pinv(other.forward(x), size))


@settings(max_examples=60)
@given(size=SIZES, n=st.integers(1, 50), seed=SEEDS)
@example(size=(13, 18), n=4, seed=0)
def test_ragged_blocks_are_divided_by_the_pixels_they_have(size: tuple[int, int], n: int, seed: int) -> None:
    x = random(seed, 1, 3, *size)
    A = build("blur:N", size, n, 1, seed)
    expected = paper.block_mean(x[0].numpy(), n)
    np.testing.assert_allclose(A.forward(x)[0].numpy(), expected, rtol=0, atol=BOUND)
    repeated = paper.block_repeat(expected, n, *size)
    np.testing.assert_array_equal(A.pinv(torch.from_numpy(expected)[None], size)[0].numpy(), repeated)


@settings(max_examples=30)
@given(size=SIZES, seed=SEEDS)
def test_gray_is_the_plain_mean_of_the_channels(size: tuple[int, int], seed: int) -> None:
    x = random(seed, 1, 3, *size)
    out = build("gray", size, 1, 1, seed).forward(x)
    np.testing.assert_allclose(out[0].numpy(), paper.channel_mean(x[0].numpy()), rtol=0, atol=BOUND)


@pytest.mark.parametrize(("side", "n"), [(1, 2), (127, 2), (128, 4), (256, 4)])
def test_blur_without_a_number_is_chosen_by_the_shorter_side(side: int, n: int) -> None:
    x = random(0, 1, 3, side, 260)
    ours, named = (make_operator(text, lambda _: x) for text in ("blur", f"blur:{n}"))
    assert torch.equal(ours.forward(x), named.forward(x))
    assert torch.equal(ours.pinv(ours.forward(x), (side, 260)), named.pinv(named.forward(x), (side, 260)))


@pytest.mark.parametrize("n", [300, 10**15])
def test_a_block_larger_than_the_image_is_all_of_it(n: int) -> None:
    x = random(0, 1, 3, 5, 7)
    A = make_operator(f"blur:{n}", lambda _: x)
    near(A.pinv(A.forward(x), (5, 7)), x.mean(dim=(-2, -1), keepdim=True).expand_as(x))


# Masks


@settings(max_examples=40)
@given(size=SIZES, seed=SEEDS)
def test_a_mask_keeps_the_pixels_where_it_is_1(size: tuple[int, int], seed: int) -> None:
    x = random(seed, 2, 3, *size)
    out = build("mask:any", size, 1, 1, seed + 1).forward(x)
    keep = (any_mask(seed + 1, size) == 1).expand_as(x)
    assert torch.equal(out[keep], x[keep])
    assert out[~keep].abs().sum() == 0


@settings(max_examples=60)
@given(size=SIZES, n=st.sampled_from([2, 3, 4, 8]), seed=SEEDS, row=SIDES, column=SIDES)
@example(size=(8, 8), n=8, seed=1, row=1, column=1)
def test_a_mask_that_cuts_through_a_block_is_refused(
    size: tuple[int, int], n: int, seed: int, row: int, column: int
) -> None:
    """One pixel of a block that has several is kept against the others, or forgotten."""
    H, W = size
    row, column = row % H, column % W
    assume(min(n, H - row // n * n) * min(n, W - column // n * n) > 1)
    mask = block_mask(seed, size, n)
    mask[..., row, column] = 1 - mask[..., row, column]
    A = make_operator(f"mask:cut.png+blur:{n}", lambda _: mask)
    with pytest.raises(InputError, match="do not fit together") as caught:
        A.forward(random(seed, 1, 3, *size))
    assert caught.value.reason is Reason.TRANSFORM_UNFIT


def test_a_mask_of_another_size_is_refused() -> None:
    A = make_operator("mask:m.png", lambda _: torch.ones(1, 1, 4, 6))
    with pytest.raises(InputError, match="6x4 and the image 5x4"):
        A.forward(random(0, 1, 3, 4, 5))


def test_the_mask_file_is_the_word_after_the_colon() -> None:
    names = []

    def read(name: str) -> Tensor:
        names.append(name)
        return torch.ones(1, 1, 4, 4)

    make_operator("blur:2+mask:a:b.png", read)
    assert names == ["a:b.png"]
