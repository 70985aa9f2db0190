"""Measures what the diffusion prior adds to the transforms, on clean images it was not trained on.

    python examples/measure_prior.py                       # 1,000 CIFAR-10 test images, 50 photos
    python examples/measure_prior.py --images 64 --photos 0 --json

PSNR is against the original, per image, then averaged. It reads cifar10-test.zip and
photos-256.zip from ../shared/data, or from the folder that ZIPCLI_DATA names.
"""

import argparse
import io
import json
import os
import resource
import sys
import time
import zipfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from zipcli import Purifier
from zipcli.images.write import psnr

TRANSFORMS = (["blur:2"], ["blur:4"], ["blur:2", "gray"])
HELD_OUT = 8
"""Every 8th photo, by sorted name, is kept out of the training of the built-in prior."""


def main() -> None:
    """Print one row for each data set and choice of transforms."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lambda", dest="lambda_", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sets = []
    if options.images:
        sets.append(("cifar10-test", "cifar10-test.zip", 1, options.images))
    if options.photos:
        sets.append(("photos-256", "photos-256.zip", HELD_OUT, options.photos))
    for name, file, every, count in sets:
        images = list(pictures(data_folder() / file, every, count))
        for transforms in TRANSFORMS:
            row = measure(images, transforms, options)
            if options.json:
                print(json.dumps({"data": name, "transforms": transforms, **row}), flush=True)
            else:
                print(
                    f"{name} ({row['images']}) {' and '.join(transforms)}: "
                    f"transforms alone {row['transformed']:.2f} dB, "
                    f"purified {row['purified']:.2f} dB ({row['gain']:+.2f}), "
                    f"{row['images_per_s']:.2f} images/s, "
                    f"{row['evaluations']} evaluations, peak memory {row['peak_mb']:.0f} MB",
                    flush=True,
                )


def measure(images: list[np.ndarray], transforms: list[str], options: argparse.Namespace) -> dict[str, float]:
    """PSNR of the transformed and of the purified images, and how fast that was."""
    alone = Purifier.from_pretrained(method="blur", transforms=transforms)
    zip_ = Purifier.from_pretrained(
        transforms=transforms, steps=options.steps, lambda_=options.lambda_, seed=options.seed
    )
    transformed: list[float] = []
    purified: list[float] = []
    seconds = 0.0
    for shape, group in groupby(sorted(images, key=lambda x: x.shape), key=lambda x: x.shape):
        same = list(group)
        size = zip_.batch_size(shape[:2])
        for start in range(0, len(same), size):
            batch = same[start : start + size]
            transformed += map(psnr, batch, alone.purify_pixels(batch))
            began = time.perf_counter()
            clean = zip_.purify_pixels(batch)
            seconds += time.perf_counter() - began
            purified += map(psnr, batch, clean)
    return {
        "images": len(images),
        "transformed": float(np.mean(transformed)),
        "purified": float(np.mean(purified)),
        "gain": float(np.mean(purified) - np.mean(transformed)),
        "images_per_s": len(images) / seconds,
        "evaluations": options.steps,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def pictures(archive: Path, every: int, count: int) -> Iterator[np.ndarray]:
    """RGB pixels of `count` images spread evenly over every `every`-th one of an archive."""
    with zipfile.ZipFile(archive) as z:
        names = sorted(name for name in z.namelist() if name.endswith(".jpg"))[::every]
        for k in range(min(count, len(names))):
            name = names[k * len(names) // min(count, len(names))]
            yield np.asarray(Image.open(io.BytesIO(z.read(name))).convert("RGB"))


def data_folder() -> Path:
    """Where the images are."""
    folder = Path(os.environ.get("ZIPCLI_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        sys.exit(
            f"{folder}: no data there; set ZIPCLI_DATA to a folder with cifar10-test.zip and photos-256.zip"
        )
    return folder


if __name__ == "__main__":
    main()
