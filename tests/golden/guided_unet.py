"""OpenAI's published U-Net, transcribed slowly as plain functions of its published state dict.

This shares no code with zipcli, so that the two can be compared. Names, shapes and order are those of the
files that openai/guided-diffusion and openai/improved-diffusion published. Everything runs in the type of the
weights, float64 included, but for the sines and cosines of the timestep: the published networks make these in
float32, and rounding 1000 radians to float32 is an error of 3e-5 that a trained network has seen all along.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

GROUPS = 32
EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags of a published network, by the meaning they have there.

    `attention_at` is in pixels, and counts from `size`: a level has attention when its side is listed.
    `heads` counts only without `head_channels`. `qkv` is "legacy" (q k v of one head after the other) or
    "new" (q of all heads, then k, then v).
    """

    size: int
    base: int
    multipliers: tuple[float, ...]
    blocks: int = 2
    attention_at: tuple[int, ...] = (32, 16, 8)
    heads: int | None = None
    head_channels: int | None = None
    qkv: str = "legacy"
    updown: bool = True
    scale_shift: bool = True
    in_channels: int = 3
    out_channels: int = 6
    classes: int | None = None  # only a table more in the file; the forward pass here knows no labels
    timestep_scale: float = 1.0

    @property
    def widths(self) -> list[int]:
        return [int(multiplier * self.base) for multiplier in self.multipliers]

    @property
    def attends(self) -> list[bool]:
        factors = {self.size // side for side in self.attention_at}
        return [2**level in factors for level in range(len(self.multipliers))]

    def heads_of(self, width: int) -> int:
        if self.head_channels is not None:
            return width // self.head_channels
        return self.heads or 1


# The keys of the files, in their order.


def published_shapes(settings: Settings) -> Shapes:
    embedding = 4 * settings.base
    widths, attends = settings.widths, settings.attends
    last = len(widths) - 1
    shapes: Shapes = {}
    shapes |= layer("time_embed.0", embedding, settings.base)
    shapes |= layer("time_embed.2", embedding, embedding)
    if settings.classes is not None:
        shapes["label_emb.weight"] = (settings.classes, embedding)
    shapes |= layer("input_blocks.0.0", widths[0], settings.in_channels, 3, 3)

    skips = [widths[0]]
    width = widths[0]
    k = 1
    for level in range(len(widths)):
        for _ in range(settings.blocks):
            shapes |= residual_shapes(f"input_blocks.{k}.0", settings, width, widths[level])
            width = widths[level]
            if attends[level]:
                shapes |= attention_shapes(f"input_blocks.{k}.1", width)
            skips.append(width)
            k += 1
        if level != last:
            if settings.updown:
                shapes |= residual_shapes(f"input_blocks.{k}.0", settings, width, width)
            else:
                shapes |= layer(f"input_blocks.{k}.0.op", width, width, 3, 3)
            skips.append(width)
            k += 1

    shapes |= residual_shapes("middle_block.0", settings, width, width)
    shapes |= attention_shapes("middle_block.1", width)
    shapes |= residual_shapes("middle_block.2", settings, width, width)

    k = 0
    for level in range(last, -1, -1):
        for r in range(settings.blocks + 1):
            shapes |= residual_shapes(f"output_blocks.{k}.0", settings, width + skips.pop(), widths[level])
            width = widths[level]
            if attends[level]:
                shapes |= attention_shapes(f"output_blocks.{k}.1", width)
            if level != 0 and r == settings.blocks:
                up = f"output_blocks.{k}.{2 if attends[level] else 1}"
                if settings.updown:
                    shapes |= residual_shapes(up, settings, width, width)
                else:
                    shapes |= layer(f"{up}.conv", width, width, 3, 3)
            k += 1
    assert skips == []

    shapes |= norm_shapes("out.0", width)
    shapes |= layer("out.2", settings.out_channels, width, 3, 3)
    return shapes


def layer(prefix: str, width_out: int, *rest: int) -> Shapes:
    return {f"{prefix}.weight": (width_out, *rest), f"{prefix}.bias": (width_out,)}


def norm_shapes(prefix: str, width: int) -> Shapes:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}


def residual_shapes(prefix: str, settings: Settings, a: int, b: int) -> Shapes:
    shapes = norm_shapes(f"{prefix}.in_layers.0", a)
    shapes |= layer(f"{prefix}.in_layers.2", b, a, 3, 3)
    shapes |= layer(f"{prefix}.emb_layers.1", 2 * b if settings.scale_shift else b, 4 * settings.base)
    shapes |= norm_shapes(f"{prefix}.out_layers.0", b)
    shapes |= layer(f"{prefix}.out_layers.3", b, b, 3, 3)
    if a != b:
        shapes |= layer(f"{prefix}.skip_connection", b, a, 1, 1)
    return shapes


def attention_shapes(prefix: str, width: int) -> Shapes:
    return (
        norm_shapes(f"{prefix}.norm", width)
        | layer(f"{prefix}.qkv", 3 * width, width, 1)
        | layer(f"{prefix}.proj_out", width, width, 1)
    )


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights that hide no mistake, for any network: no layer starts at zero, no norm at the identity.

    Matrices are N(0, 1 / fan in), so that every layer keeps the size of what passes through it.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        draw = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            weights[name] = draw / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("weight"):
            weights[name] = 1 + 0.1 * draw
        else:
            weights[name] = 0.05 * draw
    return weights


# The forward pass.


def forward(weights: Weights, settings: Settings, x: Tensor, t: Tensor) -> Tensor:
    """Images (N, in, H, W) and timesteps (N,), fractional ones too, to (N, out, H, W)."""
    last = len(settings.multipliers) - 1
    e = embed_timesteps(weights, settings, t).to(x.dtype)

    h = convolve(weights, "input_blocks.0.0", x)
    skips = [h]
    k = 1
    for level in range(last + 1):
        for _ in range(settings.blocks):
            h = residual(weights, f"input_blocks.{k}.0", settings, h, e)
            if settings.attends[level]:
                h = attention(weights, f"input_blocks.{k}.1", settings, h)
            skips.append(h)
            k += 1
        if level != last:
            if settings.updown:
                h = residual(weights, f"input_blocks.{k}.0", settings, h, e, "down")
            else:
                h = convolve(weights, f"input_blocks.{k}.0.op", h, stride=2)
            skips.append(h)
            k += 1

    h = residual(weights, "middle_block.0", settings, h, e)
    h = attention(weights, "middle_block.1", settings, h)
    h = residual(weights, "middle_block.2", settings, h, e)

    k = 0
    for level in range(last, -1, -1):
        for r in range(settings.blocks + 1):
            h = torch.cat([h, skips.pop()], dim=1)
            h = residual(weights, f"output_blocks.{k}.0", settings, h, e)
            if settings.attends[level]:
                h = attention(weights, f"output_blocks.{k}.1", settings, h)
            if level != 0 and r == settings.blocks:
                up = f"output_blocks.{k}.{2 if settings.attends[level] else 1}"
                if settings.updown:
                    h = residual(weights, up, settings, h, e, "up")
                else:
                    h = convolve(weights, f"{up}.conv", enlarge(h))
            k += 1

    return convolve(weights, "out.2", silu(normalise(weights, "out.0", h)))


def embed_timesteps(weights: Weights, settings: Settings, t: Tensor) -> Tensor:
    half = settings.base // 2
    k = torch.arange(half, dtype=torch.float32)
    frequencies = torch.exp(-math.log(10000) * k / half)
    angles = (t.float() * settings.timestep_scale)[:, None] * frequencies[None, :]
    sinusoid = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
    hidden = silu(project(weights, "time_embed.0", sinusoid.to(weights["time_embed.0.weight"].dtype)))
    return project(weights, "time_embed.2", hidden)


def residual(
    weights: Weights, prefix: str, settings: Settings, x: Tensor, e: Tensor, resample: str = ""
) -> Tensor:
    u = silu(normalise(weights, f"{prefix}.in_layers.0", x))
    if resample == "down":
        x, u = pool(x), pool(u)
    elif resample == "up":
        x, u = enlarge(x), enlarge(u)
    u = convolve(weights, f"{prefix}.in_layers.2", u)
    p = project(weights, f"{prefix}.emb_layers.1", silu(e))[:, :, None, None]
    if settings.scale_shift:
        b = u.shape[1]
        u = normalise(weights, f"{prefix}.out_layers.0", u) * (1 + p[:, :b]) + p[:, b:]
    else:
        u = normalise(weights, f"{prefix}.out_layers.0", u + p)
    u = convolve(weights, f"{prefix}.out_layers.3", silu(u))
    if f"{prefix}.skip_connection.weight" in weights:
        x = convolve(weights, f"{prefix}.skip_connection", x)
    return x + u


def attention(weights: Weights, prefix: str, settings: Settings, x: Tensor) -> Tensor:
    N, C, H, W = x.shape
    tokens = normalise(weights, f"{prefix}.norm", x).reshape(N, C, H * W)
    matrix, bias = weights[f"{prefix}.qkv.weight"][:, :, 0], weights[f"{prefix}.qkv.bias"]
    rows = matrix @ tokens + bias[None, :, None]
    heads = [
        attend(rows[:, q], rows[:, k], rows[:, v]) for q, k, v in rows_of_heads(settings.qkv, C, settings)
    ]
    mixed = torch.cat(heads, dim=1)
    matrix, bias = weights[f"{prefix}.proj_out.weight"][:, :, 0], weights[f"{prefix}.proj_out.bias"]
    return x + (matrix @ mixed + bias[None, :, None]).reshape(N, C, H, W)


def rows_of_heads(qkv: str, width: int, settings: Settings) -> Iterator[tuple[slice, slice, slice]]:
    """Where q, k and v of each head lie among the 3 C rows of the projection."""
    heads = settings.heads_of(width)
    d = width // heads
    for head in range(heads):
        if qkv == "legacy":  # head 0: q k v, head 1: q k v, ...
            starts = [3 * d * head, 3 * d * head + d, 3 * d * head + 2 * d]
        else:  # q of all heads, k of all heads, v of all heads
            starts = [d * head, width + d * head, 2 * width + d * head]
        q, k, v = (slice(start, start + d) for start in starts)
        yield q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head: q, k, v and the result are (N, d, T)."""
    d = q.shape[1]
    scores = q.transpose(1, 2) @ k / math.sqrt(d)  # (N, T of q, T of k)
    powers = torch.exp(scores - scores.amax(dim=2, keepdim=True))
    shares = powers / powers.sum(dim=2, keepdim=True)
    return v @ shares.transpose(1, 2)


def normalise(weights: Weights, prefix: str, x: Tensor) -> Tensor:
    N, C, H, W = x.shape
    grouped = x.reshape(N, GROUPS, -1)
    centred = grouped - grouped.mean(dim=2, keepdim=True)
    variance = (centred**2).mean(dim=2, keepdim=True)
    standard = (centred / torch.sqrt(variance + EPS)).reshape(N, C, H, W)
    scale, shift = weights[f"{prefix}.weight"], weights[f"{prefix}.bias"]
    return standard * scale[:, None, None] + shift[:, None, None]


def convolve(weights: Weights, prefix: str, x: Tensor, stride: int = 1) -> Tensor:
    kernel, bias = weights[f"{prefix}.weight"], weights[f"{prefix}.bias"]
    return F.conv2d(x, kernel, bias, stride=stride, padding=kernel.shape[-1] // 2)


def project(weights: Weights, prefix: str, x: Tensor) -> Tensor:
    return x @ weights[f"{prefix}.weight"].T + weights[f"{prefix}.bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def pool(x: Tensor) -> Tensor:
    """The mean of each block of 2 by 2 pixels."""
    return (x[:, :, 0::2, 0::2] + x[:, :, 0::2, 1::2] + x[:, :, 1::2, 0::2] + x[:, :, 1::2, 1::2]) / 4


def enlarge(x: Tensor) -> Tensor:
    """Each pixel as a block of 2 by 2."""
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
