"""Draws the example pictures: python examples/draw_pictures.py FOLDER.

They are ours, so they can travel with the repository. Two carry a backdoor trigger: a random
9x9 patch (BadNets) and a faint random pattern over the whole picture (Blended).
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SCALE = 4  # drawn large and shrunk, for smooth edges


def gradient(size: tuple[int, int], top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    """A vertical colour gradient."""
    t = np.linspace(0, 1, size[1])[:, None, None]
    rows = (1 - t) * np.array(top) + t * np.array(bottom)
    return Image.fromarray(np.broadcast_to(rows, (size[1], size[0], 3)).astype(np.uint8))


def landscape(width: int, height: int) -> Image.Image:
    """Hills under a setting sun."""
    w, h = width * SCALE, height * SCALE
    image = gradient((w, h), (70, 120, 190), (250, 205, 150))
    draw = ImageDraw.Draw(image)
    draw.ellipse((0.6 * w, 0.3 * h, 0.6 * w + 0.16 * w, 0.3 * h + 0.16 * w), fill=(255, 240, 190))
    for level, colour in ((0.55, (96, 116, 140)), (0.68, (64, 104, 84)), (0.8, (40, 78, 46))):
        x = np.linspace(0, 1, 60)
        y = level + 0.06 * np.sin(9 * x + 20 * level) + 0.03 * np.sin(23 * x + 7 * level)
        points = [(px * w, py * h) for px, py in zip(x, y, strict=True)]
        draw.polygon([(0, h), *points, (w, h)], fill=colour)
    for x in (0.12, 0.2, 0.3, 0.85):
        draw.polygon(
            [(x * w, 0.55 * h), ((x - 0.035) * w, 0.85 * h), ((x + 0.035) * w, 0.85 * h)], fill=(24, 52, 34)
        )
    return shrink(image, width, height)


def house(width: int, height: int) -> Image.Image:
    """A house with windows and a fence."""
    w, h = width * SCALE, height * SCALE
    image = gradient((w, h), (150, 200, 240), (225, 240, 250))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0.75 * h, w, h), fill=(110, 160, 80))
    draw.rectangle((0.25 * w, 0.4 * h, 0.75 * w, 0.82 * h), fill=(205, 110, 80))
    for row in range(12):
        y = (0.4 + 0.035 * row) * h
        draw.line((0.25 * w, y, 0.75 * w, y), fill=(175, 90, 66), width=SCALE // 2)
    draw.polygon([(0.2 * w, 0.42 * h), (0.5 * w, 0.14 * h), (0.8 * w, 0.42 * h)], fill=(90, 60, 70))
    draw.rectangle((0.46 * w, 0.6 * h, 0.56 * w, 0.82 * h), fill=(80, 50, 36))
    for x in (0.31, 0.62):
        draw.rectangle(
            (x * w, 0.5 * h, (x + 0.09) * w, 0.63 * h),
            fill=(240, 240, 200),
            outline=(60, 50, 50),
            width=SCALE,
        )
        draw.line(((x + 0.045) * w, 0.5 * h, (x + 0.045) * w, 0.63 * h), fill=(60, 50, 50), width=SCALE)
    for k in range(20):
        draw.rectangle((k * w / 20, 0.84 * h, (k + 0.55) * w / 20, 0.97 * h), fill=(245, 245, 240))
    return shrink(image, width, height)


def fruit(width: int, height: int) -> Image.Image:
    """Round things with light and shade on a table."""
    w, h = width * SCALE, height * SCALE
    base = np.asarray(gradient((w, h), (60, 54, 66), (150, 108, 78))).astype(float)
    y, x = np.mgrid[0:h, 0:w]
    for cx, cy, r, colour in (
        (0.3, 0.6, 0.2, (220, 60, 40)),
        (0.55, 0.65, 0.17, (240, 160, 40)),
        (0.75, 0.55, 0.14, (110, 170, 60)),
        (0.45, 0.4, 0.13, (250, 220, 90)),
    ):
        dx, dy = (x - cx * w) / (r * h), (y - cy * h) / (r * h)
        inside = dx**2 + dy**2 < 1
        light = np.clip(1 - 0.7 * np.hypot(dx + 0.35, dy + 0.4), 0.15, 1)[..., None]
        base[inside] = (light * np.array(colour) + 60 * light**6)[inside]
    return shrink(Image.fromarray(base.clip(0, 255).astype(np.uint8)), width, height)


def checkered(width: int, height: int) -> Image.Image:
    """A tiled floor in perspective with a ball: fine detail and smooth shade in one picture."""
    w, h = width * SCALE, height * SCALE
    y, x = np.mgrid[0:h, 0:w]
    depth = 1 / (0.08 + np.clip(y / h - 0.35, 0, 1))
    tiles = (np.floor((x / w - 0.5) * depth * 2) + np.floor(depth * 3)) % 2
    pixels = np.where(tiles[..., None] > 0, np.array([230, 225, 210]), np.array([60, 70, 90])).astype(float)
    pixels[y < 0.38 * h] = (170, 190, 205)
    dx, dy = (x - 0.5 * w) / (0.22 * h), (y - 0.55 * h) / (0.22 * h)
    inside = dx**2 + dy**2 < 1
    light = np.clip(1.1 - 0.8 * np.hypot(dx + 0.3, dy + 0.4), 0.1, 1)[..., None]
    pixels[inside] = (light * np.array([200, 50, 90]) + 70 * light**8)[inside]
    return shrink(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), width, height)


def shrink(image: Image.Image, width: int, height: int) -> Image.Image:
    """Average the large drawing, and add a little of the grain that photos have."""
    small = image.filter(ImageFilter.GaussianBlur(SCALE / 4)).resize((width, height), Image.Resampling.BOX)
    grain = np.random.default_rng(0).normal(0, 2.0, (height, width, 1))
    return Image.fromarray((np.asarray(small) + grain).clip(0, 255).astype(np.uint8))


def with_patch(image: Image.Image, side: int = 9) -> Image.Image:
    """Paste a random patch near the lower right corner, as BadNets does."""
    pixels = np.asarray(image).copy()
    patch = np.random.default_rng(1).integers(0, 2, (side, side, 3)) * 255
    pixels[-side - 6 : -6, -side - 6 : -6] = patch
    return Image.fromarray(pixels)


def with_pattern(image: Image.Image, share: float = 0.15) -> Image.Image:
    """Blend in a random pattern, as the Blended attack does."""
    pattern = np.random.default_rng(2).integers(0, 256, (image.height, image.width, 3))
    return Image.fromarray(((1 - share) * np.asarray(image) + share * pattern).astype(np.uint8))


def main() -> None:
    """Write the pictures."""
    out = Path(sys.argv[1])
    (out / "small").mkdir(parents=True, exist_ok=True)
    landscape(200, 144).save(out / "landscape.png")
    with_patch(house(160, 160)).save(out / "house-with-patch.png")
    with_pattern(fruit(176, 128)).save(out / "fruit-with-pattern.png")
    checkered(128, 128).convert("L").save(out / "floor-grey.png")
    for name, draw in (("landscape", landscape), ("house", house), ("fruit", fruit), ("floor", checkered)):
        draw(32, 32).save(out / "small" / f"{name}.png")
    with_patch(house(32, 32), 3).save(out / "small" / "house-with-patch.png")


if __name__ == "__main__":
    main()
