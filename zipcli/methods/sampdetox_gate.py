"""SampDetox: where an image changed, how much noise each pixel gets, and which pixels a step may move.

The chain around these parts: purify lightly (x to x_bar), then

    tau = noise_levels(stretch(dissimilarity_map(x, x_bar, ssim_range)), t2)
    x_t = noise_to_levels(x_bar, tau, alpha_bar, noise)
    for i = t2 - 1, ..., 0: x_t = merge_step(x_t, one reverse step from x_t at i, tau, i)

Source: Yang et al., "SampDetox: Black-box Backdoor Defense via Perturbation-based Sample
Detoxification", NeurIPS 2024, and its released program. Where we follow the program rather than the
paper, the function says so: the program is the only place that gives the constants.
"""

import math

import torch
from torch import Tensor

from zipcli.config import check
from zipcli.methods.ssim_window import RADIUS, SIDE, windowed_mean

CHANNEL_WEIGHTS = (0.11, 0.59, 0.30)
"""Of R, G, B. These are luma weights in the order B, G, R, as the released program applies them."""

# Relative spread up to which a map is constant: a few float32 operations may round by 1e-6.
_FLAT = 1e-5


def dissimilarity_map(x: Tensor, x_bar: Tensor, ssim_range: float = 255.0) -> Tensor:
    """How much each pixel changed: 1 - g, where g is the weighted SSIM map of the released program.

    Args:
        x: Suspicious images, (N, C, H, W), in [-1, 1], sides of at least 11.
        x_bar: The same images after the light purification, same shape; clipped here to [-1, 1].
        ssim_range: Data range R of SSIM. The program passes 255 for images in [0, 1]: its constants
            then dwarf the statistics and the map is one of local mean differences. 1 is what SSIM means.

    Returns:
        (N, 1, H, W), at least 0; 0 up to rounding where nothing changed. With range 255 about 0 to 0.01.

    Raises:
        ConfigError: A side is shorter than 11 pixels.

    Source: SampDetox program, `diffusion`. It weights S, and so does this, for the weights add to 1. We
    keep 1 - S because S lies within 0.01 of 1, where float32 holds only 17 bits of the difference.
    With other than three channels, all weigh the same; the program knows RGB only.
    """
    u, u_bar = ((image.clamp(-1, 1) + 1) / 2 for image in (x, x_bar))
    channels = x.shape[1]
    weights = CHANNEL_WEIGHTS if channels == 3 else (1 / channels,) * channels
    dissimilarity = one_minus_ssim(u, u_bar, ssim_range)
    return (dissimilarity * x.new_tensor(weights).view(1, -1, 1, 1)).sum(dim=1, keepdim=True)


def one_minus_ssim(u: Tensor, v: Tensor, ssim_range: float) -> Tensor:
    """The map 1 - SSIM(u, v) of each channel.

    Args:
        u: Images, (N, C, H, W), in [0, 1], sides of at least 11.
        v: Images of the same shape and range.
        ssim_range: Data range R; C1 = (0.01 R)^2 and C2 = (0.03 R)^2.

    Returns:
        1 - S, (N, C, H, W), in [0, 2].

    Raises:
        ConfigError: A side is shorter than 11 pixels.

    Source: Wang et al. 2004, eq. 13, with the settings of the program: Gaussian window of sigma 1.5, 11
    by 11, borders mirrored with the edge pixel repeated, sample covariance (121/120). It is computed as
    1 - (1 - p)(1 - q) with p = (mu_u - mu_v)^2 / (mu_u^2 + mu_v^2 + C1) and
    q = var(u - v) / (var u + var v + C2): equal to 1 - S, without subtracting two numbers close to 1.
    """
    height, width = u.shape[-2:]
    check(
        min(height, width) >= SIDE,
        f"SSIM needs sides of at least {SIDE} pixels, and the image is {width}x{height}; use a larger one",
    )
    mu_u, mu_v = _blur(u), _blur(v)
    p = _blur(u - v).square() / (mu_u.square() + mu_v.square() + (0.01 * ssim_range) ** 2)
    q = _variance(u - v) / (_variance(u) + _variance(v) + (0.03 * ssim_range) ** 2)
    return p + q - p * q


def stretch(dissimilarity: Tensor) -> Tensor:
    """Stretch each image's map to fill [0, 1]: 1 - g after the min-max normalisation of g.

    Args:
        dissimilarity: Maps, (N, 1, H, W), at least 0.

    Returns:
        (N, 1, H, W): 0 is the most similar pixel of the image, 1 the least similar. A constant map
        becomes 0 everywhere, there being nothing to treat; the program divides 0 by 0 there.

    Source: SampDetox program, `diffusion`. Constant means a spread of at most 1e-5 of the maximum,
    since stretching less than that would turn rounding into noise levels.
    """
    low, high = dissimilarity.amin((1, 2, 3), keepdim=True), dissimilarity.amax((1, 2, 3), keepdim=True)
    spread = high - low
    return (dissimilarity - low) / spread.masked_fill(spread <= _FLAT * high, math.inf)


def noise_levels(stretched: Tensor, t2: int) -> Tensor:
    """The noise level tau of each pixel.

    Args:
        stretched: Maps, (N, 1, H, W), in [0, 1].
        t2: Highest level, a 0-based timestep.

    Returns:
        trunc(t2 * stretched), int64, (N, 1, H, W), in [0, t2]. Unless the map is constant, some
        pixel of each image has t2 itself.

    Raises:
        ConfigError: t2 is negative.

    Source: SampDetox program, `diffusion` (t2 = trunc((1 - g) T2)).
    """
    check(t2 >= 0, f"t2: {t2} is negative")
    return (stretched * t2).to(torch.int64)


def noise_to_levels(x_bar: Tensor, tau: Tensor, alpha_bar: Tensor, noise: Tensor) -> Tensor:
    """Noise each pixel to its own level.

    Args:
        x_bar: Lightly purified images, (N, C, H, W), in [-1, 1].
        tau: 0-based level of each pixel, int64, (N, 1, H, W), not negative.
        alpha_bar: The table of the schedule, float64, (T,).
        noise: A draw from N(0, I), same shape as x_bar. The program draws one (C, H, W) and uses it
            for every image and in both stages.

    Returns:
        sqrt(alpha_bar[tau]) x_bar + sqrt(1 - alpha_bar[tau]) noise, same shape as x_bar. A pixel at
        level 0 is noised too (std 0.01), as in the program, although no step will remove it.

    Raises:
        ConfigError: A level is not in the table.

    Source: Ho et al. 2020, eq. 4, per pixel; SampDetox program, `diffusion`.
    """
    highest = int(tau.max()) if tau.numel() else 0
    check(
        highest < len(alpha_bar),
        f"t2: {highest} is beyond the schedule, whose last timestep is {len(alpha_bar) - 1}",
    )
    signal = alpha_bar.sqrt().to(x_bar)[tau]  # rooted in float64: near 1, 1 - alpha_bar loses its bits
    spread = (1 - alpha_bar).sqrt().to(x_bar)[tau]
    return signal * x_bar + spread * noise


def merge_step(x_t: Tensor, stepped: Tensor, tau: Tensor, i: int) -> Tensor:
    """Keep a reverse step only at the pixels that are active in it.

    Args:
        x_t: States before the step, (N, C, H, W).
        stepped: States after the full reverse step at timestep i, same shape.
        tau: Level of each pixel, (N, 1, H, W).
        i: 0-based timestep of the step.

    Returns:
        `stepped` where tau > i, x_t elsewhere. Strictly: a pixel at level tau joins at i = tau - 1,
        so one at level 0 never moves.

    Source: SampDetox program, `GaussianDiffusionSampler.forward`, which loops over the pixels.
    """
    return torch.where(tau > i, stepped, x_t)


def _variance(x: Tensor) -> Tensor:
    """Sample variance in the Gaussian window, not negative."""
    # The mean of the image changes no variance, but E[x^2] - E[x]^2 cancels less without it: 14 of 120
    # levels in float32, for a brighter copy of an image with little contrast and range 1.
    x = x - x.mean(dim=(-2, -1), keepdim=True)
    return (_blur(x.square()) - _blur(x).square()).clamp(min=0) * (SIDE**2 / (SIDE**2 - 1))


def _blur(x: Tensor) -> Tensor:
    """Gaussian mean in the window, each border mirrored with its edge pixel repeated."""
    for axis in (-2, -1):
        before, after = x.narrow(axis, 0, RADIUS), x.narrow(axis, x.shape[axis] - RADIUS, RADIUS)
        x = torch.cat([before.flip(axis), x, after.flip(axis)], dim=axis)
    return windowed_mean(x)
