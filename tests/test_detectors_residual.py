"""The residual detector with the prior that is shipped, on real images."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from real_images import cifar, patched
from torch import Tensor

from zipcli.config import DetectConfig, NoiseSchedule
from zipcli.detectors import residual
from zipcli.detectors.parts import Parts, Thresholded
from zipcli.detectors.residual import Residual, Usual, fit, make, measure, predicted_noise
from zipcli.detectors.shipped import Shipped
from zipcli.errors import ModelError, NonFiniteError
from zipcli.models.loading import LoadedModel, load_model
from zipcli.pipeline.windows import DEFAULT_OVERLAP, DEFAULT_WINDOW, WindowedModel

CPU = torch.device("cpu")


class Constant:
    """A prior that sees the same noise everywhere, and none at all where the image is black."""

    schedule = NoiseSchedule()
    channels = 3
    native_side = None
    minimum_side = 1

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        black = (x_t.flatten(1) < -0.5).all(dim=1)
        return torch.where(black[:, None, None, None], torch.nan, torch.ones_like(x_t))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("builtin", CPU, "float32")


@pytest.fixture(scope="module")
def prior(loaded: LoadedModel) -> WindowedModel:
    return WindowedModel(loaded.model, DEFAULT_WINDOW, DEFAULT_OVERLAP)


@pytest.fixture(scope="module")
def detector(loaded: LoadedModel, prior: WindowedModel) -> Thresholded:
    return make(DetectConfig(), Parts(prior=prior, prior_sha256=loaded.sha256))


@pytest.fixture(scope="module")
def usual() -> Usual:
    return Usual.from_shipped(Shipped.load("residual"))


def test_what_is_usual_was_measured_with_the_prior_that_is_shipped(loaded: LoadedModel) -> None:
    measured_with = Shipped.load("residual").metadata["prior"]
    assert measured_with == loaded.sha256, "the prior has changed: run examples/fit_residual.py again"


def test_another_prior_is_refused(prior: WindowedModel) -> None:
    with pytest.raises(ModelError, match="measured with another built-in prior"):
        make(DetectConfig(), Parts(prior=prior, prior_sha256="0" * 64))


def test_about_one_clean_image_in_twenty_is_suspicious(detector: Thresholded) -> None:
    scores = np.array([found.score for found in detector(cifar(300))])
    assert detector.threshold == pytest.approx(-math.log10(0.05))
    assert 0.01 <= (scores >= detector.threshold).mean() <= 0.11


def test_a_patch_is_suspicious_and_the_map_points_at_it(detector: Thresholded) -> None:
    images = cifar(40)
    found = detector([patched(image) for image in images])
    assert all(one.score >= detector.threshold for one in found)
    for one in found:
        assert one.map is not None
        assert one.map.shape == (32, 32)
        top, left = np.unravel_index(one.map.argmax(), one.map.shape)
        assert 25 <= top <= 29  # the patch is at 26 to 28, and a spot has 3 pixels
        assert 25 <= left <= 29


def test_blended_noise_and_a_sinusoid_are_suspicious(detector: Thresholded) -> None:
    images = cifar(40)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 1))
    blended = [(0.8 * image + 0.2 * noise).astype(np.uint8) for image in images]
    wave = 40 * np.sin(2 * np.pi * 6 * np.arange(32) / 32)[None, :, None]
    waved = [np.clip(image + wave, 0, 255).astype(np.uint8) for image in images]
    for poisoned in (blended, waved):
        scores = np.array([found.score for found in detector(poisoned)])
        assert (scores >= detector.threshold).mean() >= 0.95


@pytest.mark.parametrize("size", [(1, 1), (8, 20), (31, 33), (32, 100), (70, 65)])
def test_any_size_has_a_score_and_a_map_of_its_size(detector: Thresholded, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    (found,) = detector([image])
    assert math.isfinite(found.score)
    assert found.map is not None
    assert found.map.shape == size
    assert found.map.dtype == np.float32
    assert np.isfinite(found.map).all()


def test_a_patch_is_found_in_a_larger_picture(detector: Thresholded) -> None:
    large = np.asarray(Image.fromarray(cifar(1)[0]).resize((96, 96), Image.Resampling.BICUBIC))
    before, after = detector([large, patched(large, 50, 60, 5)])
    assert after.score > before.score + 1
    assert after.map is not None
    assert np.linalg.norm(np.array(np.unravel_index(after.map.argmax(), (96, 96))) - (52, 62)) <= 4


def test_no_image_depends_on_its_neighbours(detector: Thresholded) -> None:
    images = [*cifar(5), np.zeros((40, 33, 3), np.uint8), np.full((40, 33, 3), 255, np.uint8)]
    together = detector(images)
    for image, one in zip(images[::-1], together[::-1], strict=True):
        (alone,) = detector([image])
        assert alone.score == one.score
        assert np.array_equal(alone.map, one.map)  # type: ignore[arg-type]


def test_an_image_without_a_finite_score_is_named(usual: Usual) -> None:
    images = [np.full((32, 32, 3), 99, np.uint8), np.zeros((32, 32, 3), np.uint8)]
    with pytest.raises(NonFiniteError) as caught:
        Residual(Constant(), usual, CPU)(images[::-1] + images)
    assert caught.value.images == (0, 3)


def test_the_prior_is_asked_twice_for_each_image(prior: WindowedModel, usual: Usual) -> None:
    asked = []
    prior.before_call = lambda: asked.append(1)
    try:
        Residual(prior, usual, CPU)(cifar(4))
    finally:
        prior.before_call = lambda: None
    assert len(asked) == 2  # four images of 32 pixels are one call


def test_predicted_noise_is_that_of_a_noisy_image(prior: WindowedModel) -> None:
    image = torch.from_numpy(np.stack(cifar(8))).permute(0, 3, 1, 2) / 127.5 - 1
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = predicted_noise(prior, image + 0.4 * noise, 0.4)
    assert (found - noise).square().mean() < 0.15


def test_a_fit_gives_every_share_of_clean_images_its_surprise(prior: WindowedModel) -> None:
    x = torch.from_numpy(np.stack(cifar(200))).permute(0, 3, 1, 2) / 127.5 - 1
    found = fit(x.split(50), prior, CPU)
    assert [tensor.shape for tensor in (found.edges, found.spot_mean, found.wave_std)] == [
        (19,),
        (20,),
        (2, 32, 17),
    ]
    scores = np.array([one.score for one in Residual(prior, found, CPU)(cifar(200))])
    assert (scores >= 1).mean() == pytest.approx(0.1, abs=0.02)
    assert (scores >= -math.log10(0.5)).mean() == pytest.approx(0.5, abs=0.05)
    again = Usual.from_shipped(found.to_shipped("prior"))
    for field in dataclasses.fields(Usual):
        mine, theirs = getattr(found, field.name), getattr(again, field.name)
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs


def test_windows_cover_every_pixel_and_never_leave_the_image() -> None:
    for side in (32, 33, 63, 64, 65, 100):
        starts = residual._starts(side)
        covered = {pixel for start in starts for pixel in range(start, start + 32)}
        assert covered == set(range(side))


def test_a_uniform_prior_makes_uniform_spots() -> None:
    measured = measure(Constant(), torch.zeros(1, 3, 32, 40), CPU)
    assert torch.allclose(measured.spots, torch.tensor(math.log(3 + 1e-4)))
    assert measured.origins == ((0, 0), (0, 8))
