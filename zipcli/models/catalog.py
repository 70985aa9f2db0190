"""The models that we know by name."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from zipcli.errors import ModelError, shown
from zipcli.registry import unknown_name


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model in the catalog.

    Attributes:
        file: Its weights, as a path inside this package.
        sha256: Digest of that file; other bytes are refused.
    """

    file: str
    sha256: str


CATALOG = {
    "builtin": KnownModel(
        file="builtin/prior.safetensors",
        sha256="7b63e4a3531d4c396b67448c6fd938aac9a84d194332dd7ae6e28bef7c90d8e9",
    ),
}


def find_model(name: str) -> tuple[Path, str | None]:
    """Find the weights of a model.

    Args:
        name: A name of the catalog, or the path of a safetensors file.

    Returns:
        The file, and the SHA-256 that it must have (None for a file of the user's).

    Raises:
        ModelError: Neither a known name nor a file.
    """
    if name in CATALOG:
        known = CATALOG[name]
        return Path(str(files("zipcli.models").joinpath(known.file))), known.sha256
    try:
        path = Path(name).expanduser()
        if path.suffix == ".safetensors" or path.is_file():
            return path, None
    except (OSError, RuntimeError) as e:  # a name too long, a home folder of nobody
        raise ModelError(f"model {shown(name[:100])}: cannot look there: {e}") from e
    raise ModelError(unknown_name("model", name, CATALOG) + " Or give the path of a .safetensors file.")
