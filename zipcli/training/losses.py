"""What is minimised: the error of a denoiser, or that of a published network's noise."""

import math

import torch
from torch import Tensor, nn

from zipcli.config import NoiseLevelConfig
from zipcli.protocols import EpsModel
from zipcli.schedule import alpha_bars


def draw_sigma(config: NoiseLevelConfig, count: int, generator: torch.Generator) -> Tensor:
    """Noise levels of one batch, (count,), on the device of the generator.

    Source: Karras et al. 2022, table 1 (log-normal); the uniform share is ours.
    """
    device = generator.device
    normal = torch.randn(count, generator=generator, device=device)
    log_sigma = config.log_sigma_mean + config.log_sigma_std * normal
    low, high = math.log(config.lowest_sigma), math.log(config.highest_sigma)
    uniform = low + (high - low) * torch.rand(count, generator=generator, device=device)
    chosen = torch.rand(count, generator=generator, device=device) < config.uniform_share
    return torch.where(chosen, uniform, log_sigma.clamp(low, high)).exp()


def denoising_loss(denoiser: nn.Module, x_0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of D with the weight 1 / c_out^2, so every noise level counts alike.

    Args:
        denoiser: D(x, sigma) with `coefficients(sigma)` giving c_skip and c_out.
        x_0: Clean images, (N, C, H, W), in [-1, 1].
        sigma: Noise levels, (N,).
        noise: N(0, I), same shape as x_0.

    Returns:
        A scalar; about 1 for an untrained network.

    Source: Karras et al. 2022, eq. 8 (there the same loss is written on F).
    """
    _, c_out = denoiser.coefficients(sigma)  # type: ignore[operator]  # a Module's methods are untyped
    error = (denoiser(x_0 + sigma[:, None, None, None] * noise, sigma) - x_0) / c_out
    loss: Tensor = error.square().mean()
    return loss


def noise_loss(model: EpsModel, x_0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise at the timesteps nearest to `sigma`.

    A variance that the network predicts beside the noise is left alone.

    Args:
        model: A noise predictor on a chain of timesteps.
        x_0: Clean images, (N, C, H, W), in [-1, 1].
        sigma: Noise levels, (N,).
        noise: N(0, I), same shape as x_0.

    Returns:
        A scalar; 1 for a network that predicts nothing.

    Source: Ho et al. 2020, eq. 14.
    """
    alpha_bar = alpha_bars(model.schedule).float().to(x_0.device)
    t = nearest_timestep(alpha_bar, sigma)
    kept = alpha_bar[t][:, None, None, None]
    eps = model(kept.sqrt() * x_0 + (1 - kept).sqrt() * noise, t.float())[:, : model.channels]
    loss: Tensor = (eps.float() - noise).square().mean()
    return loss


def nearest_timestep(alpha_bar: Tensor, sigma: Tensor) -> Tensor:
    """Timesteps, (N,), whose sigma = sqrt((1 - alpha_bar) / alpha_bar) is nearest to `sigma` in ln."""
    log_sigma = ((1 - alpha_bar) / alpha_bar).sqrt().log()
    return (log_sigma - sigma.log()[:, None]).abs().argmin(1)
