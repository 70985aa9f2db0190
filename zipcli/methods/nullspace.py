"""Nullspace: what the transforms keep is known without noise, and only what they remove is drawn anew.

A chain of `few.py` with noise in nothing but what all transforms remove, so that it draws from the clean
images that agree with A of the input. DDNM (Wang et al. 2023) and ZIP with an infinite lambda correct the
estimate in the same way, but hide what they know exactly under noise, from which the prior then has to
guess it. The prior has to know such states; the built-in one was trained on them. Ours.
"""

from torch import Tensor

from zipcli.config import MethodConfig
from zipcli.methods.few import restore
from zipcli.projection import removed
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
        operators: Transforms A_n; what any of them keeps is known.
        config: Sampler, steps, lambda and eta.
        noise: One draw for each step.

    Returns:
        Purified images, (N, C, H, W), not clipped. With an infinite lambda their A x is that of the input.

    Raises:
        NonFiniteError: The state of some image became NaN or infinite.
    """
    assert eps_model is not None
    kept = x - removed(x, operators)

    def covered(noise: Tensor) -> Tensor:
        return removed(noise, operators)

    def correction(x_0: Tensor) -> Tensor:
        return kept - x_0 + removed(x_0, operators)

    return restore(x, eps_model, operators, config, noise=noise, covered=covered, correction=correction)
