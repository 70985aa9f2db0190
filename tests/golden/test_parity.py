"""The sampler against a slow float64 transcription of the paper, and against a published scheduler.

Tolerances are relative to the largest value of the expected image, where that is above 1.
FLOAT64, measured 6e-15: the sampler corrects x_0 where the paper corrects x_t. Equal by algebra; what is left
is rounding (1e-16), of which 1 / sqrt(alpha_bar), about 100 in the first steps, multiplies a part.
FLOAT32, measured 1e-6: the same from 6e-8. Both leave a factor of about 15 for other processors.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from golden import transcription as paper
from torch import Tensor

from zipcli.config import MethodConfig, NoiseSchedule
from zipcli.methods.zip import purify
from zipcli.transforms import make_operator

FLOAT64 = 1e-13
FLOAT32 = 1.5e-5

MASK = np.array([[(3 * row + column) % 4 != 0 for column in range(8)] for row in range(8)], dtype=float)
LINEAR = paper.linear_schedule()

# The timesteps as the paper counts them, from 1.
GRIDS = {
    "official": [951 - 50 * k for k in range(20)],
    "paper": [*range(1000, 0, -50), 1],
    "full": list(range(1000, 0, -1)),
}

TRANSFORMS: dict[tuple[str, ...], Callable[[int, int], list[paper.Transform]]] = {
    ("blur:2",): lambda H, W: [paper.blur(2, H, W)],
    ("blur:4",): lambda H, W: [paper.blur(4, H, W)],
    ("gray",): lambda H, W: [paper.gray()],
    ("blur:2+gray",): lambda H, W: [paper.compose(paper.blur(2, H, W), paper.gray())],
    ("gray", "blur:2"): lambda H, W: [paper.gray(), paper.blur(2, H, W)],
    ("mask:m.png",): lambda H, W: [paper.mask(MASK[:H, :W])],
}


class TanhEps:
    """A smooth nonlinear prior that mixes neighbours and channels; the same in numpy and torch."""

    channels = 3
    native_side = None
    minimum_side = 1

    def __init__(self, schedule: NoiseSchedule | None = None) -> None:
        self.schedule = schedule or NoiseSchedule()

    def share(self, i: float) -> float:
        """Like a real prior, take most of a noisy state for noise and little of a clean one."""
        return math.sin(math.pi / 2 * (i + 1) / self.schedule.timesteps)

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        i = t[0].item()
        mixed = torch.tanh(x_t.flip(1) + 0.5 * x_t.roll(1, -1) - 0.3 * x_t.roll(1, -2) + math.cos(i))
        return self.share(i) * x_t + 0.2 * mixed

    def numpy(self, x_t: paper.Array, i: int) -> paper.Array:
        mixed = np.tanh(x_t[::-1] + 0.5 * np.roll(x_t, 1, -1) - 0.3 * np.roll(x_t, 1, -2) + math.cos(i))
        return self.share(i) * x_t + 0.2 * mixed


class Replay:
    """Noise from a list, in order."""

    def __init__(self, draws: Sequence[paper.Array]) -> None:
        self.draws = list(draws)

    def __call__(self, x_t: Tensor, /) -> Tensor:
        return torch.from_numpy(self.draws.pop(0)).to(x_t.dtype)


def run(
    x: paper.Array,
    eps: TanhEps,
    names: Sequence[str],
    config: MethodConfig,
    draws: Sequence[paper.Array],
    dtype: torch.dtype,
) -> paper.Array:
    """Our sampler; every draw must be used, one for the start and one for each step."""
    H, W = x.shape[-2:]
    keep = torch.from_numpy(MASK[None, None, :H, :W].copy())
    operators = tuple(make_operator(name, lambda _: keep) for name in names)
    noise = Replay(draws)
    out = purify(torch.from_numpy(x).to(dtype), eps, operators, config, noise=noise)
    assert out.dtype == dtype
    assert noise.draws == []
    return out.double().numpy()


def images_and_noise(count: int, H: int, W: int) -> tuple[paper.Array, paper.Array]:
    random = np.random.default_rng(7)
    # Exactly representable in float32, so that both precisions start from the same numbers.
    x = random.uniform(-1, 1, (2, 3, H, W)).astype(np.float32).astype(float)
    return x, random.standard_normal((count, *x.shape), dtype=np.float32).astype(float)


def assert_close(out: paper.Array, expected: paper.Array, tolerance: float) -> None:
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def check_algorithm_2(grid: str, names: tuple[str, ...], lambda_: float, eta: float, H: int, W: int) -> None:
    visited = GRIDS[grid]
    eps = TanhEps()
    x, draws = images_and_noise(len(visited) + 1, H, W)
    transforms = TRANSFORMS[names](H, W)
    expected = np.stack(
        [
            paper.algorithm_2(x[k], eps.numpy, transforms, lambda_, list(draws[:, k]), LINEAR, visited, eta)
            for k in range(len(x))
        ]
    )
    config = MethodConfig(grid=grid, lambda_=lambda_, eta=eta)
    assert_close(run(x, eps, names, config, draws, torch.float64), expected, FLOAT64)
    assert_close(run(x, eps, names, config, draws, torch.float32), expected, FLOAT32)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("lambda_", [0.0, 1.0, 2.0, 10.0, math.inf])
@pytest.mark.parametrize("names", TRANSFORMS, ids=" ".join)
def test_official_grid_equals_the_papers_state_space_form(
    names: tuple[str, ...], lambda_: float, eta: float
) -> None:
    check_algorithm_2("official", names, lambda_, eta, H=6, W=5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("names", TRANSFORMS, ids=" ".join)
def test_paper_grid_equals_algorithm_2(names: tuple[str, ...], eta: float) -> None:
    check_algorithm_2("paper", names, 2.0, eta, H=8, W=8)


def test_full_grid_equals_algorithm_2_at_every_timestep() -> None:
    check_algorithm_2("full", ("blur:2+gray",), math.inf, 0.5, H=4, W=4)


def test_thousand_steps_with_eta_1_equal_algorithm_1() -> None:
    eps = TanhEps()
    x, draws = images_and_noise(1001, 4, 4)
    transforms = [paper.gray(), paper.blur(3, 4, 4)]
    expected = np.stack(
        [
            paper.algorithm_1(x[k], eps.numpy, transforms, 2.0, list(draws[:, k]), LINEAR)
            for k in range(len(x))
        ]
    )
    config = MethodConfig(grid="full", steps=1000, lambda_=2.0, eta=1.0)
    names = ("gray", "blur:3")
    assert_close(run(x, eps, names, config, draws, torch.float64), expected, FLOAT64)
    assert_close(run(x, eps, names, config, draws, torch.float32), expected, FLOAT32)


@pytest.mark.parametrize("lambda_", [0.0, 10.0, math.inf])
@pytest.mark.parametrize("names", TRANSFORMS, ids=" ".join)
def test_a_short_schedule_with_eta_1_equals_algorithm_1(names: tuple[str, ...], lambda_: float) -> None:
    """Five steps that fall from alpha_bar 0.8 to 4e-4: each one is large, so no error can hide."""
    settings = NoiseSchedule(beta_start=0.2, beta_end=0.98, timesteps=5)
    eps = TanhEps(settings)
    x, draws = images_and_noise(6, 6, 5)
    transforms = TRANSFORMS[names](6, 5)
    schedule = paper.linear_schedule(settings.beta_start, settings.beta_end, settings.timesteps)
    expected = np.stack(
        [
            paper.algorithm_1(x[k], eps.numpy, transforms, lambda_, list(draws[:, k]), schedule)
            for k in range(len(x))
        ]
    )
    config = MethodConfig(grid="full", lambda_=lambda_, eta=1.0)
    assert_close(run(x, eps, names, config, draws, torch.float64), expected, FLOAT64)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_without_guidance_it_is_the_ddim_of_diffusers(eta: float) -> None:
    """Tolerance 1e-5, measured 6e-7: their alpha_bar is float32, with errors near 1e-6; ours is float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what their import warns about is not ours to fix
        diffusers = pytest.importorskip("diffusers")
        scheduler = diffusers.DDIMScheduler(
            num_train_timesteps=1000,
            beta_schedule="linear",
            beta_start=1e-4,
            beta_end=0.02,
            clip_sample=False,
            set_alpha_to_one=True,
            timestep_spacing="leading",
            steps_offset=0,
        )
    scheduler.set_timesteps(20)
    eps = TanhEps()
    x, draws = images_and_noise(21, 6, 5)
    x_t = torch.from_numpy(draws[0])
    for t, z in zip(scheduler.timesteps, draws[1:], strict=True):
        prediction = eps(x_t, t.expand(len(x_t)).double())
        x_t = scheduler.step(prediction, t, x_t, eta=eta, variance_noise=torch.from_numpy(z)).prev_sample
    config = MethodConfig(grid="official", lambda_=0.0, eta=eta)
    out = run(x, eps, ("blur:2",), config, draws, torch.float64)
    assert_close(out, x_t.numpy(), 1e-5)
