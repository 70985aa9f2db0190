"""Chains of few evaluations: exact where the transforms see, a draw from the prior where they do not."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fakes import FakeEps
from golden.transcription import mix
from torch import Tensor

from zipcli.config import MethodConfig
from zipcli.errors import NonFiniteError
from zipcli.methods.few import HIGHEST_SIGMA, LOWEST_SIGMA, first_sigma, noise_levels
from zipcli.methods.nullspace import purify
from zipcli.methods.zip import purify as purify_zip
from zipcli.projection import removed
from zipcli.protocols import LinearOperator, Method, Noise
from zipcli.schedule import alpha_bars
from zipcli.transforms import make_operator

BuildNoise = Callable[[list[int]], Noise]


def operators(*names: str) -> tuple[LinearOperator, ...]:
    def half(name: str) -> Tensor:
        mask = torch.ones(1, 1, 6, 8, dtype=torch.float64)
        mask[..., 4:] = 0
        return mask

    return tuple(make_operator(name, half) for name in names)


def random_images(count: int, H: int = 6, W: int = 8, seed: int = 0) -> Tensor:
    return (
        torch.rand(count, 3, H, W, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    )


class GaussianPrior(FakeEps):
    """The exact noise predictor of images whose pixels are independent, N(mean, std^2)."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.variance = mean, std**2

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        self.timesteps.append(t[0].item())
        table = alpha_bars(self.schedule).log().numpy()
        alpha_bar = math.exp(np.interp(t[0].item(), np.arange(len(table)), table))
        centred = x_t - math.sqrt(alpha_bar) * self.mean
        return math.sqrt(1 - alpha_bar) * centred / (alpha_bar * self.variance + 1 - alpha_bar)


EXACT = [
    MethodConfig(sampler="decoupled", steps=1, lambda_=math.inf),
    MethodConfig(sampler="decoupled", steps=4, lambda_=math.inf),
    MethodConfig(sampler="warm", steps=5, eta=0.0, lambda_=math.inf),
    MethodConfig(sampler="warm", steps=4, eta=0.7, lambda_=math.inf),
    MethodConfig(sampler="multistep", steps=4, eta=1.0, lambda_=math.inf),
    MethodConfig(sampler="multistep", steps=5, eta=0.3, lambda_=math.inf),
]
LETTING_GO = [
    MethodConfig(sampler="decoupled", steps=3, lambda_=100.0),
    MethodConfig(sampler="warm", steps=4, eta=0.7, lambda_=10.0),
    MethodConfig(sampler="multistep", steps=4, eta=1.0, lambda_=0.0),
]


@pytest.mark.parametrize(
    "names", [("blur:2",), ("gray",), ("blur:4+gray",), ("blur:2", "gray"), ("mask:half",)]
)
@pytest.mark.parametrize("config", EXACT, ids=str)
def test_what_the_transforms_keep_stays_exact(
    names: tuple[str, ...], config: MethodConfig, fixed_noise: BuildNoise
) -> None:
    x, used = random_images(2), operators(*names)
    out = purify(x, FakeEps(), used, config, noise=fixed_noise([1, 2]))
    for A in used:
        torch.testing.assert_close(A.forward(out), A.forward(x), rtol=0, atol=1e-12)
    assert (out - x).abs().max() > 0.1


@pytest.mark.parametrize("config", EXACT, ids=str)
@pytest.mark.parametrize("name", ["blur:2", "gray", "blur:4+gray", "mask:half", "identity"])
def test_zip_ends_with_the_same_transform_as_the_input(
    name: str, config: MethodConfig, fixed_noise: BuildNoise
) -> None:
    """In float32, on values such as a network gives: |A x_out - A x| <= 1e-5."""
    x, (A,) = random_images(2).float(), operators(name)
    out = purify_zip(x, FakeEps(), (A,), config, noise=fixed_noise([1, 2]))
    assert (A.forward(out) - A.forward(x)).abs().max() <= 1e-5


@pytest.mark.parametrize("config", EXACT + LETTING_GO, ids=str)
@pytest.mark.parametrize("in_nullspace", [False, True])
def test_the_chain_is_that_of_the_papers(
    config: MethodConfig, in_nullspace: bool, fixed_noise: BuildNoise
) -> None:
    """The same numbers from the usual letters: alpha_bar, and sigma of DDIM's eq. 16."""
    x, (A,) = random_images(1), operators("blur:2")
    prior = GaussianPrior(0.1, 0.5)
    method = purify if in_nullspace else purify_zip
    out = method(x, prior, (A,), config, noise=fixed_noise([3]))

    def hidden(v: Tensor) -> Tensor:
        return v - A.pinv(A.forward(v), (6, 8))

    def under_noise(v: Tensor) -> Tensor:
        return hidden(v) if in_nullspace else v

    noise = fixed_noise([3])
    levels = [*np.geomspace(4 * 0.13, LOWEST_SIGMA, config.steps), 0.0]
    bars = [1 / (1 + sigma**2) for sigma in levels]
    kept = x - hidden(x)
    x_t = bars[0] ** 0.5 * kept + (1 - bars[0]) ** 0.5 * under_noise(noise(x))
    before = None
    for k in range(config.steps):
        a, b = bars[k], bars[k + 1]
        eps = prior(x_t, torch.tensor([prior.timesteps[k]]))
        x_0 = (x_t - (1 - a) ** 0.5 * eps) / a**0.5
        x_0 = mix(x_0, kept + hidden(x_0), a, config.lambda_)
        eps = under_noise(eps)
        guess = x_0
        if config.sampler == "multistep" and before is not None:
            # DPM-Solver++(2M): D = (1 + 1 / 2r) x_0 - 1 / 2r x_0', where r compares the steps in log(sigma).
            r = math.log(levels[k - 1] / levels[k]) / math.log(levels[k] / levels[k + 1]) if b < 1 else None
            guess = x_0 if r is None else (1 + 1 / (2 * r)) * x_0 - before / (2 * r)
        before = x_0
        if b == 1:
            x_t = x_0
        elif config.sampler == "decoupled":
            x_t = b**0.5 * x_0 + (1 - b) ** 0.5 * under_noise(noise(x))
        else:
            spread = config.eta * ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
            x_t = b**0.5 * guess + (1 - b - spread**2) ** 0.5 * eps + spread * under_noise(noise(x))
    torch.testing.assert_close(out, x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [purify, purify_zip])
def test_the_smaller_lambda_the_more_is_let_go(method: Method, fixed_noise: BuildNoise) -> None:
    x, (A,) = random_images(2), operators("blur:2")
    off = []
    for lambda_ in (math.inf, 300.0, 30.0, 0.0):
        config = MethodConfig(sampler="warm", steps=5, lambda_=lambda_)
        out = method(x, GaussianPrior(0.1, 0.2), (A,), config, noise=fixed_noise([1, 2]))
        off.append((A.forward(out) - A.forward(x)).abs().mean().item())
    assert off[0] < 1e-12
    assert off == sorted(off)
    assert off[1] > 1e-4


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("sampler", ["decoupled", "warm", "multistep"])
def test_each_step_costs_one_evaluation(steps: int, sampler: str, fixed_noise: BuildNoise) -> None:
    prior = FakeEps()
    purify(
        random_images(1),
        prior,
        operators("blur:2"),
        MethodConfig(sampler=sampler, steps=steps),
        noise=fixed_noise([1]),
    )
    assert len(prior.timesteps) == steps


def test_what_was_removed_decides_the_first_noise_and_not_the_image() -> None:
    size = (32, 32)
    first = [
        first_sigma(operators(name), size) for name in ("identity", "blur:2", "blur:4", "blur:8", "mask:half")
    ]
    assert first == sorted(first)
    assert first[0] > LOWEST_SIGMA
    assert first[-1] == HIGHEST_SIGMA
    assert first_sigma(operators("blur:2", "gray"), size) > first_sigma(operators("blur:2"), size)
    assert first_sigma(operators("blur"), (31, 31)) == first_sigma(operators("blur:2"), (31, 31))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_a_mask_hides_is_drawn_from_the_prior(eta: float) -> None:
    """Pixels that know nothing of each other: the hidden ones must be N(0.2, 0.3^2), whatever is beside them.

    The start leaves a little of the middle grey it begins from, as HIGHEST_SIGMA is 2 and not infinite, and
    the last step takes the mean at LOWEST_SIGMA: 1.4 % less spread.
    """
    x = random_images(400)
    generator = torch.Generator().manual_seed(0)
    out = purify(
        x,
        GaussianPrior(0.2, 0.3),
        operators("mask:half"),
        MethodConfig(sampler="warm", steps=100, eta=eta, lambda_=math.inf),
        noise=lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype),
    )
    drawn = out[..., 4:]
    assert drawn.mean().item() == pytest.approx(0.2, abs=0.03)
    assert drawn.std().item() == pytest.approx(0.3, rel=0.05)
    torch.testing.assert_close(out[..., :4], x[..., :4], rtol=0, atol=1e-12)


def test_removed_is_a_projection_and_complements_what_is_kept() -> None:
    x, used = random_images(2), operators("blur:2", "gray")
    hidden = removed(x, used)
    torch.testing.assert_close(removed(hidden, used), hidden, rtol=0, atol=1e-14)
    for A in used:
        assert A.forward(hidden).abs().max() < 1e-14


def test_the_noise_falls_evenly_on_a_logarithmic_scale() -> None:
    assert noise_levels(0.7, 1) == [0.7]
    levels = noise_levels(0.7, 20)
    assert (levels[0], levels[-1]) == pytest.approx((0.7, LOWEST_SIGMA))
    np.testing.assert_allclose(np.diff(np.log(levels)), np.diff(np.log(levels))[0])


def test_a_lost_state_names_the_image_and_the_step(fixed_noise: BuildNoise) -> None:
    class Lost(FakeEps):
        def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
            eps = super().__call__(x_t, t).clone()
            if len(self.timesteps) == 2:
                eps[1] = math.nan
            return eps

    with pytest.raises(NonFiniteError, match="at step 1") as caught:
        purify(
            random_images(3),
            Lost(),
            operators("blur"),
            MethodConfig(sampler="warm", steps=3),
            noise=fixed_noise([1, 2, 3]),
        )
    assert caught.value.images == (1,)
