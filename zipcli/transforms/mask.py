"""Mask: pixels that are black in a mask file are forgotten and refilled."""

from collections.abc import Callable

from torch import Tensor

from zipcli.errors import ConfigError, InputError, Reason
from zipcli.transforms import WHOLE


class Mask:
    """A x = m x with m in {0, 1}; A+ is the same (inpainting)."""

    def __init__(self, name: str, mask: Tensor) -> None:
        """Keep the pixels where `mask`, (1, 1, H, W), is 1; `name` is for messages."""
        self.name = name
        self.mask = mask

    def forward(self, x: Tensor, /) -> Tensor:
        """Zero what the mask forgets; raises `InputError` when the image has another size."""
        if x.shape[-2:] != self.mask.shape[-2:]:
            (h, w), (mask_h, mask_w) = x.shape[-2:], self.mask.shape[-2:]
            raise InputError(
                Reason.MASK_SIZE,
                f"the mask {self.name} is {mask_w}x{mask_h} and the image {w}x{h}; they must be alike",
            )
        self.mask = self.mask.to(x.device, x.dtype)
        return x * self.mask

    def pinv(self, y: Tensor, size: tuple[int, int], /) -> Tensor:
        """Zero what the mask forgets."""
        return self.forward(y)

    def removed_rms(self, size: tuple[int, int], /) -> float:
        """The whole image, where it is black."""
        return 0.0 if bool((self.mask == 1).all()) else WHOLE


def make(argument: str | None, read_mask: Callable[[str], Tensor]) -> Mask:
    """Build from "mask:FILE"."""
    if not argument:
        raise ConfigError("transform mask: name the file, as in mask:trusted.png (white is kept)")
    return Mask(argument, read_mask(argument))
