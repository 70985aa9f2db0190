"""Measures what the diffusion prior adds to the transforms, on clean images it was not trained on.

    python examples/measure_prior.py                       # 1,000 CIFAR-10 test images, 50 photos
    python examples/measure_prior.py --images 64 --photos 0 --json
    python examples/measure_prior.py --method nullspace
    python examples/measure_prior.py --sampler ddim        # the chain of the ZIP paper
    python examples/measure_prior.py --posterior-mean 8    # the closest image instead of a likely one
    python examples/measure_prior.py --images 5000 --photos 0 --transforms blur:2 --classifier FILE

PSNR is against the original, per image, then averaged; images that the transforms do not change at
all, such as grey ones under gray, have none and are left out. A classifier, which
train_classifier.py makes, is asked about the CIFAR-10 images before and after. It reads
cifar10-test.zip and photos-256.zip from ../shared/data, or from the folder that ZIPCLI_DATA names.
"""

import argparse
import io
import json
import math
import os
import resource
import sys
import time
import zipfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from train_classifier import CLASSES, Classifier, classify, load_classifier

from zipcli import Purifier
from zipcli.images.write import psnr
from zipcli.models.loading import load_model
from zipcli.pipeline.purifier import ImageNoise, pick_device, pixel_digest, to_tensor
from zipcli.pipeline.windows import DEFAULT_OVERLAP, DEFAULT_WINDOW, WindowedModel
from zipcli.projection import removed
from zipcli.protocols import EpsModel, LinearOperator, Noise
from zipcli.schedule import timestep_at
from zipcli.transforms import make_operator

TRANSFORMS = ("blur:2", "blur:4", "gray", "blur:2,gray")
HELD_OUT = 8
"""Every 8th photo, by sorted name, is kept out of the training of the built-in prior."""

Pixels = np.ndarray
"""uint8, (H, W, 3)."""


def main() -> None:
    """Print one row for each data set and choice of transforms."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--transforms", action="append", help="one choice, such as blur:2 or blur:2,gray")
    parser.add_argument("--method", default="zip", choices=("zip", "nullspace"))
    parser.add_argument("--sampler", default="auto", help="of the method")
    parser.add_argument("--steps", type=int, default=0, help="0 for as many as the sampler needs")
    parser.add_argument("--lambda", dest="lambda_", type=float, help="10 by default")
    parser.add_argument("--posterior-mean", type=int, metavar="K", help="no method, but K evaluations")
    parser.add_argument("--classifier", type=Path, metavar="FILE")
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
        for transforms in options.transforms or TRANSFORMS:
            if options.method == "nullspace":  # it takes one
                transforms = transforms.replace(",", "+")
            row = measure(images, transforms.split(","), options)
            if options.json:
                print(json.dumps({"data": name, "transforms": transforms.split(","), **row}), flush=True)
            else:
                title = f"{name} ({row['images']}) {transforms.replace(',', ' and ')}"
                print(f"{title}: {sentence(row)}", flush=True)


def measure(
    images: list[tuple[str, Pixels]], transforms: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """How close the transformed and the purified images are, how recognisable, and how fast that was."""
    originals = [pixels for _, pixels in images]
    alone = Purifier.from_pretrained(method="blur", transforms=transforms)
    transformed = purify_all(alone, originals)
    purifier = make_purifier(transforms, options)
    began = time.perf_counter()
    purified = purify_all(purifier, originals)
    seconds = time.perf_counter() - began
    quality = zip(map(psnr, originals, transformed), map(psnr, originals, purified), strict=True)
    before, after = np.mean([pair for pair in quality if math.inf not in pair], axis=0)
    row = {
        "images": len(images),
        "transformed": float(before),
        "purified": float(after),
        "gain": float(after - before),
        "images_per_s": len(images) / seconds,
        "evaluations": purifier.evaluations if isinstance(purifier, PosteriorMean) else purifier.config.steps,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    names = [name for name, _ in images]
    if options.classifier and set(names) <= set(CLASSES):
        classifier = load_classifier(options.classifier)
        row["accuracy"] = [accuracy(classifier, kind, names) for kind in (originals, transformed, purified)]
    return row


def make_purifier(transforms: list[str], options: argparse.Namespace) -> "Purifier | PosteriorMean":
    """What the options ask for: a method, or posterior-mean steps."""
    if options.posterior_mean:
        return PosteriorMean(options.model, transforms, options.posterior_mean, options.seed)
    settings: dict[str, Any] = {"steps": options.steps, "seed": options.seed, "method": options.method}
    settings |= {"sampler": options.sampler, "lambda_": options.lambda_}
    return Purifier.from_pretrained(options.model, transforms=transforms, **settings)


def purify_all(purifier: "Purifier | PosteriorMean", images: list[Pixels]) -> list[Pixels]:
    """Purify images of any sizes, in batches of equal size."""
    clean: dict[int, Pixels] = {}
    order = sorted(range(len(images)), key=lambda k: images[k].shape)
    for shape, group in groupby(order, key=lambda k: images[k].shape):
        same = list(group)
        size = purifier.batch_size(shape[:2])
        for chosen in (same[start : start + size] for start in range(0, len(same), size)):
            clean |= zip(chosen, purifier.purify_pixels([images[k] for k in chosen]), strict=True)
    return [clean[k] for k in range(len(images))]


def accuracy(classifier: Classifier, images: list[Pixels], names: list[str]) -> float:
    """Share of the images that the classifier gives their class."""
    labels = torch.tensor([CLASSES.index(name) for name in names])
    x = torch.stack([to_tensor(pixels) for pixels in images])
    return (classify(classifier, x) == labels).float().mean().item()


def sentence(row: dict[str, Any]) -> str:
    """A row of figures in words."""
    words = (
        f"transforms alone {row['transformed']:.2f} dB, "
        f"purified {row['purified']:.2f} dB ({row['gain']:+.2f}), "
        f"{row['images_per_s']:.2f} images/s, "
        f"{row['evaluations']} evaluations, peak memory {row['peak_mb']:.0f} MB"
    )
    if "accuracy" not in row:
        return words
    original, transformed, purified = (f"{share:.1%}" for share in row["accuracy"])
    return f"{words}; recognised: {original} of the originals, {transformed} transformed, {purified} purified"


class PosteriorMean:
    """Purifies by posterior-mean steps, called like a `Purifier`."""

    def __init__(self, model: str, transforms: list[str], evaluations: int, seed: int) -> None:
        """Load the prior and build the operators."""
        self.device = pick_device("auto")
        prior = load_model(model, self.device, "float32").model
        side = prior.native_side or DEFAULT_WINDOW
        self.model = WindowedModel(prior, side, min(DEFAULT_OVERLAP, side // 2))
        self.operators = tuple(make_operator(text, no_mask) for text in transforms)
        self.evaluations = evaluations
        self.seed = seed

    def batch_size(self, size: tuple[int, int]) -> int:
        """Images of `size` (H, W) to purify together."""
        return max(1, 64 * 32**2 // math.prod(size))

    def purify_pixels(self, images: list[Pixels]) -> list[Pixels]:
        """Purify images of one shape together."""
        x = torch.stack([to_tensor(pixels) for pixels in images]).to(self.device)
        noise = ImageNoise(self.seed, [pixel_digest(pixels) for pixels in images])
        x_0 = posterior_mean(x, self.model, self.operators, self.evaluations, noise=noise)
        levels = ((x_0.clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8)
        return list(levels.permute(0, 2, 3, 1).contiguous().cpu().numpy())


HIGHEST_SIGMA, LOWEST_SIGMA = 2.0, 0.25
"""The noise levels of the steps lie evenly between them on a logarithmic scale, highest first."""


@torch.inference_mode()
def posterior_mean(
    x: Tensor,
    eps_model: EpsModel,
    operators: tuple[LinearOperator, ...],
    evaluations: int,
    *,
    noise: Noise,
) -> Tensor:
    """Estimate the mean of all clean images that agree with A x: the estimate with the best PSNR.

    Hides what the operators removed under noise, denoises, and again at lower and lower noise around the
    estimate. Each step takes the mean over a draw and its negative, which lets little of the noise into
    the estimate.

    Args:
        x: Suspicious images, (N, C, H, W), in [-1, 1].
        eps_model: The diffusion prior, trained as the method nullspace needs it.
        operators: A_n; the estimate agrees with each of them where they commute.
        evaluations: Calls of the prior, from 2; the largest even number of them is used.
        noise: A draw for each step.

    Returns:
        The estimates, (N, C, H, W), not clipped.
    """
    kept = x - removed(x, operators)
    x_0 = kept
    for sigma in np.geomspace(HIGHEST_SIGMA, LOWEST_SIGMA, evaluations // 2).tolist():
        n = sigma * removed(noise(x), operators)
        mean = (denoised(eps_model, x_0 + n, sigma) + denoised(eps_model, x_0 - n, sigma)) / 2
        x_0 = kept + removed(mean, operators)
    return x_0


def denoised(eps_model: EpsModel, x: Tensor, sigma: float) -> Tensor:
    """Estimate x_0 from x = x_0 + sigma n, both (N, C, H, W)."""
    t = torch.full((len(x),), timestep_at(eps_model.schedule, sigma), device=x.device)
    eps = eps_model(x / (1 + sigma**2) ** 0.5, t)[:, : eps_model.channels]
    return x - sigma * eps


def no_mask(file: str) -> Tensor:
    """Masks belong to single images."""
    sys.exit(f"mask:{file}: this measures transforms that fit every image")


def pictures(archive: Path, every: int, count: int) -> Iterator[tuple[str, Pixels]]:
    """Folder and RGB pixels of `count` images spread evenly over every `every`-th one of an archive."""
    with zipfile.ZipFile(archive) as z:
        names = sorted(name for name in z.namelist() if name.endswith(".jpg"))[::every]
        for k in range(min(count, len(names))):
            name = names[k * len(names) // min(count, len(names))]
            yield Path(name).parent.name, np.asarray(Image.open(io.BytesIO(z.read(name))).convert("RGB"))


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
