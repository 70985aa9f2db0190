"""RISE: which pixels an answer of a black box depends on, from labels alone.

Source: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
It weighs random masks with the score of a class. Here nobody tells scores: a mask weighs 1 where the
classifier keeps its answer, and 0 where it gives another.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from zipcli.protocols import Ask, Noise

CELLS = 7
"""Cells of a mask along a side, each of which is kept with a probability of one half (RISE, section 4)."""

CHUNK_PIXELS = 2**21
"""Pixels of masked images that are in memory, and shown to the classifier, together."""


def saliency(x: Tensor, masks: int, noise: Noise, ask: Ask) -> Tensor:
    """Ask a classifier about masked copies of each image.

    Args:
        x: Images, (N, C, H, W), in [-1, 1]. What a mask takes away becomes 0, a middle grey.
        masks: Copies of each; the classifier sees one more, the image itself.
        noise: One draw; the masks of an image are its own.
        ask: The classifier.

    Returns:
        The mean of the masks under which the label stays that of the image, over one half, float64,
        (N, 1, H, W), on the CPU. RISE, eq. 6.
    """
    height, width = x.shape[-2:]
    drawn = noise(torch.empty(len(x), masks, CELLS**2 + 2))
    labels = ask(x).tolist()
    chunk = max(1, CHUNK_PIXELS // (height * width))
    maps = []
    for image, label, numbers in zip(x, labels, drawn, strict=True):
        total = torch.zeros(height, width, dtype=torch.float64)
        for some in torch.split(numbers, chunk):
            mask = random_masks(some, (height, width))
            kept = ask(image * mask[:, None].to(image)) == label
            total += mask[kept].sum(dim=0, dtype=torch.float64)
        maps.append(total / (masks * 0.5))
    return torch.stack(maps)[:, None]


def random_masks(numbers: Tensor, size: tuple[int, int]) -> Tensor:
    """Smooth masks from independent normal numbers.

    Args:
        numbers: (M, CELLS * CELLS + 2): of each mask its cells, which are kept where they are above 0,
            and how far it is shifted down and to the right.
        size: (H, W).

    Returns:
        (M, H, W), in [0, 1], like numbers. A grid of cells, one cell larger than the image, enlarged
        bilinearly and cropped at a random place (RISE, section 3.2).
    """
    grids = (numbers[:, :-2] > 0).to(numbers).view(-1, CELLS, CELLS)
    # The share of a normal number is uniform in [0, 1].
    share = torch.special.ndtr(numbers[:, -2:].double())
    down, right = (_placed(side, share[:, k]).to(numbers) for k, side in enumerate(size))
    return down @ grids @ right.transpose(1, 2)


def _placed(side: int, share: Tensor) -> Tensor:
    """Weights of the cells in each of `side` pixels, (M, side, CELLS), for shifts of that share of a cell."""
    cell = math.ceil(side / CELLS)
    shift = (share * cell).long().clamp(max=cell - 1)
    return _enlarging(cell)[shift[:, None] + torch.arange(side)]


@lru_cache(maxsize=8)
def _enlarging(cell: int) -> Tensor:
    """Weights of the cells in each pixel of a grid that is one cell too large, ((CELLS + 1) cell, CELLS)."""
    identity = torch.eye(CELLS, dtype=torch.float64)[None]
    return F.interpolate(identity, (CELLS + 1) * cell, mode="linear", align_corners=False)[0].T
