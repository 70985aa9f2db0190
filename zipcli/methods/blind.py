"""Blind: let a prior take out of the image what does not belong into a photograph, and leave the rest.

ZIP chooses beforehand what to forget of an image, and forgets it everywhere. Here the prior itself judges
what is implausible, wherever it lies, in pixels or in waves: it was trained to restore images that were
altered in every way that is not a photograph (`zipcli.training.corruption`), and to leave alone those that
were not. One evaluation is all it takes. Faint noise goes over the image first, for a trigger that no eye can
see is no less plausible than the image; the prior takes both away together. It is drawn anew for every image
and seed. Ours.
"""

from torch import Tensor

from zipcli.config import BLIND_SIGMA, MethodConfig, NoiseSchedule
from zipcli.methods.steps import FiniteWatch, denoise
from zipcli.protocols import EpsModel, LinearOperator, Noise
from zipcli.schedule import timestep_at


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
        config: sigma, the noise to put on the image.
        noise: One draw, also where sigma is 0.

    Returns:
        Purified images, (N, C, H, W), not clipped: x_0 = x_t - BLIND_SIGMA eps.

    Raises:
        NonFiniteError: The state of some image became NaN or infinite.

    """
    assert eps_model is not None
    timestep = timestep_at(eps_model.schedule, BLIND_SIGMA)
    x_0, _ = denoise(eps_model, x + config.sigma * noise(x), BLIND_SIGMA, timestep)
    watch = FiniteWatch(x)
    watch.see(0, x_0)
    watch.refuse([timestep])
    return x_0


def evaluations(config: MethodConfig, schedule: NoiseSchedule) -> int:
    """Calls of the network for an image."""
    return 1
