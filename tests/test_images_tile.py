"""Windows and canvases: nothing is lost, nothing is mixed up."""

from itertools import pairwise

import pytest
import torch

from zipcli.images.tile import (
    blend_windows,
    cells_per_canvas,
    grid_origins,
    pack_canvases,
    pad_mirrored,
    split_windows,
    unpack_canvases,
    window_origins,
)


@pytest.mark.parametrize(
    ("side", "window", "overlap"),
    [(512, 256, 64), (300, 256, 64), (257, 256, 64), (1000, 64, 32), (65, 64, 0)],
)
def test_windows_cover_every_pixel_and_share_at_least_the_overlap(
    side: int, window: int, overlap: int
) -> None:
    origins = window_origins(side, window, overlap)
    assert origins[0] == 0
    assert origins[-1] == side - window
    assert all(a < b <= a + window - min(overlap, window // 2) for a, b in pairwise(origins))


def test_an_image_of_the_size_of_a_window_is_one_window() -> None:
    assert window_origins(256, 256, 64) == [0]


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (100, 333), (64, 1000)])
@pytest.mark.parametrize("overlap", [0, 1, 16, 32, 64])
def test_blending_the_windows_of_an_image_gives_it_back(size: tuple[int, int], overlap: int) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    origins = grid_origins(size, (64, 64), overlap)
    windows = split_windows(x, origins, (64, 64))
    torch.testing.assert_close(blend_windows(windows, origins, size), x, atol=1e-5, rtol=0)


def test_a_step_between_two_windows_fades_over_the_overlap() -> None:
    origins = grid_origins((8, 112), (8, 64), 16)
    assert origins == [(0, 0), (0, 48)]
    windows = torch.stack([torch.zeros(1, 8, 64), torch.ones(1, 8, 64)])
    row = blend_windows(windows, origins, (8, 112))[0, 0, 0]
    assert torch.equal(row[:48], torch.zeros(48))
    assert torch.equal(row[64:], torch.ones(48))
    assert row.diff().max() < 0.15


@pytest.mark.parametrize("count", [1, 63, 64, 65])
@pytest.mark.parametrize("size", [(32, 32), (30, 50), (256, 256), (100, 100)])
def test_packing_loses_no_image_not_even_a_black_one(count: int, size: tuple[int, int]) -> None:
    x = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(count))
    x[-1] = -1.0
    canvases = pack_canvases(x, 256)
    assert canvases.shape == (-(-count // cells_per_canvas(size, 256)), 3, 256, 256)
    assert torch.equal(unpack_canvases(canvases, count, size), x)


def test_leftover_cells_repeat_real_images_from_the_first_on() -> None:
    x = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 32, 32)
    cells = unpack_canvases(pack_canvases(x, 64), 4, (32, 32))
    assert cells[:, 0, 0, 0].tolist() == [0, 1, 2, 0]


def test_a_strip_too_narrow_for_a_cell_is_filled_with_real_pixels() -> None:
    canvas = pack_canvases(torch.ones(1, 1, 100, 100), 256)
    assert torch.equal(canvas, torch.ones(1, 1, 256, 256))


@pytest.mark.parametrize("side", [1, 3, 7])
def test_mirrored_padding_keeps_the_image_and_repeats_no_foreign_value(side: int) -> None:
    x = torch.arange(float(side)).view(1, 1, 1, side)
    padded = pad_mirrored(x, (1, 8))
    assert torch.equal(padded[..., :side], x)
    expected = [0, 1, 2, 2, 1, 0, 0, 1] if side == 3 else None
    if expected:
        assert padded.flatten().tolist() == expected
    assert set(padded.flatten().tolist()) <= set(range(side))
