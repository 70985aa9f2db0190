"""A denoiser served to the samplers as a noise predictor."""

import torch
from torch import Tensor

from zipcli.config import NoiseSchedule
from zipcli.models.denoiser import Denoiser, predict_eps
from zipcli.schedule import alpha_bars


class Prior:
    """An `EpsModel` around a `Denoiser` that was trained on continuous noise levels.

    It holds for any schedule: only alpha_bar of a timestep reaches the network.
    """

    native_side = None

    def __init__(self, denoiser: Denoiser, schedule: NoiseSchedule, channels: int, minimum_side: int) -> None:
        """Serve `denoiser` on `schedule`; it must be in eval mode and on its device."""
        self.denoiser = denoiser
        self.schedule = schedule
        self.channels = channels
        self.minimum_side = minimum_side
        alpha_bar = alpha_bars(schedule)
        device = next(denoiser.parameters()).device
        self._log_sigma = ((1 - alpha_bar) / alpha_bar).sqrt().log().float().to(device)

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """Predict the noise in x_t, (N, C, H, W), at timesteps t, (N,)."""
        return predict_eps(self.denoiser, x_t, self.sigma(t))

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt((1 - alpha_bar) / alpha_bar) at t, (N,); between timesteps ln(sigma) is linear."""
        below = t.floor().long().clamp(0, len(self._log_sigma) - 1)
        above = (below + 1).clamp(max=len(self._log_sigma) - 1)
        return torch.lerp(self._log_sigma[below], self._log_sigma[above], t - below).exp()
