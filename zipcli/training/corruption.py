"""Images with something in them that does not belong there, for a network that learns to take it out.

A trigger is unknown when a prior is trained. What all of them have in common is that they are not what
photographs are made of, so the network is shown many things of which that is true: pieces of anything
anywhere, noise of every colour, waves, second pictures shining through, too few levels, tiny bends.
Everything about each of them is drawn anew for every image, and none is a trigger that somebody published.

Images are (N, C, H, W) in [-1, 1], and every function returns its altered images unclipped.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Alter = Callable[[Tensor, torch.Generator], Tensor]


def corrupted(x_0: Tensor, generator: torch.Generator) -> Tensor:
    """Alter most images of a batch, each in its own way, some of them twice.

    Args:
        x_0: Clean images, (N, C, H, W), in [-1, 1].
        generator: Decides everything, on the device of the images.

    Returns:
        Images of the same shape, clipped to [-1, 1] and rounded to 256 levels. A fifth of them are as they
        were: `CLEAN` that the first round leaves alone, less `AGAIN` of these in the second.
    """
    x = x_0
    for share in (1 - CLEAN, AGAIN):
        drawn = _uniform(generator, x, 0, 1)
        again = x.clone()
        first = 0.0
        for alter, weight in ALTERATIONS:
            last = first + share * weight
            chosen = ((first <= drawn) & (drawn < last)).nonzero().flatten()
            if len(chosen):
                again[chosen] = alter(x[chosen], generator)
            first = last
        x = again.clamp(-1, 1)
    return ((x + 1) * 127.5).round() / 127.5 - 1


CLEAN = 0.25
"""Share of images that nothing happens to in the first round."""

AGAIN = 0.2
"""Share of all images that are altered in the second round, whether they were in the first or not."""


def piece(x: Tensor, g: torch.Generator) -> Tensor:
    """Cover a part of an image: one shape, several, or pixels here and there, of any content."""
    region = _shapes(x, g)
    scattered = _chosen(x, g, 0.2)
    density = _log_uniform(g, x, 0.02, 0.5)
    grains = (_rand(g, x, 1) < _wide(density)).float()
    anywhere = _wide(_chosen(x, g, 0.5)).float()
    region = torch.where(_wide(scattered), grains * torch.maximum(region, anywhere), region)
    mirrored = torch.maximum(region, region.flip(3))
    mirrored = torch.maximum(mirrored, mirrored.flip(2))
    region = torch.where(_wide(_chosen(x, g, 0.15)), mirrored, region)
    soft = F.avg_pool2d(F.pad(region, (1, 1, 1, 1), mode="replicate"), 3, 1)
    region = torch.where(_wide(_chosen(x, g, 0.15)), soft, region)
    opacity = torch.where(_chosen(x, g, 0.6), 1.0, _uniform(g, x, 0.25, 1))
    return torch.lerp(x, _content(x, g), region * _wide(opacity))


def field(x: Tensor, g: torch.Generator) -> Tensor:
    """Add noise of any colour, from white to clouds, in grey or in colours."""
    noise = _coloured(x, g, _uniform(g, x, 0, 3.5))
    return x + _wide(_log_uniform(g, x, 0.01, 0.3)) * noise


def veil(x: Tensor, g: torch.Generator) -> Tensor:
    """Let a pattern shine through: noise of any colour, evenly spread over all levels."""
    noise = _coloured(x, g, _uniform(g, x, 0, 2)).clamp(-2, 2) / 2
    return torch.lerp(x, noise, _wide(_log_uniform(g, x, 0.05, 0.4)))


def waves(x: Tensor, g: torch.Generator) -> Tensor:
    """Add up to three waves of any direction, length and form."""
    rows, columns = _grid(x)
    total = torch.zeros_like(x)
    for extra in range(3):
        angle = _uniform(g, x, 0, math.pi)
        square = torch.where(_chosen(x, g, 0.5), (angle / (math.pi / 2)).round() * (math.pi / 2), angle)
        cycles = _log_uniform(g, x, 0.7, 14) * math.pi * x.shape[-1] / 32
        phase = cycles[:, None] * torch.stack([square.cos(), square.sin()], 1)
        along = _wide(phase[:, 0]) * columns + _wide(phase[:, 1]) * rows
        wave = (along + _wide(_uniform(g, x, 0, 2 * math.pi))).sin()
        wave = torch.where(_wide(_chosen(x, g, 0.25)), wave.sign(), wave) * _colour(x, g)
        present = _chosen(x, g, 1.0 if extra == 0 else 0.25)
        total = total + _wide(present.float() * _log_uniform(g, x, 0.03, 0.45)) * wave
    return x + total


def second_picture(x: Tensor, g: torch.Generator) -> Tensor:
    """Let another image of the batch shine through, sharp, blurred or doubled."""
    other = _others(x, g)
    soft = F.avg_pool2d(F.pad(other, (2, 2, 2, 2), mode="replicate"), 5, 1)
    other = torch.where(_wide(_chosen(x, g, 0.4)), soft, other)
    double = (other + other.roll((2, 2), (2, 3))) / 2
    other = torch.where(_wide(_chosen(x, g, 0.3)), double, other)
    weight = _wide(_log_uniform(g, x, 0.05, 0.4))
    added = x + weight * (other + 1)
    return torch.where(_wide(_chosen(x, g, 0.3)), added, torch.lerp(x, other, weight))


def few_levels(x: Tensor, g: torch.Generator) -> Tensor:
    """Round to a few levels, with dither or without."""
    steps = _wide(_log_uniform(g, x, 2, 24).round())
    dither = (_rand(g, x, x.shape[1]) - 0.5) * _wide(_chosen(x, g, 0.4))
    return ((x + 1) / 2 * steps + dither).round() / steps * 2 - 1


def bend(x: Tensor, g: torch.Generator) -> Tensor:
    """Move pixels by a fraction of one, or little more, along a smooth random field."""
    count = len(x)
    side = 3 + int(torch.randint(4, (1,), generator=g, device=x.device))
    coarse = torch.randn(count, 2, side, side, generator=g, device=x.device)
    flow = F.interpolate(coarse, x.shape[-2:], mode="bicubic", align_corners=True)
    flow = flow / flow.abs().mean((1, 2, 3), keepdim=True) * _wide(_log_uniform(g, x, 0.15, 1.2))
    rows, columns = _grid(x)
    height, width = x.shape[-2:]
    places = torch.stack(
        [columns + flow[:, :1] * 2 / max(1, width - 1), rows + flow[:, 1:] * 2 / max(1, height - 1)], -1
    )[:, 0]
    return F.grid_sample(x, places, padding_mode="reflection", align_corners=True)


ALTERATIONS: Sequence[tuple[Alter, float]] = (
    (piece, 0.35),
    (field, 0.17),
    (veil, 0.1),
    (waves, 0.15),
    (second_picture, 0.07),
    (few_levels, 0.08),
    (bend, 0.08),
)
"""What can happen to an image, and how often."""


def _shapes(x: Tensor, g: torch.Generator) -> Tensor:
    """Where one rectangle, ellipse, cloud or line lies in each image, (N, 1, H, W), from 0 to 1."""
    rows, columns = _grid(x)
    half = [_log_uniform(g, x, 1.0, x.shape[-1] * 0.5) / x.shape[-1] for _ in range(2)]
    # Everywhere, the borders as often as the middle.
    place = [(_uniform(g, x, -1.4, 1.4) * (1 - h)).clamp(h - 1, 1 - h) for h in half]
    across = (columns - _wide(place[0])).abs() / _wide(half[0])
    down = (rows - _wide(place[1])).abs() / _wide(half[1])
    rectangle = torch.maximum(across, down) <= 1
    ellipse = across.square() + down.square() <= 1
    edge = _wide(_uniform(g, x, -1, 1))
    height_of_land = _coloured(x, g, _uniform(g, x, 1.5, 2.5))[:, :1]
    cloud = rectangle & (height_of_land > edge)
    # A contour line of the same land: thin, curved, and as wide as it happens to be.
    line = rectangle & ((height_of_land - edge).abs() < _wide(_log_uniform(g, x, 0.03, 0.3)))
    kind = _wide(_uniform(g, x, 0, 1))
    shape = torch.where(kind < 0.4, rectangle, torch.where(kind < 0.6, ellipse, cloud))
    return torch.where(kind < 0.8, shape, line).float()


def _content(x: Tensor, g: torch.Generator) -> Tensor:
    """What a piece is made of: one colour, noise, dots, stripes, clouds, another picture, this one relit."""
    shape = (len(x), x.shape[1], 1, 1)
    colour = torch.rand(shape, generator=g, device=x.device) * 2.4 - 1.2
    other_colour = torch.rand(shape, generator=g, device=x.device) * 2.4 - 1.2
    grey = _wide(_chosen(x, g, 0.4))
    colour = torch.where(grey, colour[:, :1], colour)
    other_colour = torch.where(_wide(_chosen(x, g, 0.4)), -colour, other_colour)
    noise = torch.where(grey, _rand(g, x, 1), _rand(g, x, x.shape[1])) * 2 - 1
    dots = torch.where(noise > 0, colour, other_colour)
    height, width = x.shape[-2:]
    row, column = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
    period = [_wide(torch.randint(1, 4, (len(x),), generator=g, device=x.device)) for _ in range(2)]
    use = [_wide(_chosen(x, g, 0.75)) for _ in range(2)]
    parity = (row.div(period[0], rounding_mode="floor") * use[0]).int() + (
        column.div(period[1], rounding_mode="floor") * use[1]
    ).int()
    board = torch.where(parity % 2 == 0, colour, other_colour)
    clouds = colour + 0.5 * _coloured(x, g, torch.full((len(x),), 2.0, device=x.device))
    lit = x * _wide(_uniform(g, x, -1, 2)) + 0.5 * colour
    kinds = torch.stack([colour.expand_as(x), noise, dots, board, clouds, _others(x, g), lit])
    weights = torch.tensor([0.22, 0.2, 0.1, 0.18, 0.1, 0.12, 0.08], device=x.device)
    kind = torch.multinomial(weights, len(x), replacement=True, generator=g)
    return kinds[kind, torch.arange(len(x), device=x.device)]


def _others(x: Tensor, g: torch.Generator) -> Tensor:
    """For each image another of the batch, moved and mirrored."""
    shift = torch.randint(1, max(2, len(x)), (1,), generator=g, device=x.device)
    down, right = torch.randint(x.shape[-1], (2,), generator=g, device=x.device).tolist()
    other = x.roll(int(shift), 0).roll((down, right), (2, 3))
    return torch.where(_wide(_chosen(x, g, 0.5)), other.flip(3), other)


def _coloured(x: Tensor, g: torch.Generator, exponent: Tensor) -> Tensor:
    """Noise of unit variance whose spectrum falls as frequency to the power of -exponent, (N,)."""
    height, width = x.shape[-2:]
    white = torch.fft.rfft2(torch.randn(x.shape, generator=g, device=x.device))
    down, across = torch.fft.fftfreq(height, device=x.device), torch.fft.rfftfreq(width, device=x.device)
    frequency = torch.hypot(down[:, None], across).clamp(min=1 / max(height, width))
    noise: Tensor = torch.fft.irfft2(white * frequency ** -_wide(exponent), (height, width))
    noise = noise * _colour(x, g)
    return noise / noise.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)


def _colour(x: Tensor, g: torch.Generator) -> Tensor:
    """Weights of the channels, (N, C, 1, 1): equal in half of the images."""
    weights = torch.randn(len(x), x.shape[1], 1, 1, generator=g, device=x.device)
    return torch.where(_wide(_chosen(x, g, 0.5)), torch.ones_like(weights), weights)


def _grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows, (H, 1), and columns, (W,), from -1 to 1."""
    height, width = x.shape[-2:]
    return (
        torch.linspace(-1, 1, height, device=x.device)[:, None],
        torch.linspace(-1, 1, width, device=x.device),
    )


def _rand(g: torch.Generator, x: Tensor, channels: int) -> Tensor:
    return torch.rand(len(x), channels, *x.shape[-2:], generator=g, device=x.device)


def _uniform(g: torch.Generator, x: Tensor, low: float, high: float) -> Tensor:
    """One number for each image, (N,)."""
    return low + (high - low) * torch.rand(len(x), generator=g, device=x.device)


def _log_uniform(g: torch.Generator, x: Tensor, low: float, high: float) -> Tensor:
    return _uniform(g, x, math.log(low), math.log(high)).exp()


def _chosen(x: Tensor, g: torch.Generator, share: float) -> Tensor:
    """Whether it happens to an image, (N,): to a share of them."""
    return _uniform(g, x, 0, 1) < share


def _wide(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1)."""
    return values[:, None, None, None]
