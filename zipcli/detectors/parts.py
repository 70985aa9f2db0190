"""What detectors are built from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from zipcli.protocols import Classifier, EpsModel, Suspicion

Pixels = NDArray[np.uint8]
"""(H, W, 3) sRGB."""

CleanImages = Iterable[tuple[Pixels, int | None]]
"""Images that nobody tampered with, and their class where it is known; can be gone through again."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a detector may need; `DETECTOR_SETTINGS` says which of them it reads.

    Attributes:
        classifier: The black box.
        clean: The images of --clean.
        prior: The built-in prior, on `device`.
        prior_sha256: Digest of its weights.
        device: Where the prior is.
    """

    classifier: Classifier | None = None
    clean: CleanImages | None = None
    prior: EpsModel | None = None
    prior_sha256: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Thresholded:
    """A detector: a function that scores images, and the score from which one is suspicious."""

    score: Callable[[Sequence[Pixels]], list[Suspicion]]
    threshold: float

    def __call__(self, images: Sequence[Pixels], /) -> list[Suspicion]:
        """Score images of any sizes."""
        return self.score(images)
