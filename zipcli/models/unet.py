"""The U-Net of the published diffusion models: DDPM's, as diffusers saves it, and OpenAI's.

Both are one network with a handful of conventions that differ; `UNetConfig` names them all. The
built-in prior is another network (`local_unet.py`): it normalises each pixel by itself, joins its
levels by space-to-depth and sees noise levels instead of timesteps. Written as one, every line of
the forward pass would have to ask which of the two it is.

Source: Ho et al. 2020, appendix B; Dhariwal and Nichol 2021, section 3.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipcli.models.unet_config import UNetConfig


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32, whatever the precision around it."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        return super().forward(input.float()).to(input.dtype)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a residual, told the timestep in between."""

    def __init__(
        self, config: UNetConfig, width_in: int, width_out: int, resample: str = "", scale: float = 1
    ):
        """Build a block; `resample` is "up", "down" or empty, and its sum is divided by `scale`."""
        super().__init__()
        self.resample = resample
        self.scale = scale
        self.scale_shift = config.scale_shift
        self.activation = getattr(F, config.activation)
        self.norm1 = GroupNorm(config.norm_groups, width_in, config.norm_eps)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.time = nn.Linear(config.time_width, 2 * width_out if config.scale_shift else width_out)
        self.norm2 = GroupNorm(config.norm_groups, width_out, config.norm_eps)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Map (N, width_in, H, W) and (N, time_width) to (N, width_out, H', W')."""
        r = self.activation(self.norm1(h))
        if self.resample == "down":
            h, r = F.avg_pool2d(h, 2), F.avg_pool2d(r, 2)
        elif self.resample == "up":
            h, r = F.interpolate(h, scale_factor=2.0), F.interpolate(r, scale_factor=2.0)
        r = self.conv1(r)
        time = self.time(self.activation(embedding)).to(r.dtype)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            r = torch.addcmul(shift, self.norm2(r), 1 + scale)
        else:
            r = self.norm2(r + time)
        out: Tensor = self.skip(h) + self.conv2(self.activation(r))
        return out if self.scale == 1 else out / self.scale


class Attention(nn.Module):
    """Self-attention over the pixels of one image."""

    def __init__(self, config: UNetConfig, width: int, groups: int | None, scale: float = 1):
        """Build attention over `width` channels; without `groups` its input is not normalised."""
        super().__init__()
        self.heads = config.heads_of(width)
        self.scale = scale
        self.norm = GroupNorm(groups, width, config.norm_eps) if groups else nn.Identity()
        self.qkv = nn.Linear(width, 3 * width)  # rows: all q, all k, all v, heads inside each
        self.proj = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Map (N, width, H, W) to the same shape."""
        pixels = self.norm(h).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = h + self.proj(mixed).transpose(1, 2).unflatten(2, h.shape[-2:])
        return out if self.scale == 1 else out / self.scale


class Downsample(nn.Module):
    """A strided convolution: half the side."""

    def __init__(self, width: int, *, asymmetric: bool):
        """Build it for `width` channels, with padding on all sides or on the right and below only."""
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, h: Tensor, _: Tensor) -> Tensor:
        """Map (N, width, H, W) to (N, width, H / 2, W / 2)."""
        out: Tensor = self.conv(F.pad(h, (0, 1, 0, 1)) if self.asymmetric else h)
        return out


class Upsample(nn.Module):
    """Each pixel four times, then a convolution."""

    def __init__(self, width: int):
        """Build it for `width` channels."""
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor, _: Tensor) -> Tensor:
        """Map (N, width, H, W) to (N, width, 2 H, 2 W)."""
        out: Tensor = self.conv(F.interpolate(h, scale_factor=2.0))
        return out


class Level(nn.Module):
    """The blocks of one side length, on the way down or up, and the step to the next."""

    def __init__(self, res: list[ResBlock], attn: list[Attention], resample: nn.Module | None):
        """Join residual blocks, an attention after each of them or none at all, and the resampling."""
        super().__init__()
        self.res = nn.ModuleList(res)
        self.attn = nn.ModuleList(attn)
        self.resample = resample

    def block(self, j: int, h: Tensor, embedding: Tensor) -> Tensor:
        """Apply residual block j and the attention after it, if there is one."""
        out: Tensor = self.res[j](h, embedding)
        return self.attn[j](out) if j < len(self.attn) else out


class UNet(nn.Module):
    """An image with noise and its timestep in, the noise out (or what `config.prediction` says)."""

    def __init__(self, config: UNetConfig) -> None:
        """Build the network; its weights mean nothing before they are loaded."""
        super().__init__()
        self.config = config
        widths, last = config.widths, len(config.widths) - 1
        self.time = nn.ModuleList(
            [
                nn.Linear(config.time_features, config.time_width),
                nn.Linear(config.time_width, config.time_width),
            ]
        )
        self.stem = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        skips, h = [widths[0]], widths[0]
        down: list[Level] = []
        for i, width in enumerate(widths):
            res, attn = [], []
            for _ in range(config.blocks):
                res.append(ResBlock(config, h, width))
                attn.extend(self._attention(width) if config.attention_down[i] else [])
                h = width
                skips.append(h)
            down.append(Level(res, attn, self._resample("down", width) if i < last else None))
            skips.extend([h] if i < last else [])
        self.down = nn.ModuleList(down)
        self.mid = self._middle(widths[-1])
        up: list[Level] = []
        for i, width in reversed(list(enumerate(widths))):
            res, attn = [], []
            for _ in range(config.blocks + 1):
                res.append(ResBlock(config, h + skips.pop(), width))
                attn.extend(self._attention(width) if config.attention_up[i] else [])
                h = width
            up.append(Level(res, attn, self._resample("up", width) if i > 0 else None))
        self.up = nn.ModuleList(up)  # coarsest first, as they are walked
        self.head = nn.ModuleDict(
            {
                "norm": GroupNorm(config.norm_groups, widths[0], config.norm_eps),
                "conv": nn.Conv2d(widths[0], config.out_channels, 3, padding=1),
            }
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Apply the network.

        Args:
            x: States, (N, in_channels, H, W), float32; H and W multiples of `config.multiple`.
            t: Timestep of each, (N,), already scaled; fractions are allowed.

        Returns:
            (N, out_channels, H, W), float32.
        """
        features = timestep_features(t, self.config)
        embedding = self.time[1](F.silu(self.time[0](features)))
        h = self.stem((2 * x - 1 if self.config.center_input else x).to(self.stem.weight.dtype))
        skips = [h]
        for level in cast("list[Level]", self.down):
            for j in range(self.config.blocks):
                h = level.block(j, h, embedding)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h, embedding)
                skips.append(h)
        h = self.mid.block(1, self.mid.block(0, h, embedding), embedding)
        for level in cast("list[Level]", self.up):
            for j in range(self.config.blocks + 1):
                h = level.block(j, torch.cat([h, skips.pop()], dim=1), embedding)
            if level.resample is not None:
                h = level.resample(h, embedding)
        out: Tensor = self.head["conv"](F.silu(self.head["norm"](h.float())))
        return out

    def set_torso(self, dtype: torch.dtype) -> None:
        """Run convolutions and attention in `dtype`; the rest stays float32.

        Normalisations, the embedding of the timestep and the last convolution need the digits.
        The weights must not be loaded yet, or be of no use any more in float32.

        Source: OpenAI's guided-diffusion halves the same parameters.
        """
        for part in (self.stem, self.down, self.mid, self.up):
            for name, module in part.named_modules():
                if isinstance(module, nn.Conv2d | nn.Linear) and not name.endswith("time"):
                    module.to(dtype)

    def _attention(self, width: int) -> list[Attention]:
        return [Attention(self.config, width, self.config.norm_groups)]

    def _middle(self, width: int) -> Level:
        config, scale = self.config, self.config.middle_scale
        groups = config.middle_groups if config.attention_middle_norm else None
        attention = [Attention(config, width, groups, scale)] if config.attention_middle else []
        return Level([ResBlock(config, width, width, scale=scale) for _ in range(2)], attention, None)

    def _resample(self, direction: str, width: int) -> nn.Module:
        if self.config.resample == "residual":
            return ResBlock(self.config, width, width, direction)
        if direction == "up":
            return Upsample(width)
        return Downsample(width, asymmetric=self.config.asymmetric_padding)


def timestep_features(t: Tensor, config: UNetConfig) -> Tensor:
    """Sines and cosines of timesteps.

    Args:
        t: Timesteps, (N,).
        config: Says how many, which first, and the shift of the frequencies.

    Returns:
        (N, time_features), float32: bfloat16 cannot even tell 999 from 1000.

    Source: Vaswani et al. 2017, section 3.5; DDPM shifts the frequencies by one.
    """
    half = config.time_features // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(10000) * k / (half - config.frequency_shift))
    angles = t.float()[:, None] * frequencies
    parts = [angles.sin(), angles.cos()] if config.sines_first else [angles.cos(), angles.sin()]
    return torch.cat(parts, dim=1)
