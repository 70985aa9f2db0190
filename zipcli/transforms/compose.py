"""Several transforms one after another."""

import math

import torch
from torch import Tensor

from zipcli.errors import InputError, Reason
from zipcli.protocols import LinearOperator
from zipcli.transforms import WHOLE


class Composed:
    """A = A_k ... A_1 with A+ = A_1+ ... A_k+.

    That product is a right inverse of A only if the parts fit together, as blur and gray always
    do. A mask that cuts through the blocks of a blur does not: the first image of each size is
    used to check, and a composition that fails is refused.
    """

    def __init__(self, text: str, parts: tuple[LinearOperator, ...]) -> None:
        """Compose `parts`, applied left to right; `text` is for messages."""
        self.text = text
        self.parts = parts
        self._sizes: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def forward(self, x: Tensor, /) -> Tensor:
        """Apply the parts in order."""
        size = (x.shape[-2], x.shape[-1])
        self._check(x.shape[1], size)
        for part in self.parts:
            x = part.forward(x)
        return x

    def pinv(self, y: Tensor, size: tuple[int, int], /) -> Tensor:
        """Apply the pseudo-inverses in reverse order, each at the size its part saw."""
        self._check(3, size)
        for part, part_size in zip(reversed(self.parts), reversed(self._sizes[size]), strict=True):
            y = part.pinv(y, part_size)
        return y

    def removed_rms(self, size: tuple[int, int], /) -> float:
        """What the parts remove, as if it had nothing in common."""
        return min(WHOLE, math.hypot(*(part.removed_rms(size) for part in self.parts)))

    def _check(self, channels: int, size: tuple[int, int]) -> None:
        """Once for each size: note what size each part sees, and refuse A A+ A != A."""
        if size in self._sizes:
            return
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(1, channels, *size, generator=generator, dtype=torch.float64)
        sizes, y = [], x
        for part in self.parts:
            sizes.append((y.shape[-2], y.shape[-1]))
            y = part.forward(y)
        self._sizes[size] = sizes
        if not torch.allclose(y, self.forward(self.pinv(y, size)), atol=1e-9):
            del self._sizes[size]
            raise InputError(
                Reason.TRANSFORM_UNFIT,
                f"transform {self.text}: its parts do not fit together at {size[1]}x{size[0]} (what one "
                "keeps, another changes); a mask must follow the blocks of a blur",
            )
