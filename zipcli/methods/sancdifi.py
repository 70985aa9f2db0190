"""Sancdifi: noise what the answer of the classifier depends on, and refill it with a diffusion prior.

Source: May et al., "Salient Conditional Diffusion for Defending Against Backdoor Attacks", 2023
(arXiv 2301.13862). The paper's are: saliency from RISE, a mask of the most salient pixels, stronger
diffusion there, conditioned on the rest, and no access to the classifier but its answers. 2000 masks and a
threshold of 0.95 are what SampDetox (Yang et al. 2024) runs it with. Ours, for we found neither a program
nor the numbers: labels instead of scores (`rise.py`), the threshold read as a quantile of each image,
t* = 500 of 1000 timesteps, and the condition, which is RePaint's (Lugmayr et al. 2022, eq. 8): in every
state the pixels outside the mask are those of the input, under the noise of that state.
"""

import math

import torch
from torch import Tensor

from zipcli.config import MethodConfig
from zipcli.methods.diffpure import ddpm_step
from zipcli.methods.linear import ALPHA_BAR, LinearPrior
from zipcli.methods.rise import saliency
from zipcli.methods.steps import FiniteWatch
from zipcli.protocols import Ask, EpsModel, LinearOperator, Noise


def purify(
    x: Tensor,
    eps_model: EpsModel,
    operators: tuple[LinearOperator, ...],
    config: MethodConfig,
    /,
    *,
    noise: Noise,
    ask: Ask,
) -> Tensor:
    """Purify a batch of images.

    Args:
        x: Suspicious images, (N, C, H, W), float32 in [-1, 1].
        eps_model: The diffusion prior.
        operators: Not used.
        config: Masks, saliency threshold and t*.
        noise: One draw for the masks, then one for the start of the chain and every step but the last.
        ask: The suspect classifier; it is shown masks + 1 images for each.

    Returns:
        Purified images, (N, C, H, W), not clipped. Outside the mask they are x itself.

    Raises:
        NonFiniteError: The state of some image became NaN or infinite.
    """
    assert config.t_star is not None
    salient = salient_pixels(saliency(x, config.masks, noise, ask), config.saliency_threshold)
    return refill(x, salient.to(x.device), eps_model, config.t_star, noise)


def salient_pixels(saliency: Tensor, threshold: float) -> Tensor:
    """The pixels above the quantile `threshold` of each map, bool, (N, 1, H, W).

    Of an image without a single answer like its own they are none.
    """
    flat = saliency.flatten(1)
    rank = int(threshold * (flat.shape[1] - 1)) + 1  # torch.quantile takes no large images
    quantile = flat.kthvalue(rank, dim=1).values
    return saliency > quantile[:, None, None, None]


def refill(x: Tensor, salient: Tensor, eps_model: EpsModel, t_star: int, noise: Noise) -> Tensor:
    """Draw the salient pixels anew, with the ancestral sampler of DDPM.

    Args:
        x: Images, (N, C, H, W), in [-1, 1].
        salient: Which pixels, bool, (N, 1, H, W).
        eps_model: The diffusion prior.
        t_star: How many timesteps of noise are added to the image first; each costs one evaluation.
        noise: One draw for the start and every step but the last.

    Returns:
        (N, C, H, W); outside the mask x itself.

    Raises:
        NonFiniteError: The state of some image became NaN or infinite.

    Source: the step of DiffPure's ddpm; a pixel belongs to one of the two parts that RePaint joins, so one
    draw of noise serves both.
    """
    visited = range(t_star - 1, -1, -1)
    prior, watch = LinearPrior(eps_model, visited), FiniteWatch(x)
    x_t = _noised(x, t_star - 1, noise(x))
    for step, i in enumerate(visited):
        mean, spread = ddpm_step(x_t, prior(x_t, i), i)
        z = noise(x) if i else torch.zeros_like(x)
        x_t = torch.where(salient, mean + spread * z, _noised(x, i - 1, z))
        watch.see(step, x_t)
    watch.refuse(visited)
    return x_t


def _noised(x: Tensor, i: int, z: Tensor) -> Tensor:
    """The state at timestep i, and the clean image at -1."""
    alpha_bar = ALPHA_BAR[i].item() if i >= 0 else 1.0
    return math.sqrt(alpha_bar) * x + math.sqrt(1 - alpha_bar) * z
