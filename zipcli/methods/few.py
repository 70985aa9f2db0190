"""Chains of few evaluations: they begin near the image.

A chain from pure noise spends most of its steps on finding again what A x tells already. Here the first
state is A+ A x under as much noise as hides what A removes from images, every estimate of the clean image
is corrected towards A x, the last one included, and no step repeats another's work. An infinite lambda
corrects until A x is exact; a finite one weighs the correction by ZIP's confidence, and so lets the prior
smooth what A kept in the last steps, where there is hardly any noise: what is left of a faint trigger there,
and some of the image. Three samplers go on from an estimate in different ways:

    warm        DDIM; with eta 1 the posterior of DDPM (Song et al. 2021, eq. 12 and 16)
    multistep   the same from a linear extrapolation of the last two estimates, the second-order solver for
                data prediction (Lu et al. 2022, DPM-Solver++, algorithm 2; with noise, its appendix)
    decoupled   all noise is drawn anew: what the last estimate got wrong is not carried on
                (Garber and Tirer 2024, "CM4IR", without its over-scaling, which did not help)

States are written with noise over image, x = x_0 + sigma n (Karras et al. 2022), not as the
sqrt(alpha_bar) x of DDPM: only there is the part that the transforms keep the same in every state.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from zipcli.config import MethodConfig, NoiseSchedule, check
from zipcli.methods.steps import FiniteWatch, confidence, denoise
from zipcli.protocols import EpsModel, LinearOperator, Noise
from zipcli.schedule import timestep_at

HIGHEST_SIGMA = 2.0
"""Noise that hides whatever a transform may have removed; images have a spread of about 0.5."""

LOWEST_SIGMA = 0.05
"""Noise of the last but the clean state. Measured: at 0.1 more of a faint trigger survives (ISSBA)."""

START_OVER_REMOVED = 4.0
"""The first noise over what the transforms remove from clean images. Measured on clean CIFAR-10 images with
blur:2: at 2.3 accuracy falls by 3 points, at 6 by 1."""


def restore(
    x: Tensor,
    eps_model: EpsModel,
    operators: tuple[LinearOperator, ...],
    config: MethodConfig,
    *,
    noise: Noise,
    covered: Callable[[Tensor], Tensor],
    correction: Callable[[Tensor], Tensor],
) -> Tensor:
    """Draw an image that agrees with A x, as far as lambda has it.

    Args:
        x: Suspicious images, (N, C, H, W), float32 in [-1, 1].
        eps_model: The diffusion prior.
        operators: Transforms A_n.
        config: Sampler, steps, lambda and eta.
        noise: One draw for each step.
        covered: Takes noise, or what the prior took for it, to the part that lies under noise at all.
        correction: What an estimate lacks to agree with A x.

    Returns:
        The last corrected estimate, (N, C, H, W), not clipped.

    Raises:
        NonFiniteError: The state of some image became NaN or infinite.
    """
    levels = noise_levels(first_sigma(operators, (x.shape[-2], x.shape[-1])), config.steps)
    timesteps = [timestep_at(eps_model.schedule, sigma) for sigma in levels]
    watch = FiniteWatch(x)
    state = correction(torch.zeros_like(x)) + levels[0] * covered(noise(x))
    x_0 = before = state
    for step, (sigma, following) in enumerate(pairwise([*levels, 0.0])):
        before = x_0
        x_0, eps = denoise(eps_model, state, sigma, timesteps[step])
        x_0 = x_0 + confidence(1 / (1 + sigma**2), config.lambda_) * correction(x_0)
        if not following:
            state = x_0
        elif config.sampler == "decoupled":
            state = x_0 + following * covered(noise(x))
        else:
            estimate = x_0
            if config.sampler == "multistep" and step:
                # With equal steps on a logarithmic scale the extrapolation goes half a step ahead.
                estimate = x_0 + (x_0 - before) / 2
            fresh = config.eta * following * math.sqrt(1 - (following / sigma) ** 2)
            state = estimate + math.sqrt(following**2 - fresh**2) * covered(eps) + fresh * covered(noise(x))
        watch.see(step, state)
    watch.refuse(timesteps)
    return state


def evaluations(config: MethodConfig, schedule: NoiseSchedule, size: tuple[int, int]) -> int:
    """Calls of the network for an image.

    Raises:
        ConfigError: There are more than the model has timesteps.
    """
    check(
        config.steps <= schedule.timesteps,
        f"steps: {config.steps} is more than the {schedule.timesteps} timesteps of the model",
    )
    return config.steps


def first_sigma(operators: tuple[LinearOperator, ...], size: tuple[int, int]) -> float:
    """Noise of the first state: it hides what the transforms remove from clean images of (H, W).

    Never that of the image at hand: an attacker would have a say in it.
    """
    removed = math.hypot(*(A.removed_rms(size) for A in operators))
    return min(HIGHEST_SIGMA, max(2 * LOWEST_SIGMA, START_OVER_REMOVED * removed))


def noise_levels(highest: float, steps: int) -> list[float]:
    """Noise over image of each state but the clean one, falling evenly on a logarithmic scale."""
    ratio = LOWEST_SIGMA / highest
    return [highest * ratio ** (k / max(1, steps - 1)) for k in range(steps)]
