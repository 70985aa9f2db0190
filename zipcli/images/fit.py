"""Brings an image that is larger than the model's window to a size it can take, and back."""

import torch.nn.functional as F
from torch import Tensor


def fit(x: Tensor, mode: str, side: int) -> Tensor:
    """Shrink or crop images for a window of `side` pixels.

    Args:
        x: Images, (N, C, H, W).
        mode: tile (as it is), resize (short side to `side`, never larger), squash (both sides to
            `side`, ignoring the aspect), or center-crop (ADM's protocol: short side to `side`,
            then the middle square).
        side: Side of the window in pixels.

    Returns:
        Images of the size to purify. An image with no side longer than `side` is left alone.
    """
    size = (x.shape[-2], x.shape[-1])
    target = fitted_size(size, mode, side)
    if mode != "center-crop" or target == size:
        return resample(x, target)
    while min(x.shape[-2:]) >= 2 * side:
        x = F.avg_pool2d(x, 2)
    scale = side / min(x.shape[-2:])
    x = resample(x, (max(side, round(x.shape[-2] * scale)), max(side, round(x.shape[-1] * scale))))
    top, left = (x.shape[-2] - side) // 2, (x.shape[-1] - side) // 2
    return x[..., top : top + side, left : left + side]


def fitted_size(size: tuple[int, int], mode: str, side: int) -> tuple[int, int]:
    """The size, (H, W), that `fit` brings an image of `size` to."""
    if mode == "tile" or max(size) <= side:
        return size
    if mode == "resize":
        scale = min(1.0, side / min(size))
        return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    return (side, side)


def unfit(x: Tensor, mode: str, size: tuple[int, int]) -> Tensor:
    """Bring purified images back to `size` (H, W); a center crop stays what it is."""
    return x if mode == "center-crop" else resample(x, size)


def resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, C, H, W) to (H, W) = `size` with a bicubic filter, averaging when it shrinks."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
