"""ShrinkPad: shrink the image and put it at a random place on black, so that a trigger moves.

Source: Li et al., "Backdoor Attack in the Physical World", ICLR workshop 2021, as BackdoorBox has it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from zipcli.config import check

BLACK = -1.0


def default_pad(side: int) -> int:
    """An eighth of the side, halves up, and at least 4: 4 pixels of 32, as BackdoorBox uses, 32 of 256.

    Source: the 4 at 32 is BackdoorBox's; no source says how it grows with the image, so that is ours.
    """
    return max(4, (side + 4) // 8)


def draw_placements(pad: int, generators: Sequence[torch.Generator]) -> list[tuple[int, int]]:
    """Draw where each shrunken image goes.

    Args:
        pad: Pixels that each side lost.
        generators: One for each image, on the CPU, so that an image does not depend on its batch.

    Returns:
        (left, top) of each image, each uniform in 0..pad: (pad + 1)^2 places.

    Raises:
        ConfigError: pad is negative.

    Source: BackdoorBox, `RandomPad`. Called on a batch it draws one place for all images; we draw one
    for each, as it does when it is used as the transform of a dataset.
    """
    check(pad >= 0, f"pad: {pad} is negative")
    draws = [torch.randint(pad + 1, (2,), generator=generator).tolist() for generator in generators]
    return [(left, top) for left, top in draws]


def shrink_pad(x: Tensor, pad: int, placements: Sequence[tuple[int, int]]) -> Tensor:
    """Shrink images by `pad` pixels and place them on black.

    Args:
        x: Images, (N, C, H, W), in [-1, 1].
        pad: Pixels that each side loses, less than the shorter side. 0 is the identity.
        placements: (left, top) of each image, from 0 to pad.

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
    padded = torch.full_like(x, BLACK)
    for image, out, (left, top) in zip(small, padded, placements, strict=True):
        assert max(left, top) <= pad, (left, top, pad)
        assert min(left, top) >= 0, (left, top, pad)  # it would count from the far side
        out[:, top : top + inner[0], left : left + inner[1]] = image
    return padded
