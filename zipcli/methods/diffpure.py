"""DiffPure: drown the image in noise up to a timestep t_star, and go back with the diffusion prior.

Source: Nie et al., "Diffusion Models for Adversarial Purification", ICML 2022, and its program.
"""

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from zipcli.config import MethodConfig, NoiseSchedule
from zipcli.methods.blur import purify as transform
from zipcli.methods.linear import ALPHA_BAR, LINEAR, LinearPrior, check_reaches
from zipcli.methods.steps import FiniteWatch, predict_x0
from zipcli.protocols import EpsModel, LinearOperator, Noise
from zipcli.schedule import betas

BETA_0, BETA_1 = 0.1, 20.0
"""The SDE has beta(t) = BETA_0 + (BETA_1 - BETA_0) t, for t from 0 to 1: the linear schedule, times 1,000."""

LAST_T = 1e-5
"""Where the program ends the SDE."""

_BETA = betas(LINEAR).tolist()
_ALPHA_BAR = ALPHA_BAR.tolist()

# The next state is the first of the two and fresh noise, times the second.
Step = Callable[[Tensor, Tensor, int], tuple[Tensor, float]]


def purify(
    x: Tensor,
    eps_model: EpsModel | None,
    operators: tuple[LinearOperator, ...],
    config: MethodConfig,
    /,
    *,
    noise: Noise,
) -> Tensor:
    """Purify a batch of images.

    Args:
        x: Suspicious images, (N, C, H, W), float32 in [-1, 1].
        eps_model: The diffusion prior.
        operators: Not used.
        config: t_star, and the sampler: sde is what the program does by default, ddpm the posterior, ode the
            same without noise.
        noise: One draw for the start, then one for every step of sde, for every but the last of ddpm.

    Returns:
        Purified images, (N, C, H, W), not clipped.

    Raises:
        NonFiniteError: The state of some image became NaN or infinite.

    Source: Algorithm 1. The program asks the network at floor(1000 t), which rounding makes t_star or
    t_star - 1 for the first step; here they are t_star - 1, ..., 0.
    """
    assert eps_model is not None
    assert config.t_star is not None
    visited = range(config.t_star - 1, -1, -1)
    prior = LinearPrior(eps_model, visited)
    step = STEPS[config.sampler]
    first = _ALPHA_BAR[config.t_star - 1]
    x_t = math.sqrt(first) * x + math.sqrt(1 - first) * noise(x)
    watch = FiniteWatch(x)
    for number, i in enumerate(visited):
        x_t, spread = step(x_t, prior(x_t, i), i)
        if spread:
            x_t = x_t + spread * noise(x_t)
        watch.see(number, x_t)
    watch.refuse(visited)
    return x_t


def purify_transformed(
    x: Tensor,
    eps_model: EpsModel | None,
    operators: tuple[LinearOperator, ...],
    config: MethodConfig,
    /,
    *,
    noise: Noise,
) -> Tensor:
    """Purify A+ A x, averaged over the transforms A_n; all else is as in `purify`.

    Source: Shi et al. 2023, Blur+DiffPure in table 6.
    """
    return purify(
        transform(x, None, operators, config, noise=noise), eps_model, operators, config, noise=noise
    )


def evaluations(config: MethodConfig, schedule: NoiseSchedule, size: tuple[int, int]) -> int:
    """Calls of the network for an image.

    Raises:
        ConfigError: The model does not know as much noise as t_star asks for.
    """
    assert config.t_star is not None
    check_reaches(schedule, config.t_star - 1, "t star")
    return config.t_star


def sde_step(x_t: Tensor, eps: Tensor, i: int) -> tuple[Tensor, float]:
    """A step of Euler and Maruyama back in time along the variance-preserving SDE.

    Source: Song et al. 2021 (score SDE), eq. 6 and 11.
    """
    return _euler_step(x_t, eps, i, of_score=1.0), math.sqrt(_beta(i) * _dt(i))


def ode_step(x_t: Tensor, eps: Tensor, i: int) -> tuple[Tensor, float]:
    """A step of Euler back in time along the probability flow, which has no noise.

    Source: Song et al. 2021 (score SDE), eq. 13.
    """
    return _euler_step(x_t, eps, i, of_score=0.5), 0.0


def ddpm_step(x_t: Tensor, eps: Tensor, i: int) -> tuple[Tensor, float]:
    """A step to the posterior of DDPM, from an estimate of x_0 that is clipped to [-1, 1].

    Source: Ho et al. 2020, eq. 6 and 7, with its smaller variance; the clipping is the program's.
    """
    beta, alpha_bar = _BETA[i], _ALPHA_BAR[i]
    alpha_bar_prev = _ALPHA_BAR[i - 1] if i else 1.0
    x_0 = predict_x0(x_t, eps, alpha_bar).clamp(-1, 1)
    of_x_0 = math.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar)
    of_x_t = math.sqrt(1 - beta) * (1 - alpha_bar_prev) / (1 - alpha_bar)
    return of_x_0 * x_0 + of_x_t * x_t, math.sqrt(beta * (1 - alpha_bar_prev) / (1 - alpha_bar))


STEPS: Mapping[str, Step] = {"sde": sde_step, "ddpm": ddpm_step, "ode": ode_step}


def _euler_step(x_t: Tensor, eps: Tensor, i: int, *, of_score: float) -> Tensor:
    """beta/2 x + of_score beta score, with score = -eps / sqrt(1 - alpha_bar), over the time of a step."""
    t = (i + 1) / 1000
    alpha_bar = math.exp(-(BETA_1 - BETA_0) / 2 * t**2 - BETA_0 * t)
    of_eps = -of_score * _beta(i) / math.sqrt(1 - alpha_bar) * _dt(i)
    return (1 + _beta(i) / 2 * _dt(i)) * x_t + of_eps * eps


def _beta(i: int) -> float:
    return BETA_0 + (BETA_1 - BETA_0) * (i + 1) / 1000


def _dt(i: int) -> float:
    """Time from timestep i to the next, a thousandth; the last ends a little early."""
    return (i + 1) / 1000 - max(i / 1000, LAST_T)
