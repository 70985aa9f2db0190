"""Brings images into the form in which a classifier wants to see them."""

from collections.abc import Iterator, Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def resize(image: Pixels, size: tuple[int, int] | None) -> Pixels:
    """Squash an image to (height, width) with an antialiased bilinear filter; None leaves it alone."""
    if size is None or image.shape[:2] == size:
        return image
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def batches_of_one_size(images: Sequence[Pixels], most: int) -> Iterator[list[int]]:
    """Indices of images of equal size, at most `most` together."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(index)
    for indices in sizes.values():
        for start in range(0, len(indices), most):
            yield indices[start : start + most]


def normalise(
    images: Sequence[Pixels], mean: Sequence[float] | None, std: Sequence[float] | None
) -> NDArray[np.float32]:
    """Images of equal size as (N, 3, H, W): from [0, 1], less the mean, over the deviation."""
    x = np.stack(images).astype(np.float32) / np.float32(255)
    if mean is not None:
        x -= np.array(mean, np.float32)
    if std is not None:
        x /= np.array(std, np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def as_png(image: Pixels) -> bytes:
    """The pixels as a PNG file; little compression, since it is read once."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
