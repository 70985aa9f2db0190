"""Real images, for what noise cannot show."""

import os
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DATA = Path(os.environ.get("ZIPCLI_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
ARCHIVE = DATA / "cifar10-test.zip"
PHOTOS = DATA / "photos-256.zip"
HELD_OUT = 8
"""Every so manyth photograph is one that the built-in models have not seen."""


def cifar(count: int) -> list[np.ndarray]:
    """Images of all classes, uint8 (32, 32, 3)."""
    with archive(ARCHIVE) as z:
        names = pictures_of(z)
        names = names[:: len(names) // count][:count]
        return [np.asarray(picture(z, name)) for name in names]


def photos(count: int, side: int) -> list[np.ndarray]:
    """Photographs that the built-in models have not seen, shrunk to uint8 (side, side, 3)."""
    with archive(PHOTOS) as z:
        names = pictures_of(z)[::HELD_OUT][:count]
        return [np.asarray(picture(z, name).resize((side, side), Image.Resampling.LANCZOS)) for name in names]


def archive(file: Path) -> zipfile.ZipFile:
    if not file.is_file():
        pytest.fail(f"no {file}; set ZIPCLI_DATA to the folder that holds the real images")
    return zipfile.ZipFile(file)


def pictures_of(z: zipfile.ZipFile) -> list[str]:
    return sorted(name for name in z.namelist() if name.endswith(".jpg"))


def picture(z: zipfile.ZipFile, name: str) -> Image.Image:
    return Image.open(BytesIO(z.read(name))).convert("RGB")


def patched(image: np.ndarray, top: int = -6, left: int = -6, side: int = 3) -> np.ndarray:
    """An image with a patch of random colours."""
    image = image.copy()
    colours = np.random.default_rng(0).integers(0, 256, (side, side, 3))
    height, width = image.shape[:2]
    image[top % height : top % height + side, left % width : left % width + side] = colours
    return image
