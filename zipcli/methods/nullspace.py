"""Nullspace: what the transforms keep stays exact, and only what they remove is drawn anew.

The chain begins with noise in nothing but what all transforms remove, adds noise nowhere else, and so
draws from the clean images that agree with A of the input. DDNM (Wang et al. 2023) and ZIP with an
infinite lambda correct the estimate in the same way, but hide what they know exactly under noise, from
which the prior then has to guess it. The prior has to know such states; the built-in one was trained
on them. Ours.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from zipcli.config import MethodConfig
from zipcli.methods.steps import FiniteWatch
from zipcli.projection import removed
from zipcli.protocols import EpsModel, LinearOperator, Noise
from zipcli.schedule import timestep_at

HIGHEST_SIGMA = 2.0
"""Noise of the first state: it hides what the transforms removed, since fine detail is faint."""
LOWEST_SIGMA = 0.02
"""Noise of the last but the clean state: about two levels of 255."""


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
        operators: Transforms A_n; what any of them keeps is kept.
        config: Steps and eta.
        noise: One draw for the start of the chain, then one for every step.

    Returns:
        Purified images, (N, C, H, W), not clipped, with the same A x.

    Raises:
        NonFiniteError: The state of some image became NaN or infinite.
    """
    assert eps_model is not None
    levels = noise_levels(config.steps)
    timesteps = [timestep_at(eps_model.schedule, sigma) for sigma in levels]
    state = x - removed(x, operators) + levels[0] * removed(noise(x), operators)
    watch = FiniteWatch(x)
    for step, (sigma, following) in enumerate(pairwise([*levels, 0.0])):
        t = torch.full((len(x),), timesteps[step], device=x.device)
        eps = eps_model(state / math.sqrt(1 + sigma**2), t)[:, : eps_model.channels]
        eps = removed(eps, operators)
        x_0 = state - sigma * eps
        fresh = config.eta * following * math.sqrt(1 - (following / sigma) ** 2)
        state = x_0 + math.sqrt(following**2 - fresh**2) * eps + fresh * removed(noise(x), operators)
        watch.see(step, state)
    watch.refuse(timesteps)
    return state


def noise_levels(steps: int) -> list[float]:
    """Noise over image of each state but the clean one, falling evenly on a logarithmic scale."""
    ratio = LOWEST_SIGMA / HIGHEST_SIGMA
    return [HIGHEST_SIGMA * ratio ** (k / max(1, steps - 1)) for k in range(steps)]
