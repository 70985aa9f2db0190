"""Cuts images into windows and blends them again; packs small images on one canvas.

Tensors are (N, C, H, W); a size is (H, W) in pixels. Nothing here is drawn at random.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor


def window_origins(side: int, window: int, overlap: int) -> list[int]:
    """Where windows begin along one side.

    Args:
        side: Length of the side, at least `window`.
        window: Length of a window.
        overlap: How much neighbours share at least; at most half a window is used.

    Returns:
        Rising origins, the first 0 and the last `side - window`. The windows are spread evenly,
        so that no two of them overlap much more than the others.
    """
    stride = window - min(overlap, window // 2)
    count = 1 + math.ceil((side - window) / stride)
    if count == 1:
        return [0]
    return [round(k * (side - window) / (count - 1)) for k in range(count)]


def grid_origins(size: tuple[int, int], window: tuple[int, int], overlap: int) -> list[tuple[int, int]]:
    """Top-left corners (top, left) of the windows of an image, row by row."""
    rows = window_origins(size[0], window[0], overlap)
    columns = window_origins(size[1], window[1], overlap)
    return [(top, left) for top in rows for left in columns]


def split_windows(x: Tensor, origins: list[tuple[int, int]], window: tuple[int, int]) -> Tensor:
    """Cut windows out of images: (N, C, H, W) to (N * len(origins), C, *window), image by image."""
    h, w = window
    cut = [x[..., top : top + h, left : left + w] for top, left in origins]
    return torch.stack(cut, dim=1).flatten(0, 1)


def blend_windows(windows: Tensor, origins: list[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """Put windows back, mixing where they overlap with weights that fade towards inner borders.

    Args:
        windows: What `split_windows` cuts, (N * len(origins), C, h, w).
        origins: Their corners.
        size: (H, W) of the whole.

    Returns:
        (N, C, H, W). The weights of each pixel sum to 1, so unchanged windows give back the image
        up to rounding.
    """
    h, w = windows.shape[-2:]
    weights = _weights(tuple(origins), (h, w), size)
    parts = windows.reshape(-1, len(origins), *windows.shape[1:])
    out = parts.new_zeros(parts.shape[0], parts.shape[2], *size)
    for k, (top, left) in enumerate(origins):
        out[..., top : top + h, left : left + w] += weights[k].to(out) * parts[:, k]
    return out


@lru_cache(maxsize=8)
def _weights(origins: tuple[tuple[int, int], ...], window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Normalised weight of each window at its pixels, (len(origins), h, w)."""
    rows = _side_weights(tuple(sorted({top for top, _ in origins})), window[0], size[0])
    columns = _side_weights(tuple(sorted({left for _, left in origins})), window[1], size[1])
    return torch.stack([torch.outer(rows[top], columns[left]) for top, left in origins])


def _side_weights(origins: tuple[int, ...], window: int, side: int) -> dict[int, Tensor]:
    """Weights along one side: a squared sine that rises over the shared pixels and falls again."""
    raised: dict[int, Tensor] = {}
    for k, origin in enumerate(origins):
        weight = torch.ones(window)
        for shared, flip in (
            (origins[k - 1] + window - origin if k else 0, False),
            (origin + window - origins[k + 1] if k + 1 < len(origins) else 0, True),
        ):
            ramp = torch.ones(window)
            ramp[:shared] = torch.sin((torch.arange(shared) + 0.5) * (math.pi / 2 / max(shared, 1))) ** 2
            weight = weight * (ramp.flip(0) if flip else ramp)
        raised[origin] = weight
    total = torch.zeros(side)
    for origin, weight in raised.items():
        total[origin : origin + window] += weight
    return {origin: weight / total[origin : origin + window] for origin, weight in raised.items()}


def pad_mirrored(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Extend images to at least `size` at the bottom and right by going back and forth."""
    for dim, target in ((-2, size[0]), (-1, size[1])):
        side = x.shape[dim]
        if side < target:
            # 0 1 2 2 1 0 0 1 2 ...: defined for a side of 1 pixel too.
            position = torch.arange(target, device=x.device) % (2 * side)
            x = x.index_select(dim, torch.minimum(position, 2 * side - 1 - position))
    return x


def cells_per_canvas(size: tuple[int, int], side: int) -> int:
    """How many whole images of `size` fit on a square canvas."""
    return (side // size[0]) * (side // size[1])


def pack_canvases(x: Tensor, side: int) -> Tensor:
    """Lay small images on square canvases, row by row, in the order given.

    Leftover cells repeat the images from the first on, and so does the strip that is too narrow
    for a cell: real images are statistically neutral for a network that sees across cells, black
    ones are not. Which cell is filler follows from its index alone.

    Args:
        x: Images, (N, C, h, w), at least one of them fitting.
        side: Side of a canvas in pixels.

    Returns:
        (M, C, side, side) with M = ceil(N / cells_per_canvas).
    """
    n, c, h, w = x.shape
    rows, columns = math.ceil(side / h), math.ceil(side / w)
    whole_rows, whole_columns = side // h, side // w
    per_canvas = whole_rows * whole_columns
    count = math.ceil(n / per_canvas)
    row = torch.arange(rows)[:, None] % whole_rows
    column = torch.arange(columns)[None, :] % whole_columns
    cell = (row * whole_columns + column).flatten()
    index = (torch.arange(count)[:, None] * per_canvas + cell[None, :]).flatten() % n
    laid = x.index_select(0, index.to(x.device)).view(count, rows, columns, c, h, w)
    return laid.permute(0, 3, 1, 4, 2, 5).reshape(count, c, rows * h, columns * w)[..., :side, :side]


def unpack_canvases(canvases: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """Take `count` images of `size` off their canvases, (count, C, h, w); filler is dropped by index."""
    m, c, side, _ = canvases.shape
    h, w = size
    rows, columns = side // h, side // w
    grid = canvases[..., : rows * h, : columns * w].reshape(m, c, rows, h, columns, w)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(m * rows * columns, c, h, w)[:count]
