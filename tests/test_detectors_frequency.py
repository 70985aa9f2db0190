"""The frequency detector: its transform, its windows, and its network on real images."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from real_images import cifar, patched

import zipcli.detectors
from zipcli.config import DetectConfig
from zipcli.detectors import shipped
from zipcli.detectors.frequency import make, spectrum, windows_of
from zipcli.detectors.parts import Parts, Thresholded
from zipcli.detectors.shipped import Shipped
from zipcli.errors import ModelError


@pytest.fixture(scope="module")
def detector() -> Thresholded:
    return make(DetectConfig(detector="frequency"), Parts())


def test_the_spectrum_is_the_orthonormal_dct() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32))).float()
    found = spectrum(image)
    coefficients = found.sign() * found.abs().expm1()
    assert (coefficients**2).sum() == pytest.approx((image**2).sum().item(), rel=1e-4)
    for u, v in ((0, 0), (1, 0), (3, 7), (31, 31)):
        total = 0.0
        for y in range(32):
            for x in range(32):
                waves = math.cos(math.pi * u * (2 * y + 1) / 64) * math.cos(math.pi * v * (2 * x + 1) / 64)
                total += image[0, 1, y, x].item() * waves
        total *= (2 / 32) * (0.5**0.5 if u == 0 else 1) * (0.5**0.5 if v == 0 else 1)
        assert coefficients[0, 1, u, v].item() == pytest.approx(total, rel=1e-3, abs=0.05)


@pytest.mark.parametrize(("size", "count"), [((32, 32), 1), ((5, 7), 1), ((33, 32), 2), ((100, 64), 8)])
def test_windows_cover_the_image(size: tuple[int, int], count: int) -> None:
    image = np.arange(size[0] * size[1]).reshape(size)
    pixels = np.stack([image % 256, image // 256 % 256, image // 65_536], axis=2).astype(np.uint8)
    windows = windows_of(pixels)
    assert windows.shape == (count, 3, 32, 32)
    seen = {tuple(pixel) for pixel in windows.permute(0, 2, 3, 1).reshape(-1, 3).tolist()}
    assert seen == {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()}


def test_about_one_clean_image_in_twenty_is_suspicious(detector: Thresholded) -> None:
    scores = np.array([found.score for found in detector(cifar(400))])
    assert 0.01 <= (scores >= detector.threshold).mean() <= 0.1


def test_a_patch_and_blended_noise_are_suspicious(detector: Thresholded) -> None:
    images = cifar(60)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 1))
    for poisoned in (
        [patched(image) for image in images],
        [(0.8 * image + 0.2 * noise).astype(np.uint8) for image in images],
    ):
        scores = np.array([found.score for found in detector(poisoned)])
        assert (scores >= detector.threshold).mean() >= 0.9


def test_one_window_makes_a_larger_picture_suspicious(detector: Thresholded) -> None:
    rows = [np.concatenate(cifar(9)[3 * r : 3 * r + 3], axis=1) for r in range(3)]
    large = np.concatenate(rows)
    clean, poisoned = detector([large, patched(large, 50, 40, 3)])
    assert poisoned.score > clean.score
    assert poisoned.score >= detector.threshold


def test_no_image_depends_on_its_neighbours(detector: Thresholded) -> None:
    images = [*cifar(3), np.zeros((40, 33, 3), np.uint8), np.full((3, 2, 3), 255, np.uint8)]
    together = [found.score for found in detector(images)]
    assert [detector([image])[0].score for image in images] == together


def test_the_weights_are_small_and_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(zipcli.detectors.__file__).parent / "weights"
    files = sorted(folder.iterdir())
    assert {file.stem for file in files} == set(shipped.DIGESTS)
    assert all(file.stat().st_size < 1.5e6 for file in files)
    monkeypatch.setitem(shipped.DIGESTS, "frequency", "0" * 64)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"frequency\.safetensors: damaged, or not the file of this version"):
        Shipped.load("frequency")


def test_a_missing_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "shipped.py"))
    with pytest.raises(ModelError, match="cannot be read"):
        Shipped.load("residual")
