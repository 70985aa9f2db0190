"""Blind: let a prior take out of the image what does not belong into a photograph, and leave the rest.

ZIP chooses beforehand what to forget of an image, and forgets it everywhere. Here the prior itself judges
what is implausible, wherever it lies, in pixels or in waves: it was trained to restore images that were
altered in every way that is not a photograph (`zipcli.training.corruption`), and to leave alone those that
were not.

Some things it cannot judge, and there we forget beforehand, too. A tint of the whole image is no less
plausible than another light, so the mean colour goes, and the prior refills it with the one that such a
picture most likely has. Colours finer than a few pixels hide more than they tell: they go as well, and follow
from the brightness. A trigger that no eye can see is no less plausible than the image without it, so faint
noise goes over what the first passes have left, and the last one takes both away together. It is drawn anew
for every image and seed. Ours.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from zipcli.config import BLIND_SIGMA, MethodConfig, NoiseSchedule
from zipcli.methods.steps import FiniteWatch, denoise
from zipcli.projection import coarse_colour, colour_cast
from zipcli.protocols import EpsModel, LinearOperator, Noise
from zipcli.schedule import timestep_at

THUMBNAIL = 32
"""Shorter side in pixels of what the mean colour of a larger image is judged by: what is in it must be seen
at once, which a network for small images and in windows cannot."""


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
        the colour is kept they do not depend on the mean colour of the images.

    Raises:
        NonFiniteError: The state of some image became NaN or infinite.

    """
    assert eps_model is not None
    timestep = timestep_at(eps_model.schedule, BLIND_SIGMA)
    grains = config.sigma * noise(x)
    watch = FiniteWatch(x)
    if not config.keep_colour:
        x = x - colour_cast(x)
    for step in range(config.passes):
        x = coarse_colour(x, config.colour_cell)
        state = x + grains if step == config.passes - 1 else x
        restored, _ = denoise(eps_model, state, BLIND_SIGMA, timestep)
        if step == 0 and not config.keep_colour and min(x.shape[-2:]) > THUMBNAIL:
            # One by one: a model of a fixed size would see several on one canvas, whose number varies.
            small = torch.split(thumbnails(x), 1)
            seen = [denoise(eps_model, one, BLIND_SIGMA, timestep)[0] for one in small]
            restored = restored - colour_cast(restored) + colour_cast(torch.cat(seen))
        x = restored
        watch.see(step, x)
    watch.refuse([timestep] * config.passes)
    return x


def thumbnails(x: Tensor) -> Tensor:
    """Images, (N, C, H, W), whose shorter side is `THUMBNAIL`; each pixel is a mean."""
    factor = THUMBNAIL / min(x.shape[-2:])
    return interpolate(x, [round(side * factor) for side in x.shape[-2:]], mode="area")


def evaluations(config: MethodConfig, schedule: NoiseSchedule) -> int:
    """Calls of the network for an image, besides the one for the thumbnail of a larger image."""
    return config.passes
