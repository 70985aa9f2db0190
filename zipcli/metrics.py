"""Measures of a defence, as pure functions.

With y the true labels, t the target, f the classifier and N images, of which N_n are not of class t:
CA is the share of clean images with f(x) = y; ASR the share of the N_n poisoned images with f(x) = t;
PA the share of poisoned images with f(x) = y, of all N (ZIP) or of the N_n (BackdoorBench calls it RA).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
"""Class indices, (N,)."""

Z_95 = 1.959963984540054
"""Standard normal quantile of a two-sided interval of 95 %."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A proportion with its counts: a percentage alone hides how few images it rests on.

    Attributes:
        count: How many.
        total: Of how many, at least 1.
    """

    count: int
    total: int

    @property
    def value(self) -> float:
        """The proportion, 0 to 1."""
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true proportion lies with 95 % confidence (Wilson 1927)."""
        n, p = self.total, self.value
        centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
        half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
        return max(0.0, centre - half), min(1.0, centre + half)


def share(hits: NDArray[np.bool_]) -> Share | None:
    """How many of (N,) are true; None of none, since 0 of 0 is no success and no failure."""
    return Share(count=int(hits.sum()), total=len(hits)) if len(hits) else None


def clean_accuracy(labels: Labels, predicted: Labels) -> Share | None:
    """CA: clean images that get their own label."""
    return share(predicted == labels)


def attack_success(labels: Labels, predicted: Labels, target: int) -> Share | None:
    """ASR: poisoned images of other classes that get the target's label."""
    return share(predicted[labels != target] == target)


def attack_success_of_all(predicted: Labels, target: int) -> Share | None:
    """ASR with the target's own images counted in, as BackdoorBox does: never below their share."""
    return share(predicted == target)


def poisoned_accuracy(labels: Labels, predicted: Labels) -> Share | None:
    """PA as in the ZIP paper: poisoned images that get their own label, of all of them."""
    return share(predicted == labels)


def robust_accuracy(labels: Labels, predicted: Labels, target: int) -> Share | None:
    """PA over images of other classes than the target, which BackdoorBench calls RA."""
    others = labels != target
    return share(predicted[others] == labels[others])


def defence_effectiveness(
    ca_before: Share | None, ca_after: Share | None, asr_before: Share | None, asr_after: Share | None
) -> float | None:
    """DER, 0 to 1; 0.5 is a defence that does nothing. None where one of the four is missing.

    Source: BackdoorBench: (max(0, drop of ASR) - max(0, drop of CA) + 1) / 2.
    """
    if None in (ca_before, ca_after, asr_before, asr_after):
        return None
    assert ca_before is not None and ca_after is not None and asr_before is not None and asr_after is not None  # noqa: PT018
    success = max(0.0, asr_before.value - asr_after.value)
    return (success - max(0.0, ca_before.value - ca_after.value) + 1) / 2


def auroc(negative: Sequence[float], positive: Sequence[float]) -> float | None:
    """The chance that a positive scores above a negative, ties counting half; None without both."""
    if not len(negative) or not len(positive):
        return None
    ordered = np.sort(np.asarray(negative, np.float64))
    values = np.asarray(positive, np.float64)
    below, up_to = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return float((below + up_to).mean() / (2 * len(ordered)))


def tpr_at_fpr(negative: Sequence[float], positive: Sequence[float], fpr: float = 0.05) -> float | None:
    """Share of positives above a threshold that at most `fpr` of the negatives exceed; None without both."""
    if not len(negative) or not len(positive):
        return None
    allowed = math.floor(fpr * len(negative) + 1e-9)
    threshold = (
        np.sort(np.asarray(negative, np.float64))[::-1][allowed] if allowed < len(negative) else -np.inf
    )
    return float((np.asarray(positive, np.float64) > threshold).mean())
