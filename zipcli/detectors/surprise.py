"""From a statistic of an image to a score that means the same for every detector: how rare it is.

A score of 2 says that one clean image in 100 looks as suspicious; the threshold for a false positive
rate is known then without asking which statistic is behind it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARES = (0.99, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
"""Shares of clean images whose statistic is noted."""

FEWEST = 5
"""A share is noted only if it is that many images at least; beyond it the tail is extended."""

EXTENDED_FROM = 0.05
"""The slope of the extension is that from this share to the last one."""


@dataclass(frozen=True, kw_only=True)
class Tail:
    """How often clean images reach a statistic.

    Attributes:
        knots: Pairs of a statistic and the share of clean images that reach it; the statistic rises.
    """

    knots: tuple[tuple[float, float], ...]

    @classmethod
    def from_json(cls, knots: Sequence[Sequence[float]]) -> "Tail":
        """Read the knots as JSON has them."""
        return cls(knots=tuple((float(at), float(share)) for at, share in knots))

    def surprise(self, statistic: float, trials: int = 1) -> float:
        """-log10 of the chance that a clean image reaches `statistic`.

        Between knots it is linear, and beyond the last one too, which is an exponential tail.

        Args:
            statistic: Of an image, or the largest of its parts.
            trials: How many independent parts it is the largest of.
        """
        at = [knot for knot, _ in self.knots]
        rarity = [-math.log10(share) for _, share in self.knots]
        if statistic > at[-1]:
            common = [n for n, (_, share) in enumerate(self.knots[:-1]) if share >= EXTENDED_FROM]
            base = common[-1]
            slope = (rarity[-1] - rarity[base]) / (at[-1] - at[base])
            one = rarity[-1] + slope * (statistic - at[-1])
        else:
            one = float(np.interp(statistic, at, rarity))
        if trials == 1:
            return one
        if one > 12:  # 1 - (1 - p)^n is n p, and p would vanish beside 1
            return one - math.log10(trials)
        share = 10.0**-one
        return -math.log10(-math.expm1(trials * math.log1p(-min(share, 1 - 1e-12))))


def tail_of(statistics: NDArray[np.float64] | Sequence[float]) -> Tail:
    """The tail of clean images, from the statistic of each."""
    values = np.asarray(statistics, np.float64)
    shares = [share for share in SHARES if share * len(values) >= FEWEST]
    return Tail(knots=tuple((float(np.quantile(values, 1 - share)), share) for share in shares))
