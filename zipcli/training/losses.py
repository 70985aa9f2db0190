"""What is minimised: the error of a denoiser, or that of a published network's noise."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zipcli.config import BLIND_SIGMA, NoiseLevelConfig
from zipcli.projection import coarse_colour, colour_cast, removed
from zipcli.protocols import EpsModel, LinearOperator
from zipcli.schedule import alpha_bars, sigmas
from zipcli.training.corruption import corrupted


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


def denoising_loss(
    denoiser: nn.Module, x_0: Tensor, sigma: Tensor, noise: Tensor, *, root: bool = False
) -> Tensor:
    """Mean squared error of D with the weight 1 / c_out^2, so every noise level counts alike.

    Args:
        denoiser: D(x, sigma) with `coefficients(sigma)` giving c_skip and c_out.
        x_0: Clean images, (N, C, H, W), in [-1, 1].
        sigma: Noise levels, (N,).
        noise: N(0, I), same shape as x_0.
        root: Take the root of the error of each image, so that the images of which little can be known do
            not drown the others. That is ours.

    Returns:
        A scalar; about 1 for an untrained network.

    Source: Karras et al. 2022, eq. 8 (there the same loss is written on F).
    """
    _, c_out = denoiser.coefficients(sigma)  # type: ignore[operator]  # a Module's methods are untyped
    error = (denoiser(x_0 + sigma[:, None, None, None] * noise, sigma) - x_0) / c_out
    errors: Tensor = error.square().mean((1, 2, 3))
    return (errors + ROOT_FLOOR).sqrt().mean() if root else errors.mean()


ROOT_FLOOR = 3e-3
"""Error of an image below which its root is not steeper any more."""


class PartialNoise:
    """A loss whose noise, in a part of each batch, covers only what transforms remove.

    A network that has seen such states fills in what is missing around what is exact, which the method
    nullspace asks of it; it learns plain denoising no worse.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor],
        choices: Sequence[Sequence[LinearOperator]],
        share: float,
    ) -> None:
        """Wrap `loss`; a `share` of each batch is split evenly among `choices` of operators."""
        self.loss, self.choices, self.share = loss, choices, share

    def __call__(self, x_0: Tensor, sigma: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Compute the loss, a scalar, of the same arguments as the one inside."""
        parts = []
        for k, operators in enumerate(self.choices):
            first, last = (round(len(noise) * self.share * n / len(self.choices)) for n in (k, k + 1))
            parts.append(removed(noise[first:last], operators))
        covered = torch.cat([*parts, noise[round(len(noise) * self.share) :]])
        return self.loss(x_0, sigma, covered, generator)


class BlindStates:
    """A loss that meets, in a part of each batch, images with something in them that does not belong there.

    A network that has seen such states takes out of an image what is no part of a photograph, which the
    method blind asks of it. They have one noise level in name, `BLIND_SIGMA`. Half of them have lost their
    mean colour, and most what their colours have finer than a few pixels, which it has to guess; half have
    white noise on top, of any strength up to `MOST_NOISE` and mostly faint, and it has to tell that, too.
    """

    def __init__(
        self, loss: Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor], share: float
    ) -> None:
        """Wrap `loss`; a `share` of each batch, at its end, becomes such states."""
        self.loss, self.share = loss, share

    def __call__(self, x_0: Tensor, sigma: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Compute the loss, a scalar, of the same arguments as the one inside."""
        first = len(x_0) - round(len(x_0) * self.share)
        clean = x_0[first:]
        x = corrupted(clean, generator)
        drawn = torch.rand(len(clean), 4, generator=generator, device=x.device)
        cell = drawn[:, 3, None, None, None]
        x = torch.where(cell < 0.4, coarse_colour(x, 4), torch.where(cell < 0.7, coarse_colour(x, 8), x))
        x = x - torch.where(drawn[:, 2, None, None, None] < 0.5, colour_cast(x), 0.0)
        strength = torch.where(drawn[:, 0] < 0.5, MOST_NOISE * drawn[:, 1].square(), 0.0)
        x = x + strength[:, None, None, None] * noise[first:]
        noise = torch.cat([noise[:first], (x - clean) / BLIND_SIGMA])
        sigma = torch.cat([sigma[:first], sigma.new_full((len(x),), BLIND_SIGMA)])
        return self.loss(x_0, sigma, noise, generator)


MOST_NOISE = 0.3
"""Standard deviation of the strongest white noise on a blind state."""


class NoiseLoss:
    """Mean squared error of the predicted noise, at the timesteps nearest to the noise levels.

    A variance that the network predicts beside the noise is left alone.

    Source: Ho et al. 2020, eq. 14.
    """

    def __init__(self, model: EpsModel, device: torch.device) -> None:
        """Put the tables of the schedule of `model` on its device, once."""
        self.model = model
        self._alpha_bar = alpha_bars(model.schedule).float().to(device)
        self._log_sigma = sigmas(model.schedule).log().float().to(device)

    def __call__(self, x_0: Tensor, sigma: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Compute the loss, a scalar; 1 for a network that predicts nothing.

        Args:
            x_0: Clean images, (N, C, H, W), in [-1, 1].
            sigma: Noise levels, (N,).
            noise: N(0, I), same shape as x_0.
            generator: Not used.
        """
        t = self.timesteps(sigma)
        kept = self._alpha_bar[t][:, None, None, None]
        x_t = kept.sqrt() * x_0 + (1 - kept).sqrt() * noise
        eps = self.model(x_t, t.float())[:, : self.model.channels]
        loss: Tensor = (eps.float() - noise).square().mean()
        return loss

    def timesteps(self, sigma: Tensor) -> Tensor:
        """The timesteps, (N,), whose ln(sigma) is nearest."""
        return (self._log_sigma - sigma.log()[:, None]).abs().argmin(1)
