"""The preconditioning around a network: what turns its output into a denoised image.

Source: Karras et al. 2022 ("EDM"), section 5 and table 1. x = x_0 + sigma n with n ~ N(0, I);
the variance-preserving state of DDPM is x_t = sqrt(alpha_bar) x with
sigma = sqrt((1 - alpha_bar) / alpha_bar).
"""

import torch
from torch import Tensor, nn


class Denoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4), the posterior mean of x_0.

    F sees and predicts signals of about unit variance at every noise level, which is what lets a
    small network serve all of them.
    """

    def __init__(self, net: nn.Module, sigma_data: float = 0.5) -> None:
        """Wrap `net`; `sigma_data` is the standard deviation of the images in [-1, 1]."""
        super().__init__()
        self.net = net
        self.sigma_data = sigma_data

    def raw(self, x: Tensor, sigma: Tensor) -> Tensor:
        """F(c_in x), (N, C, H, W), of about unit variance, for `x` (N, C, H, W), `sigma` (N,)."""
        c_in = (sigma**2 + self.sigma_data**2).rsqrt()[:, None, None, None]
        out: Tensor = self.net(c_in * x, sigma.log() / 4)
        return out.float()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Estimate x_0, (N, C, H, W), from x = x_0 + sigma n."""
        c_skip, c_out = self.coefficients(sigma)
        return c_skip * x + c_out * self.raw(x, sigma)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out, each (N, 1, 1, 1), for `sigma` (N,)."""
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data / total.sqrt()
        return c_skip[:, None, None, None], c_out[:, None, None, None]


def predict_eps(denoiser: Denoiser, x_t: Tensor, sigma: Tensor) -> Tensor:
    """Serve a denoiser as a noise predictor.

    eps = (x - D(x; sigma)) / sigma, written so that nothing cancels at small or large sigma:
    eps = sigma x / (sigma^2 + sigma_data^2) - sigma_data F / sqrt(sigma^2 + sigma_data^2).

    Args:
        denoiser: The preconditioned network.
        x_t: States of the variance-preserving chain, (N, C, H, W).
        sigma: sqrt((1 - alpha_bar) / alpha_bar) of each state, (N,), positive.

    Returns:
        The noise in x_t, same shape.
    """
    x = x_t * (1 + sigma**2).sqrt()[:, None, None, None]
    total = sigma**2 + denoiser.sigma_data**2
    from_x = (sigma / total)[:, None, None, None]
    from_net = (denoiser.sigma_data * total.rsqrt())[:, None, None, None]
    return torch.addcmul(from_x * x, denoiser.raw(x, sigma), from_net, value=-1)
