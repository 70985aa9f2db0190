"""Trains the built-in prior: python examples/train_builtin.py CHECKPOINT OUTPUT.

Data: cifar10-train.zip, and photos-256.zip without every 8th photo (those are for measuring), from
../shared/data or from the folder that ZIPCLI_DATA names. A stopped run goes on from CHECKPOINT.
Batches, noise and noise levels follow from the seed and the step, so the result is the same up to
floating point.
"""

import argparse
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from zipcli.config import NoiseSchedule
from zipcli.models.denoiser import Denoiser
from zipcli.models.local_unet import LocalUNet, LocalUNetConfig
from zipcli.models.weights import write_model
from zipcli.training.data import Source, batch_at
from zipcli.training.trainer import TrainConfig, train

HELD_OUT = 8
PHOTO_SCALES = ((1, 0.2), (2, 0.1), (3, 0.1))  # shrunk by, share of the steps
CROP = 64


def main() -> None:
    """Train, and write the averaged weights with their model card."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--limit", type=int, help="images of each kind, for a quick trial")
    options = parser.parse_args()
    config = TrainConfig(steps=options.steps)
    sources = load_sources(options.limit)
    torch.manual_seed(config.seed)
    denoiser = Denoiser(LocalUNet(LocalUNetConfig())).to(memory_format=torch.channels_last)
    history: list[dict[str, Any]] = []

    def report(progress: dict[str, Any]) -> None:
        history.append(progress)
        print(json.dumps(progress), flush=True)

    average = train(
        denoiser, lambda step: batch_at(sources, step, config.seed), config, options.checkpoint, report
    )
    assert isinstance(average, Denoiser)
    print(write_model(options.output, average, NoiseSchedule(), card(config, history)))


def card(config: TrainConfig, history: list[dict[str, Any]]) -> dict[str, Any]:
    """What the model file says of itself."""
    return {
        "name": "zipcli built-in prior, first version",
        "data": "CIFAR-10 train (50,000 images of 32 pixels) and 64-pixel crops of 700 photographs, one per "
        "ImageNet class, at 1, 1/2 and 1/3 of 256 pixels; mirrored at random",
        "licence": "weights Apache-2.0; the images are for research use under their owners' terms",
        "recipe": "examples/train_builtin.py",
        "steps": config.steps,
        "batch": "96 crops of 32 pixels or 24 of 64",
        "loss": round(float(np.mean([p["loss"] for p in history[-10:]])), 4) if history else None,
        "loss_is": "preconditioned denoising error of the training network, mean of the last 500 steps",
    }


def load_sources(limit: int | None) -> list[Source]:
    """CIFAR-10 as it is, and photos at three scales."""
    small = [to_tensor(image) for image in pictures("cifar10-train.zip", limit)]
    sources = [Source(images=small, crop=32, batch=96, share=0.6)]
    photos = [image for n, image in enumerate(pictures("photos-256.zip", limit)) if n % HELD_OUT]
    for divisor, share in PHOTO_SCALES:
        scaled = [
            to_tensor(
                image.resize((image.width // divisor, image.height // divisor), Image.Resampling.LANCZOS)
            )
            for image in photos
        ]
        large_enough = [image for image in scaled if min(image.shape[1:]) >= CROP]
        sources.append(Source(images=large_enough, crop=CROP, batch=24, share=share))
    return sources


def pictures(archive: str, limit: int | None) -> Iterator[Image.Image]:
    """Read the images of an archive in sorted order."""
    folder = Path(os.environ.get("ZIPCLI_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / archive).is_file():
        sys.exit(f"{folder / archive}: not there; set ZIPCLI_DATA to the folder that holds it")
    with zipfile.ZipFile(folder / archive) as z:
        for name in sorted(name for name in z.namelist() if name.endswith(".jpg"))[:limit]:
            yield Image.open(io.BytesIO(z.read(name))).convert("RGB")


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image to uint8 (3, H, W)."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


if __name__ == "__main__":
    main()
