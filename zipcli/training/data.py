"""Training crops as a pure function of the step, so that a resumed run sees the same data."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class ImageBank:
    """Images of any sizes in one tensor, so that the crops of a batch are gathered in one operation."""

    def __init__(self, images: Sequence[Tensor], device: torch.device | None = None) -> None:
        """Lay uint8 images, each (H, W, C), one behind the other on `device`."""
        sizes = torch.tensor([image.shape for image in images])
        self.channels = int(sizes[0, 2])
        self.smallest = int(sizes[:, :2].min())
        counts = sizes.prod(1)
        self._starts = (counts.cumsum(0) - counts).to(device)
        self._heights, self._widths = sizes[:, 0].to(device), sizes[:, 1].to(device)
        self._pixels = torch.cat([image.reshape(-1) for image in images]).to(device)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._starts)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self._pixels.device

    def crops(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """Draw crops from random images, half of them mirrored.

        Args:
            count: How many.
            side: Of each crop, in pixels; at most the shortest side of any image.
            generator: On the device of the images.

        Returns:
            float32 in [-1, 1], (count, C, side, side), the channels last in memory.
        """
        chosen = torch.randint(len(self), (count,), generator=generator, device=self.device)
        draws = torch.rand(3, count, generator=generator, device=self.device)
        top = (draws[0] * (self._heights[chosen] - side + 1)).long()
        left = (draws[1] * (self._widths[chosen] - side + 1)).long()
        along = torch.arange(side, device=self.device)
        mirrored = (draws[2] < 0.5)[:, None]
        columns = left[:, None] + torch.where(mirrored, side - 1 - along, along)
        places = (top[:, None] + along)[:, :, None] * self._widths[chosen, None, None] + columns[:, None, :]
        channel = torch.arange(self.channels, device=self.device)
        index = self._starts[chosen, None, None, None] + places[..., None] * self.channels + channel
        return self._pixels[index].permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images that are cropped to one size and used for a share of the steps.

    Attributes:
        images: The images, whose sides are at least `crop`.
        crop: Side of the square crops, in pixels.
        batch: Crops in a batch.
        share: Steps that use this source, relative to the other sources.
    """

    images: ImageBank
    crop: int
    batch: int
    share: float = 1.0


def batch_at(sources: Sequence[Source], step: int, seed: int) -> Tensor:
    """Draw the batch of one step.

    Args:
        sources: Where to draw from.
        step: Which step, counted from 0.
        seed: Seed of the run.

    Returns:
        float32 images in [-1, 1], (batch, C, crop, crop) of the source that the step uses.
    """
    shares = torch.tensor([source.share for source in sources], dtype=torch.float32)
    chosen = int(torch.multinomial(shares, 1, generator=step_generator(seed, step, stream=2)))
    source = sources[chosen]
    return source.images.crops(source.batch, source.crop, step_generator(seed, step, source.images.device))


def step_generator(
    seed: int, step: int, device: torch.device | None = None, *, stream: int = 0
) -> torch.Generator:
    """A generator that depends on nothing but the seed, the step, the stream (0 to 3) and the device."""
    g = torch.Generator(device or "cpu")
    g.manual_seed((seed * 1_000_003 + step) * 4 + stream)
    return g
