"""Networks served to the samplers as noise predictors."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from zipcli.config import NoiseSchedule
from zipcli.models.denoiser import Denoiser, predict_eps
from zipcli.schedule import sigmas

if TYPE_CHECKING:
    from zipcli.models.unet import UNet

MINIMUM_SIDE = 8
"""Smaller images are padded before the built-in prior sees them."""


class NoiseLevels:
    """sigma = sqrt((1 - alpha_bar) / alpha_bar) of every timestep, and between them."""

    def __init__(self, schedule: NoiseSchedule, device: torch.device) -> None:
        """Tabulate the schedule on `device`."""
        self._log_sigma = sigmas(schedule).log().float().to(device)

    def __call__(self, t: Tensor) -> Tensor:
        """Sigma at t, (N,); between timesteps ln(sigma) is linear."""
        below = t.floor().long().clamp(0, len(self._log_sigma) - 1)
        above = (below + 1).clamp(max=len(self._log_sigma) - 1)
        return torch.lerp(self._log_sigma[below], self._log_sigma[above], t - below).exp()


class Prior:
    """An `EpsModel` around a `Denoiser` that was trained on continuous noise levels.

    It holds for any schedule: only alpha_bar of a timestep reaches the network.
    """

    native_side = None
    minimum_side = MINIMUM_SIDE

    def __init__(
        self, denoiser: Denoiser, schedule: NoiseSchedule, channels: int, dtype: torch.dtype = torch.float32
    ) -> None:
        """Serve `denoiser` on `schedule`; it must be in eval mode and on its device.

        The network runs in `dtype` where that is shorter than float32.
        """
        self.denoiser = denoiser
        self.schedule = schedule
        self.channels = channels
        self.dtype = dtype
        self.sigma = NoiseLevels(schedule, next(denoiser.parameters()).device)

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """Predict the noise in x_t, (N, C, H, W), at timesteps t, (N,)."""
        with torch.autocast(x_t.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return predict_eps(self.denoiser, x_t, self.sigma(t)).float()


class UNetPrior:
    """An `EpsModel` around a published U-Net, which sees timesteps."""

    def __init__(self, net: "UNet", schedule: NoiseSchedule) -> None:
        """Serve `net`, trained on `schedule`; it must be in eval mode and on its device."""
        self.net = net
        self.schedule = schedule
        self.channels = net.config.in_channels
        self.native_side = net.config.side
        self.minimum_side = net.config.multiple
        self.sigma = NoiseLevels(schedule, net.stem.weight.device)

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """Predict the noise in x_t, (N, C, H, W), at timesteps t, (N,).

        Returns (N, C, H, W), or (N, 2C, H, W) where the network learned a variance too.
        """
        height, width = x_t.shape[-2:]
        multiple = self.net.config.multiple
        pad = (0, -width % multiple, 0, -height % multiple)
        x = F.pad(x_t, pad, mode="replicate") if any(pad) else x_t
        out: Tensor = self.net(x, t * self.net.config.timestep_scale)[..., :height, :width]
        if self.net.config.prediction == "epsilon":
            return out
        return self._eps(out[:, : self.channels], x_t, self.sigma(t)[:, None, None, None])

    def _eps(self, out: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Turn another prediction into eps, where x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.

        sqrt(alpha_bar) is 1 / sqrt(1 + sigma^2), and sqrt(1 - alpha_bar) is sigma times that.

        Source: Salimans and Ho 2022, appendix D: v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0.
        """
        total = (1 + sigma**2).sqrt()
        if self.net.config.prediction == "v_prediction":
            return (out + sigma * x_t) / total
        return (x_t * total - out) / sigma
