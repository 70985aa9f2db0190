"""SampDetox: purify lightly, see where that changed the image, and purify these places again with more noise.

Source: Yang et al., "SampDetox: Black-box Backdoor Defense via Perturbation-based Sample Detoxification",
NeurIPS 2024, and its released program. The parts, and where they come from, are in `sampdetox_gate`.
"""

import math
from collections.abc import Callable, Mapping
from itertools import count

import torch
from torch import Tensor

from zipcli.config import MethodConfig, NoiseSchedule
from zipcli.errors import InputError, Reason
from zipcli.methods.linear import ALPHA_BAR, LINEAR, LinearPrior, check_reaches
from zipcli.methods.sampdetox_gate import (
    dissimilarity_map,
    merge_step,
    noise_levels,
    noise_to_levels,
    stretch,
)
from zipcli.methods.ssim_window import SIDE
from zipcli.methods.steps import FiniteWatch, predict_x0
from zipcli.protocols import EpsModel, LinearOperator, Noise
from zipcli.schedule import betas

_BETA = betas(LINEAR).tolist()
_ALPHA_BAR = ALPHA_BAR.tolist()


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
        x: Suspicious images, (N, C, H, W), float32 in [-1, 1], sides of at least 11.
        eps_model: The diffusion prior.
        operators: Not used.
        config: t1, t2, ssim_range, and the sampler: ddpm, as in the program, or ddim with its stride.
        noise: One draw for both stages, then for ddpm one for every step but the last of each stage.

    Returns:
        Purified images, (N, C, H, W), not clipped.

    Raises:
        InputError: A side is shorter than 11 pixels, the window of SSIM.
        NonFiniteError: The state of some image became NaN or infinite.

    Source: SampDetox program, which treats one image at a time and visits its pixels in a loop. It draws the
    first noise once for a batch; here each image has its own.
    """
    assert eps_model is not None
    height, width = x.shape[-2:]
    if min(height, width) < SIDE:
        raise InputError(
            Reason.METHOD_UNFIT,
            f"method sampdetox needs sides of at least {SIDE} pixels, and the image is {width}x{height}; "
            "purify it with another method",
        )
    step = STEPS[config.sampler]
    stages = [visits(config.sampler, t, config.stride) for t in (config.t1, config.t2)]
    visited = [i for stage in stages for i, _ in stage]
    prior, watch, number, nu = LinearPrior(eps_model, visited), FiniteWatch(x), count(), noise(x)

    def treated(image: Tensor, tau: Tensor, stage: list[tuple[int, int]]) -> Tensor:
        x_t = noise_to_levels(image, tau, ALPHA_BAR, nu)
        for i, following in stage:
            stepped, spread = step(x_t, prior(x_t, i), i, following)
            if spread:
                stepped = stepped + spread * noise(x_t)
            x_t = merge_step(x_t, stepped, tau, following)
            watch.see(next(number), x_t)
        watch.refuse(visited)  # now, for there is no level for NaN
        return x_t

    everywhere = torch.full((len(x), 1, 1, 1), config.t1, device=x.device)
    x_bar = treated(x, everywhere, stages[0]).clamp(-1, 1)
    change = stretch(dissimilarity_map(x, x_bar, config.ssim_range))
    return treated(x_bar, noise_levels(change, config.t2), stages[1])


def evaluations(config: MethodConfig, schedule: NoiseSchedule, size: tuple[int, int]) -> int:
    """Calls of the network for an image.

    Raises:
        ConfigError: The model does not know as much noise as t1 or t2 asks for.
    """
    for name, t in (("t1", config.t1), ("t2", config.t2)):
        check_reaches(schedule, t, name)
    return sum(len(visits(config.sampler, t, config.stride)) for t in (config.t1, config.t2))


def visits(sampler: str, t: int, stride: int) -> list[tuple[int, int]]:
    """Where the network is asked about a state at timestep t, and which pixels go along.

    Args:
        sampler: ddpm or ddim.
        t: Timestep that the state was noised to, from 1.
        stride: Of ddim.

    Returns:
        Pairs of the timestep that the network is told, and of the level that a pixel must be above to be
        moved. ddpm asks at t - 1, ..., 0, as in the program, about states that are at t, ..., 1. ddim asks at
        t, t - stride, ..., and the next of these, or 0, is the level.

    Source: SampDetox program for ddpm. It has no ddim, which the paper's count of 1 + 6 evaluations needs: t1
    and t2 of 20 and 120 with a stride of 20. Which pixels go along there is ours: with a stride of 1 it is
    the rule of ddpm, and no noise of a pixel above 0 is left.
    """
    if sampler == "ddpm":
        return [(i, i) for i in range(t - 1, -1, -1)]
    return [(i, max(0, i - stride)) for i in range(t, 0, -stride)]


def ddpm_step(x_t: Tensor, eps: Tensor, i: int, following: int) -> tuple[Tensor, float]:
    """The next state but for its noise, and how much that is: beta, and none in the last step.

    Source: Ho et al. 2020, algorithm 2, with its larger variance.
    """
    beta = _BETA[i]
    mean = (x_t - beta / math.sqrt(1 - _ALPHA_BAR[i]) * eps) / math.sqrt(1 - beta)
    return mean, math.sqrt(beta) if i else 0.0


def ddim_step(x_t: Tensor, eps: Tensor, i: int, following: int) -> tuple[Tensor, float]:
    """The next state, at `following`, or the clean one where that is 0; there is no noise.

    Source: Song et al. 2021 (DDIM), eq. 12 with sigma = 0.
    """
    alpha_bar_prev = _ALPHA_BAR[following] if following else 1.0
    x_0 = predict_x0(x_t, eps, _ALPHA_BAR[i])
    return math.sqrt(alpha_bar_prev) * x_0 + math.sqrt(1 - alpha_bar_prev) * eps, 0.0


STEPS: Mapping[str, Callable[[Tensor, Tensor, int, int], tuple[Tensor, float]]] = {
    "ddpm": ddpm_step,
    "ddim": ddim_step,
}
