"""A sheet of pictures to look at: what a prior makes of noisy images, and what it makes of nothing."""

import io
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from zipcli.config import MethodConfig
from zipcli.methods.zip import purify
from zipcli.protocols import EpsModel
from zipcli.training.validation import denoise, noise_like

STDS = (0.2, 0.5, 1.0)
COLUMNS = 8
SHOWN_SIDE = 128
"""Smaller pictures are enlarged, pixel by pixel, to about this side."""
SAMPLE_STEPS = 50
MARGIN = 90


@torch.inference_mode()
def draw_sheet(model: EpsModel, images: Tensor, *, seed: int = 0) -> bytes:
    """Draw a PNG with a row of images, each noisy and denoised, and a row that the prior invented.

    Args:
        model: The prior.
        images: Images it was not trained on, (N, C, H, W) in [-1, 1]; the first few are shown.
        seed: Of the noise.
    """
    images = images[:COLUMNS]
    rows = list(_rows(model, images, seed))
    zoom = max(1, round(SHOWN_SIDE / images.shape[-1]))
    cell = images.shape[-1] * zoom + 4
    sheet = Image.new("RGB", (MARGIN + cell * len(images), cell * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, pictures) in enumerate(rows):
        draw.text((4, row * cell + cell // 2 - 6), label, fill="black")
        for column, pixels in enumerate(to_pixels(pictures)):
            sheet.paste(
                Image.fromarray(pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)),
                (MARGIN + column * cell, row * cell),
            )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _rows(model: EpsModel, images: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    yield "held out", images
    for std in STDS:
        noisy = images + std * noise_like(images, seed)
        yield f"noise {std:g}", noisy
        yield "denoised", denoise(model, noisy, std)
    yield "invented", sample(model, images, seed=seed)


def sample(model: EpsModel, like: Tensor, *, seed: int = 0) -> Tensor:
    """Draw images from the prior alone, in the shape of `like`.

    Source: Song et al. 2021 (DDIM); it is ZIP with lambda 0, which asks nothing of the input.
    """
    config = MethodConfig(steps=SAMPLE_STEPS, lambda_=0, eta=0, grid="paper")
    generator = torch.Generator().manual_seed(seed)

    def noise(x_t: Tensor, /) -> Tensor:
        return torch.randn(x_t.shape, generator=generator).to(x_t.device)

    return purify(like, model, (), config, noise=noise)


def to_pixels(images: Tensor) -> list[np.ndarray]:
    """Images in [-1, 1], (N, C, H, W), as uint8 RGB, (H, W, 3) each."""
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    return [np.ascontiguousarray(p) for p in levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()]
