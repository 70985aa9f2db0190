"""ZIP and its parts; the numbers in the docstrings are the acceptance tests that each one stands for."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from fakes import FakeEps
from golden import transcription as paper
from torch import Tensor

from zipcli.config import MethodConfig
from zipcli.errors import ConfigError, NonFiniteError
from zipcli.methods import METHODS
from zipcli.methods.grids import CLEAN, time_travel, timesteps
from zipcli.methods.steps import ddim_sigma, predict_x0
from zipcli.methods.zip import confidence, correction, purify
from zipcli.protocols import LinearOperator, Noise
from zipcli.transforms import make_operator

ALPHA_BAR = paper.linear_schedule().alpha_bar  # [t] counts from 1, so the 0-based timestep i is at [i + 1]
LAMBDAS = [0.0, 1.0, 2.0, 10.0, math.inf]
BuildNoise = Callable[[list[int]], Noise]


def operators(*names: str) -> tuple[LinearOperator, ...]:
    def no_file(name: str) -> Tensor:
        raise AssertionError(name)

    return tuple(make_operator(name, no_file) for name in names)


def random_images(count: int, H: int, W: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, H, W, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def project(x: Tensor, A: LinearOperator) -> Tensor:
    return A.pinv(A.forward(x), (x.shape[-2], x.shape[-1]))


def replay(draws: Sequence[Tensor]) -> Noise:
    left = iter(draws)
    return lambda x_t: next(left).expand_as(x_t)


class Oracle(FakeEps):
    """The prior that knows the clean image: eps = (x_t - sqrt(alpha_bar) x*) / sqrt(1 - alpha_bar)."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.clean = clean
        self.states: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        self.states.append(x_t)
        self.timesteps.append(t[0].item())
        alpha_bar = ALPHA_BAR[int(t[0]) + 1]
        return (x_t - alpha_bar**0.5 * self.clean) / (1 - alpha_bar) ** 0.5


# The step: the space of the correction, the posterior of DDPM, the coefficients


@pytest.mark.parametrize("lambda_", LAMBDAS)
@pytest.mark.parametrize("n_operators", [1, 2])
@pytest.mark.parametrize("i", [0, 50, 500, 950, 999])
def test_correcting_x0_equals_rectifying_x_t(i: int, n_operators: int, lambda_: float) -> None:
    """Acceptance test 3. Tolerance 1e-12: rounding of 1e-16 over sqrt(alpha_bar) of 6e-3."""
    H, W = 7, 6
    random = np.random.default_rng(i)
    x_P, x_t, e = random.standard_normal((3, 3, H, W))
    alpha_bar = ALPHA_BAR[i + 1]
    transforms = [paper.blur(4, H, W), paper.gray()][:n_operators]
    ys = [transform.A(x_P) for transform in transforms]
    x_tilde_t = paper.rectify_and_mix(x_t, e, ys, transforms, alpha_bar, lambda_)
    expected = (x_tilde_t - math.sqrt(1 - alpha_bar) * e) / math.sqrt(alpha_bar)

    ours = operators("blur:4", "gray")[:n_operators]
    x_0 = predict_x0(torch.from_numpy(x_t)[None], torch.from_numpy(e)[None], alpha_bar)
    targets = [A.forward(torch.from_numpy(x_P)[None]) for A in ours]
    guided = x_0 + confidence(alpha_bar, lambda_) * correction(x_0, ours, targets, (H, W))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(guided[0].numpy(), expected, rtol=0, atol=1e-12 * scale)


def test_neighbouring_steps_with_eta_1_have_the_variance_of_ddpm() -> None:
    """Acceptance test 4: sigma^2 = beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)."""
    beta = paper.linear_schedule().beta
    for t in range(1, 1001):
        expected = paper.algorithm_1_variance(beta[t], ALPHA_BAR[t], ALPHA_BAR[t - 1])
        assert ddim_sigma(ALPHA_BAR[t], ALPHA_BAR[t - 1], 1.0) ** 2 == pytest.approx(expected, rel=1e-9), t


@pytest.mark.parametrize("t", [1, 2, 500, 1000])
def test_a_step_with_eta_1_has_the_mean_of_algorithm_1(t: int) -> None:
    """Acceptance test 4: eq. 10, from the same rectified state, for the coefficients of x_tilde and e."""
    beta, alpha_bar, alpha_bar_prev = paper.linear_schedule().beta[t], ALPHA_BAR[t], ALPHA_BAR[t - 1]
    x_tilde_t, e = np.random.default_rng(t).standard_normal((2, 3, 4, 4))
    x_0 = predict_x0(torch.from_numpy(x_tilde_t), torch.from_numpy(e), alpha_bar)
    sigma = ddim_sigma(alpha_bar, alpha_bar_prev, 1.0)
    mean = alpha_bar_prev**0.5 * x_0 + (1 - alpha_bar_prev - sigma**2) ** 0.5 * torch.from_numpy(e)
    expected = paper.algorithm_1_mean(x_tilde_t, e, beta, alpha_bar)
    np.testing.assert_allclose(mean.numpy(), expected, rtol=0, atol=1e-10)


# i, alpha_bar, alpha_bar_prev, sigma, coefficient of e, w at lambda 2, w at lambda 10
COEFFICIENTS = """
950 0.00010604 0.00027024 0.779428 0.626276 1.000000 1.000000
900 0.00027024 0.00065465 0.766139 0.642166 1.000000 1.000000
850 0.00065465 0.00150752 0.751837 0.658205 1.000000 1.000000
800 0.00150752 0.00330016 0.736357 0.674150 0.999998 1.000000
750 0.00330016 0.00686828 0.719477 0.689554 0.999989 1.000000
700 0.00686828 0.01359017 0.700904 0.703664 0.999953 1.000000
650 0.01359017 0.02556749 0.680273 0.715305 0.999815 1.000000
600 0.02556749 0.04573613 0.657154 0.722781 0.999346 1.000000
550 0.04573613 0.07779666 0.631079 0.723839 0.997908 1.000000
500 0.07779666 0.12583883 0.601570 0.715733 0.993948 1.000000
450 0.12583883 0.19357201 0.568155 0.695434 0.984165 1.000000
400 0.19357201 0.28318258 0.530356 0.659954 0.962530 1.000000
350 0.28318258 0.39401112 0.487640 0.606791 0.919808 0.999997
300 0.39401112 0.52142303 0.439292 0.534415 0.844755 0.999910
250 0.52142303 0.65634701 0.384204 0.442764 0.728118 0.998514
200 0.65634701 0.78588702 0.320467 0.333787 0.569209 0.985163
150 0.78588702 0.89514159 0.244486 0.212332 0.382382 0.910133
100 0.89514159 0.96995149 0.148667 0.089144 0.198722 0.669693
50 0.96995149 0.99990000 0.009984 0.000568 0.059194 0.262945
0 0.99990000 1.00000000 0 0 0.000200 0.001000
"""
TABLE = [[float(word) for word in line.split()] for line in COEFFICIENTS.split("\n") if line]


@pytest.mark.parametrize(("lambda_", "column"), [(2.0, 5), (10.0, 6)])
def test_coefficients_of_the_running_chain_are_the_published_ones(lambda_: float, column: int) -> None:
    """Acceptance test 5, measured from outside, to the printed digits.

    The oracle always answers x_0 = 0. Three images then show one coefficient each: the first has no
    fresh noise and no target, the second fresh noise 1, the third the target 1.
    """
    oracle = Oracle(torch.zeros(3, 3, 1, 1, dtype=torch.float64))
    fresh = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)[:, None, None, None]
    target = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)[:, None, None, None].expand(3, 3, 1, 1)
    out = purify(
        target,
        oracle,
        operators("identity"),
        MethodConfig(lambda_=lambda_),
        noise=replay([torch.ones_like(fresh), *[fresh] * 20]),
    )
    states = [state[:, 0, 0, 0] for state in (*oracle.states, out)]
    assert oracle.timesteps == [row[0] for row in TABLE]
    for row, state, after in zip(TABLE, states[:-1], states[1:], strict=True):
        i, alpha_bar, alpha_bar_prev = int(row[0]), ALPHA_BAR[int(row[0]) + 1], _alpha_bar_prev(int(row[0]))
        assert alpha_bar == pytest.approx(row[1], abs=5.01e-9), i
        assert alpha_bar_prev == pytest.approx(row[2], abs=5.01e-9), i
        eps = state / (1 - alpha_bar) ** 0.5
        of_eps = (after[0] / eps[0]).item()
        sigma = (after[1] - of_eps * eps[1]).item()
        weight = ((after[2] - of_eps * eps[2]) / alpha_bar_prev**0.5).item()
        measured = [sigma, of_eps, weight]
        assert measured == pytest.approx([row[3], row[4], row[column]], rel=0, abs=5.01e-7), i


def _alpha_bar_prev(i: int) -> float:
    return 1.0 if i == 0 else ALPHA_BAR[i - 50 + 1]


def test_confidence_is_exactly_0_at_lambda_0_and_1_at_infinity() -> None:
    for alpha_bar in ALPHA_BAR[1:]:
        assert confidence(alpha_bar, 0.0) == 0.0
        assert confidence(alpha_bar, math.inf) == 1.0


def test_correction_is_the_mean_of_the_corrections() -> None:
    x, x_0 = random_images(2, 5, 6, seed=1), random_images(2, 5, 6, seed=2)
    both = operators("gray", "blur:2")
    out = correction(x_0, both, [A.forward(x) for A in both], (5, 6))
    expected = (project(x - x_0, both[0]) + project(x - x_0, both[1])) / 2
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)


# Whole chains against priors whose answer is known


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("lambda_", LAMBDAS)
@pytest.mark.parametrize("names", [("blur:4",), ("gray", "blur:2"), ("blur:2+gray",), ("identity",)])
def test_an_oracle_prior_gives_the_clean_image_back(
    names: tuple[str, ...], lambda_: float, eta: float, fixed_noise: BuildNoise
) -> None:
    """Acceptance test 6: y = A x*, so there is nothing to correct."""
    clean = random_images(2, 6, 7)
    config = MethodConfig(lambda_=lambda_, eta=eta)
    out = purify(clean, Oracle(clean), operators(*names), config, noise=fixed_noise([1, 2]))
    torch.testing.assert_close(out, clean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["blur:4", "gray", "blur:2+gray"])
def test_infinite_lambda_keeps_exactly_what_the_transform_shows(name: str, fixed_noise: BuildNoise) -> None:
    """Acceptance test 7: the output is x* + P p, so A out = y."""
    clean, trigger = random_images(2, 6, 7), random_images(2, 6, 7, seed=9)
    (A,) = operators(name)
    x = clean + trigger
    out = purify(x, Oracle(clean), (A,), MethodConfig(lambda_=math.inf), noise=fixed_noise([1, 2]))
    torch.testing.assert_close(out, clean + project(trigger, A), rtol=0, atol=1e-12)
    torch.testing.assert_close(A.forward(out), A.forward(x), rtol=0, atol=1e-12)


def test_lambda_10_releases_all_but_a_thousandth_of_the_trigger(fixed_noise: BuildNoise) -> None:
    """Acceptance test 7: only the weight of the last step, 1 - 0.9999^10, is left."""
    clean, trigger = random_images(2, 6, 7), random_images(2, 6, 7, seed=9)
    (A,) = operators("blur:2")
    out = purify(clean + trigger, Oracle(clean), (A,), MethodConfig(lambda_=10.0), noise=fixed_noise([1, 2]))
    weight = 1 - 0.9999**10
    torch.testing.assert_close(out, clean + weight * project(trigger, A), rtol=0, atol=1e-12)
    assert weight == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("clip_x0", [False, True])
def test_infinite_lambda_agrees_with_the_input_for_any_prior(
    clip_x0: bool, fake_eps: FakeEps, fixed_noise: BuildNoise
) -> None:
    """Clipping comes before the correction; after it, A out = y would not hold."""
    x = random_images(2, 6, 7)
    (A,) = operators("blur:4")
    config = MethodConfig(lambda_=math.inf, clip_x0=clip_x0)
    out = purify(x, fake_eps, (A,), config, noise=fixed_noise([1, 2]))
    torch.testing.assert_close(A.forward(out), A.forward(x), rtol=0, atol=1e-12)
    assert not torch.allclose(out, project(x, A), atol=0.1)


def test_clipping_keeps_an_unguided_result_in_range(fake_eps: FakeEps, fixed_noise: BuildNoise) -> None:
    x = random_images(1, 6, 7)
    unclipped, clipped = (
        purify(
            x, fake_eps, operators("gray"), MethodConfig(lambda_=0.0, clip_x0=clip), noise=fixed_noise([1])
        )
        for clip in (False, True)
    )
    assert unclipped.abs().max() > 1
    assert clipped.abs().max() <= 1


def test_lambda_0_ignores_the_input(fake_eps: FakeEps, fixed_noise: BuildNoise) -> None:
    """Acceptance test 8, to the last bit."""
    config = MethodConfig(lambda_=0.0)
    outs = [
        purify(random_images(2, 6, 7, seed), fake_eps, operators("blur:2"), config, noise=fixed_noise([1, 2]))
        for seed in (3, 4)
    ]
    assert torch.equal(*outs)


def test_a_positive_lambda_does_not_ignore_the_input(fake_eps: FakeEps, fixed_noise: BuildNoise) -> None:
    config = MethodConfig(lambda_=2.0)
    outs = [
        purify(random_images(2, 6, 7, seed), fake_eps, operators("blur:2"), config, noise=fixed_noise([1, 2]))
        for seed in (3, 4)
    ]
    assert not torch.allclose(*outs, atol=0.01)


@pytest.mark.parametrize(("eta", "same"), [(0.0, True), (0.5, False), (1.0, False)])
def test_only_eta_0_ignores_the_noise_of_the_steps(eta: float, same: bool, fake_eps: FakeEps) -> None:
    x = random_images(1, 6, 7)
    start = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    outs = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        draws = [start, *torch.randn(20, *x.shape, generator=generator, dtype=x.dtype)]
        config = MethodConfig(eta=eta)
        outs.append(purify(x, fake_eps, operators("blur:2"), config, noise=replay(draws)))
    assert torch.equal(*outs) == same


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("grid", "steps"), [("official", 20), ("official", 10), ("paper", 20)])
def test_noise_is_drawn_once_for_the_start_and_once_per_step(
    grid: str, steps: int, eta: float, fake_eps: FakeEps
) -> None:
    """Also where sigma is 0, so that eta does not shift the noise of later steps."""
    shapes = []

    def noise(x_t: Tensor, /) -> Tensor:
        shapes.append(x_t.shape)
        return torch.zeros_like(x_t)

    x = random_images(2, 6, 7)
    purify(x, fake_eps, operators("gray"), MethodConfig(grid=grid, steps=steps, eta=eta), noise=noise)
    assert shapes == [x.shape] * (1 + len(fake_eps.timesteps))


def test_the_result_has_the_shape_and_precision_of_the_input(
    fake_eps: FakeEps, fixed_noise: BuildNoise
) -> None:
    x = random_images(2, 13, 18, dtype=torch.float32)
    before = x.clone()
    out = purify(x, fake_eps, operators("blur", "gray"), MethodConfig(), noise=fixed_noise([1, 2]))
    assert (out.shape, out.dtype) == (x.shape, torch.float32)
    assert torch.equal(x, before)


def test_a_learned_variance_is_ignored(fake_eps: FakeEps, fixed_noise: BuildNoise) -> None:
    class WithVariance(FakeEps):
        def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
            return torch.cat([super().__call__(x_t, t), torch.full_like(x_t, 5.0)], dim=1)

    x = random_images(2, 6, 7)
    outs = [
        purify(x, model, operators("blur:2"), MethodConfig(), noise=fixed_noise([1, 2]))
        for model in (fake_eps, WithVariance())
    ]
    assert torch.equal(*outs)


@pytest.mark.parametrize("lambda_", [2.0, math.inf])
def test_an_image_alone_equals_the_image_in_a_batch_of_8(
    lambda_: float, fake_eps: FakeEps, fixed_noise: BuildNoise
) -> None:
    """Acceptance test 14. Tolerance 1e-5: float32, where vector code may round another way."""
    x = random_images(8, 13, 18, dtype=torch.float32)
    config = MethodConfig(lambda_=lambda_)
    both = operators("blur:4", "gray")
    together = purify(x, fake_eps, both, config, noise=fixed_noise(list(range(8))))
    for k in range(8):
        alone = purify(x[k : k + 1], fake_eps, both, config, noise=fixed_noise([k]))
        torch.testing.assert_close(alone[0], together[k], rtol=0, atol=1e-5)


class Breaks(FakeEps):
    """Answers NaN or infinity for chosen images, from a chosen timestep on."""

    def __init__(self, bad: Sequence[tuple[int, int, float]]) -> None:
        super().__init__()
        self.bad = bad

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        eps = super().__call__(x_t, t).clone()
        for image, timestep, value in self.bad:
            if t[0] == timestep:
                eps[image, 1, 2, 3] = value
        return eps


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_image_is_named_with_its_step_and_no_other_is(value: float, fixed_noise: BuildNoise) -> None:
    """Acceptance test 15: timestep 700 is the sixth of the official grid, counted from 0 it is step 5."""
    model = Breaks([(2, 700, value)])
    with pytest.raises(NonFiniteError, match=r"step 5 \(timestep 700\)") as caught:
        purify(
            random_images(4, 6, 7),
            model,
            operators("blur:2"),
            MethodConfig(),
            noise=fixed_noise([1, 2, 3, 4]),
        )
    assert caught.value.images == (2,)


def test_the_first_of_several_broken_steps_is_named(fixed_noise: BuildNoise) -> None:
    model = Breaks([(3, 700, math.nan), (0, 100, math.inf)])
    with pytest.raises(NonFiniteError, match=r"step 5 \(timestep 700\)") as caught:
        purify(
            random_images(4, 6, 7),
            model,
            operators("blur:2"),
            MethodConfig(),
            noise=fixed_noise([1, 2, 3, 4]),
        )
    assert caught.value.images == (0, 3)


def test_a_broken_last_step_is_noticed(fixed_noise: BuildNoise) -> None:
    with pytest.raises(NonFiniteError, match=r"step 19 \(timestep 0\)"):
        purify(
            random_images(1, 6, 7),
            Breaks([(0, 0, math.nan)]),
            operators("blur:2"),
            MethodConfig(),
            noise=fixed_noise([1]),
        )


# Grids


def test_official_grid_is_that_of_the_released_program() -> None:
    """Acceptance test 5."""
    assert timesteps("official", 20, 1000) == [
        *(950, 900, 850, 800, 750, 700, 650, 600, 550, 500),
        *(450, 400, 350, 300, 250, 200, 150, 100, 50, 0),
    ]


def test_paper_grid_starts_at_the_last_timestep_and_has_one_more() -> None:
    assert timesteps("paper", 20, 1000) == [
        *(999, 949, 899, 849, 799, 749, 699, 649, 599, 549),
        *(499, 449, 399, 349, 299, 249, 199, 149, 99, 49),
        0,
    ]


def test_full_grid_visits_every_timestep() -> None:
    assert timesteps("full", 20, 1000) == sorted(range(1000), reverse=True)


@pytest.mark.parametrize("grid", ["official", "paper"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30, 999, 1000])
def test_grids_fall_to_0_without_repeats(grid: str, steps: int) -> None:
    visited = timesteps(grid, steps, 1000)
    assert visited == sorted(set(visited), reverse=True)
    assert visited[-1] == 0
    assert visited[0] == (999 if grid == "paper" else (1000 // steps) * (steps - 1))


@pytest.mark.parametrize(
    ("grid", "steps", "visited"),
    [
        ("official", 20, list(range(950, -1, -50))),
        ("official", 10, list(range(900, -1, -100))),
        ("paper", 4, [999, 749, 499, 249, 0]),
    ],
)
def test_the_prior_is_asked_at_the_0_based_timesteps_of_the_grid(
    grid: str, steps: int, visited: list[int], fake_eps: FakeEps, fixed_noise: BuildNoise
) -> None:
    config = MethodConfig(grid=grid, steps=steps)
    purify(random_images(1, 6, 7), fake_eps, operators("gray"), config, noise=fixed_noise([1]))
    assert fake_eps.timesteps == visited


@pytest.mark.parametrize("steps", [1, 3, 600])
def test_a_grid_that_starts_too_late_is_refused_with_the_way_out(
    steps: int, fake_eps: FakeEps, fixed_noise: BuildNoise
) -> None:
    x = random_images(1, 6, 7)
    with pytest.raises(ConfigError, match="--grid paper"):
        purify(x, fake_eps, operators("gray"), MethodConfig(steps=steps), noise=fixed_noise([1]))
    assert fake_eps.timesteps == []
    purify(x, fake_eps, operators("gray"), MethodConfig(steps=steps, grid="paper"), noise=fixed_noise([1]))
    assert fake_eps.timesteps[0] == 999


@pytest.mark.parametrize("grid", ["official", "paper"])
def test_more_steps_than_timesteps_are_refused(grid: str) -> None:
    with pytest.raises(ConfigError, match="1000 timesteps"):
        timesteps(grid, 1001, 1000)


# Time travel


def test_jump_schedules_are_those_of_repaint() -> None:
    """Acceptance test 10."""
    assert time_travel(20, 1, 1) == [*range(19, -1, -1), CLEAN]
    assert time_travel(6, 2, 2) == [5, 4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0, CLEAN]
    assert time_travel(3, 1, 2) == [2, 1, 2, 1, 0, 1, 0, CLEAN]
    assert len(time_travel(100, 2, 2)) == 297


@pytest.mark.parametrize(("length", "repeat"), [(1, 2), (2, 2), (3, 3), (19, 2)])
def test_time_travel_stays_finite_and_ends_at_the_clean_image(
    length: int, repeat: int, fixed_noise: BuildNoise
) -> None:
    clean = random_images(2, 6, 7)
    oracle = Oracle(clean)
    config = MethodConfig(lambda_=2.0, travel_length=length, travel_repeat=repeat)
    out = purify(clean, oracle, operators("blur:2"), config, noise=fixed_noise([1, 2]))
    torch.testing.assert_close(out, clean, rtol=0, atol=1e-12)
    walk = time_travel(20, length, repeat)
    falls = sum(after < before for before, after in pairwise(walk))
    assert len(oracle.timesteps) == falls


def test_time_travel_goes_back_from_the_estimate_before_its_correction() -> None:
    """The oracle answers 0, the target is 1: a jump with noise z leads to the state sqrt(1 - alpha_bar) z."""
    oracle = Oracle(torch.zeros(1, 3, 1, 1, dtype=torch.float64))
    x = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    config = MethodConfig(lambda_=math.inf, travel_length=1, travel_repeat=2)
    purify(x, oracle, operators("identity"), config, noise=lambda x_t: torch.full_like(x_t, 0.5))
    jumps = 0
    for (before, after), state in zip(pairwise(oracle.timesteps), oracle.states[1:], strict=True):
        if after == before:  # down, up again, and down once more from the same timestep
            jumps += 1
            expected = 0.5 * (1 - ALPHA_BAR[int(after) + 1]) ** 0.5
            torch.testing.assert_close(state, torch.full_like(state, expected), rtol=0, atol=1e-14)
    assert jumps == 19


# The baseline without a prior


def test_blur_baseline_is_what_the_transforms_show_averaged(fixed_noise: BuildNoise) -> None:
    x = random_images(2, 5, 6)
    both = operators("gray", "blur:2")
    out = METHODS["blur"](x, None, both, MethodConfig(), noise=fixed_noise([1, 2]))
    torch.testing.assert_close(out, (project(x, both[0]) + project(x, both[1])) / 2, rtol=0, atol=1e-14)
