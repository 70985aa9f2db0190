"""The Gaussian window of SSIM.

Source: Wang et al. 2004, section III.C: 11 by 11 pixels, sigma 1.5.
"""

import math

from torch import Tensor

SIDE = 11
SIGMA = 1.5
RADIUS = SIDE // 2


def windowed_mean(padded: Tensor) -> Tensor:
    """Gaussian mean around each pixel.

    Args:
        padded: (..., H + 2 RADIUS, W + 2 RADIUS): whoever asks decides what lies beyond the border.

    Returns:
        (..., H, W). Not by conv2d: it would round to TensorFloat-32 on recent GPUs.
    """
    taps = [math.exp(-0.5 * (k / SIGMA) ** 2) for k in range(-RADIUS, RADIUS + 1)]
    for axis in (-2, -1):
        length = padded.shape[axis] - 2 * RADIUS
        total = padded.narrow(axis, 0, length) * (taps[0] / sum(taps))
        for k in range(1, SIDE):
            total.add_(padded.narrow(axis, k, length), alpha=taps[k] / sum(taps))
        padded = total
    return padded
