"""What we measured or trained and ship: safetensors files in weights/, each known by its digest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from zipcli.errors import ModelError

DIGESTS: Mapping[str, str] = {
    "frequency": "52d7452685d2cb22d0520ac0fb994ef57aa830ac00b67952e58b26a4a0de27e9",
    "residual": "09b3b49b4549a49095541f3fd36a29c260d94edb0f18aa4b7516099e481be372",
}
"""SHA-256 of each file in weights/."""


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A file of ours in weights/: tensors, and what is said beside them."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """The file."""
        tensors = {name: self.tensors[name].contiguous() for name in sorted(self.tensors)}
        return save(tensors, metadata=dict(self.metadata))

    @classmethod
    def load(cls, name: str) -> "Shipped":
        """Read the file, which must be the one that we shipped.

        Raises:
            ModelError: It is missing, or another.
        """
        path = Path(__file__).parent / "weights" / f"{name}.safetensors"
        try:
            data = path.read_bytes()
        except OSError as e:
            raise ModelError(f"{path}: cannot be read: {e.strerror}; install zipcli again") from e
        if hashlib.sha256(data).hexdigest() != DIGESTS[name]:
            raise ModelError(f"{path}: damaged, or not the file of this version; install zipcli again")
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return cls(tensors=load(data), metadata=header["__metadata__"])
