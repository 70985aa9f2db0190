"""SCALE-UP: SPC of classifiers whose answer to every brightness is known."""

import pytest
import torch
from torch import Tensor

from zipcli.detectors.scaleup import FACTORS, THRESHOLD, scaled_prediction_consistency
from zipcli.errors import ConfigError


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def always_7(x: Tensor) -> Tensor:
    return torch.full((len(x),), 7)


def is_bright(x: Tensor) -> Tensor:
    return (x.mean(dim=(1, 2, 3)) > 0.5).long()


def uniform(*levels: float) -> Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_a_constant_classifier_gives_spc_1() -> None:
    spc = scaled_prediction_consistency(random_images(4, 3, 8, 8), always_7)
    assert spc.tolist() == [1, 1, 1, 1]
    assert spc.dtype == torch.float32


def test_a_classifier_of_brightness_gives_dark_images_spc_below_1() -> None:
    # 0.5 is passed at 5 times 0.11, 7 times 0.08, 9 times 0.06, 11 times 0.05, and never by 0.04.
    spc = scaled_prediction_consistency(uniform(0.2, 0.11, 0.08, 0.06, 0.05, 0.04), is_bright)
    assert spc.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_a_classifier_of_brightness_gives_bright_images_spc_1() -> None:
    assert scaled_prediction_consistency(uniform(0.51, 1.0), is_bright).tolist() == [1, 1]


def test_a_label_that_never_returns_gives_spc_0() -> None:
    spc = scaled_prediction_consistency(uniform(0.3), lambda x: (x.amax((1, 2, 3)) * 1000).long())
    assert spc.tolist() == [0]


def test_the_classifier_sees_the_image_and_then_each_clipped_multiple() -> None:
    x = random_images(2, 3, 4, 4)
    seen: list[Tensor] = []

    def predict(images: Tensor) -> Tensor:
        seen.append(images.clone())
        return always_7(images)

    scaled_prediction_consistency(x, predict)
    assert len(seen) == 6
    for images, factor in zip(seen, (1, 3, 5, 7, 9, 11), strict=True):
        wanted = [min(1.0, factor * value) for value in x.flatten().tolist()]
        assert images.flatten().tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("factors", [FACTORS, (2,), tuple(range(1, 12)), (1.5, 0.5, 3)])
def test_spc_equals_the_sum_of_the_paper_as_a_loop(factors: tuple[float, ...]) -> None:
    x = random_images(20, 3, 4, 4) * 0.4

    def predict(images: Tensor) -> Tensor:
        return (images.sum(dim=(1, 2, 3)) / 6).long()  # eight classes by brightness

    found = scaled_prediction_consistency(x, predict, factors)
    for n in range(20):
        label = int(predict(x[n : n + 1]))
        kept = sum(int(predict((factor * x[n : n + 1]).clip(0, 1))) == label for factor in factors)
        assert found[n].item() == pytest.approx(kept / len(factors))


def test_factor_1_always_agrees() -> None:
    x = random_images(5, 3, 4, 4)
    assert (
        scaled_prediction_consistency(x, lambda x: (x.sum((1, 2, 3)) * 1e4).long(), (1, 9)).tolist()
        == [0.5] * 5
    )


def test_each_image_is_compared_with_its_own_label() -> None:
    levels = (0.2, 0.04, 0.6, 0.08)
    together = scaled_prediction_consistency(uniform(*levels), is_bright).tolist()
    assert together == [scaled_prediction_consistency(uniform(level), is_bright).item() for level in levels]
    assert len(set(together)) == 3


def test_no_spc_of_the_five_factors_lies_on_the_threshold() -> None:
    assert [kept / len(FACTORS) > THRESHOLD for kept in range(6)] == [False] * 3 + [True] * 3
    assert all(kept / len(FACTORS) != THRESHOLD for kept in range(6))


def test_no_factors_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        scaled_prediction_consistency(random_images(1, 3, 4, 4), always_7, ())


@pytest.mark.parametrize("outside", [-0.1, 1.1])
def test_images_outside_0_to_1_are_a_bug(outside: float) -> None:
    x = random_images(2, 3, 4, 4)
    x[1, 0, 0, 0] = outside
    with pytest.raises(AssertionError, match=r"\[0, 1\]"):
        scaled_prediction_consistency(x, always_7)


def test_probabilities_instead_of_labels_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="labels wanted"):
        scaled_prediction_consistency(random_images(2, 3, 4, 4), lambda x: torch.zeros(len(x), 10))
