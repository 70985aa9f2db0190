"""The measures of a prior, on priors whose errors are known."""

import math

import pytest
import torch
from torch import Tensor

from zipcli.config import NoiseSchedule
from zipcli.schedule import alpha_bars, timestep_at
from zipcli.training.validation import denoising_table, eps_mse


class Oracle:
    """Knows the clean image, and says the noise with an error of a known size."""

    schedule = NoiseSchedule()
    channels = 3
    native_side = None
    minimum_side = 1

    def __init__(self, x_0: Tensor, error: float = 0.0) -> None:
        self.x_0 = x_0
        self.error = error

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        log_sigma = ((1 - alpha_bars(self.schedule)) / alpha_bars(self.schedule)).sqrt().log()
        below = t.floor().long()
        sigma = torch.lerp(
            log_sigma[below], log_sigma[(below + 1).clamp(max=999)], (t - below).double()
        ).exp()
        sigma = sigma[:, None, None, None].float()
        eps = (x_t * (1 + sigma**2).sqrt() - self.x_0) / sigma
        return torch.cat([eps + self.error, eps], dim=1)  # and a variance, to be left out


GRAY = torch.zeros(1, 3, 8, 8)


def test_a_prior_that_knows_the_image_makes_no_error() -> None:
    rows = denoising_table(Oracle(GRAY), GRAY.expand(4, -1, -1, -1), stds=(0.1, 0.5))
    assert [row.std for row in rows] == [0.1, 0.5]
    assert all(row.eps_mse < 1e-6 for row in rows)
    assert all(row.denoised_psnr > 60 for row in rows)
    assert eps_mse(Oracle(GRAY), GRAY.expand(40, -1, -1, -1)) < 1e-3


@pytest.mark.parametrize("std", [0.05, 0.2, 1.0])
def test_the_error_of_the_noise_is_the_error_of_the_image_times_the_noise_level(std: float) -> None:
    (row,) = denoising_table(Oracle(GRAY, error=0.3), GRAY.expand(4, -1, -1, -1), stds=(std,))
    assert row.eps_mse == pytest.approx(0.09, rel=1e-3)
    assert row.denoised_psnr == pytest.approx(10 * math.log10(4 / (0.3 * std) ** 2), abs=0.01)
    assert row.noisy_psnr == pytest.approx(10 * math.log10(4 / std**2), abs=0.5)


def test_the_whole_schedule_counts_evenly() -> None:
    class Late(Oracle):
        def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
            late = (t >= 600).float()[:, None, None, None]
            return super().__call__(x_t, t) + late

    assert eps_mse(Late(GRAY), GRAY.expand(100, -1, -1, -1)) == pytest.approx(0.4, abs=1e-3)
    assert eps_mse(Late(GRAY), GRAY) == pytest.approx(0.4, abs=0.02)  # one image meets many timesteps


def test_a_noise_level_has_its_timestep() -> None:
    model = Oracle(GRAY)
    alpha_bar = alpha_bars(NoiseSchedule())
    for t in (1, 10, 500, 998):
        std = ((1 - alpha_bar[t]) / alpha_bar[t]).sqrt().item()
        assert timestep_at(model.schedule, std) == pytest.approx(t, abs=1e-6)
    assert timestep_at(model.schedule, 1e-6) == 0
    assert 10 < timestep_at(model.schedule, 0.05) < 50


def test_a_batch_changes_nothing() -> None:
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    class Shrink(Oracle):
        def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
            return 0.5 * x_t

    whole = denoising_table(Shrink(GRAY), x, batch=5)
    for a, b in zip(whole, denoising_table(Shrink(GRAY), x, batch=2), strict=True):
        assert a.denoised_psnr == pytest.approx(b.denoised_psnr, abs=1e-4)
    assert eps_mse(Shrink(GRAY), x, batch=2) == pytest.approx(eps_mse(Shrink(GRAY), x, batch=5), rel=1e-5)
