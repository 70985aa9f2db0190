"""What linear transforms keep of an image, and what they remove."""

import math
from collections.abc import Sequence

import torch
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


def tint(x: Tensor, count: int, size: tuple[int, int] | None = None) -> Tensor:
    """What the longest waves of the colours make of an image, (N, C, H, W) or (N, C, *size).

    An image less its tint is projected on what remains where these waves are forgotten.

    Args:
        x: Images, (N, C, H, W). Brightness is the mean of the channels, colour is the rest of each.
        count: Cosine waves along each axis, 1 for the mean colour alone; 0 makes a tint of nothing.
        size: Of the tint, where it is not that of the images.
    """
    size = size or (x.shape[-2], x.shape[-1])
    return painted(colour_waves(x, count), size) if count else x.new_zeros(*x.shape[:2], *size)


def colour_waves(x: Tensor, count: int) -> Tensor:
    """How strong the longest cosine waves are in the colours of images, (N, C, rows, columns).

    The first is the mean colour, the next ones rise evenly along one side.

    Args:
        x: Images, (N, C, H, W).
        count: Waves along each axis, from 1; an axis has no more than pixels.

    Returns:
        Amplitudes, which do not depend on the size of the image, (N, C, min(count, H), min(count, W)).
    """
    waves = x - x.mean(1, keepdim=True)
    # No matrix products: they are rounded to the short type where one is in use, and
    # what an image gives would depend on how many are with it.
    for _ in range(2):
        cosines = _cosines(count, waves.shape[-1], x)
        waves = torch.stack([(waves * (wave / wave.square().sum())).sum(-1) for wave in cosines], 2)
    return waves


def painted(waves: Tensor, size: tuple[int, int]) -> Tensor:
    """The image, (N, C, *size), that is made of these waves alone; see `colour_waves`."""
    for length in size:
        cosines = _cosines(waves.shape[2], length, waves)
        waves = sum(part[..., None] * wave for part, wave in zip(waves.unbind(2), cosines, strict=True))
    return waves


def _cosines(count: int, length: int, like: Tensor) -> Tensor:
    """The longest waves of a discrete cosine transform, (min(count, length), length)."""
    place = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / length
    order = torch.arange(min(count, length), device=like.device, dtype=like.dtype)
    return (math.pi * order[:, None] * place).cos()


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
