"""Training batches as a pure function of the step, so that a resumed run sees the same data."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images that are cropped to one size and used for a share of the steps.

    Attributes:
        images: uint8 images, each (C, H, W) with both sides at least `crop`.
        crop: Side of the square crops, in pixels.
        batch: Crops in a batch.
        share: Steps that use this source, relative to the other sources.
    """

    images: Sequence[Tensor]
    crop: int
    batch: int
    share: float


def batch_at(sources: Sequence[Source], step: int, seed: int) -> Tensor:
    """Draw the batch of one step: random crops, half of them mirrored.

    Args:
        sources: Where to draw from.
        step: Which step, counted from 0.
        seed: Seed of the run.

    Returns:
        float32 images in [-1, 1], (batch, C, crop, crop) of the source that the step uses.
    """
    g = step_generator(seed, step)
    weights = torch.tensor([source.share for source in sources], dtype=torch.float32)
    source = sources[int(torch.multinomial(weights, 1, generator=g))]
    crops = []
    for index in torch.randint(len(source.images), (source.batch,), generator=g).tolist():
        image = source.images[index]
        top, left = (
            int(torch.randint(side - source.crop + 1, (1,), generator=g)) for side in image.shape[-2:]
        )
        crop = image[:, top : top + source.crop, left : left + source.crop]
        crops.append(crop.flip(-1) if torch.rand(1, generator=g) < 0.5 else crop)
    return torch.stack(crops).float() / 127.5 - 1


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A generator that depends on nothing but the seed, the step and the stream (0 to 3)."""
    g = torch.Generator()
    g.manual_seed((seed * 1_000_003 + step) * 4 + stream)
    return g
