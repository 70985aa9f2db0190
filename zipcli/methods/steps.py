"""One step of a reverse chain, in the field's letters."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zipcli.errors import NonFiniteError
from zipcli.protocols import EpsModel


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


def denoise(eps_model: EpsModel, state: Tensor, sigma: float, timestep: float) -> tuple[Tensor, Tensor]:
    """Ask a prior about states that are written with noise over image.

    Args:
        eps_model: The diffusion prior.
        state: x_0 + sigma n, (N, C, H, W).
        sigma: Noise over image; the state of DDPM is 1 / sqrt(1 + sigma^2) of this one.
        timestep: Where the schedule of the prior has as much noise.

    Returns:
        The estimate of x_0, not clipped, and the predicted noise, each like state.

    Source: Karras et al. 2022, table 1; Ho et al. 2020, eq. 15.
    """
    t = torch.full((len(state),), timestep, device=state.device)
    eps = eps_model(state / math.sqrt(1 + sigma**2), t)[:, : eps_model.channels]
    return state - sigma * eps, eps


def ddim_sigma(alpha_bar: float, alpha_bar_prev: float, eta: float) -> float:
    """Standard deviation of the fresh noise in a step from alpha_bar to alpha_bar_prev.

    eta = 1 with neighbouring timesteps gives the posterior variance of DDPM.

    Source: Song et al. 2021 (DDIM), eq. 16.
    """
    spread = math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar))
    return eta * spread * math.sqrt(1 - alpha_bar / alpha_bar_prev)


class FiniteWatch:
    """Remembers the first step at which the state of each image was lost; nothing leaves the device."""

    def __init__(self, x: Tensor) -> None:
        """Watch the images of the batch `x`, (N, C, H, W)."""
        self._first_bad = torch.full((len(x),), -1, device=x.device)

    def see(self, step: int, state: Tensor) -> None:
        """Look at the states, (N, C, H, W), after a step."""
        bad = (self._first_bad < 0) & ~state.isfinite().flatten(1).all(dim=1)
        self._first_bad = torch.where(bad, step, self._first_bad)

    def refuse(self, visited: Sequence[float]) -> None:
        """Raise `NonFiniteError` where a state was lost; `visited` has the timestep of each step."""
        steps = self._first_bad.tolist()
        images = tuple(n for n, step in enumerate(steps) if step >= 0)
        if images:
            step = int(min(steps[n] for n in images))
            raise NonFiniteError(f"at step {step} (timestep {visited[step]:g})", images)


def confidence(alpha_bar: float, lambda_: float) -> float:
    """Weight 1 - alpha_bar^lambda of the correction; exactly 0 at lambda 0 and 1 at infinity.

    Source: ZIP, section 3.4. It uses the alpha_bar of the current state, not of the next one.
    """
    return 1.0 - math.pow(alpha_bar, lambda_)
