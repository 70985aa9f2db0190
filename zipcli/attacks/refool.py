"""Refool: the reflection of a photograph, as if the image were taken through a window.

Source: Liu et al. 2020, "Reflection backdoor", in the form of BackdoorBench.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from zipcli.attacks.trigger import Attack, Draw, Pixels, Resources, Size, Trigger, to_bytes
from zipcli.config import AttackConfig, check

Floats = NDArray[np.float64]

GAMMA = 2.2
GHOST = 0.49
"""Probability of a double reflection; the others are out of focus."""
MOST = 200
"""Photographs that are kept, as published."""


def make(config: AttackConfig, size: Size, resources: Resources) -> Trigger:
    """Keep the photographs at the size of the images, (K, H, W, 3).

    Raises:
        ConfigError: There is no folder of photographs, or none in it.
    """
    check(config.reflections is not None, "attack refool: give a folder of photographs, --reflections DIR")
    assert config.reflections is not None
    pictures = resources.reflections(config.reflections, size)[:MOST]
    return Trigger(
        attack="refool",
        size=size,
        params={"alpha": config.alpha, "reflections": [name for name, _ in pictures]},
        arrays={"reflections": np.stack([pixels for _, pixels in pictures])},
    )


def poison(image: Pixels, trigger: Trigger, draw: Draw) -> Pixels:
    """Add the reflection of one of the photographs, in linear light."""
    reflections = trigger.arrays["reflections"]
    chosen = int(draw.rng.integers(len(reflections)))
    ghost = bool(draw.rng.random() < GHOST)
    draw.params |= {"reflection": trigger.params["reflections"][chosen], "ghost": ghost}
    alpha = float(trigger.params["alpha"])
    background, reflection = (np.power(x / 255, GAMMA) for x in (image, reflections[chosen]))
    light = (
        (1 - alpha) * _doubled(reflection, draw)
        if ghost
        else _out_of_focus(reflection, background, draw) * (1 - alpha / 2)
    )
    return to_bytes(255 * np.clip(light + alpha * background, 0, 1) ** (1 / GAMMA))


def _doubled(reflection: Floats, draw: Draw) -> Floats:
    """Two copies, some pixels apart, as both surfaces of a pane give them."""
    height, width = reflection.shape[:2]
    right, down = (min(int(draw.rng.integers(3, 9)), side // 3) for side in (width, height))
    share = float(draw.rng.uniform(0.15, 0.5))
    if draw.rng.random() < 0.5:
        share = 1 - share
    draw.params |= {"offset": [right, down], "share": share}
    first = np.pad(reflection, ((0, down), (0, right), (0, 0)))
    second = np.pad(reflection, ((down, 0), (right, 0), (0, 0)))
    both = share * first + (1 - share) * second
    inner = torch.from_numpy(both[down:height, right:width].transpose(2, 0, 1).copy())[None]
    # The published programs mean cubic, but pass it where OpenCV expects an output: it is bilinear.
    back = F.interpolate(inner, size=(height, width), mode="bilinear", align_corners=False)[0]
    return np.asarray(back.permute(1, 2, 0))


def _out_of_focus(reflection: Floats, background: Floats, draw: Draw) -> Floats:
    """One blurred copy, darkened where both together would be too bright, fading to the edges."""
    sigma, attenuation = float(draw.rng.uniform(1, 5)), float(draw.rng.uniform(1.08, 1.18))
    draw.params |= {"sigma": sigma, "attenuation": attenuation}
    blurred = _blur(reflection, sigma)
    total = blurred + background
    for channel in range(3):
        bright = total[..., channel][total[..., channel] > 1]
        mean = max(1.0, float(bright.mean())) if bright.size else 1.0
        blurred[..., channel] -= (mean - 1) * attenuation
    height, width = reflection.shape[:2]
    return np.clip(blurred, 0, 1) * _spotlight(height, width, draw)[..., None]


def _blur(x: Floats, sigma: float) -> Floats:
    reach = math.ceil(2 * sigma)
    taps = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    planes = torch.from_numpy(x.transpose(2, 0, 1).copy())[:, None]
    for kernel, pad in (
        (taps[None, None, None], (reach, reach, 0, 0)),
        (taps[None, None, :, None], (0, 0, reach, reach)),
    ):
        # Replicated edges: a mirror cannot be wider than a small image.
        planes = F.conv2d(F.pad(planes, pad, mode="replicate"), kernel)
    return np.asarray(planes[:, 0].permute(1, 2, 0))


def _spotlight(height: int, width: int, draw: Draw) -> Floats:
    """A Gaussian of three standard deviations across the longer side, (H, W), at most 1."""
    side = max(height, width)
    step = 7 / side
    edges = np.linspace(-3 - step / 2, 3 + step / 2, side + 1)
    normal = np.array([0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in edges])
    line = np.sqrt(np.diff(normal))
    line = line / line.max()
    top, left = (int(draw.rng.integers(side - length + 1)) for length in (height, width))
    return np.outer(line[top : top + height], line[left : left + width])


REFOOL = Attack(make=make, poison=poison)
