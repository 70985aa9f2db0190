"""ShrinkPad: shrink the image and put it at a random place on black, so that a trigger moves.

Source: Li et al., "Backdoor Attack in the Physical World", ICLR workshop 2021, as BackdoorBox has it.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.functional import pad as surround

from zipcli.config import MethodConfig, check
from zipcli.errors import InputError, Reason
from zipcli.protocols import EpsModel, LinearOperator, Noise

BLACK = -1.0


def purify(
    x: Tensor,
    eps_model: EpsModel | None,
    operators: tuple[LinearOperator, ...],
    config: MethodConfig,
    /,
    *,
    noise: Noise,
) -> Tensor:
    """Shrink images and pad them; no network.

    Args:
        x: Images, (N, C, H, W), in [-1, 1].
        eps_model: Not used.
        operators: Not used.
        config: pad.
        noise: One draw of two numbers for each image.

    Returns:
        Images of the same shape, in [-1, 1] up to rounding.

    Raises:
        InputError: pad leaves nothing of an image.
    """
    height, width = x.shape[-2:]
    side = min(height, width)
    pad = default_pad(side) if config.pad is None else config.pad
    if pad >= side:
        raise InputError(
            Reason.METHOD_UNFIT,
            f"pad: {pad} leaves nothing of an image of {width}x{height}; make it smaller",
        )
    return shrink_pad(x, pad, draw_placements(pad, noise(x.new_empty(len(x), 2, 1, 1))))


def default_pad(side: int) -> int:
    """An eighth of the side, halves up, and at least 4: 4 pixels of 32, as BackdoorBox uses, 32 of 256.

    Of a side of 4 pixels or less, one pixel is left.

    Source: the 4 at 32 is BackdoorBox's; no source says how it grows with the image, so that is ours.
    """
    return min(side - 1, max(4, (side + 4) // 8))


def draw_placements(pad: int, noise: Tensor) -> Tensor:
    """Draw where each shrunken image goes.

    Args:
        pad: Pixels that each side lost.
        noise: Two draws from N(0, 1) for each image, N of them, in any shape.

    Returns:
        (left, top) of each image, int64, (N, 2), each uniform in 0..pad: (pad + 1)^2 places. The normal
        distribution function makes uniform numbers of the draws.

    Raises:
        ConfigError: pad is negative.

    Source: BackdoorBox, `RandomPad`. Called on a batch it draws one place for all images; we draw one
    for each, as it does when it is used as the transform of a dataset.
    """
    check(pad >= 0, f"pad: {pad} is negative")
    uniform = (1 + torch.erf(noise.double().flatten(1) / math.sqrt(2))) / 2
    return (uniform * (pad + 1)).long().clamp(max=pad)  # a draw of 9 or more is 1 in float64


def shrink_pad(x: Tensor, pad: int, placements: Tensor) -> Tensor:
    """Shrink images by `pad` pixels and place them on black.

    Args:
        x: Images, (N, C, H, W), in [-1, 1].
        pad: Pixels that each side loses, less than the shorter side. 0 is the identity.
        placements: (left, top) of each image, from 0 to pad, int64, (N, 2).

    Returns:
        Images of the same shape, in [-1, 1] up to rounding. What is not image is -1: black is 0 in
        [0, 1], where BackdoorBox pads, and zero padding here would be grey.

    Raises:
        ConfigError: pad is negative or leaves nothing of the image.

    Source: BackdoorBox, `build_ShrinkPad`: bilinear, without antialiasing as in the versions of
    torchvision it was written for. It takes square images only; here both sides lose `pad`.
    """
    height, width = x.shape[-2:]
    check(0 <= pad < min(height, width), f"pad: {pad} is not from 0 to {min(height, width) - 1}")
    inner = (height - pad, width - pad)
    small = interpolate(x, inner, mode="bilinear", antialias=False, align_corners=False)
    assert bool(((placements >= 0) & (placements <= pad)).all()), placements  # or it counts from the far side
    # Of an image with black on all sides, a window for each place.
    large = surround(small, (pad,) * 4, value=BLACK)
    columns = (pad - placements[:, :1] + torch.arange(width, device=x.device))[:, None, None, :]
    rows = (pad - placements[:, 1:] + torch.arange(height, device=x.device))[:, None, :, None]
    images = torch.arange(len(x), device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)[:, None, None]
    return large[images, channels, rows, columns]
