"""Thresholds and surprises: what they promise of clean images."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipcli.config import DetectConfig, detect_config
from zipcli.detectors.calibration import chunks, threshold_at, thresholded
from zipcli.detectors.parts import Parts, Pixels
from zipcli.detectors.surprise import Tail, tail_of
from zipcli.errors import ConfigError
from zipcli.protocols import Suspicion

IMAGES = [(np.full((2, 2, 3), level, np.uint8), None) for level in range(100)]


def brightness(images: Sequence[Pixels]) -> list[Suspicion]:
    return [Suspicion(score=float(image.mean())) for image in images]


@given(st.lists(st.integers(0, 9) | st.floats(-1e3, 1e3), min_size=20, max_size=60), st.floats(0.001, 0.999))
def test_no_more_than_the_asked_share_of_clean_images_reaches_the_threshold(
    scores: list[float], fpr: float
) -> None:
    threshold = threshold_at(fpr, scores)
    assert sum(score >= threshold for score in scores) <= fpr * len(scores) + 1e-9


def test_the_threshold_is_not_higher_than_it_must_be() -> None:
    assert threshold_at(0.05, list(range(100))) == pytest.approx(94)
    assert sum(score >= threshold_at(0.05, list(range(100))) for score in range(100)) == 5


def test_a_detector_of_surprises_knows_the_threshold_of_a_share() -> None:
    assert thresholded(brightness, DetectConfig(), Parts()).threshold == pytest.approx(-math.log10(0.05))
    assert thresholded(brightness, DetectConfig(fpr=0.001), Parts()).threshold == pytest.approx(3)
    assert thresholded(brightness, DetectConfig(threshold=2.5), Parts()).threshold == 2.5


def test_clean_images_decide_the_threshold_where_they_are_given() -> None:
    found = thresholded(brightness, DetectConfig(fpr=0.1), Parts(clean=IMAGES))
    assert sum(one.score >= found.threshold for one in found([image for image, _ in IMAGES])) == 10


def test_chunks_are_bounded_and_end_at_the_limit() -> None:
    assert [len(chunk) for chunk in chunks(range(1000), most=40)] == [16, 16, 8]


@pytest.fixture(scope="module")
def normal_tail() -> Tail:
    return tail_of(np.random.default_rng(0).normal(size=10_000))


def test_a_surprise_is_the_share_of_clean_images_that_reach_a_statistic(normal_tail: Tail) -> None:
    for statistic, share in ((0, 0.5), (1.2816, 0.1), (2.3263, 0.01)):
        assert normal_tail.surprise(statistic) == pytest.approx(-math.log10(share), abs=0.04)


def test_surprises_rise_and_go_on_beyond_what_was_seen(normal_tail: Tail) -> None:
    surprises = [normal_tail.surprise(s) for s in np.linspace(-2, 30, 200)]
    assert all(a < b for a, b in pairwise(surprises))
    assert surprises[-1] > 10


def test_the_largest_of_many_parts_surprises_less(normal_tail: Tail) -> None:
    rng = np.random.default_rng(1)
    largest = rng.normal(size=(4000, 64)).max(axis=1)
    rare = np.array([normal_tail.surprise(s, trials=64) for s in largest])
    assert (rare >= 1).mean() == pytest.approx(0.1, abs=0.06)
    assert normal_tail.surprise(30, trials=64) == pytest.approx(normal_tail.surprise(30) - math.log10(64))
    assert normal_tail.surprise(-9, trials=64) == pytest.approx(0, abs=0.01)


def test_a_tail_survives_json(normal_tail: Tail) -> None:
    assert Tail.from_json([list(knot) for knot in normal_tail.knots]) == normal_tail


@pytest.mark.parametrize(
    ("detector", "given", "message"),
    [
        ("scaleup", {}, "classifier: detector scaleup needs it; give --classifier"),
        ("frequency", {"superimposed": 5}, "superimposed: detector frequency does not use it"),
        ("frequency", {"device": "cpu"}, "device: detector frequency does not use it"),
        ("none", {"fpr": 0.1}, "fpr: detector none does not use it"),
        ("residual", {"threshold": 1.0, "fpr": 0.1}, "give one of the two"),
        ("residual", {"threshold": math.nan}, "threshold: nan is not a finite number"),
        ("residual", {"fpr": 1.0}, "fpr: 1.0 is not between 0 and 1"),
        ("residul", {}, "Did you mean 'residual'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(detector: str, given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detect_config(detector, **given)
