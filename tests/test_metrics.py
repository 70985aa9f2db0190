"""Metrics against the published example, brute force and their own bounds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipcli import metrics
from zipcli.metrics import Share

Y = np.array([0, 0, 1, 1, 2])
PREDICTED = np.array([1, 0, 1, 1, 1])


def test_the_published_example() -> None:
    assert metrics.attack_success(Y, PREDICTED, 1) == Share(count=2, total=3)
    assert metrics.attack_success_of_all(PREDICTED, 1) == Share(count=4, total=5)
    assert metrics.robust_accuracy(Y, PREDICTED, 1) == Share(count=1, total=3)
    assert metrics.poisoned_accuracy(Y, PREDICTED) == Share(count=3, total=5)


def test_defence_effectiveness() -> None:
    before, after = Share(count=90, total=100), Share(count=85, total=100)
    der = metrics.defence_effectiveness(
        before, after, Share(count=100, total=100), Share(count=10, total=100)
    )
    assert der == pytest.approx(0.925)
    assert metrics.defence_effectiveness(before, before, after, after) == 0.5
    assert metrics.defence_effectiveness(before, after, None, None) is None


def test_nothing_of_nothing_is_none() -> None:
    none = np.array([], np.int64)
    assert metrics.clean_accuracy(none, none) is None
    assert metrics.attack_success(np.array([1, 1]), np.array([1, 1]), 1) is None
    assert metrics.auroc([], [1.0]) is None
    assert metrics.tpr_at_fpr([1.0], []) is None


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (1, 3, 0.0615, 0.7923)],
)
def test_wilson_interval(count: int, total: int, low: float, high: float) -> None:
    assert Share(count=count, total=total).interval == pytest.approx((low, high), abs=5e-5)


labels = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(labels)
def test_bounds_between_the_measures(pairs: list[tuple[int, int]]) -> None:
    y, predicted = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    asr, ra = metrics.attack_success(y, predicted, 0), metrics.robust_accuracy(y, predicted, 0)
    pa = metrics.poisoned_accuracy(y, predicted)
    assert pa is not None
    own = int((y == 0).sum())
    if asr is None or ra is None:
        assert own == len(y)
        return
    assert ra.count <= asr.total - asr.count
    assert pa.count <= own + asr.total - asr.count
    assert pa.count == ra.count + int(((y == 0) & (predicted == 0)).sum())


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12)
)
def test_auroc_is_the_share_of_pairs(negative: list[int], positive: list[int]) -> None:
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for n, p in itertools.product(negative, positive)]
    assert metrics.auroc(negative, positive) == pytest.approx(sum(pairs) / len(pairs))


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=40),
    st.lists(st.integers(0, 9), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.05, 0.2, 1.0]),
)
def test_tpr_at_fpr_is_the_best_that_a_threshold_gives(
    negative: list[int], positive: list[int], fpr: float
) -> None:
    best = max(
        np.mean([p > threshold for p in positive])
        for threshold in (-1, *range(10))
        if np.mean([n > threshold for n in negative]) <= fpr + 1e-9
    )
    assert metrics.tpr_at_fpr(negative, positive, fpr) == pytest.approx(best)
