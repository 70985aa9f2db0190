"""Detectors: image to score, to purify only what is suspicious."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from zipcli.protocols import Detector
from zipcli.registry import Registry

if TYPE_CHECKING:
    from zipcli.config import DetectConfig
    from zipcli.detectors.parts import Parts

DETECTORS: "Registry[Callable[[DetectConfig, Parts], Detector]]" = Registry(
    "detector",
    {
        "none": "zipcli.detectors.none:make",
        "scaleup": "zipcli.detectors.scaleup:make",
        "strip": "zipcli.detectors.strip:make",
        "frequency": "zipcli.detectors.frequency:make",
        "residual": "zipcli.detectors.residual:make",
    },
)

MEASURED_ON_CIFAR = frozenset({"frequency", "residual"})
"""Detectors that know a threshold without --clean, that of CIFAR-10 images."""
