"""How well a prior knows images: the noise it predicts, and the images it denoises."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zipcli.protocols import EpsModel
from zipcli.schedule import alpha_bars, timestep_at

NOISE_STDS = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Standard deviations of noise on images in [-1, 1] at which a prior is measured."""

FEWEST_TIMESTEPS = 64


@dataclass(frozen=True, kw_only=True)
class DenoisingRow:
    """What a prior does at one noise level.

    Attributes:
        std: Standard deviation of the noise on images in [-1, 1].
        noisy_psnr: PSNR of the noisy images in dB, mean over the images.
        denoised_psnr: PSNR of the denoised images, likewise.
        eps_mse: Mean squared error of the predicted noise.
    """

    std: float
    noisy_psnr: float
    denoised_psnr: float
    eps_mse: float


@torch.inference_mode()
def denoising_table(
    model: EpsModel, images: Tensor, *, seed: int = 0, stds: tuple[float, ...] = NOISE_STDS, batch: int = 16
) -> list[DenoisingRow]:
    """Denoise images once at each noise level, by the posterior mean.

    Args:
        model: The prior.
        images: Clean images, (N, C, H, W), in [-1, 1], on the device of the model.
        seed: Seed of the noise, the same for every model that is compared.
        stds: The noise levels.
        batch: Images in one call.

    Returns:
        A row for each noise level.

    Source: x_0 = x - sigma eps for x = x_0 + sigma eps (Ho et al. 2020, eq. 15, divided by sqrt(alpha_bar)).
    """
    rows = []
    noise = noise_like(images, seed)
    for std in stds:
        missed, before = [], []
        for x_0, eps in zip(torch.split(images, batch), torch.split(noise, batch), strict=True):
            x = x_0 + std * eps
            missed.append((denoise(model, x, std) - x_0).square().flatten(1).mean(1))
            before.append((x - x_0).square().flatten(1).mean(1))
        errors = torch.cat(missed)
        rows.append(
            DenoisingRow(
                std=std,
                noisy_psnr=_psnr(torch.cat(before)),
                denoised_psnr=_psnr(errors),
                eps_mse=errors.mean().item() / std**2,  # x_0 - (x - std eps') = std (eps' - eps)
            )
        )
    return rows


def denoise(model: EpsModel, x: Tensor, std: float) -> Tensor:
    """Estimate the clean images, (N, C, H, W), in x = x_0 + std n, n ~ N(0, I), by the posterior mean."""
    t = torch.full((len(x),), timestep_at(model.schedule, std), device=x.device)
    eps = model(x / (1 + std**2) ** 0.5, t)[:, : model.channels]
    return x - std * eps


@torch.inference_mode()
def eps_mse(model: EpsModel, images: Tensor, *, seed: int = 0, batch: int = 16) -> float:
    """Mean squared error of the predicted noise, averaged over the whole schedule.

    Each image meets one timestep; together they cover the schedule evenly, so the mean over many
    images is the mean over timesteps of DDPM's simple loss (Ho et al. 2020, eq. 14). Fewer images
    than `FEWEST_TIMESTEPS` come several times.

    Args:
        model: The prior.
        images: Clean images, (N, C, H, W), in [-1, 1], on the device of the model.
        seed: Seed of the noise, and of which image meets which timestep.
        batch: Images in one call.
    """
    images = images.repeat(-(-FEWEST_TIMESTEPS // len(images)), 1, 1, 1)
    count, steps = len(images), model.schedule.timesteps
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    t = ((order + 0.5) / count * steps).floor().to(images.device)
    alpha_bar = alpha_bars(model.schedule).float().to(images.device)[t.long()][:, None, None, None]
    noise = noise_like(images, seed)
    x_t = alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * noise
    errors = [
        (model(x, times.float())[:, : model.channels] - eps).square().flatten(1).mean(1)
        for x, times, eps in zip(*(torch.split(part, batch) for part in (x_t, t, noise)), strict=True)
    ]
    return torch.cat(errors).mean().item()


def noise_like(images: Tensor, seed: int) -> Tensor:
    """Draw N(0, I) in the shape of `images` and on their device, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images.shape, generator=generator).to(images.device)


def _psnr(mse: Tensor) -> float:
    """Mean PSNR in dB of images in [-1, 1], whose range is 2, from their mean squared errors."""
    return (10 * (4 / mse.clamp(min=1e-12)).log10()).mean().item()
