"""DDNM: like ZIP from pure noise, but held to what the transform kept in every step, to the end.

Source: Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", ICLR 2023, and
its program. ZIP calls it Blur+DDNM where the transform is a blur.
"""

import math

from torch import Tensor

from zipcli.config import MethodConfig
from zipcli.methods.zip import from_pure_noise
from zipcli.protocols import EpsModel, LinearOperator, Noise


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
        eps_model: The diffusion prior.
        operators: One transform A.
        config: Steps, grid, eta, simplified, time travel. Its eta is DDNM's, not DDIM's: the share of the
            whole noise of the next state that is fresh.
        noise: One draw for the start of the chain, then one for every step.

    Returns:
        Purified images, (N, C, H, W), not clipped. Their A x is that of the input.

    Raises:
        ConfigError: The grid does not start at pure noise.
        NonFiniteError: The state of some image became NaN or infinite.

    Source: Algorithms 1 and 2, and the program for eta. It has two paths: by SVD, and for --simplified, which
    multiplies the noise by sqrt(1 - alpha_bar^2) of the next state once more. That leaves 0.24 of it at
    timestep 50, where the network is told that all of it is there.
    """
    assert eps_model is not None

    def advance(x_0: Tensor, missing: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
        spread = math.sqrt(1 - alpha_bar_prev)
        if config.simplified:
            spread *= math.sqrt(1 - alpha_bar_prev**2)
        mixed = config.eta * noise(x) + math.sqrt(1 - config.eta**2) * eps
        return math.sqrt(alpha_bar_prev) * (x_0 + missing) + spread * mixed

    return from_pure_noise(x, eps_model, operators, config, advance, noise=noise)
