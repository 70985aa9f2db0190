"""SCALE-UP: a poisoned image keeps its label when its pixels are multiplied, a clean one seldom does.

Source: Guo et al., "SCALE-UP: An Efficient Black-box Input-level Backdoor Detection via Analyzing
Scaled Prediction Consistency", ICLR 2023.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from zipcli.config import DetectConfig, check
from zipcli.detectors.calibration import chunks, enough, threshold_at
from zipcli.detectors.parts import CleanImages, Parts, Pixels, Thresholded
from zipcli.protocols import Suspicion

FACTORS = (3, 5, 7, 9, 11)
"""The set S of the paper. The authors' program also has 1, which always agrees, and the even ones."""

THRESHOLD = 0.5
"""Score from which an image is suspicious; of five factors none gives 0.5, so > and >= agree."""

FEWEST_OF_CLASS = 5
"""A class with fewer clean images is compared with all of them."""

LOWEST_STD = 1e-6

Labels = NDArray[np.int64]
Scores = NDArray[np.float64]


def make(config: DetectConfig, parts: Parts) -> Thresholded:
    """Build the detector: of SPC itself, or with clean images of SPC against that of its class."""
    classifier = parts.classifier
    assert classifier is not None

    def predict(images: Sequence[Pixels]) -> Labels:
        return classifier(images).labels

    if parts.clean is None:
        threshold = THRESHOLD if config.threshold is None else config.threshold
        return Thresholded(
            score=lambda images: _suspicions(consistency(images, predict)[0]), threshold=threshold
        )
    spc, predicted, classes = _of_clean(parts.clean, predict)
    usual = UsualConsistency(spc, classes)
    threshold = THRESHOLD if config.threshold is None else config.threshold
    if config.fpr is not None:
        threshold = threshold_at(config.fpr, usual.deviations(spc, predicted).tolist())

    def score(images: Sequence[Pixels]) -> list[Suspicion]:
        return _suspicions(usual.deviations(*consistency(images, predict)))

    return Thresholded(score=score, threshold=threshold)


def consistency(
    images: Sequence[Pixels],
    predict: Callable[[Sequence[Pixels]], Labels],
    factors: Sequence[int] = FACTORS,
) -> tuple[Scores, Labels]:
    """The share of brightened copies that keep the label of the image (SPC, without clean data).

    Args:
        images: uint8, (H, W, 3), of any sizes; 0 is black, so that a product is brightness.
        predict: From images to their labels, (N,); labels are enough. It is called once for the
            images and once for each factor.
        factors: What to multiply by; whole numbers, so that nothing is rounded.

    Returns:
        SPC, (N,), in [0, 1], a multiple of 1 / len(factors), higher being more suspicious (bright
        benign images also keep their label); and the labels of the images.

    Raises:
        ConfigError: There are no factors.

    Source: eq. 2. The authors' program adds uniform noise of up to 0.02 to its inputs; the paper and
    we do not.
    """
    check(len(factors) > 0, "factors: at least one is needed")
    labels = predict(images)
    kept = [predict([brighter(image, factor) for image in images]) == labels for factor in factors]
    return np.mean(kept, axis=0, dtype=np.float64), labels


def brighter(image: Pixels, factor: int) -> Pixels:
    """An image times a whole number, clipped at white."""
    levels: Pixels = np.minimum(image.astype(np.uint16) * factor, 255).astype(np.uint8)
    return levels


class UsualConsistency:
    """SPC of clean images: mean and standard deviation for each class, and for all of them."""

    def __init__(self, spc: Scores, classes: Sequence[int | None]) -> None:
        """Take the SPC of clean images and their true classes; None where it is unknown.

        Source: eq. 3. BackdoorBox has one mean and deviation for all classes.
        """
        self._all = (float(spc.mean()), max(float(spc.std(ddof=1)), LOWEST_STD))
        self._of_class: dict[int, tuple[float, float]] = {}
        for label in {label for label in classes if label is not None}:
            own = spc[[other == label for other in classes]]
            if len(own) >= FEWEST_OF_CLASS and own.std(ddof=1) > 0:
                self._of_class[label] = (float(own.mean()), max(float(own.std(ddof=1)), LOWEST_STD))

    def deviations(self, spc: Scores, labels: Labels) -> Scores:
        """Standard deviations by which SPC exceeds that of clean images of the predicted class (eq. 4)."""
        usual = np.array([self._of_class.get(label, self._all) for label in labels.tolist()]).reshape(-1, 2)
        exceeding: Scores = (spc - usual[:, 0]) / usual[:, 1]
        return exceeding


def _of_clean(
    clean: CleanImages, predict: Callable[[Sequence[Pixels]], Labels]
) -> tuple[Scores, Labels, list[int | None]]:
    classes: list[int | None] = []
    found = []
    for chunk in chunks(clean):
        classes += [label for _, label in chunk]
        found.append(consistency([pixels for pixels, _ in chunk], predict))
    enough(len(classes))
    spc, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return spc, labels, classes


def _suspicions(scores: Scores) -> list[Suspicion]:
    return [Suspicion(score=score) for score in scores.tolist()]
