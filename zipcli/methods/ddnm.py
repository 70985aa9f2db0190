"""DDNM: like ZIP from pure noise, but held to what the transform kept in every step, to the end.

Source: Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", ICLR 2023, and
its program. ZIP calls it Blur+DDNM where the transform is a blur.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from zipcli.config import MethodConfig
from zipcli.methods.grids import CLEAN, chain
from zipcli.methods.steps import FiniteWatch, predict_x0
from zipcli.methods.zip import correction
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
        operators: One transform A.
        config: Steps, grid, eta, simplified, time travel. Its eta is DDNM's, not DDIM's: the share of the
            whole noise of the next state that is fresh.
        noise: One draw for the start of the chain, then one for every step.

    Returns:
        Purified images, (N, C, H, W), not clipped. Their A x is that of the input.

    Raises:
        ConfigError: The grid does not start at pure noise.
        NonFiniteError: The state of some image became NaN or infinite.

    Source: Algorithms 1 and 2, and the program for eta. It has two paths: by SVD, and for --simplified, which
    multiplies the noise by sqrt(1 - alpha_bar^2) of the next state once more. That leaves 0.24 of it at
    timestep 50, where the network is told that all of it is there.
    """
    assert eps_model is not None
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
        guided = x_0 + correction(x_0, operators, targets, size)
        spread = math.sqrt(1 - alpha_bar_prev) * (
            math.sqrt(1 - alpha_bar_prev**2) if config.simplified else 1.0
        )
        mixed = config.eta * noise(x_t) + math.sqrt(1 - config.eta**2) * eps
        x_t = math.sqrt(alpha_bar_prev) * guided + spread * mixed
        watch.see(step, x_t)
    watch.refuse(visited)
    return x_t
