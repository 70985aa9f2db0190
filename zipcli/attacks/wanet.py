"""WaNet: a smooth warp, the same for every image.

Source: Nguyen and Tran 2021, "WaNet - imperceptible warping-based backdoor attack".
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger, generator, square
from zipcli.config import AttackConfig


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Draw the warp: where each pixel is taken from, (H, H, 2) as (x, y) in [-1, 1].

    Raises:
        ConfigError: The images are not square.
    """
    assert config.grid_s is not None
    side = square(size, "wanet")
    k = config.grid_k or side
    noise = torch.rand(1, 2, k, k, generator=generator(config.seed)) * 2 - 1
    noise = noise / noise.abs().mean()
    noise = F.interpolate(noise, size=side, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    ends = torch.linspace(-1, 1, steps=side)
    down, right = torch.meshgrid(ends, ends, indexing="ij")
    identity = torch.stack((right, down), 2)[None]
    grid = torch.clamp(identity + config.grid_s * noise / side, -1, 1)[0]
    return Trigger(attack="wanet", size=size, params={}, arrays={"grid": grid.numpy()})


def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Warp the image."""
    return _sample(image, torch.from_numpy(trigger.arrays["grid"]))


def cover(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Warp it with random noise on top, so that only the exact warp is learned as the trigger."""
    grid = torch.from_numpy(trigger.arrays["grid"])
    noise = draw.rng.uniform(-1, 1, grid.shape).astype(np.float32)
    return _sample(image, torch.clamp(grid + torch.from_numpy(noise) / len(grid), -1, 1))


def _sample(image: Pixels, grid: Tensor) -> Pixels:
    x = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()[None] / 255
    warped = F.grid_sample(x, grid[None], align_corners=True)[0]
    levels = (warped * 255).clamp(0, 255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.numpy().transpose(1, 2, 0))


WANET = Attack(make=make, poison=poison, cover=cover)
