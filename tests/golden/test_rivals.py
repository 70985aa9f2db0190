"""The methods of other papers against slow float64 transcriptions of their equations.

Tolerances as in test_parity.py. Of sampdetox in float32 a level may be cut off otherwise, and so it is
compared in float64 alone.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from golden import transcription as paper
from golden.test_parity import FLOAT32, FLOAT64, LINEAR, Replay, TanhEps, assert_close, images_and_noise

from zipcli.config import PurifyConfig, purify_config
from zipcli.methods import METHODS
from zipcli.transforms import make_operator

Slow = Callable[[paper.Array, Sequence[paper.Array]], paper.Array]


EPS = TanhEps()


def run(x: paper.Array, config: PurifyConfig, draws: paper.Array, dtype: torch.dtype) -> paper.Array:
    operators = tuple(make_operator(name, lambda _: torch.ones(1)) for name in config.transforms)
    noise = Replay(draws)
    image = torch.from_numpy(x).to(dtype)
    out = METHODS[config.method](image, EPS, operators, config, noise=noise)
    assert out.dtype == dtype
    assert noise.draws == []
    return out.double().numpy()


def compare(
    settings: dict[str, Any], slow: Slow, count: int, *, size: tuple[int, int] = (6, 5), exact: bool = False
) -> None:
    """Compare with the transcription of one image; all `count` draws must be used."""
    x, draws = images_and_noise(count, *size)
    expected = np.stack([slow(x[k], list(draws[:, k])) for k in range(len(x))])
    config = purify_config(**settings)
    assert_close(run(x, config, draws, torch.float64), expected, FLOAT64)
    if not exact:
        assert_close(run(x, config, draws, torch.float32), expected, FLOAT32)


@pytest.mark.parametrize("size", [(6, 5), (47, 50), (48, 60), (81, 70)])
@pytest.mark.parametrize(("keep_colour", "doubt"), [(False, 0.2), (True, 0.1), (False, inf), (True, inf)])
@pytest.mark.parametrize(
    ("sigma", "passes", "cell"), [(0.0, 1, 1), (0.075, 1, 4), (0.075, 2, 4), (0.5, 3, 7)]
)
def test_blind_equals_its_equations(
    sigma: float, passes: int, cell: int, keep_colour: bool, doubt: float, size: tuple[int, int]
) -> None:
    def slow(x: paper.Array, z: Sequence[paper.Array]) -> paper.Array:
        return paper.blind(x, EPS.numpy, z[0], LINEAR, sigma, 0.5, passes, cell, keep_colour, doubt)

    settings = {
        "sigma": sigma,
        "passes": passes,
        "colour_cell": cell,
        "keep_colour": keep_colour,
        "doubt": doubt,
    }
    compare({"method": "blind"} | settings, slow, 1, size=size)


def test_blind_looks_at_a_large_image_in_copies_of_two_sizes() -> None:
    def slow(x: paper.Array, z: Sequence[paper.Array]) -> paper.Array:
        return paper.blind(x, EPS.numpy, z[0], LINEAR, 0.05, 0.5, 1, 4, False, 0.2)

    compare({"method": "blind", "sigma": 0.05}, slow, 1, size=(130, 113))


def test_blind_leaves_an_image_without_colour_so() -> None:
    x, draws = images_and_noise(1, 9, 7)
    x[0] = x[0, :1]
    expected = [
        paper.blind(x[k], EPS.numpy, draws[0, k], LINEAR, 0.05, 0.5, 1, 4, False, 0.2) for k in range(len(x))
    ]
    out = run(x, purify_config(method="blind", sigma=0.05), draws, torch.float64)
    assert_close(out, np.stack(expected), FLOAT64)
    assert np.ptp(out[0], axis=0).max() == 0
    assert np.ptp(out[1], axis=0).max() > 0


@pytest.mark.parametrize("simplified", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
@pytest.mark.parametrize("transform", ["blur:2", "gray", "blur:2+gray"])
def test_ddnm_equals_its_equations(transform: str, eta: float, simplified: bool) -> None:
    A = {
        "blur:2": paper.blur(2, 6, 5),
        "gray": paper.gray(),
        "blur:2+gray": paper.compose(paper.blur(2, 6, 5), paper.gray()),
    }[transform]
    settings = {"method": "ddnm", "transforms": transform, "eta": eta, "simplified": simplified}
    visited = [951 - 50 * k for k in range(20)]
    compare(
        {**settings, "steps": 20},
        lambda x, z: paper.ddnm(x, EPS.numpy, A, z, LINEAR, visited, eta, simplified=simplified),
        21,
    )


@pytest.mark.parametrize("variant", ["ddnm-paper", "ddnm-simplified", "ddnm-zip"])
def test_variants_of_ddnm_visit_a_hundred_timesteps_or_those_of_zip(variant: str) -> None:
    stride = 50 if variant == "ddnm-zip" else 10
    visited = [t + 1 for t in range(1000 - stride, -1, -stride)]
    A, simplified = paper.blur(2, 4, 4), variant == "ddnm-simplified"
    compare(
        {"variant": variant, "transforms": "blur:2"},
        lambda x, z: paper.ddnm(x, EPS.numpy, A, z, LINEAR, visited, 0.85, simplified=simplified),
        len(visited) + 1,
        size=(4, 4),
    )


@pytest.mark.parametrize("t_star", [1, 2, 40, 1000])
def test_diffpure_by_sde_equals_its_equations(t_star: int) -> None:
    def slow(x: paper.Array, z: Sequence[paper.Array]) -> paper.Array:
        return paper.diffpure_sde(x, EPS.numpy, z, LINEAR, t_star)

    compare({"method": "diffpure", "t_star": t_star}, slow, t_star + 1)


@pytest.mark.parametrize("t_star", [1, 2, 40, 1000])
def test_diffpure_by_ode_equals_its_equations(t_star: int) -> None:
    def slow(x: paper.Array, z: Sequence[paper.Array]) -> paper.Array:
        return paper.diffpure_sde(x, EPS.numpy, z, LINEAR, t_star, is_ode=True)

    compare({"method": "diffpure", "sampler": "ode", "t_star": t_star}, slow, 1)


@pytest.mark.parametrize("t_star", [1, 2, 40, 1000])
def test_diffpure_by_ddpm_equals_its_equations(t_star: int) -> None:
    def slow(x: paper.Array, z: Sequence[paper.Array]) -> paper.Array:
        return paper.diffpure_ddpm(x, EPS.numpy, z, LINEAR, t_star)

    compare({"method": "diffpure", "sampler": "ddpm", "t_star": t_star}, slow, t_star)


@pytest.mark.parametrize(("variant", "t_star"), [("diffpure-cifar10", 100), ("diffpure-imagenet", 150)])
def test_variants_of_diffpure_go_back_by_sde(variant: str, t_star: int) -> None:
    def slow(x: paper.Array, z: Sequence[paper.Array]) -> paper.Array:
        return paper.diffpure_sde(x, EPS.numpy, z, LINEAR, t_star)

    compare({"variant": variant}, slow, t_star + 1)


def test_blur_and_diffpure_is_diffpure_of_what_the_transforms_keep() -> None:
    transforms = (paper.blur(2, 6, 5), paper.gray())

    def slow(x: paper.Array, z: Sequence[paper.Array]) -> paper.Array:
        kept = sum(transform.project(x) for transform in transforms) / 2
        return paper.diffpure_sde(np.asarray(kept), EPS.numpy, z, LINEAR, 30)

    compare({"method": "blur+diffpure", "transforms": ["blur:2", "gray"], "t_star": 30}, slow, 31)


@pytest.mark.parametrize("ssim_range", [255, 1])
@pytest.mark.parametrize(("t1", "t2"), [(20, 40), (1, 1), (40, 20)])
def test_sampdetox_equals_its_equations(t1: int, t2: int, ssim_range: int) -> None:
    def slow(x: paper.Array, z: Sequence[paper.Array]) -> paper.Array:
        return paper.sampdetox(x, EPS.numpy, z, LINEAR, t1, t2, ssim_range)

    settings = {"method": "sampdetox", "t1": t1, "t2": t2, "ssim_range": ssim_range}
    compare(settings, slow, t1 + t2 - 1, size=(11, 13), exact=True)


@pytest.mark.parametrize("variant", ["sampdetox-paper", "sampdetox-code"])
def test_variants_of_sampdetox_are_those_of_the_program_and_of_the_paper(variant: str) -> None:
    t1, t2, stride = (9, 58, 10) if variant == "sampdetox-paper" else (120, 120, None)

    def slow(x: paper.Array, z: Sequence[paper.Array]) -> paper.Array:
        return paper.sampdetox(x, EPS.numpy, z, LINEAR, t1, t2, 255, stride)

    compare({"variant": variant}, slow, 1 if stride else t1 + t2 - 1, size=(11, 12), exact=True)


@pytest.mark.parametrize("stride", [1, 7, 20, 999])
def test_sampdetox_by_ddim_equals_its_equations(stride: int) -> None:
    def slow(x: paper.Array, z: Sequence[paper.Array]) -> paper.Array:
        return paper.sampdetox(x, EPS.numpy, z, LINEAR, 20, 45, 255, stride)

    settings = {"method": "sampdetox", "sampler": "ddim", "t2": 45, "stride": stride}
    compare(settings, slow, 1, size=(12, 11), exact=True)
