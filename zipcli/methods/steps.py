"""One step of a reverse chain, in the field's letters."""

import math

from torch import Tensor


def predict_x0(x_t: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """Estimate the clean image from a noisy image and its predicted noise.

    Args:
        x_t: Noisy images, (N, C, H, W); the clean part lies in [-1, 1].
        eps: Predicted noise, same shape as x_t.
        alpha_bar: Product of 1 - beta up to t, in (0, 1].

    Returns:
        The estimate of x_0, same shape as x_t, not clipped.

    Source: Ho et al. 2020, eq. 15.
    """
    return (x_t - math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha_bar)


def ddim_sigma(alpha_bar: float, alpha_bar_prev: float, eta: float) -> float:
    """Standard deviation of the fresh noise in a step from alpha_bar to alpha_bar_prev.

    eta = 1 with neighbouring timesteps gives the posterior variance of DDPM.

    Source: Song et al. 2021 (DDIM), eq. 16.
    """
    spread = math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar))
    return eta * spread * math.sqrt(1 - alpha_bar / alpha_bar_prev)
