"""The transforms alone: what ZIP starts from, and the baseline it has to beat."""

from torch import Tensor

from zipcli.config import MethodConfig
from zipcli.methods.zip import correction
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
    """A+ A x, averaged over the transforms; no network, no noise.

    Args:
        x: Images, (N, C, H, W), in [-1, 1].
        eps_model: Not used.
        operators: Transforms A_n.
        config: Not used.
        noise: Not used.

    Returns:
        Images of the same shape, in [-1, 1].

    Source: Shi et al. 2023, the baseline "Blur" of table 2.
    """
    targets = [A.forward(x) for A in operators]
    return correction(x.new_zeros(x.shape), operators, targets, (x.shape[-2], x.shape[-1]))
