"""A prior seen as a chain on DDPM's linear schedule of 1,000 timesteps, which programs are written for.

A state is the same on any schedule where it has the same alpha_bar, so a prior with another schedule is asked
at the timestep that has that; fractions are allowed.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zipcli.config import NoiseSchedule, check
from zipcli.protocols import EpsModel
from zipcli.schedule import alpha_bars, sigmas, timestep_at

LINEAR = NoiseSchedule()

ALPHA_BAR = alpha_bars(LINEAR)
"""alpha_bar of each timestep, float64, (1000,)."""

_NOISIER = 1e-6
"""By how much a timestep may lie beyond the last of a schedule: rounding."""


class LinearPrior:
    """A prior that is asked at timesteps of the linear schedule."""

    def __init__(self, eps_model: EpsModel, visited: Sequence[int]) -> None:
        """Ask `eps_model`, at no other timesteps than `visited`, 0-based."""
        self._model = eps_model
        self._asked = {i: asked_at(eps_model.schedule, i) for i in visited}

    def __call__(self, x_t: Tensor, i: int) -> Tensor:
        """Predict the noise in the states x_t, (N, C, H, W), at timestep i."""
        t = torch.full((len(x_t),), self._asked[i], device=x_t.device)
        return self._model(x_t, t)[:, : self._model.channels]


def asked_at(schedule: NoiseSchedule, i: int) -> float:
    """The timestep of a schedule with the alpha_bar of timestep i of the linear one.

    Where a schedule begins with more noise it is its first.
    """
    if schedule == LINEAR:
        return float(i)
    alpha_bar = ALPHA_BAR[i].item()
    return timestep_at(schedule, math.sqrt((1 - alpha_bar) / alpha_bar))


def check_reaches(schedule: NoiseSchedule, i: int, name: str) -> None:
    """Refuse a model whose schedule ends before timestep i of the linear one, which `name` asks for.

    Raises:
        ConfigError: It does.
    """
    last = sigmas(schedule)[-1].item()
    check(
        asked_at(schedule, i) <= schedule.timesteps - 1 + _NOISIER,
        f"{name}: the model knows noise of at most {last:.3g} times the image, and timestep {i} of the "
        f"linear schedule has {sigmas(LINEAR)[i].item():.3g}; make it smaller",
    )
