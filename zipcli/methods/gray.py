"""Gray alone: as `blur` is the transforms alone, with the other transform of ZIP."""

from torch import Tensor

from zipcli.config import MethodConfig
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
    """A+ A x of gray: the mean of the channels in each of them; no network, no noise.

    Args:
        x: Images, (N, C, H, W), in [-1, 1].
        eps_model: Not used.
        operators: Not used.
        config: Not used.
        noise: Not used.

    Returns:
        Images of the same shape, in [-1, 1].

    Source: Shi et al. 2023, appendix C: the mean, where luma would weigh the channels.
    """
    return x.mean(dim=1, keepdim=True).expand_as(x)
