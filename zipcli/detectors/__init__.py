"""Detectors: image to score, to purify only what is suspicious."""

from collections.abc import Callable

from zipcli.protocols import Detector
from zipcli.registry import Registry

DETECTORS: Registry[Callable[[], Detector]] = Registry(
    "detector",
    {
        "none": "zipcli.detectors.none:NoDetector",
    },
)
