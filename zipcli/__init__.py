"""zipcli: clean image folders of backdoor triggers with zero-shot diffusion purification."""

from typing import TYPE_CHECKING, Any

from zipcli.config import PurifyConfig
from zipcli.errors import ZipcliError

if TYPE_CHECKING:
    from zipcli.pipeline.purifier import Purifier

__version__ = "0.1.0"
__all__ = ["Purifier", "PurifyConfig", "ZipcliError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Purifier`, and torch with it, when it is first asked for."""
    if name == "Purifier":
        from zipcli.pipeline.purifier import Purifier

        return Purifier
    raise AttributeError(f"module 'zipcli' has no attribute {name!r}")
