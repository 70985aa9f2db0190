"""The method blind with the network that comes with zipcli, on real images."""

import numpy as np
import pytest
import torch
from real_images import cifar, patched, photos

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
    clean = purifier(sigma=0, passes=1, colour_cell=1, keep_colour=True).purify_pixels(images)
    assert np.mean([psnr(a, b) for a, b in zip(images, clean, strict=True)]) > 36


@pytest.mark.parametrize(("alter", "gain"), [(patched, 4), (noisy, 4), (striped, 4), (framed, 4)])
def test_what_does_not_belong_there_is_taken_out(images: list[np.ndarray], alter, gain: float) -> None:
    altered = [alter(image) for image in images]
    clean = purifier(sigma=0, passes=1, colour_cell=1, keep_colour=True).purify_pixels(altered)
    before = np.mean([psnr(a, b) for a, b in zip(images, altered, strict=True)])
    after = np.mean([psnr(a, b) for a, b in zip(images, clean, strict=True)])
    assert after > before + gain


def whole(side: int) -> list[np.ndarray]:
    """Photographs without black or white, so that a tint can be put on them and taken away again."""
    return [(0.6 * image + 50).astype(np.uint8) for image in photos(3, side)]


@pytest.mark.parametrize("side", [32, 50, 96])
def test_a_tint_of_the_whole_image_changes_nothing(side: int) -> None:
    originals = whole(side)
    tinted = [(image + np.array([20, -25, 5])).astype(np.uint8) for image in originals]
    clean = purifier(sigma=0)
    for a, b in zip(clean.purify_pixels(originals), clean.purify_pixels(tinted), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1
    kept = purifier(sigma=0, keep_colour=True)
    for a, b in zip(kept.purify_pixels(originals), kept.purify_pixels(tinted), strict=True):
        assert np.abs(b.mean((0, 1)) - a.mean((0, 1))).max() > 5


@pytest.mark.parametrize("side", [32, 64, 96, 128])
def test_what_colours_have_finer_than_a_cell_changes_nothing(side: int) -> None:
    originals = whole(side)
    rows, columns = np.indices((side, side)) // 2
    board = 20 * np.where((rows + columns) % 2, 1, -1)[..., None] * np.array([1, -1, 0])
    hidden = [(image + board).astype(np.uint8) for image in originals]
    clean = purifier(sigma=0)
    for a, b in zip(clean.purify_pixels(originals), clean.purify_pixels(hidden), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1


def test_what_is_large_in_a_large_image_is_taken_out() -> None:
    originals = photos(6, 192)
    altered = [image.copy() for image in originals]
    for image in altered:
        image[140:172, 140:172] = (255, 255, 0)
    clean, found = (purifier().purify_pixels(some) for some in (originals, altered))
    change = np.stack(altered) - np.stack(originals).astype(float)
    left = np.stack(found) - np.stack(clean).astype(float)
    assert (left * change).sum() < 0.25 * np.square(change).sum()
    assert np.mean([psnr(a, b) for a, b in zip(originals, clean, strict=True)]) > 27


@pytest.mark.parametrize("side", [32, 96])
def test_the_mean_colour_that_it_guesses_is_better_than_grey(side: int) -> None:
    originals = photos(24, side) if side > 32 else cifar(200)
    clean = purifier(sigma=0).purify_pixels(originals)

    def cast(image: np.ndarray) -> np.ndarray:
        return image.mean((0, 1)) - image.mean()

    wrong = sum(np.square(cast(a) - cast(b)).sum() for a, b in zip(originals, clean, strict=True))
    assert wrong < 0.8 * sum(np.square(cast(image)).sum() for image in originals)


def test_an_image_without_colour_stays_so() -> None:
    grey = [np.repeat(image.mean(2, keepdims=True).astype(np.uint8), 3, 2) for image in photos(2, 40)]
    for image in purifier().purify_pixels([*grey, *photos(1, 40)])[:2]:
        assert np.ptp(image, axis=2).max() == 0


def test_more_passes_take_out_more(images: list[np.ndarray]) -> None:
    altered = [striped(image) for image in images]
    kept = []
    for passes in (1, 2, 3):
        settings = {"sigma": 0, "passes": passes, "keep_colour": True}
        clean, found = (purifier(**settings).purify_pixels(some) for some in (images, altered))
        wave = [striped(image).astype(float) - image for image in images]
        left = [b.astype(float) - a for a, b in zip(clean, found, strict=True)]
        kept.append(sum((w * d).sum() for w, d in zip(wave, left, strict=True)))
    assert abs(kept[2]) < abs(kept[1]) < abs(kept[0])


def test_noise_comes_from_the_seed_and_its_strength_from_sigma(images: list[np.ndarray]) -> None:
    first = np.stack(purifier().purify_pixels(images))
    assert np.array_equal(first, np.stack(purifier().purify_pixels(images)))
    assert not np.array_equal(first, np.stack(purifier(seed=2).purify_pixels(images)))
    none = np.stack(purifier(sigma=0).purify_pixels(images))
    assert np.array_equal(none, np.stack(purifier(sigma=0, seed=2).purify_pixels(images)))
    strong = np.stack(purifier(sigma=0.3).purify_pixels(images))
    change = [np.abs(out - none.astype(float)).mean() for out in (none, first, strong)]
    assert change[0] < change[1] < change[2]


def test_the_network_of_blind_serves_no_other_method() -> None:
    with pytest.raises(ConfigError, match="for the method blind only"):
        Purifier.from_pretrained("builtin-blind", method="zip")


def test_the_order_of_a_tensor_in_memory_changes_no_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    rows = torch.from_numpy(pixels).permute(2, 0, 1)
    blind = purifier()
    assert not rows.is_contiguous()
    assert torch.equal(blind(rows), blind(rows.contiguous()))
    assert np.array_equal(blind(rows).permute(1, 2, 0).numpy(), blind.purify_pixels([pixels])[0])
