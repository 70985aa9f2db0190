"""alpha_bar and sigma of a noise schedule, shared by the models and the methods."""

import math

import torch
from torch import Tensor

from zipcli.config import NoiseSchedule


def alpha_bars(schedule: NoiseSchedule) -> Tensor:
    """The share of the image left in each state.

    Args:
        schedule: beta of each timestep.

    Returns:
        alpha_bar[t] = product of (1 - beta_s) for s = 0..t, float64, (T,), falling within (0, 1).

    Source: Ho et al. 2020, section 2, 0-based. Built in float64: in float16 the first value rounds
    to 1 and the last ones lose their bits.
    """
    return (1 - betas(schedule)).cumprod(0)


def sigmas(schedule: NoiseSchedule) -> Tensor:
    """Noise over image of each state, sqrt((1 - alpha_bar) / alpha_bar), float64, (T,), rising.

    Source: Karras et al. 2022, table 1: the sigma of a variance-preserving chain.
    """
    alpha_bar = alpha_bars(schedule)
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def timestep_at(schedule: NoiseSchedule, sigma: float) -> float:
    """The timestep, with a fraction, at which the noise is `sigma` times as strong as the image.

    Below the noise of the first timestep it is 0; beyond that of the last it goes on evenly.
    """
    log_sigma = sigmas(schedule).log()
    wanted = torch.tensor(sigma, dtype=torch.float64).log()
    above = int(torch.searchsorted(log_sigma, wanted).clamp(1, len(log_sigma) - 1))
    low, high = log_sigma[above - 1].item(), log_sigma[above].item()
    return max(0.0, above - 1 + (wanted.item() - low) / (high - low))


def betas(schedule: NoiseSchedule) -> Tensor:
    """The share of the variance that each step replaces by noise, float64, (T,), within (0, 1)."""
    first, last, steps = schedule.beta_start, schedule.beta_end, schedule.timesteps
    if schedule.kind == "linear":
        return torch.linspace(first, last, steps, dtype=torch.float64)
    if schedule.kind == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    if schedule.kind == "trained":
        return torch.tensor(schedule.betas, dtype=torch.float64)
    share = torch.arange(steps + 1, dtype=torch.float64) / steps
    left = torch.cos((share + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return (1 - left[1:] / left[:-1]).clamp(max=0.999)
