"""SampDetox's map, levels and gate, each against the released program written with plain loops."""

import math

import pytest
import torch
from torch import Tensor

from zipcli.config import NoiseSchedule
from zipcli.errors import ConfigError
from zipcli.methods.sampdetox_gate import (
    dissimilarity_map,
    merge_step,
    noise_levels,
    noise_to_levels,
    one_minus_ssim,
    stretch,
)
from zipcli.schedule import alpha_bars

ALPHA_BAR = alpha_bars(NoiseSchedule())


def random_images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def random_noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def known_pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The pictures behind TAU: a pattern, and the same with less contrast and a grey patch."""
    c, i, j = torch.meshgrid(torch.arange(3), torch.arange(12), torch.arange(13), indexing="ij")
    u = ((5 * c + 3 * i + 7 * j + i * j) % 17).to(dtype) / 16
    v = 0.9 * u + 0.05
    v[:, 7:10, 8:11] = 0.5
    return (2 * u - 1)[None], (2 * v - 1)[None]


# trunc((1 - g) 120) of the released program's lines on known_pair, with scikit-image 0.22's
# structural_similarity(u, v, data_range=..., channel_axis=0, gaussian_weights=True, sigma=1.5, full=True).
# No value lies closer than 2e-4 to the next level, so that rounding cannot change one.
TAU = {
    255: [
        [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 2, 4, 8, 9, 8, 5, 3],
        [0, 0, 0, 0, 0, 1, 6, 15, 26, 33, 29, 18, 10],
        [0, 0, 0, 0, 0, 4, 13, 34, 60, 77, 68, 40, 20],
        [0, 0, 0, 0, 1, 6, 20, 51, 90, 117, 101, 57, 28],
        [0, 0, 0, 0, 1, 6, 22, 53, 94, 120, 102, 57, 28],
        [0, 0, 0, 0, 1, 6, 17, 40, 72, 91, 77, 43, 21],
        [1, 1, 1, 1, 2, 4, 10, 23, 40, 49, 40, 22, 11],
        [3, 3, 2, 2, 2, 3, 6, 11, 18, 21, 17, 10, 6],
    ],
    1: [
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 4, 7, 8, 7, 4, 2],
        [0, 0, 0, 0, 0, 1, 5, 14, 25, 29, 23, 13, 7],
        [0, 0, 0, 0, 0, 3, 13, 33, 57, 67, 54, 33, 17],
        [0, 0, 0, 0, 1, 5, 20, 51, 91, 110, 91, 57, 31],
        [0, 0, 0, 0, 1, 6, 22, 55, 97, 120, 102, 64, 35],
        [0, 0, 0, 0, 1, 5, 17, 40, 68, 83, 71, 45, 25],
        [0, 0, 0, 0, 0, 2, 9, 20, 33, 41, 38, 26, 15],
        [0, 0, 0, 0, 0, 1, 4, 9, 16, 21, 22, 17, 11],
    ],
}
# 1 - g itself at (0, 0), (8, 9), (11, 12).
ONE_MINUS_G = {
    255: [1.808442006234756e-05, 0.0008966980343010356, 6.376095390248082e-05],
    1: [0.005577814459531316, 0.3212948271193319, 0.03505764964849356],
}


# The map


@pytest.mark.parametrize("ssim_range", [255, 1])
def test_dissimilarity_is_one_minus_the_weighted_ssim_of_scikit_image(ssim_range: int) -> None:
    found = dissimilarity_map(*known_pair(), ssim_range)[0, 0]
    assert [found[p].item() for p in ((0, 0), (8, 9), (11, 12))] == pytest.approx(
        ONE_MINUS_G[ssim_range], rel=1e-9
    )  # they took 1 - g from a g near 1, which costs 5 of 16 digits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ssim_range", [255, 1])
def test_levels_are_those_of_the_released_program(ssim_range: int, dtype: torch.dtype) -> None:
    dissimilarity = dissimilarity_map(*known_pair(dtype), ssim_range)
    assert dissimilarity.dtype == dtype
    assert noise_levels(stretch(dissimilarity), 120)[0, 0].tolist() == TAU[ssim_range]


def ssim_at(u: list[list[float]], v: list[list[float]], i: int, j: int, R: float) -> float:
    """Wang et al. 2004, eq. 13, at one pixel: 11 by 11 Gaussian, mirrored borders, 121/120."""
    H, W = len(u), len(u[0])

    def mirror(k: int, size: int) -> int:
        return -1 - k if k < 0 else 2 * size - 1 - k if k >= size else k

    total = sum(math.exp(-0.5 * (a * a + b * b) / 1.5**2) for a in range(-5, 6) for b in range(-5, 6))
    mu_u = mu_v = uu = vv = uv = 0.0
    for a in range(-5, 6):
        for b in range(-5, 6):
            w = math.exp(-0.5 * (a * a + b * b) / 1.5**2) / total
            at_u, at_v = (image[mirror(i + a, H)][mirror(j + b, W)] for image in (u, v))
            mu_u, mu_v = mu_u + w * at_u, mu_v + w * at_v
            uu, vv, uv = uu + w * at_u**2, vv + w * at_v**2, uv + w * at_u * at_v
    var_u, var_v, cov = (121 / 120 * m for m in (uu - mu_u**2, vv - mu_v**2, uv - mu_u * mu_v))
    C1, C2 = (0.01 * R) ** 2, (0.03 * R) ** 2
    return (2 * mu_u * mu_v + C1) * (2 * cov + C2) / ((mu_u**2 + mu_v**2 + C1) * (var_u + var_v + C2))


@pytest.mark.parametrize("ssim_range", [255, 1])
def test_one_minus_ssim_equals_the_loop_over_windows(ssim_range: int) -> None:
    u, v = (random_images(1, 2, 11, 14, seed=s, dtype=torch.float64) / 2 + 0.5 for s in (1, 2))
    found = one_minus_ssim(u, v, ssim_range)
    for c in range(2):
        for i in range(11):
            for j in range(14):
                slow = ssim_at(u[0, c].tolist(), v[0, c].tolist(), i, j, ssim_range)
                assert 1 - found[0, c, i, j].item() == pytest.approx(slow, abs=1e-12)


def test_one_minus_ssim_passes_1_where_the_images_are_opposite() -> None:
    u = random_images(1, 1, 32, 32, dtype=torch.float64) / 2 + 0.5
    found = one_minus_ssim(u, 1 - u, 1)
    assert found.min() > 1
    assert found.max() <= 2


@pytest.mark.parametrize("ssim_range", [255, 1])
def test_identical_images_have_dissimilarity_exactly_0(ssim_range: int) -> None:
    x = random_images(2, 3, 16, 16)
    assert (dissimilarity_map(x, x.clone(), ssim_range) == 0).all()


def test_float32_maps_keep_the_digits_that_similarity_near_1_would_lose() -> None:
    x = random_images(1, 3, 16, 16, dtype=torch.float64)
    x_bar = (x + 0.01 * random_noise(1, 3, 16, 16).double()).clamp(-1, 1)
    exact = dissimilarity_map(x, x_bar)
    assert exact.max() < 2e-6  # of a similarity that moves in steps of 6e-8
    assert torch.allclose(dissimilarity_map(x.float(), x_bar.float()).double(), exact, rtol=1e-3, atol=0)


def test_float32_gives_the_levels_of_float64_for_a_brighter_copy_of_a_flat_image() -> None:
    x = 0.01 * random_images(8, 3, 32, 32)
    x_bar = x + 0.7
    single, double = (
        noise_levels(stretch(dissimilarity_map(x.to(dtype), x_bar.to(dtype), 1)), 120)
        for dtype in (torch.float32, torch.float64)
    )
    assert (single - double).abs().max() <= 1


@pytest.mark.parametrize("ssim_range", [255, 1])
def test_rounding_takes_no_dissimilarity_below_0(ssim_range: int) -> None:
    x = torch.zeros(11, 3, 32, 32)
    x_bar = x.clone()
    x_bar[..., 20:23, 5:8] += torch.arange(0.05, 1.1, 0.1).view(-1, 1, 1, 1)
    assert (dissimilarity_map(x, x_bar, ssim_range) >= 0).all()


def test_red_green_blue_weigh_11_59_30() -> None:
    x = random_images(1, 3, 16, 16, dtype=torch.float64)
    changed = random_images(1, 3, 16, 16, seed=1, dtype=torch.float64)
    for channel, weight in enumerate((0.11, 0.59, 0.30)):
        x_bar = x.clone()
        x_bar[:, channel] = changed[:, channel]
        alone = one_minus_ssim((x + 1) / 2, (x_bar + 1) / 2, 255)[:, channel : channel + 1]
        assert torch.allclose(dissimilarity_map(x, x_bar), weight * alone, rtol=1e-12, atol=0)


def test_one_channel_weighs_1() -> None:
    x, x_bar = random_images(2, 1, 16, 16), random_images(2, 1, 16, 16, seed=1)
    assert torch.allclose(dissimilarity_map(x, x_bar), one_minus_ssim((x + 1) / 2, (x_bar + 1) / 2, 255))


def test_dissimilarity_clips_what_the_purification_left_outside_the_range() -> None:
    x, x_bar = random_images(1, 3, 16, 16), 2 * random_images(1, 3, 16, 16, seed=1)
    assert torch.equal(dissimilarity_map(x, x_bar), dissimilarity_map(x, x_bar.clamp(-1, 1)))


def test_a_changed_patch_is_where_the_map_is_highest() -> None:
    x = random_images(1, 3, 32, 32) * 0.2
    x_bar = x.clone()
    x_bar[..., 20:23, 5:8] += 0.8
    tau = noise_levels(stretch(dissimilarity_map(x, x_bar)), 120)[0, 0]
    assert tau[21, 6] == 120
    assert (tau[:15] == 0).all()  # farther than the radius of the window, 5, from the patch
    assert (tau[:, 13:] == 0).all()


@pytest.mark.parametrize("size", [(10, 32), (32, 10)])
def test_an_image_smaller_than_the_window_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="at least 11 pixels"):
        dissimilarity_map(torch.zeros(1, 3, *size), torch.zeros(1, 3, *size))


def test_an_image_of_the_size_of_the_window_is_taken() -> None:
    assert dissimilarity_map(random_images(2, 3, 11, 11), torch.zeros(2, 3, 11, 11)).shape == (2, 1, 11, 11)


# The stretch and the levels


@pytest.mark.parametrize("level", [0.0, 1e-7, 0.3, 2.0])
def test_a_constant_map_has_nothing_to_treat(level: float) -> None:
    stretched = stretch(torch.full((2, 1, 8, 8), level))
    assert (stretched == 0).all()  # and so not NaN
    assert (noise_levels(stretched, 120) == 0).all()


@pytest.mark.parametrize(("before", "after"), [(0.3, 0.5), (-1.0, 1.0), (0.1, 0.1)])
@pytest.mark.parametrize("ssim_range", [255, 1])
def test_a_uniform_change_of_a_uniform_image_gives_level_0(
    before: float, after: float, ssim_range: int
) -> None:
    x, x_bar = torch.full((1, 3, 17, 23), before), torch.full((1, 3, 17, 23), after)
    assert (noise_levels(stretch(dissimilarity_map(x, x_bar, ssim_range)), 120) == 0).all()


def test_rounding_in_a_constant_map_is_not_stretched() -> None:
    rounded = 0.3 * (1 + 1e-6 * random_images(1, 1, 8, 8))
    assert rounded.max() > rounded.min()
    assert (stretch(rounded) == 0).all()


def test_a_small_spread_around_a_high_level_is_stretched_fully() -> None:
    stretched = stretch(0.3 + 1e-4 * random_images(1, 1, 8, 8))
    assert stretched.min() == 0
    assert stretched.max() == 1


def test_stretch_is_min_max_of_each_image_by_itself() -> None:
    maps = torch.tensor([[1.0, 2.0, 5.0], [0.0, 0.5, 0.25], [7.0, 7.0, 7.0]]).view(3, 1, 1, 3)
    assert stretch(maps).view(3, 3).tolist() == [[0, 0.25, 1], [0, 1, 0.5], [0, 0, 0]]


def test_stretch_ignores_the_scale_of_the_map() -> None:
    dissimilarity = random_images(1, 1, 8, 8).abs()
    assert torch.allclose(stretch(1e-7 * dissimilarity), stretch(dissimilarity), atol=1e-6)


@pytest.mark.parametrize("t2", [0, 1, 7, 120, 999])
def test_levels_are_integers_from_0_to_t2_and_reach_both(t2: int) -> None:
    x, x_bar = random_images(4, 3, 16, 16), random_images(4, 3, 16, 16, seed=1)
    tau = noise_levels(stretch(dissimilarity_map(x, x_bar)), t2)
    assert tau.dtype == torch.int64
    assert tau.shape == (4, 1, 16, 16)
    assert tau.amin((1, 2, 3)).tolist() == [0] * 4
    assert tau.amax((1, 2, 3)).tolist() == [t2] * 4


def test_levels_are_truncated_not_rounded() -> None:
    assert noise_levels(torch.tensor([0.0, 0.49, 0.51, 0.999, 1.0]), 2).tolist() == [0, 0, 1, 1, 2]


def test_a_negative_t2_is_refused() -> None:
    with pytest.raises(ConfigError, match="-1 is negative"):
        noise_levels(torch.zeros(1, 1, 2, 2), -1)


# Noising to the levels


def test_noising_equals_the_loop_over_pixels() -> None:
    x_bar, noise = random_images(2, 3, 5, 4), random_noise(2, 3, 5, 4)
    tau = torch.randint(0, 1000, (2, 1, 5, 4), generator=torch.Generator().manual_seed(3))
    tau[0, 0, 0, 0], tau[1, 0, 4, 3] = 0, 999
    found = noise_to_levels(x_bar, tau, ALPHA_BAR, noise)
    assert found.dtype == torch.float32
    for n in range(2):
        for k in range(3):
            for i in range(5):
                for j in range(4):
                    alpha_bar = ALPHA_BAR[int(tau[n, 0, i, j])].item()
                    slow = math.sqrt(alpha_bar) * x_bar[n, k, i, j].item()
                    slow += math.sqrt(1 - alpha_bar) * noise[n, k, i, j].item()
                    assert found[n, k, i, j].item() == pytest.approx(slow, rel=1e-6, abs=1e-6)


def test_level_0_still_gets_noise_of_std_a_hundredth() -> None:
    noise = random_noise(1, 3, 4, 4)
    found = noise_to_levels(
        torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.int64), ALPHA_BAR, noise
    )
    assert torch.allclose(found, 0.01 * noise, rtol=1e-6)


def test_the_last_timestep_is_a_level_and_the_one_after_is_not() -> None:
    x_bar, noise = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    last = noise_to_levels(x_bar, torch.full((1, 1, 2, 2), 999), ALPHA_BAR, noise)
    assert last[0, 0, 0, 0].item() == pytest.approx(math.sqrt(1 - 4.0358298e-5))
    with pytest.raises(ConfigError, match="t2: 1000 is beyond the schedule, whose last timestep is 999"):
        noise_to_levels(x_bar, torch.full((1, 1, 2, 2), 1000), ALPHA_BAR, noise)


# The gate


def test_a_pixel_moves_only_while_its_level_is_strictly_above_the_step() -> None:
    tau = torch.tensor([0, 1, 6, 7, 8, 120]).view(1, 1, 1, 6)
    merged = merge_step(torch.zeros(1, 3, 1, 6), torch.ones(1, 3, 1, 6), tau, 7)
    assert merged[0].tolist() == [[[0, 0, 0, 0, 1, 1]]] * 3


def test_a_pixel_takes_as_many_steps_as_its_level() -> None:
    tau = torch.arange(13).view(1, 1, 1, 13)
    x_t = torch.zeros(1, 2, 1, 13)
    for i in range(11, -1, -1):
        x_t = merge_step(x_t, x_t + 1, tau, i)
    assert x_t[0].tolist() == [[list(range(13))]] * 2


def test_a_pixel_that_is_not_active_keeps_nan_out() -> None:
    tau = torch.tensor([3, 4]).view(1, 1, 1, 2)
    merged = merge_step(torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 2), math.nan), tau, 3)
    assert merged.isnan().flatten().tolist() == [False, True]


def reverse_step(x: Tensor, i: int) -> Tensor:
    """Any step in which each pixel depends on its neighbours, so that the order of writes would show."""
    return 0.9 * x + 0.3 * x.roll(1, -1) - 0.2 * x.roll(1, -2) + 0.01 * i


def test_the_gated_chain_equals_the_loop_over_pixels() -> None:
    N, C, H, W, t2 = 2, 3, 6, 5, 12
    start = random_images(N, C, H, W)
    tau = torch.randint(0, t2 + 1, (N, 1, H, W), generator=torch.Generator().manual_seed(1))
    tau[:, :, 0, 0], tau[:, :, 0, 1] = 0, t2
    fast, slow = start, start.clone()
    for step in range(t2 - 1, -1, -1):
        fast = merge_step(fast, reverse_step(fast, step), tau, step)
        stepped = reverse_step(slow, step)
        for n in range(N):
            for i in range(H):
                for j in range(W):
                    if int(tau[n, 0, i, j]) > step:
                        for k in range(C):
                            slow[n, k, i, j] = stepped[n, k, i, j]
    assert torch.equal(fast, slow)
    assert torch.equal(fast[:, :, 0, 0], start[:, :, 0, 0])  # level 0 never moves
    assert not torch.equal(fast, start)


def test_an_image_gets_the_same_result_alone_and_in_a_batch() -> None:
    x, x_bar, noise = (
        random_images(5, 3, 16, 16),
        random_images(5, 3, 16, 16, seed=1),
        random_noise(5, 3, 16, 16),
    )

    def state(rows: slice) -> Tensor:
        tau = noise_levels(stretch(dissimilarity_map(x[rows], x_bar[rows])), 120)
        x_t = noise_to_levels(x_bar[rows], tau, ALPHA_BAR, noise[rows])
        return merge_step(x_t, reverse_step(x_t, 60), tau, 60)

    together = state(slice(0, 5))
    for n in range(5):
        assert torch.allclose(state(slice(n, n + 1)), together[n : n + 1], atol=1e-6)
