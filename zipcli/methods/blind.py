"""Blind: let a prior take out of the image what does not belong into a photograph.

ZIP chooses beforehand what to forget of an image, and forgets it everywhere. Here the prior itself judges
what is implausible, wherever it lies, in pixels or in waves: it was trained to restore images that were
altered in every way that is not a photograph (`zipcli.training.corruption`), and to leave alone those that
were not.

Some things it cannot judge, and there we forget beforehand, too. A tint of the whole image is no less
plausible than another light, so the mean colour goes, and the prior refills it with the one that such a
picture most likely has. Colours finer than a few pixels hide more than they tell: they go as well, and follow
from the brightness. A trigger that no eye can see is no less plausible than the image without it, so faint
noise goes over the image before the last pass, which takes both away together. It is drawn anew for every
image and seed. One pass is all it takes.

A network for small images sees a part of a large one at a time, and a trigger as large as that part looks
like a plain wall. So a large image is first looked at in small copies, from the smallest on, and what the
network changes there by more than it errs is changed in the image. Ours.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from zipcli.config import BLIND_SIGMA, MethodConfig, NoiseSchedule
from zipcli.methods.steps import FiniteWatch, denoise
from zipcli.projection import block_means, coarse_colour, colour_cast, interpolated
from zipcli.protocols import EpsModel, LinearOperator, Noise
from zipcli.schedule import timestep_at

THUMBNAIL = 32
"""About the shorter side, in pixels, of the smallest copy of a larger image: what is in it must be seen at
once, which a network for small images cannot. A network of one size is shown that size."""

HALF_A_LEVEL = 1 / 255
"""Of 256, in [-1, 1]."""


def purify(
    x: Tensor,
    eps_model: EpsModel | None,
    operators: tuple[LinearOperator, ...],
    config: MethodConfig,
    /,
    *,
    noise: Noise,
) -> Tensor:
    """Purify a batch of images.

    Args:
        x: Suspicious images, (N, C, H, W), float32 in [-1, 1].
        eps_model: A prior that was trained on blind states; it is told that their noise is `BLIND_SIGMA`.
        operators: Not used.
        config: passes, how often the prior is asked; sigma, the noise to put on the image before the last
            pass; colour_cell and keep_colour, what is forgotten of the colours; doubt, of what happens to
            small copies.
        noise: One draw, also where sigma is 0.

    Returns:
        Purified images, (N, C, H, W), not clipped: x <- x - BLIND_SIGMA eps(x), once for each pass. They
        do not depend on what the colours have finer than `colour_cell` nor, unless it is kept, on the mean
        colour of the images. Images without any colour stay without.

    Raises:
        NonFiniteError: The state of some image became NaN or infinite.

    """
    assert eps_model is not None
    timestep = timestep_at(eps_model.schedule, BLIND_SIGMA)
    grains = config.sigma * noise(x)
    watch = FiniteWatch(x)
    without_colour = (x - x.mean(1, keepdim=True)).abs().amax((1, 2, 3), keepdim=True) < HALF_A_LEVEL
    if not config.keep_colour:
        x = x - colour_cast(x)
    size = (x.shape[-2], x.shape[-1])
    copies = shrinks(size, eps_model.native_side or THUMBNAIL, config)
    if copies:
        x = coarse_colour(x, config.colour_cell)
    for step, shrink in enumerate(copies):
        small = block_means(x, shrink)
        change = denoise(eps_model, small, BLIND_SIGMA, timestep)[0] - small
        if step == 0 and not config.keep_colour:
            cast = colour_cast(change)
            x, change = x + cast, change - cast
        x = x + interpolated(believed(change, config.doubt), shrink, size)
    for step in range(config.passes):
        x = coarse_colour(x, config.colour_cell)
        state = x + grains if step == config.passes - 1 else x
        x, _ = denoise(eps_model, state, BLIND_SIGMA, timestep)
        watch.see(step, x)
    watch.refuse([timestep] * config.passes)
    return torch.where(without_colour, x.mean(1, keepdim=True), x)


def believed(change: Tensor, doubt: float) -> Tensor:
    """Of a change to an image, (N, C, H, W), what is beyond doubt.

    A Wiener filter: each pixel times e / (e + doubt^2), e the mean square of the change in the 3x3 pixels
    around it.
    """
    energy = change.square().mean(1, keepdim=True)
    energy = F.avg_pool2d(F.pad(energy, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return change * (energy / (energy + doubt**2))


def shrinks(size: tuple[int, int], side: int, config: MethodConfig) -> list[int]:
    """By what an image, (H, W), is shrunk to copies; the shorter side of the first is about `side`."""
    found = []
    shrink = round(min(size) / side)
    while shrink > 1:
        found.append(shrink)
        shrink //= 2
    if math.isinf(config.doubt):  # none is believed, but the first decides the mean colour
        return [] if config.keep_colour else found[:1]
    return found


def evaluations(config: MethodConfig, schedule: NoiseSchedule, size: tuple[int, int]) -> float:
    """Calls of the network for an image, and the small copies by their pixels; for a network of any size."""
    return config.passes + sum(1 / shrink**2 for shrink in shrinks(size, THUMBNAIL, config))
