"""The methods of other papers: which states they ask about, and what they refuse."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeEps, asked_of, noise_per_image, parts_of
from golden.test_parity import TanhEps
from torch import Tensor

from zipcli import Purifier
from zipcli.config import (
    NEEDS_AUTOENCODER,
    VARIANTS,
    MethodConfig,
    NoiseSchedule,
    PurifyConfig,
    purify_config,
)
from zipcli.errors import ConfigError, InputError, NonFiniteError, Reason
from zipcli.methods import EVALUATIONS, METHODS
from zipcli.methods.sampdetox import visits
from zipcli.protocols import EpsModel
from zipcli.schedule import alpha_bars, sigmas
from zipcli.transforms import make_operator

LINEAR = NoiseSchedule()
COSINE = NoiseSchedule(kind="cosine")
SHORT = NoiseSchedule(timesteps=100)
"""Ends at a noise of 1.3 times the image."""

BLUR = (make_operator("blur:2", lambda _: torch.ones(1)),)


class CountingEps(FakeEps):
    """Counts the pixels of what it is asked about."""

    pixels = 0

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        self.pixels += x_t[0, 0].numel()
        return super().__call__(x_t, t)


def images(count: int = 2, height: int = 13, width: int = 12) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def purified(config: PurifyConfig, eps: EpsModel, x: Tensor, seeds: list[int]) -> Tensor:
    noise = noise_per_image(seeds)
    return METHODS[config.method](x, eps, BLUR, config, noise=noise, **parts_of(config.method))


def of_method(name: str) -> list[str]:
    return [variant for variant, fixed in VARIANTS.items() if fixed["method"] == name]


class WithSchedule(FakeEps):
    """A prior with another schedule."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule


# All of them


@pytest.mark.parametrize("name", [name for name in METHODS if name not in NEEDS_AUTOENCODER])
def test_an_image_is_the_same_alone_and_in_a_batch(name: str) -> None:
    """To rounding, as TanhEps has it; that of the shipped prior is exact (test_pipeline_purifier.py)."""
    x, config = images(3), purify_config(method=name, **asked_of(name))
    together = purified(config, TanhEps(), x, [1, 2, 3])
    for n in range(3):
        alone = purified(config, TanhEps(), x[n : n + 1], [n + 1])
        torch.testing.assert_close(together[n : n + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        *({"method": name, **asked_of(name)} for name in EVALUATIONS),
        *({"variant": name} for name in VARIANTS if VARIANTS[name]["method"] in EVALUATIONS),
        {"method": "ddnm", "steps": 20, "travel_length": 2, "travel_repeat": 2},
        {"method": "diffpure", "sampler": "ode", "t_star": 7},
        {"method": "sampdetox", "sampler": "ddim", "stride": 7},
    ],
    ids=str,
)
def test_the_network_is_asked_as_often_as_foretold(settings: dict[str, Any]) -> None:
    if settings == {"variant": "paper-alg1"}:
        settings["transforms"] = "blur:2"
    config, eps = purify_config(**settings), FakeEps()
    x = images(1)
    purified(config, eps, x, [1])
    assert EVALUATIONS[config.method](config, LINEAR, (x.shape[-2], x.shape[-1])) == len(eps.timesteps)


@pytest.mark.parametrize("doubt", [0.2, math.inf])
@pytest.mark.parametrize("size", [(32, 90), (64, 64), (224, 256), (161, 160)])
def test_small_copies_are_counted_by_their_pixels(size: tuple[int, int], doubt: float) -> None:
    config, eps = purify_config(method="blind", passes=2, doubt=doubt), CountingEps()
    purified(config, eps, images(1, *size), [1])
    foretold = EVALUATIONS["blind"](config, LINEAR, size)
    assert eps.pixels / math.prod(size) == pytest.approx(foretold, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "visited"),
    [
        ({"method": "diffpure"}, list(range(99, -1, -1))),
        ({"method": "diffpure", "t_star": 1}, [0]),
        ({"variant": "diffpure-imagenet"}, list(range(149, -1, -1))),
        ({"method": "blur+diffpure", "sampler": "ddpm", "t_star": 3}, [2, 1, 0]),
        ({"method": "ddnm"}, list(range(990, -1, -10))),
        ({"variant": "ddnm-zip"}, list(range(950, -1, -50))),
        ({"method": "sampdetox"}, [*range(19, -1, -1), *range(119, -1, -1)]),
        ({"variant": "sampdetox-code"}, [*range(119, -1, -1), *range(119, -1, -1)]),
        ({"method": "sampdetox", "sampler": "ddim"}, [20, 120, 100, 80, 60, 40, 20]),
        ({"variant": "sampdetox-paper"}, [9, 58, 48, 38, 28, 18, 8]),
    ],
    ids=str,
)
def test_timesteps_are_those_of_the_programs(settings: dict[str, Any], visited: list[int]) -> None:
    eps = FakeEps()
    purified(purify_config(**settings), eps, images(1), [1])
    assert eps.timesteps == visited


@pytest.mark.parametrize("name", ["diffpure", "blur+diffpure", "sampdetox"])
def test_a_prior_with_another_schedule_is_asked_where_it_has_as_much_noise(name: str) -> None:
    linear, cosine = FakeEps(), WithSchedule(COSINE)
    for eps in (linear, cosine):
        purified(purify_config(method=name), eps, images(1), [1])
    wanted = sigmas(LINEAR).log()[torch.tensor(linear.timesteps).long()].numpy()
    asked = np.interp(cosine.timesteps, np.arange(1000), sigmas(COSINE).log().numpy())
    np.testing.assert_allclose(asked, wanted, rtol=1e-4)
    assert cosine.timesteps[0] > 1.5 * linear.timesteps[0]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"method": "diffpure", "t_star": 500}, "t star"),
        ({"method": "blur+diffpure", "t_star": 1000}, "t star"),
        ({"method": "sampdetox", "t1": 400}, "t1"),
        ({"method": "sampdetox", "t2": 999}, "t2"),
    ],
    ids=str,
)
def test_a_prior_that_does_not_know_so_much_noise_is_refused(settings: dict[str, Any], named: str) -> None:
    config = purify_config(**settings)
    with pytest.raises(ConfigError, match=f"{named}: the model knows noise of at most 1.3"):
        Purifier(config).use(WithSchedule(SHORT), {})
    Purifier(config).use(WithSchedule(LINEAR), {})
    Purifier(purify_config(method=config.method)).use(WithSchedule(SHORT), {})


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_prior_that_loses_an_image_is_named_with_it(name: str) -> None:
    class Loses(TanhEps):
        def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
            eps = super().__call__(x_t, t)
            eps[1] = math.nan
            return eps

    with pytest.raises(NonFiniteError, match="at step 0") as caught:
        purified(purify_config(method=name, **asked_of(name)), Loses(), images(3), [1, 2, 3])
    assert caught.value.images == (1,)


# None and gray


def test_none_gives_every_level_back_as_it_was() -> None:
    levels = np.arange(256, dtype=np.uint8)
    colour = np.stack([levels, levels[::-1], np.roll(levels, 9)], axis=-1).reshape(16, 16, 3)
    nothing = Purifier(purify_config(method="none"))
    for picture in (colour, levels.reshape(16, 16)):
        (same,) = nothing.purify_pixels([picture])
        assert (same == picture).all()


def test_gray_is_blur_with_the_transform_gray() -> None:
    x, gray = images(), (make_operator("gray", lambda _: torch.ones(1)),)
    blurred = METHODS["blur"](x, None, gray, MethodConfig(), noise=noise_per_image([1, 2]))
    assert torch.equal(METHODS["gray"](x, None, (), MethodConfig(), noise=noise_per_image([1, 2])), blurred)


# DDNM


@pytest.mark.parametrize("simplified", [False, True])
def test_ddnm_keeps_what_the_transform_keeps_to_the_end(simplified: bool) -> None:
    x, config = images(), purify_config(method="ddnm", transforms="blur:2", simplified=simplified)
    kept = [BLUR[0].forward(image) for image in (x, purified(config, TanhEps(), x, [1, 2]))]
    torch.testing.assert_close(kept[1], kept[0], rtol=0, atol=1e-5)


# DiffPure


def test_diffpure_adds_hardly_any_noise_at_t_star_1() -> None:
    x = images()
    near, far = (
        (purified(purify_config(method="diffpure", t_star=t_star), TanhEps(), x, [1, 2]) - x).abs().max()
        for t_star in (1, 300)
    )
    assert near < 0.1 < far


# SampDetox


@pytest.mark.parametrize("size", [(10, 20), (20, 10), (1, 1)])
def test_sampdetox_refuses_an_image_smaller_than_the_window_of_ssim(size: tuple[int, int]) -> None:
    eps = FakeEps()
    with pytest.raises(
        InputError, match=f"at least 11 pixels, and the image is {size[1]}x{size[0]}"
    ) as caught:
        purified(purify_config(method="sampdetox"), eps, images(1, *size), [1])
    assert caught.value.reason is Reason.METHOD_UNFIT
    assert eps.timesteps == []


def test_sampdetox_does_not_touch_again_what_changed_evenly() -> None:
    """A flat image under flat noise stays flat: there is no level above 0, and no second stage."""

    class Nothing(FakeEps):
        def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
            super().__call__(x_t, t)
            return torch.zeros_like(x_t)

    x = torch.full((1, 3, 12, 12), 0.25)
    config = purify_config(method="sampdetox", sampler="ddim")
    found = METHODS["sampdetox"](x, Nothing(), (), config, noise=torch.ones_like)
    alpha_bar = alpha_bars(LINEAR)
    x_bar = (alpha_bar[20].sqrt() * 0.25 + (1 - alpha_bar[20]).sqrt()) / alpha_bar[20].sqrt()
    expected = alpha_bar[0].sqrt() * x_bar + (1 - alpha_bar[0]).sqrt()
    torch.testing.assert_close(found, torch.full_like(x, expected.item()))


def test_levels_of_the_paper_have_the_noise_of_its_cosine_schedule() -> None:
    cosine, linear = alpha_bars(COSINE), alpha_bars(LINEAR)
    fixed = VARIANTS["sampdetox-paper"]
    assert [int((linear - cosine[t]).abs().argmin()) for t in (20, 120)] == [fixed["t1"], fixed["t2"]]
    assert [len(visits("ddim", fixed[name], fixed["stride"])) for name in ("t1", "t2")] == [1, 6]


def test_ddim_with_a_stride_of_1_moves_the_pixels_that_ddpm_moves() -> None:
    assert [gate for _, gate in visits("ddim", 9, 1)] == [gate for _, gate in visits("ddpm", 9, 20)]
