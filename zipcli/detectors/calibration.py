"""Thresholds: given, known beforehand, or found on clean images."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np

from zipcli.config import DetectConfig, check
from zipcli.detectors.parts import Parts, Pixels, Thresholded
from zipcli.protocols import Suspicion

FPR = 0.05
"""Share of clean images that may be called suspicious, where nobody says another."""

FEWEST = 20
"""Fewer clean images say nothing about a share."""

MOST = 2000
"""Clean images that are scored at most: the first ones."""

CHUNK = 16

T = TypeVar("T")
Score = Callable[[Sequence[Pixels]], list[Suspicion]]


def thresholded(score: Score, config: DetectConfig, parts: Parts) -> Thresholded:
    """Join a function that gives surprises, -log10 of a share of clean images, with its threshold.

    The share is one of the images that it was fitted to; on images of another kind it is off, which
    `--clean` mends.
    """
    if config.threshold is not None:
        return Thresholded(score=score, threshold=config.threshold)
    fpr = FPR if config.fpr is None else config.fpr
    if parts.clean is None:
        return Thresholded(score=score, threshold=-math.log10(fpr))
    scores = [found.score for chunk in chunks(parts.clean) for found in score([p for p, _ in chunk])]
    return Thresholded(score=score, threshold=threshold_at(fpr, scores))


def threshold_at(fpr: float, scores: Sequence[float]) -> float:
    """The lowest threshold that at most a share `fpr` of clean images reaches.

    Raises:
        ConfigError: There are too few scores.
    """
    enough(len(scores))
    allowed = math.floor(fpr * len(scores) + 1e-9)
    if allowed >= len(scores):
        return min(scores)
    return float(np.nextafter(np.sort(np.asarray(scores, np.float64))[::-1][allowed], np.inf))


def enough(count: int) -> None:
    """Raise `ConfigError` where clean images are too few."""
    check(
        count >= FEWEST,
        f"clean: {count} usable images; at least {FEWEST} are needed, and hundreds are better",
    )


def chunks(items: Iterable[T], most: int = MOST) -> Iterator[list[T]]:
    """The first items, a few at a time."""
    items = islice(items, most)
    while chunk := list(islice(items, CHUNK)):
        yield chunk
