"""SCALE-UP: SPC of classifiers whose answer to every brightness is known."""

from collections.abc import Sequence

import numpy as np
import pytest

from zipcli.config import ClassifierConfig, DetectConfig
from zipcli.detectors.parts import Parts, Pixels
from zipcli.detectors.scaleup import FACTORS, THRESHOLD, UsualConsistency, brighter, consistency, make
from zipcli.errors import ConfigError
from zipcli.protocols import Prediction

CONFIG = ClassifierConfig(classifier="model.pt")


def random_images(count: int, side: int = 8, highest: int = 256, seed: int = 0) -> list[Pixels]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, highest, (count, side, side, 3), dtype=np.uint8))


def uniform(*levels: int) -> list[Pixels]:
    return [np.full((4, 4, 3), level, np.uint8) for level in levels]


def always_7(images: Sequence[Pixels]) -> np.ndarray:
    return np.full(len(images), 7)


def is_bright(images: Sequence[Pixels]) -> np.ndarray:
    return np.array([int(image.mean() > 127.5) for image in images])


class Labels:
    """A classifier that gives labels only."""

    classes = None

    def __init__(self, predict) -> None:  # type: ignore[no-untyped-def]
        self.predict = predict
        self.asked = 0

    def __call__(self, images: Sequence[Pixels], /) -> Prediction:
        self.asked += len(images)
        return Prediction(labels=np.asarray(self.predict(images), np.int64))


def test_a_constant_classifier_gives_spc_1() -> None:
    assert consistency(random_images(4), always_7)[0].tolist() == [1, 1, 1, 1]


def test_a_classifier_of_brightness_gives_dark_images_spc_below_1() -> None:
    # 127.5 is passed at 5 times 28, 7 times 20, 9 times 15, 11 times 12, and never by 11.
    spc, labels = consistency(uniform(51, 28, 20, 15, 12, 11), is_bright)
    assert spc.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert labels.tolist() == [0] * 6


def test_a_classifier_of_brightness_gives_bright_images_spc_1() -> None:
    assert consistency(uniform(128, 255), is_bright)[0].tolist() == [1, 1]


def test_the_classifier_sees_the_images_and_then_each_clipped_multiple() -> None:
    images = random_images(2)
    seen: list[list[Pixels]] = []

    def predict(shown: Sequence[Pixels]) -> np.ndarray:
        seen.append(list(shown))
        return always_7(shown)

    consistency(images, predict)
    assert len(seen) == 6
    for shown, factor in zip(seen, (1, 3, 5, 7, 9, 11), strict=True):
        for image, multiple in zip(images, shown, strict=True):
            assert multiple.dtype == np.uint8
            wanted = [min(255, factor * int(level)) for level in image.flatten()]
            assert multiple.flatten().tolist() == wanted


@pytest.mark.parametrize("factors", [FACTORS, (2,), tuple(range(1, 12))])
def test_spc_equals_the_sum_of_the_paper_as_a_loop(factors: tuple[int, ...]) -> None:
    images = random_images(20, side=4, highest=100)

    def predict(shown: Sequence[Pixels]) -> np.ndarray:
        return np.array([int(image.mean() / 32) for image in shown])  # eight classes by brightness

    found, labels = consistency(images, predict, factors)
    for n, image in enumerate(images):
        label = predict([image])[0]
        kept = sum(int(predict([np.clip(image.astype(int) * f, 0, 255)])[0] == label) for f in factors)
        assert found[n] == pytest.approx(kept / len(factors))
        assert labels[n] == label


def test_no_factors_are_an_error() -> None:
    with pytest.raises(ConfigError, match="factors: at least one"):
        consistency(uniform(3), always_7, ())


def test_no_multiple_wraps_around() -> None:
    assert brighter(np.array([[[0, 24, 255]]], np.uint8), 11).tolist() == [[[0, 255, 255]]]


def test_without_clean_images_the_score_is_spc_and_labels_are_enough() -> None:
    classifier = Labels(is_bright)
    detector = make(DetectConfig(detector="scaleup", classifier=CONFIG), Parts(classifier=classifier))
    images = uniform(51, 11, 255)
    assert [found.score for found in detector(images)] == [0, 1, 1]
    assert detector.threshold == THRESHOLD
    assert classifier.asked == 6 * len(images)


def test_spc_is_compared_with_that_of_the_predicted_class() -> None:
    spc = np.array([0, 0.2, 0.4, 0.2, 0.2, 0.8, 1, 0.6, 0.8, 0.8])
    usual = UsualConsistency(spc, [0] * 5 + [1] * 5)
    stds = [np.std(part, ddof=1) for part in (spc[:5], spc[5:])]
    found = usual.deviations(np.array([0.8, 0.8]), np.array([0, 1]))
    assert found.tolist() == pytest.approx([(0.8 - 0.2) / stds[0], 0])


def test_a_class_of_few_or_of_equal_images_is_compared_with_all_of_them() -> None:
    spc = np.array([0, 0.2, 0.4, 0.6, 0.4, 0.4, 0.4, 0.4, 0.4])
    classes = [0, 0, 0, 0, 1, 1, 1, 1, 1]  # four of class 0, and five of class 1 without any spread
    wanted = (1 - spc.mean()) / spc.std(ddof=1)
    found = UsualConsistency(spc, classes).deviations(np.ones(3), np.array([0, 1, 5]))
    assert found.tolist() == pytest.approx([wanted] * 3)
    unknown = UsualConsistency(spc, [None] * 9).deviations(np.ones(1), np.array([0]))
    assert unknown.tolist() == pytest.approx([wanted])


def test_clean_images_of_equal_spc_divide_nothing_by_zero() -> None:
    found = UsualConsistency(np.full(9, 0.4), [0] * 9).deviations(np.array([0.4, 0.6]), np.array([0, 0]))
    assert np.isfinite(found).all()
    assert found[0] == 0
    assert found[1] > 1000


def test_with_clean_images_a_false_positive_rate_decides_the_threshold() -> None:
    levels = np.random.default_rng(0).integers(5, 60, 100)
    clean = [(image, 0) for image in uniform(*levels.tolist())]
    config = DetectConfig(detector="scaleup", classifier=CONFIG, fpr=0.3, clean=__file__)  # type: ignore[arg-type]
    detector = make(config, Parts(classifier=Labels(is_bright), clean=clean))
    scores = np.array([found.score for found in detector([image for image, _ in clean])])
    assert 0 < (scores >= detector.threshold).mean() <= 0.3
    assert scores.std(ddof=1) == pytest.approx(1)


def test_too_few_clean_images_are_an_error() -> None:
    clean = [(image, 0) for image in uniform(*range(19))]
    config = DetectConfig(detector="scaleup", classifier=CONFIG)
    with pytest.raises(ConfigError, match="clean: 19 usable images; at least 20"):
        make(config, Parts(classifier=Labels(is_bright), clean=clean))
