"""The loops that zipcli is compared with do what their papers and programs do, and the script times them."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from baselines import (
    diffpure,
    levels,
    noised,
    pack,
    sampdetox,
    unpack,
    write_back_at_once,
    write_back_by_pixel,
    zip_official,
)
from cli.shell import ENVIRONMENT, ROOT
from fakes import FakeEps, noise_per_image
from golden.test_parity import TanhEps
from real_images import DATA, cifar, patched
from torch import Tensor

from zipcli.config import MethodConfig, NoiseSchedule, purify_config
from zipcli.methods import METHODS
from zipcli.methods.sampdetox_gate import (
    dissimilarity_map,
    merge_step,
    noise_levels,
    noise_to_levels,
    stretch,
)
from zipcli.methods.zip import purify
from zipcli.schedule import alpha_bars, betas
from zipcli.transforms import make_operator

SCHEDULE = NoiseSchedule()
ALPHA_BAR = alpha_bars(SCHEDULE)
BETA = betas(SCHEDULE)


class EpsOf:
    """A prior from a function of x_t and alpha_bar."""

    schedule = SCHEDULE
    channels = 3
    native_side = None
    minimum_side = 1

    def __init__(self, predict: Callable[[Tensor, float], Tensor]) -> None:
        self.predict = predict

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        return self.predict(x_t, ALPHA_BAR[int(t[0])].item())


def oracle(clean: Tensor) -> EpsOf:
    """Knows the clean states, and so takes everything else for noise."""
    return EpsOf(lambda x_t, a: (x_t - math.sqrt(a) * clean) / math.sqrt(1 - a))


class WithVariance(TanhEps):
    """Like a network that learned a variance: there are three channels more, for nobody."""

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        eps = super().__call__(x_t, t)
        return torch.cat([eps, torch.full_like(eps, math.nan)], dim=1)


def fractions(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def from_one_seed(seed: int = 0) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def real(number: int) -> Tensor:
    return torch.from_numpy(np.stack(cifar(number))).permute(0, 3, 1, 2)


# ZIP


@pytest.mark.parametrize("eps", [TanhEps(), WithVariance()], ids=["eps", "eps and variance"])
@pytest.mark.parametrize(("lambda_", "blur"), [(10.0, 2), (2.0, 4)])
def test_the_loop_of_zip_equals_our_zip(eps: TanhEps, lambda_: float, blur: int) -> None:
    """Tolerance 1e-8, measured 1e-15: x_t space and x_0 space differ in rounding only."""
    u = fractions(3, 3, 32, 32)
    slow = zip_official(
        u, eps, noise=noise_per_image([1, 2, 3]), lambda_=lambda_, blur=blur, batch=3, native=True
    )
    operators = tuple(make_operator(name, lambda _: u) for name in ("gray", f"blur:{blur}"))
    config = MethodConfig(lambda_=lambda_)
    ours = purify(u * 2 - 1, TanhEps(), operators, config, noise=noise_per_image([1, 2, 3]))
    assert slow.dtype == torch.float64
    assert (slow - ((ours + 1) / 2).clamp(0, 1)).abs().max() < 1e-8
    assert ((slow > 0) & (slow < 1)).double().mean() > 0.1  # the clipping does not hide everything


def test_on_canvases_it_makes_of_each_image_what_it_makes_of_it_alone() -> None:
    """With a network that sees single pixels; the 65th image is black, on an otherwise empty canvas."""
    eps = EpsOf(lambda x_t, a: math.sqrt(1 - a) * x_t + 0.2 * torch.tanh(x_t))
    u = fractions(65, 3, 32, 32)
    u[64] = 0
    draws = [torch.randn(65, 3, 32, 32, dtype=torch.float64, generator=g) for g in _generators(21)]
    alone, together = iter(draws), iter(draws)
    native = zip_official(u, eps, noise=lambda _: next(alone), native=True)
    canvases = zip_official(u, eps, noise=lambda _: pack(next(together)))
    assert canvases.shape == u.shape
    torch.testing.assert_close(canvases, native, rtol=0, atol=1e-12)


def _generators(number: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(number)]


@pytest.mark.parametrize(("side", "number"), [(32, 1), (32, 64), (32, 65), (84, 10), (128, 3), (256, 2)])
def test_no_image_is_lost_on_a_canvas(side: int, number: int) -> None:
    x = fractions(number, 3, side, side)
    canvases = pack(x)
    assert canvases.shape == (math.ceil(number / (256 // side) ** 2), 3, 256, 256)
    assert torch.equal(unpack(canvases, number, side), x)


def test_images_lie_row_by_row_and_what_is_left_of_a_canvas_is_black() -> None:
    canvas = pack(torch.arange(9.0).view(9, 1, 1, 1).expand(9, 3, 32, 32))[0, 0]
    assert canvas[::32, ::32][:2].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [8] + [-1] * 7]
    assert (canvas[64:] == -1).all()


# SampDetox


@pytest.mark.parametrize("seed", range(4))
def test_the_levels_are_those_of_our_gate(seed: int) -> None:
    u, u_bar = fractions(1, 3, 32, 32, seed=seed), fractions(1, 3, 32, 32, seed=seed + 100)
    ours = noise_levels(stretch(dissimilarity_map(u * 2 - 1, u_bar * 2 - 1)), 120)[0, 0]
    assert levels(u, u_bar, 120).tolist() == ours.tolist()
    assert ours.max() == 120


def test_an_image_that_did_not_change_has_level_0() -> None:
    u = fractions(1, 3, 32, 32)
    assert (levels(u, u, 120) == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_noise_by_pixel_is_that_of_our_gate(seed: int) -> None:
    tau = torch.from_numpy(np.random.default_rng(seed).integers(0, 121, (9, 7)))
    x, nu = fractions(1, 3, 9, 7), from_one_seed()(torch.zeros(1, 3, 9, 7, dtype=torch.float64))
    ours = noise_to_levels(x, tau[None, None], ALPHA_BAR, nu)
    torch.testing.assert_close(noised(x, tau, ALPHA_BAR, nu), ours, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("i", [0, 1, 60, 119])
def test_the_loop_over_pixels_equals_our_gate_and_its_twin(seed: int, i: int) -> None:
    tau = np.random.default_rng(seed).integers(0, 121, (9, 7))
    tau[0, :4] = 0, i, i + 1, 120
    x_t, stepped = fractions(1, 3, 9, 7, seed=1), fractions(1, 3, 9, 7, seed=2)
    ours = merge_step(x_t, stepped, torch.from_numpy(tau)[None, None], i)
    at_once = write_back_at_once(x_t, stepped, tau, i)
    write_back_by_pixel(x_t, stepped, tau, i)
    assert torch.equal(x_t, ours)
    assert torch.equal(at_once, ours)


def by_posterior(x: Tensor, eps: TanhEps, noise: Callable[[Tensor], Tensor], i: int) -> Tensor:
    """One DDPM step as Ho et al. 2020, eq. 7, has it, from x_0 and x_t, with beta as its variance."""
    a, a_next, b = ALPHA_BAR[i].item(), ALPHA_BAR[i - 1].item() if i else 1.0, BETA[i].item()
    e = eps(x, torch.tensor([float(i)]))
    x_0 = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
    mean = (math.sqrt(a_next) * b * x_0 + math.sqrt(1 - b) * (1 - a_next) * x) / (1 - a)
    return mean + math.sqrt(b) * noise(x) if i else mean


@pytest.mark.parametrize("by_pixel", [True, False])
def test_the_whole_of_sampdetox_equals_a_chain_around_our_gate(by_pixel: bool) -> None:
    t1, t2, eps = 20, 30, TanhEps()
    u = fractions(2, 3, 16, 16)
    found = sampdetox(u, eps, noise=from_one_seed(), t1=t1, t2=t2, by_pixel=by_pixel)
    noise = from_one_seed()
    nu = noise(u[:1])
    for image, out in zip(u, found, strict=True):
        x = image[None] * 2 - 1
        x_bar = noise_to_levels(x, torch.full((1, 1, 16, 16), t1), ALPHA_BAR, nu)
        for i in range(t1 - 1, -1, -1):
            x_bar = by_posterior(x_bar, eps, noise, i)
        x_bar = x_bar.clamp(-1, 1)
        tau = noise_levels(stretch(dissimilarity_map(x, x_bar)), t2)
        state = noise_to_levels(x_bar, tau, ALPHA_BAR, nu)
        for i in range(t2 - 1, -1, -1):
            state = merge_step(state, by_posterior(state, eps, noise, i), tau, i)
        torch.testing.assert_close(out, ((state[0] + 1) / 2).clamp(0, 1), rtol=0, atol=1e-12)


def test_with_an_oracle_sampdetox_gives_the_clean_image_where_it_denoised() -> None:
    clean = (real(1) / 255).double() * 0.8 + 0.1  # off the borders, where clipping would hide noise
    triggered = torch.from_numpy(patched(cifar(1)[0])).permute(2, 0, 1)[None].double() / 255 * 0.8 + 0.1
    found = sampdetox(triggered, oracle(clean * 2 - 1), noise=from_one_seed())
    tau = torch.from_numpy(levels(triggered, clean, 120))
    assert 9 <= (tau > 0).sum() < 500  # around the patch
    error = (found - clean).abs().amax(dim=(0, 1))
    assert error[tau > 0].max() < 1e-12
    assert 0.005 < error[tau == 0].max() < 0.03  # level 0 keeps noise of std 0.01, half of that in [0, 1]


# DiffPure


def test_with_an_oracle_diffpure_gives_the_clean_image() -> None:
    """What is left is the noise of the last step, std 0.011 of states, half of it in [0, 1]."""
    clean = real(4) / 255
    triggered = torch.from_numpy(np.stack([patched(image) for image in cifar(4)])).permute(0, 3, 1, 2) / 255
    assert (triggered - clean).abs().max() > 0.3
    found = diffpure(triggered, oracle(clean * 2 - 1), noise=from_one_seed())
    assert (found - clean).abs().max() < 0.04
    assert (found - clean).square().mean().sqrt() < 0.008


def test_with_the_prior_of_gaussian_images_diffpure_draws_from_their_posterior() -> None:
    """x_0 ~ N(0, s^2) stays so, and keeps of its value what noise of the first state leaves: 0.439.

    Measured 0.3003 and 0.4375; with a tenth less variance in each step, the first is 0.290.
    """
    s = 0.3
    eps = EpsOf(lambda x_t, a: math.sqrt(1 - a) * x_t / (a * s**2 + 1 - a))
    x = s * torch.randn(128, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x.clamp(-1, 1)
    found = diffpure((x + 1) / 2, eps, noise=from_one_seed()) * 2 - 1
    a = ALPHA_BAR[99].item()
    kept = a * s**2 / (a * s**2 + 1 - a)
    assert found.std().item() == pytest.approx(s, rel=0.01)
    assert ((found * x).mean() / x.square().mean()).item() == pytest.approx(kept, abs=0.01)


@pytest.mark.parametrize("t_star", [1, 100])
def test_the_loop_of_diffpure_equals_our_diffpure(t_star: int) -> None:
    """Tolerance 1e-8, measured 1e-15, as for ZIP."""
    u, config = fractions(2, 3, 8, 8), purify_config(method="diffpure", t_star=t_star)
    loop = diffpure(u, TanhEps(), noise=from_one_seed(), t_star=t_star)
    ours = METHODS["diffpure"](u * 2 - 1, TanhEps(), (), config, noise=from_one_seed())
    assert torch.allclose(loop, ((ours + 1) / 2).clamp(0, 1), atol=1e-8)


@pytest.mark.parametrize(("t1", "t2"), [(20, 120), (120, 120)])
def test_the_loop_of_sampdetox_equals_our_sampdetox(t1: int, t2: int) -> None:
    """The same; one image, since the loop has one noise for all."""
    u, config = fractions(1, 3, 16, 13), purify_config(method="sampdetox", t1=t1, t2=t2)
    loop = sampdetox(u, TanhEps(), noise=from_one_seed(), t1=t1, t2=t2)
    ours = METHODS["sampdetox"](u * 2 - 1, TanhEps(), (), config, noise=from_one_seed())
    assert torch.allclose(loop, ((ours + 1) / 2).clamp(0, 1), atol=1e-8)


# All of them


@pytest.mark.parametrize(
    ("loop", "visited"),
    [
        (lambda *args, **more: zip_official(*args, **more, native=True), list(range(950, -1, -50))),
        (zip_official, list(range(950, -1, -50))),
        (sampdetox, [*range(119, -1, -1), *range(119, -1, -1)]),
        (diffpure, list(range(99, -1, -1))),
    ],
    ids=["zip, native", "zip", "sampdetox", "diffpure"],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_each_loop_asks_the_network_as_often_as_its_program(
    loop: Callable[..., Tensor], visited: list[int], dtype: torch.dtype
) -> None:
    eps = FakeEps()
    images = real(1) if dtype == torch.uint8 else real(1) / 255
    found = loop(images, eps, noise=from_one_seed())
    assert eps.timesteps == visited
    assert (found.shape, found.dtype) == (images.shape, dtype)
    assert len(found.unique()) > 20  # no NaN, which is one level
    assert found.float().max() <= (255 if dtype == torch.uint8 else 1)


def test_sampdetox_treats_one_image_at_a_time_and_the_others_all_together() -> None:
    for loop, calls in ((sampdetox, 480), (diffpure, 100), (zip_official, 20)):
        eps = FakeEps()
        loop(real(2), eps, noise=from_one_seed())
        assert len(eps.timesteps) == calls


def test_a_rounded_image_of_a_loop_is_the_nearest() -> None:
    images = real(2)
    rounded = diffpure(images, FakeEps(), noise=from_one_seed())
    exact = diffpure(images / 255, FakeEps(), noise=from_one_seed())
    assert (rounded / 255 - exact).abs().max() <= 0.5 / 255 + 1e-5


@pytest.mark.slow
def test_the_script_times_all_contenders_on_one_network_and_counts_what_they_ask() -> None:
    few = ("--images", "4", "--slow-images", "1", "--repeats", "1", "--peer-steps", "8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/measure_speed.py"), *few, "--json"],
        env=ENVIRONMENT | {"ZIPCLI_DATA": str(DATA), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    loops = {row["name"]: row for row in rows if row["network"] == "builtin"}
    peers = {row["name"]: row for row in rows if row["network"] != "builtin"}
    asked = {name: row["evaluations"] for name, row in loops.items()}
    assert asked == {
        "zipcli, default": 1,
        "zipcli, nullspace": 3,
        "zipcli, nullspace, float32": 3,
        "zipcli, variant official, float32": 20,
        "ZIP's loop, on canvases": 320,  # 4 images have the canvas of 64 to themselves
        "ZIP's loop, native": 20,
        "DiffPure's loop": 100,
        "SampDetox's loop": 240,
        "SampDetox, gate at once": 240,
    }
    assert {name: row["evaluations"] for name, row in peers.items()} == {
        "zipcli, gray and blur:2": 8,
        "zipcli, bfloat16": 8,
        "diffusers' DDIMPipeline": 8,
        "diffusers, bfloat16": 8,
    }
    for row in rows:
        assert row["images_per_s"] * row["wall_s"] == pytest.approx(1)
        assert row["cpu_s"] > 0
    assert loops["zipcli, default"]["cpu_ratio"] == 1
    assert loops["ZIP's loop, on canvases"]["cpu_ratio"] > 4  # sixteen times the work
