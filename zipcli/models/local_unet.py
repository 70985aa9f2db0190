"""The small U-Net of the built-in prior: convolutions and per-pixel normalisation only.

Nothing in it looks further than its receptive field (about 45 pixels), so it runs at any image
side, and windows of a large image agree wherever they overlap by more than that.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipcli.config import check, check_choice, check_types

BLOCKS = ("gated", "residual")


@dataclass(frozen=True, kw_only=True)
class LocalUNetConfig:
    """Shape of a `LocalUNet`.

    Attributes:
        channels: Colour channels in and out.
        widths: Feature channels of each level; every level halves the side.
        blocks: Residual blocks of each level, on the way down and again on the way up. The last
            level has them once.
        embedding: Features of the noise-level embedding.
        block: Kind of the blocks: gated, or residual as in the first priors, whose files do not say it.
        bands: Noise levels sigma, rising, at which the weights change: a network of its own for each
            band costs memory but no time. Empty for one network at all of them.
    """

    channels: int = 3
    widths: tuple[int, ...] = (48, 96, 128)
    blocks: tuple[int, ...] = (1, 1, 3)
    embedding: int = 128
    block: str = "residual"
    bands: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse sizes that no honest file has, before a network is built from them."""
        check_types(self)
        levels = len(self.widths)
        check(1 <= levels <= 8 and len(self.blocks) == levels, "network: 1 to 8 levels, each with blocks")
        check(all(1 <= w <= 2048 for w in self.widths), "network: widths from 1 to 2048")
        check(all(1 <= b <= 16 for b in self.blocks), "network: 1 to 16 blocks in a level")
        check(self.embedding in range(4, 4097, 2), "network: an even embedding from 4 to 4096")
        check(self.channels in (1, 3), "network: 1 or 3 channels")
        check_choice("block", self.block, BLOCKS)
        rising = all(a < b for a, b in pairwise(self.bands))
        check(rising and all(0 < s < 1e6 for s in self.bands), "network: bands rise, and are positive")
        check(len(self.bands) <= 15, "network: at most 16 bands")

    @property
    def multiple(self) -> int:
        """Sides are padded to a multiple of this inside the network, in pixels."""
        return int(2 ** (len(self.widths) - 1))


SIZES = {
    "small": LocalUNetConfig(block="gated"),
    "medium": LocalUNetConfig(widths=(96, 192, 256), blocks=(1, 1, 3), block="gated"),
    "large": LocalUNetConfig(widths=(128, 256, 384), blocks=(2, 2, 4), embedding=256, block="gated"),
}
"""Networks to begin with; small is that of the built-in prior."""


class PixelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel; no pixel sees another one.

    GroupNorm would average over the whole image: windows of one photo would then disagree, and a
    prior trained on 32-pixel crops would meet other statistics at 256 pixels.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W) over C."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a residual, modulated by the noise level."""

    def __init__(self, width: int, embedding: int) -> None:
        """Build a block of `width` channels; the last convolution starts at zero."""
        super().__init__()
        self.norm1 = PixelNorm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = PixelNorm(width)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(cast(Tensor, self.conv2.bias))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Map (N, width, H, W) and (N, embedding) to (N, width, H, W)."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        r = self.conv1(F.silu(self.norm1(h)))
        r = torch.addcmul(shift, self.norm2(r), 1 + scale)
        return cast(Tensor, h + self.conv2(F.silu(r)))


class GatedBlock(nn.Module):
    """Two 3x3 convolutions around a product of features, modulated by the noise level.

    The product is the only non-linearity: measured at equal cost it denoises better by 0.1 dB than
    the residual block. Source: Chen et al. 2022 (NAFNet), section 3.3, there with other convolutions.
    """

    def __init__(self, width: int, embedding: int) -> None:
        """Build a block of `width` channels at the cost of a residual one; it starts as the identity."""
        super().__init__()
        hidden = 2 * width // 3
        self.norm = PixelNorm(width)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.conv1 = nn.Conv2d(width, 2 * hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(cast(Tensor, self.conv2.bias))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Map (N, width, H, W) and (N, embedding) to (N, width, H, W)."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        a, b = self.conv1(torch.addcmul(shift, self.norm(h), 1 + scale)).chunk(2, dim=1)
        return cast(Tensor, h + self.conv2(a * b))


class LocalUNet(nn.Module):
    """Network F of the prior: an image and its noise level in, an image out."""

    def __init__(self, config: LocalUNetConfig) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        self.config = config
        widths, blocks, e = config.widths, config.blocks, config.embedding
        self.embed = nn.Sequential(nn.Linear(e, e), nn.SiLU(), nn.Linear(e, e), nn.SiLU())
        self.stem = nn.Conv2d(config.channels, widths[0], 3, padding=1)

        kind = GatedBlock if config.block == "gated" else ResBlock

        def level(i: int) -> nn.ModuleList:
            return nn.ModuleList(kind(widths[i], e) for _ in range(blocks[i]))

        last = len(widths) - 1
        self.down_blocks = nn.ModuleList(level(i) for i in range(last))
        self.down = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 2, stride=2) for i in range(last))
        self.middle = level(last)
        self.up = nn.ModuleList(nn.Conv2d(widths[i + 1], 4 * widths[i], 1) for i in range(last))
        self.up_blocks = nn.ModuleList(level(i) for i in range(last))
        self.norm = PixelNorm(widths[0])
        self.out = nn.Conv2d(widths[0], config.channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast(Tensor, self.out.bias))

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """Apply F.

        Args:
            x: Images, (N, C, H, W), of about unit variance, any H and W.
            noise_level: ln(sigma) / 4, (N,).

        Returns:
            (N, C, H, W), of about unit variance.
        """
        height, width = x.shape[-2:]
        m = self.config.multiple
        pad = (0, -width % m, 0, -height % m)
        h = self.stem(F.pad(x, pad, mode="replicate") if any(pad) else x)
        embedding = self.embed(noise_features(noise_level, self.config.embedding))
        skips = []
        for blocks, down in zip(self.down_blocks, self.down, strict=True):
            for block in cast(nn.ModuleList, blocks):
                h = block(h, embedding)
            skips.append(h)
            h = down(h)
        for block in self.middle:
            h = block(h, embedding)
        for i in reversed(range(len(skips))):
            h = F.pixel_shuffle(self.up[i](h), 2) + skips[i]
            for block in cast(nn.ModuleList, self.up_blocks[i]):
                h = block(h, embedding)
        out: Tensor = self.out(F.silu(self.norm(h)))
        return out[..., :height, :width]


class BandedUNet(nn.Module):
    """One `LocalUNet` for each band of noise levels.

    Source: Balaji et al. 2022 (eDiff-I), section 4: denoising at low and at high noise are different tasks,
    and experts for each do better than one network of the same cost.
    """

    def __init__(self, config: LocalUNetConfig) -> None:
        """Build the networks with fresh weights."""
        super().__init__()
        self.config = config
        alone = replace(config, bands=())
        self.experts = nn.ModuleList(LocalUNet(alone) for _ in range(len(config.bands) + 1))

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """Apply to each image, (N, C, H, W), the network of its ln(sigma) / 4, (N,)."""
        chosen = self._bands(noise_level)
        # A sampler has one noise level in a batch, so this is one network and one look at its number.
        bands = sorted(set(chosen.tolist()))
        if len(bands) == 1:
            return cast(Tensor, self.experts[bands[0]](x, noise_level))
        parts = [(chosen == band, self.experts[band]) for band in bands]
        results = [expert(x[rows], noise_level[rows]) for rows, expert in parts]
        out = torch.empty(x.shape, dtype=results[0].dtype, device=x.device)
        for (rows, _), result in zip(parts, results, strict=True):
            out[rows] = result
        return out

    def band(self, noise_level: Tensor) -> int:
        """Which of the networks serves ln(sigma) / 4, (1,)."""
        return int(self._bands(noise_level))

    def _bands(self, noise_level: Tensor) -> Tensor:
        edges = torch.tensor(self.config.bands, device=noise_level.device).log() / 4
        return torch.bucketize(noise_level, edges)


def build_local_unet(config: LocalUNetConfig) -> LocalUNet | BandedUNet:
    """Build the network that a configuration describes, with fresh weights."""
    return BandedUNet(config) if config.bands else LocalUNet(config)


def noise_features(noise_level: Tensor, features: int) -> Tensor:
    """Sines and cosines of the noise level.

    Args:
        noise_level: ln(sigma) / 4, (N,), about -1.2 to 1.2.
        features: An even number.

    Returns:
        (N, features); the frequencies rise geometrically from 1 to 64 radians per unit, enough
        to tell neighbouring noise levels apart without noise between them.
    """
    half = features // 2
    frequencies = torch.exp(torch.arange(half, device=noise_level.device) * (math.log(64) / (half - 1)))
    angles = noise_level.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
