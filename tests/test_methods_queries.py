"""The methods that ask the classifier: what they remove, what they cost, and what they never depend on."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from autoencoders import write_autoencoder
from fakes import FakeClassifier, FakeEps, model_of, noise_per_image
from numpy.typing import NDArray
from torch import Tensor

from zipcli.config import METHOD_ASKS, ClassifierConfig, MethodConfig, purify_config
from zipcli.errors import ConfigError, NonFiniteError
from zipcli.methods import METHODS
from zipcli.methods.bdmae import neighbours, ssim
from zipcli.methods.rise import CELLS, random_masks, saliency
from zipcli.methods.sancdifi import refill, salient_pixels
from zipcli.pipeline.purifier import Purifier
from zipcli.protocols import Prediction

QUICK = MethodConfig(t_star=15, masks=200)
QUERIES = {"bdmae": 1 + 5 * 5 + 2 * 10, "sancdifi": 1 + 200}


def patched(n: int, size: tuple[int, int] = (32, 32)) -> Tensor:
    """Dark pictures with a bright patch in the corner, which `FakeClassifier` falls for."""
    x = torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(n)) * 0.4 - 0.2
    x[..., -8:, -8:] = 1
    return x


def purified(method: str, x: Tensor, seeds: list[int], ask: Callable[[Tensor], Tensor]) -> Tensor:
    return METHODS[method](x, model_of(method), (), QUICK, noise=noise_per_image(seeds), ask=ask)


@pytest.mark.parametrize("method", sorted(METHOD_ASKS))
def test_an_image_costs_the_promised_queries_and_no_other(method: str) -> None:
    ask = FakeClassifier()
    purified(method, patched(3), [1, 2, 3], ask)
    assert ask.queries == 3 * QUERIES[method]


@pytest.mark.parametrize("method", sorted(METHOD_ASKS))
def test_an_image_is_the_same_alone_and_in_a_batch(method: str) -> None:
    x = patched(4, (30, 25))
    x[2, ..., -8:, -8:] = 0  # a clean one among them takes other ways
    together = purified(method, x, [1, 2, 3, 4], FakeClassifier())
    assert not torch.equal(together, x)
    for n in range(4):
        assert torch.equal(purified(method, x[n : n + 1], [n + 1], FakeClassifier()), together[n : n + 1])


@pytest.mark.parametrize("method", sorted(METHOD_ASKS))
def test_another_seed_draws_other_masks(method: str) -> None:
    x = patched(1)
    asked: list[Tensor] = []

    def ask(images: Tensor) -> Tensor:
        asked[-1] += images.sum(dim=0)
        return torch.zeros(len(images), dtype=torch.int64)

    for seed in (1, 2):
        asked.append(torch.zeros(3, 32, 32))
        purified(method, x, [seed], ask)
    assert not torch.allclose(asked[0], asked[1], atol=1)


def test_bdmae_removes_a_patch_and_little_else() -> None:
    x = patched(2)
    clean = purified("bdmae", x, [1, 2], FakeClassifier())
    assert FakeClassifier()(x).tolist() == [1, 1]
    assert FakeClassifier()(clean).tolist() == [0, 0]
    assert (clean != x).any(dim=1).float().mean() < 0.3
    assert clean[..., -8:, -8:].max() < 0.5


def test_bdmae_leaves_an_image_alone_where_nothing_is_suspicious() -> None:
    x = torch.zeros(1, 3, 32, 32)  # the fake autoencoder restores it exactly
    assert torch.equal(purified("bdmae", x, [1], lambda images: torch.zeros(len(images)).long()), x)


def test_similarity_is_one_for_equal_images_and_less_for_others() -> None:
    u = torch.rand(1, 3, 9, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(ssim(u, u), torch.ones(1, 1, 9, 14).double(), rtol=0, atol=1e-12)
    assert ssim(u, 1 - u).max() < 0.5


def test_neighbours_of_a_token_do_not_wrap_around() -> None:
    corner = torch.zeros(1, 9, dtype=torch.bool)
    corner[0, 2] = True  # the last of the first row
    assert neighbours(corner, 3)[0].nonzero().flatten().tolist() == [1, 5]


def test_a_random_mask_keeps_half_of_the_image_on_average() -> None:
    numbers = torch.randn(2000, CELLS**2 + 2, generator=torch.Generator().manual_seed(0))
    masks = random_masks(numbers, (23, 16))
    assert masks.shape == (2000, 23, 16)
    assert (masks.min(), masks.max()) == (0, 1)
    assert (masks.mean(dim=0) - 0.5).abs().max() < 0.05


def test_saliency_is_highest_where_the_answer_comes_from() -> None:
    x = patched(1)
    found = saliency(x, 1000, noise_per_image([1]), FakeClassifier())[0, 0]
    assert found.shape == (32, 32)
    assert found[-6:, -6:].mean() > 1.5 * found[:16, :16].mean()
    row, column = divmod(int(found.argmax()), 32)
    assert min(row, column) >= 22


def test_a_label_that_never_stays_makes_nothing_salient() -> None:
    flat = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    flat[1, 0, 0, :4] = 1
    assert salient_pixels(flat, 0.9).sum(dim=(1, 2, 3)).tolist() == [0, 4]


def test_what_is_not_salient_stays_to_the_last_bit(fake_eps: FakeEps) -> None:
    x = patched(2)
    mask = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    mask[:, :, 3:9, 20:] = True
    clean = refill(x, mask, fake_eps, 15, noise_per_image([1, 2]))
    assert torch.equal(clean.masked_fill(mask, 0), x.masked_fill(mask, 0))
    assert ((clean != x) == mask).all()
    assert fake_eps.timesteps == list(range(14, -1, -1))


def test_a_lost_state_names_its_image_and_step() -> None:
    class Lost(FakeEps):
        def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
            eps = super().__call__(x_t, t).clone()
            eps[1] = torch.nan if t[0] == 3 else eps[1]
            return eps

    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    with pytest.raises(NonFiniteError, match="timestep 3") as caught:
        refill(torch.zeros(2, 3, 8, 8), mask, Lost(), 5, noise_per_image([1, 2]))
    assert caught.value.images == (1,)


# With a purifier


class Recorder:
    """A classifier that keeps what it is shown; label 2 where the first pixel is blue."""

    classes = None

    def __init__(self) -> None:
        self.shown: list[NDArray[np.uint8]] = []

    def __call__(self, images: Sequence[NDArray[np.uint8]], /) -> Prediction:
        self.shown += images
        return Prediction(labels=np.array([int(i[0, 0].argmax()) for i in images], np.int64))


@pytest.fixture
def purifier(tmp_path: Path) -> Purifier:
    folder = write_autoencoder(tmp_path / "mae")
    config = purify_config(
        method="bdmae", model=str(folder), device="cpu", classifier=ClassifierConfig(classifier="cmd:any")
    )
    return Purifier.from_config(config)


def test_a_classifier_is_shown_what_a_file_would_hold(purifier: Purifier) -> None:
    recorder = Recorder()
    purifier.ask_with(recorder)
    picture = np.full((40, 32, 3), (210, 50, 50), np.uint8)
    picture[:6, :6] = (0, 0, 255)
    (clean,) = purifier.purify_pixels([picture])
    assert len(recorder.shown) == purifier.queries_for(1) == QUERIES["bdmae"]
    assert np.array_equal(recorder.shown[0], picture)
    assert {(i.dtype.name, i.shape) for i in recorder.shown} == {("uint8", (40, 32, 3))}
    assert clean[0, 0].argmax() == 0
    assert np.abs(clean[20:].astype(int) - picture[20:]).max() < 10
    assert purifier.queries_for(1) == 0  # told once


def test_a_grey_picture_is_shown_in_three_channels(purifier: Purifier) -> None:
    recorder = Recorder()
    purifier.ask_with(recorder)
    (clean,) = purifier.purify_pixels([np.full((9, 12), 90, np.uint8)])
    assert clean.shape == (9, 12)
    assert recorder.shown[0].shape == (9, 12, 3)


def test_a_purifier_without_its_classifier_says_so(purifier: Purifier) -> None:
    with pytest.raises(ConfigError, match=r"no classifier yet; give it one with ask_with"):
        purifier.purify_pixels([np.zeros((9, 12, 3), np.uint8)])


def test_what_decides_pixels_is_in_the_fingerprint_and_nothing_else(purifier: Purifier) -> None:
    facts = dict(purifier.fingerprint_parts)
    assert len(facts.pop("model_sha256")) == 64
    assert facts.pop("network")["side"] == 32
    assert facts == {
        "method": "bdmae",
        "seed": 1234,
        "classifier": {"classifier": "cmd:any"},
        "dtype": "float32",
    }


def test_masks_of_a_long_strip_take_little_memory() -> None:
    program = """
import resource
import torch
from zipcli.methods.rise import CELLS, random_masks

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

random_masks(torch.randn(2, CELLS * CELLS + 2), (8, 8))
before = peak()
assert random_masks(torch.randn(2, CELLS * CELLS + 2), (4, 60_000)).shape == (2, 4, 60_000)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100  # MiB; a mask has 1
