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
image and seed. One pass is all it takes. Ours.
"""

import torch
from torch import Tensor

from zipcli.config import BLIND_SIGMA, MethodConfig, NoiseSchedule
from zipcli.methods.steps import FiniteWatch, denoise
from zipcli.projection import block_means, coarse_colour, colour_cast
from zipcli.protocols import EpsModel, LinearOperator, Noise
from zipcli.schedule import timestep_at

THUMBNAIL = 32
"""About the shorter side, in pixels, of what the mean colour of a larger image is judged by: what is in it
must be seen at once, which a network for small images cannot. A network of one size is shown that size."""


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
            pass; colour_cell and keep_colour, what is forgotten of the colours before each.
        noise: One draw, also where sigma is 0.

    Returns:
        Purified images, (N, C, H, W), not clipped: x <- x - BLIND_SIGMA eps(x), once for each pass. Unless
        the colour is kept they do not depend on the mean colour of the images. Those without any colour stay
        without.

    Raises:
        NonFiniteError: The state of some image became NaN or infinite.

    """
    assert eps_model is not None
    timestep = timestep_at(eps_model.schedule, BLIND_SIGMA)
    side = eps_model.native_side or THUMBNAIL
    shrink = round(min(x.shape[-2:]) / side)
    grains = config.sigma * noise(x)
    watch = FiniteWatch(x)
    without_colour = (x - x.mean(1, keepdim=True)).abs().amax((1, 2, 3), keepdim=True) < HALF_A_LEVEL
    if not config.keep_colour:
        x = x - colour_cast(x)
        if shrink > 1:
            seen, _ = denoise(eps_model, block_means(x, shrink), BLIND_SIGMA, timestep)
            x = x + colour_cast(seen)
    for step in range(config.passes):
        x = coarse_colour(x, config.colour_cell)
        state = x + grains if step == config.passes - 1 else x
        x, _ = denoise(eps_model, state, BLIND_SIGMA, timestep)
        watch.see(step, x)
    watch.refuse([timestep] * config.passes)
    return torch.where(without_colour, x.mean(1, keepdim=True), x)


def evaluations(config: MethodConfig, schedule: NoiseSchedule) -> int:
    """Calls of the network for an image, besides the one for the thumbnail of a larger image."""
    return config.passes
