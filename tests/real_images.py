"""Real CIFAR-10 test images, for what noise cannot show."""

import os
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DATA = Path(os.environ.get("ZIPCLI_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
ARCHIVE = DATA / "cifar10-test.zip"


def cifar(count: int) -> list[np.ndarray]:
    """Images of all classes, uint8 (32, 32, 3)."""
    if not ARCHIVE.is_file():
        pytest.fail(f"no {ARCHIVE}; set ZIPCLI_DATA to the folder that holds the real images")
    with zipfile.ZipFile(ARCHIVE) as z:
        names = sorted(name for name in z.namelist() if name.endswith(".jpg"))
        names = names[:: len(names) // count][:count]
        return [np.asarray(Image.open(BytesIO(z.read(name))).convert("RGB")) for name in names]


def patched(image: np.ndarray, top: int = -6, left: int = -6, side: int = 3) -> np.ndarray:
    """An image with a patch of random colours."""
    image = image.copy()
    colours = np.random.default_rng(0).integers(0, 256, (side, side, 3))
    height, width = image.shape[:2]
    image[top % height : top % height + side, left % width : left % width + side] = colours
    return image
