"""The method blind with the network that comes with zipcli, on real images."""

import numpy as np
import pytest
from real_images import cifar, patched

from zipcli import Purifier
from zipcli.config import purify_config
from zipcli.errors import ConfigError
from zipcli.images.write import psnr


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return cifar(20)


def purifier(**settings: float) -> Purifier:
    return Purifier.from_config(purify_config(method="blind", **settings))


def noisy(image: np.ndarray) -> np.ndarray:
    levels = image + np.random.default_rng(1).normal(0, 20, image.shape)
    return np.clip(levels, 0, 255).round().astype(np.uint8)


def striped(image: np.ndarray) -> np.ndarray:
    wave = 30 * np.sin(2 * np.pi * 5 * np.arange(image.shape[1]) / image.shape[1])
    return np.clip(image + wave[:, None], 0, 255).round().astype(np.uint8)


def framed(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[10:18, 3:11] = (255, 0, 255)
    return image


def test_images_without_a_trigger_are_nearly_left_alone(images: list[np.ndarray]) -> None:
    clean = purifier(sigma=0).purify_pixels(images)
    assert np.mean([psnr(a, b) for a, b in zip(images, clean, strict=True)]) > 36


@pytest.mark.parametrize(("alter", "gain"), [(patched, 4), (noisy, 4), (striped, 4), (framed, 4)])
def test_what_does_not_belong_there_is_taken_out(images: list[np.ndarray], alter, gain: float) -> None:
    altered = [alter(image) for image in images]
    clean = purifier(sigma=0).purify_pixels(altered)
    before = np.mean([psnr(a, b) for a, b in zip(images, altered, strict=True)])
    after = np.mean([psnr(a, b) for a, b in zip(images, clean, strict=True)])
    assert after > before + gain


def test_noise_comes_from_the_seed_and_its_strength_from_sigma(images: list[np.ndarray]) -> None:
    first = np.stack(purifier().purify_pixels(images))
    assert np.array_equal(first, np.stack(purifier().purify_pixels(images)))
    assert not np.array_equal(first, np.stack(purifier(seed=2).purify_pixels(images)))
    none = np.stack(purifier(sigma=0).purify_pixels(images))
    assert np.array_equal(none, np.stack(purifier(sigma=0, seed=2).purify_pixels(images)))
    strong = np.stack(purifier(sigma=0.3).purify_pixels(images))
    change = [np.abs(out - np.stack(images).astype(float)).mean() for out in (none, first, strong)]
    assert change[0] < change[1] < change[2]


def test_the_network_of_blind_serves_no_other_method() -> None:
    with pytest.raises(ConfigError, match="for the method blind only"):
        Purifier.from_pretrained("builtin-blind", method="zip")
