"""Linear transforms A that destroy a trigger, each with its pseudo-inverse A+."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from zipcli.errors import ConfigError
from zipcli.protocols import LinearOperator
from zipcli.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = 0.5
"""Root mean square of images in [-1, 1]: what a transform has removed that leaves nothing."""

# A maker takes what follows the colon (None without one) and a function that reads a mask file.
Maker = Callable[["str | None", "Callable[[str], Tensor]"], LinearOperator]

TRANSFORMS: Registry[Maker] = Registry(
    "transform",
    {
        "identity": "zipcli.transforms.identity:make",
        "blur": "zipcli.transforms.blur:make",
        "gray": "zipcli.transforms.gray:make",
        "mask": "zipcli.transforms.mask:make",
    },
)


def make_operator(text: str, read_mask: "Callable[[str], Tensor]") -> LinearOperator:
    """Build the operator that a word of the command line names.

    Args:
        text: NAME or NAME:ARGUMENT, or several of them joined with "+", applied left to right.
        read_mask: Reads a mask file into (1, 1, H, W) of zeros and ones.

    Raises:
        ConfigError: An unknown name (with the nearest known one) or a bad argument.
    """
    parts = []
    for word in text.split("+"):
        name, colon, argument = word.partition(":")
        parts.append(TRANSFORMS[name](argument if colon else None, read_mask))
    if len(parts) == 1:
        return parts[0]
    from zipcli.transforms.compose import Composed

    return Composed(text, tuple(parts))


def no_argument(name: str, argument: str | None) -> None:
    """Refuse an argument for a transform that takes none."""
    if argument is not None:
        raise ConfigError(f"transform {name}:{argument}: {name} takes no argument; write {name}")
