"""What linear transforms keep of an image, and what they remove."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

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


def colour_cast(x: Tensor) -> Tensor:
    """How far the mean of each channel lies from the mean of them all, (N, C, 1, 1).

    An image less its cast is projected on what remains where the mean colour alone is forgotten.

    Args:
        x: Images, (N, C, H, W).
    """
    mean = x.mean((2, 3), keepdim=True)
    return mean - mean.mean(1, keepdim=True)


def coarse_colour(x: Tensor, cell: int) -> Tensor:
    """Images that keep all of their brightness, and of their colours only the means of square cells.

    That, too, is an orthogonal projection: doing it twice changes nothing.

    Args:
        x: Images, (N, C, H, W). Brightness is the mean of the channels, colour is the rest of each.
        cell: Side of a cell in pixels; those at the right and the bottom may be cut.

    Returns:
        (N, C, H, W).
    """
    if cell == 1:
        return x
    grey = x.mean(1, keepdim=True)
    return grey + enlarged(block_means(x - grey, cell), cell, (x.shape[-2], x.shape[-1]))


def block_means(x: Tensor, side: int) -> Tensor:
    """Means of disjoint square blocks: (N, C, H, W) to (N, C, ceil(H/side), ceil(W/side)).

    Where `side` does not divide H or W, the last blocks are smaller and divided by the pixels they have.
    """
    height, width = x.shape[-2:]
    # count_include_pad has no say without padding: with ceil_mode torch divides the blocks
    # that stick out by the pixels inside the image.
    return avg_pool2d(x, (min(side, height), min(side, width)), ceil_mode=True)


def enlarged(means: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Each mean all over its block again: (N, C, ceil(H/side), ceil(W/side)) to (N, C, H, W) of `size`."""
    wide = means.repeat_interleave(min(side, size[1]), dim=-1)[..., : size[1]]
    return wide.repeat_interleave(min(side, size[0]), dim=-2)[..., : size[0], :]


def interpolated(means: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """As `enlarged`, but bilinear between the middles of the blocks."""
    wide = interpolate(means, scale_factor=float(side), mode="bilinear", align_corners=False)
    return wide[..., : size[0], : size[1]]
