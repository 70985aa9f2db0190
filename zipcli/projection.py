"""What linear transforms keep of an image, and what they remove."""

from collections.abc import Sequence

from torch import Tensor

from zipcli.protocols import LinearOperator


def removed(x: Tensor, operators: Sequence[LinearOperator]) -> Tensor:
    """The part of x that none of the operators keeps: (I - A_n+ A_n) ... (I - A_1+ A_1) x.

    Args:
        x: Images or noise, (N, C, H, W).
        operators: A_n. Where they commute, as gray with any other does, the result is the
            projection on what all of them lose; x less it agrees with x under each of them.

    Returns:
        (N, C, H, W).

    Source: the range-null space decomposition of DDNM (Wang et al. 2023, section 3.1).
    """
    size = (x.shape[-2], x.shape[-1])
    for A in operators:
        x = x - A.pinv(A.forward(x), size)
    return x
