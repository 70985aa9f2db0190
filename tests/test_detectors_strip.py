"""STRIP: entropies of classifiers whose probabilities are known."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from zipcli.config import ClassifierConfig, DetectConfig
from zipcli.detectors.parts import Parts, Pixels, Thresholded
from zipcli.detectors.strip import boundary, make, mean_entropy, superimpose
from zipcli.errors import ClassifierError, ConfigError, ExitCode
from zipcli.protocols import Prediction

CLEAN = [(image, None) for image in np.random.default_rng(1).integers(0, 200, (40, 6, 6, 3), dtype=np.uint8)]


class TriggerOrNoise:
    """Certain where the corner is white, as under a backdoor; else the sum of the pixels decides."""

    classes = None

    def __init__(self, *, probabilities: bool = True) -> None:
        self.seen: list[Pixels] = []
        self.offers = probabilities

    def __call__(self, images: Sequence[Pixels], /) -> Prediction:
        self.seen += images
        odds = [40.0 if image[0, 0].min() == 255 else (int(image.sum()) % 7 - 3) / 3 for image in images]
        first = 1 / (1 + np.exp(-np.array(odds, np.float32)))
        table = np.stack([first, 1 - first], axis=1)
        return Prediction(labels=table.argmax(axis=1), probabilities=table if self.offers else None)


def strip(classifier: TriggerOrNoise, clean: object = CLEAN, **given: object) -> Thresholded:
    config = ClassifierConfig(classifier="model.pt")
    settings = DetectConfig(detector="strip", classifier=config, clean=Path(), **given)  # type: ignore[arg-type]
    return make(settings, Parts(classifier=classifier, clean=clean))  # type: ignore[arg-type]


def poisoned(image: Pixels) -> Pixels:
    image = image.copy()
    image[0, 0] = 255
    return image


def test_entropy_is_that_of_the_definition_in_bits() -> None:
    table = np.array([[0.5, 0.5], [1, 0], [0.25, 0.75]], np.float32)
    wanted = (1 + 0 - 0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)) / 3
    assert mean_entropy(table) == pytest.approx(wanted)


def test_images_are_added_and_clipped_at_white() -> None:
    image, other = np.full((2, 2, 3), 200, np.uint8), np.full((2, 2, 3), 50, np.uint8)
    other[0, 0] = 60
    assert superimpose(image, other)[..., 0].tolist() == [[255, 250], [250, 250]]


def test_what_is_laid_over_an_image_takes_its_size() -> None:
    assert superimpose(np.zeros((5, 7, 3), np.uint8), np.full((2, 2, 3), 9, np.uint8)).tolist() == (
        np.full((5, 7, 3), 9).tolist()
    )


def test_an_image_whose_label_survives_is_suspicious_and_others_are_not() -> None:
    detector = strip(TriggerOrNoise())
    clean = np.random.default_rng(2).integers(0, 200, (20, 6, 6, 3), dtype=np.uint8)
    scores = [found.score for found in detector(list(clean))]
    assert max(scores) < detector.threshold
    assert all(found.score > detector.threshold for found in detector([poisoned(x) for x in clean]))
    assert all(found.map is None for found in detector(list(clean[:1])))


def test_each_image_is_laid_under_as_many_others_as_asked_for() -> None:
    classifier = TriggerOrNoise()
    detector = strip(classifier, threshold=-0.1, superimposed=7)
    assert classifier.seen == []  # a given threshold needs no calibration
    detector([CLEAN[0][0], CLEAN[1][0]])
    assert len(classifier.seen) == 14
    wanted = {superimpose(CLEAN[0][0], other).tobytes() for other, _ in CLEAN}
    shown = [image.tobytes() for image in classifier.seen[:7]]
    assert set(shown) <= wanted
    assert len(set(shown)) == 7  # none is taken twice while there are enough


def test_a_score_depends_on_the_seed_and_not_on_the_neighbours() -> None:
    images = [image for image, _ in CLEAN[:4]]
    detector = strip(TriggerOrNoise(), threshold=0.0, superimposed=9)
    scores = [found.score for found in detector(images)]
    assert [detector([image])[0].score for image in reversed(images)] == scores[::-1]
    other = strip(TriggerOrNoise(), threshold=0.0, superimposed=9, seed=5)
    assert [found.score for found in other(images)] != scores


def test_the_boundary_is_the_quantile_of_a_normal_distribution() -> None:
    scores = np.random.default_rng(0).normal(-3, 0.5, 20_000).tolist()
    assert boundary(scores, 0.01) == pytest.approx(-3 + 0.5 * 2.3263, abs=0.02)
    assert boundary(scores, 0.1) == pytest.approx(-3 + 0.5 * 1.2816, abs=0.02)


def test_labels_alone_are_an_error_that_names_the_way_out() -> None:
    with pytest.raises(ClassifierError, match=r"needs probabilities.*--detector scaleup") as caught:
        strip(TriggerOrNoise(probabilities=False))
    assert caught.value.exit_code is ExitCode.MODEL


def test_too_few_clean_images_are_an_error() -> None:
    with pytest.raises(ConfigError, match="clean: 3 usable images"):
        strip(TriggerOrNoise(), CLEAN[:3])
