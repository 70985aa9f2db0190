"""alpha_bar of a noise schedule, shared by the models and the methods."""

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
    betas = torch.linspace(schedule.beta_start, schedule.beta_end, schedule.timesteps, dtype=torch.float64)
    return (1 - betas).cumprod(0)
