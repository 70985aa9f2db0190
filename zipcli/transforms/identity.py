"""A = I: everything is kept. For tests and for plain diffusion with a hard constraint."""

from collections.abc import Callable

from torch import Tensor

from zipcli.transforms import no_argument


class Identity:
    """A x = x."""

    def forward(self, x: Tensor, /) -> Tensor:
        """Return x."""
        return x

    def pinv(self, y: Tensor, size: tuple[int, int], /) -> Tensor:
        """Return y."""
        return y

    def removed_rms(self, size: tuple[int, int], /) -> float:
        """Nothing."""
        return 0.0


def make(argument: str | None, read_mask: Callable[[str], Tensor]) -> Identity:
    """Build from "identity"."""
    no_argument("identity", argument)
    return Identity()
