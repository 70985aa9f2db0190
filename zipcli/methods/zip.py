"""ZIP: restore what the transforms removed with a diffusion prior, faithful to what they kept.

Source: Shi et al., "Black-box Backdoor Defense via Zero-shot Image Purification", NeurIPS 2023.
The paper corrects the state x_t (eq. 9); by linearity that equals the correction of x_0 below,
to 2e-15 in float64, which costs no second pass over the noise.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from zipcli.config import MethodConfig, NoiseSchedule
from zipcli.methods import few, grids
from zipcli.methods.few import restore
from zipcli.methods.grids import CLEAN, chain
from zipcli.methods.steps import FiniteWatch, confidence, ddim_sigma, predict_x0
from zipcli.protocols import EpsModel, LinearOperator, Noise
from zipcli.schedule import alpha_bars


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
        operators: Transforms A_n; their corrections are averaged (ZIP, section 3.5).
        config: Sampler, steps and what the sampler needs.
        noise: As the sampler needs it.

    Returns:
        Purified images, (N, C, H, W), not clipped. With an infinite lambda and one
        transform their A x is that of the input.

    Raises:
        ConfigError: The grid does not start at pure noise.
        NonFiniteError: The state of some image became NaN or infinite.
    """
    assert eps_model is not None
    if config.sampler == "ddim":
        return published_chain(x, eps_model, operators, config, noise=noise)
    targets = [A.forward(x) for A in operators]
    missing = partial(correction, operators=operators, targets=targets, size=(x.shape[-2], x.shape[-1]))
    return restore(x, eps_model, operators, config, noise=noise, covered=_everything, correction=missing)


def evaluations(config: MethodConfig, schedule: NoiseSchedule, size: tuple[int, int]) -> int:
    """Calls of the network for an image.

    Raises:
        ConfigError: The chain does not fit the model.
    """
    if config.sampler == "ddim":
        return grids.evaluations(config, schedule, size)
    return few.evaluations(config, schedule, size)


def _everything(noise: Tensor) -> Tensor:
    return noise


def published_chain(
    x: Tensor,
    eps_model: EpsModel,
    operators: tuple[LinearOperator, ...],
    config: MethodConfig,
    *,
    noise: Noise,
) -> Tensor:
    """The chain of the paper, from pure noise.

    Args:
        x: Suspicious images, (N, C, H, W), float32 in [-1, 1].
        eps_model: The diffusion prior.
        operators: Transforms A_n.
        config: Steps, lambda, eta, grid.
        noise: One draw for the start of the chain, then one for every step.

    Returns:
        Purified images, (N, C, H, W), not clipped.

    Raises:
        ConfigError: The grid does not start at pure noise.
        NonFiniteError: The state of some image became NaN or infinite.

    Source: Algorithm 2; with grid "full" and eta 1 it is Algorithm 1.
    """

    def advance(x_0: Tensor, missing: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
        weight = confidence(alpha_bar, config.lambda_)
        guided = x_0 + weight * missing if weight else x_0
        sigma = ddim_sigma(alpha_bar, alpha_bar_prev, config.eta)
        return (
            math.sqrt(alpha_bar_prev) * guided
            + math.sqrt(max(0.0, 1 - alpha_bar_prev - sigma**2)) * eps
            + sigma * noise(x)
        )

    return from_pure_noise(x, eps_model, operators, config, advance, noise=noise)


Advance = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
"""The next state, from the estimate of x_0, what it lacks to agree with the transforms, the predicted noise,
and alpha_bar of the state and of the next."""


def from_pure_noise(
    x: Tensor,
    eps_model: EpsModel,
    operators: tuple[LinearOperator, ...],
    config: MethodConfig,
    advance: Advance,
    *,
    noise: Noise,
) -> Tensor:
    """Walk along the grid of a chain that begins with pure noise; arguments as of `published_chain`.

    Raises:
        ConfigError: The grid does not start at pure noise.
        NonFiniteError: The state of some image became NaN or infinite.
    """
    table = alpha_bars(eps_model.schedule).tolist()
    visited = chain(config, table)
    targets = [A.forward(x) for A in operators]
    size = (x.shape[-2], x.shape[-1])
    x_t = noise(x)
    x_0 = x
    watch = FiniteWatch(x)
    for step, (i, j) in enumerate(pairwise(visited)):
        alpha_bar, alpha_bar_prev = table[i], 1.0 if j == CLEAN else table[j]
        if j > i:  # time travel: forget, from the last estimate before its correction
            x_t = math.sqrt(alpha_bar_prev) * x_0 + math.sqrt(1 - alpha_bar_prev) * noise(x_t)
            continue
        t = torch.full((len(x),), float(i), device=x.device)
        eps = eps_model(x_t, t)[:, : eps_model.channels]
        x_0 = predict_x0(x_t, eps, alpha_bar)
        if config.clip_x0:
            x_0 = x_0.clamp(-1, 1)
        x_t = advance(x_0, correction(x_0, operators, targets, size), eps, alpha_bar, alpha_bar_prev)
        watch.see(step, x_t)
    watch.refuse(visited)
    return x_t


def correction(
    x_0: Tensor,
    operators: tuple[LinearOperator, ...],
    targets: list[Tensor],
    size: tuple[int, int],
) -> Tensor:
    """What is missing in x_0 for it to agree with the targets.

    Args:
        x_0: Estimate of the clean image, (N, C, H, W).
        operators: A_n.
        targets: y_n = A_n x, as `A.forward` returns them.
        size: (H, W).

    Returns:
        The mean over n of A_n+ (y_n - A_n x_0), (N, C, H, W).

    Source: ZIP, eq. 9 and section 3.5, in x_0 space.
    """
    total = torch.zeros_like(x_0)
    for A, y in zip(operators, targets, strict=True):
        total += A.pinv(y - A.forward(x_0), size)
    return total / len(operators)
