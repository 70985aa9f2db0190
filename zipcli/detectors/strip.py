"""STRIP: the label of a poisoned image survives when other images are laid over it.

Source: Gao et al. 2019, "STRIP: a defence against trojan attacks on deep neural networks".
"""

import hashlib
from collections.abc import Sequence
from itertools import islice
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zipcli.config import DetectConfig
from zipcli.detectors.calibration import chunks, enough
from zipcli.detectors.parts import Parts, Pixels, Thresholded
from zipcli.errors import ClassifierError
from zipcli.protocols import Classifier, Suspicion

FPR = 0.01
"""Of the paper: the boundary is the 1 % quantile of a normal distribution fitted to clean images."""

MOST = 200
"""Clean images whose entropy is measured; each costs as many questions as one to judge. The paper's
2,000 make no better normal distribution of use."""

OVERLAYS = 500
"""Clean images that are laid over others."""

LARGEST = 256
"""Side that overlays are kept at; each is resized to the image that it is laid over anyway."""


def make(config: DetectConfig, parts: Parts) -> Thresholded:
    """Build the detector; the score is the negative entropy in bits, since a poisoned image's is low."""
    assert parts.classifier is not None
    assert parts.clean is not None
    overlays = [_shrunk(pixels) for pixels, _ in islice(parts.clean, OVERLAYS)]
    enough(len(overlays))
    strip = Strip(parts.classifier, overlays, config)
    if config.threshold is not None:
        return Thresholded(score=strip, threshold=config.threshold)
    scores = [found.score for chunk in chunks(parts.clean, MOST) for found in strip([p for p, _ in chunk])]
    return Thresholded(score=strip, threshold=boundary(scores, FPR if config.fpr is None else config.fpr))


def boundary(scores: Sequence[float], fpr: float) -> float:
    """The score that a share `fpr` of clean images reaches if their scores are normal."""
    std = float(np.std(scores, ddof=1))
    return float(np.mean(scores)) + std * NormalDist().inv_cdf(1 - fpr)


class Strip:
    """Asks the classifier about an image under many others."""

    def __init__(self, classifier: Classifier, overlays: Sequence[Pixels], config: DetectConfig) -> None:
        """Take what is laid over images; how often, and the seed of the choice, come from the settings."""
        self._classifier = classifier
        self._overlays = overlays
        self._config = config

    def __call__(self, images: Sequence[Pixels]) -> list[Suspicion]:
        """Score images, one at a time, since each becomes a hundred.

        Raises:
            ClassifierError: The classifier gives labels without probabilities.
        """
        return [Suspicion(score=-self.entropy(image)) for image in images]

    def entropy(self, image: Pixels) -> float:
        """Mean entropy of the answers, in bits; it does not depend on the other images."""
        digest = hashlib.blake2b(image.tobytes(), digest_size=8, key=self._config.seed.to_bytes(8, "little"))
        rng = np.random.default_rng(int.from_bytes(digest.digest(), "little"))
        count = self._config.superimposed
        chosen = rng.choice(len(self._overlays), count, replace=count > len(self._overlays))
        answer = self._classifier([superimpose(image, self._overlays[k]) for k in chosen])
        if answer.probabilities is None:
            raise ClassifierError(
                "strip: it needs probabilities, and the classifier gives labels only; use --detector scaleup"
            )
        return mean_entropy(answer.probabilities)


def superimpose(image: Pixels, other: Pixels) -> Pixels:
    """Two images added, weights 1 and 1, the other resized to the first; clipped at white.

    The paper's program adds floats up to 2, and shows them to the network unclipped. A black box sees
    pictures, and no picture is brighter than white.
    """
    if other.shape != image.shape:
        size = (image.shape[1], image.shape[0])
        other = np.asarray(Image.fromarray(other).resize(size, Image.Resampling.BILINEAR))
    total: Pixels = np.minimum(image.astype(np.uint16) + other, 255).astype(np.uint8)
    return total


def mean_entropy(probabilities: NDArray[np.float32]) -> float:
    """Mean over the rows of -sum p log2 p; 0 log 0 is 0."""
    p = probabilities.astype(np.float64)
    logarithms = np.log2(p, where=p > 0, out=np.zeros_like(p))
    return float(-(p * logarithms).sum(axis=1).mean())


def _shrunk(pixels: Pixels) -> Pixels:
    picture = Image.fromarray(pixels)
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.BILINEAR)
    return np.array(picture)
