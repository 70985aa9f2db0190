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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from zipcli.config import LoopConfig, NoiseSchedule
from zipcli.models.denoiser import Denoiser
from zipcli.models.local_unet import LocalUNet, LocalUNetConfig
from zipcli.models.prior import Prior
from zipcli.models.weights import write_model
from zipcli.training.data import ImageBank, Source, batch_at
from zipcli.training.losses import denoising_loss
from zipcli.training.trainer import Checkpoint, Report, Trainer

STEPS = 12_400
HELD_OUT = 8
PHOTO_SCALES = ((1, 0.2), (2, 0.1), (3, 0.1))  # shrunk by, share of the steps
CROP = 64


def main() -> None:
    """Train, and write the averaged weights with their model card."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--limit", type=int, help="images of each kind, for a quick trial")
    options = parser.parse_args()
    config = LoopConfig(steps=options.steps)
    sources = load_sources(options.limit)
    torch.manual_seed(config.seed)
    denoiser = Denoiser(LocalUNet(LocalUNetConfig())).to(memory_format=torch.channels_last)
    trainer = Trainer(
        denoiser,
        lambda x_0, sigma, noise: denoising_loss(denoiser, x_0, sigma, noise),
        lambda step: batch_at(sources, step, config.seed),
        config,
        dtype=torch.bfloat16,
    )
    checkpoint = Checkpoint(options.checkpoint, {"seed": config.seed, "limit": options.limit})
    checkpoint.load(trainer)
    losses: list[float] = []

    def report(progress: Report) -> None:
        losses.append(progress.loss)
        if len(losses) % 60 == 1 or progress.share == 1:
            mean = float(np.mean(losses[-60:]))
            print(json.dumps(asdict(progress) | {"loss": round(mean, 4)}), flush=True)

    trainer.run(checkpoint, report, lambda: None)
    model = Prior(trainer.average, NoiseSchedule(), channels=3)  # type: ignore[arg-type]
    loss = round(float(np.mean(losses[-60:])), 4) if losses else None
    print(write_model(options.output, model, card(config, loss)))


def card(config: LoopConfig, loss: float | None) -> dict[str, Any]:
    """What the model file says of itself."""
    return {
        "name": "zipcli built-in prior, second version",
        "data": "CIFAR-10 train (50,000 images of 32 pixels) and 64-pixel crops of 700 photographs, one per "
        "ImageNet class, at 1, 1/2 and 1/3 of 256 pixels; mirrored at random",
        "licence": "weights Apache-2.0; the images are for research use under their owners' terms",
        "recipe": "examples/train_builtin.py",
        "steps": config.steps,
        "batch": "96 crops of 32 pixels or 24 of 64",
        "loss": loss,
        "loss_is": "preconditioned denoising error of the training network, mean of the last minute",
    }


def load_sources(limit: int | None) -> list[Source]:
    """CIFAR-10 as it is, and photos at three scales."""
    small = [np.asarray(image) for image in pictures("cifar10-train.zip", limit)]
    sources = [Source(images=bank(small), crop=32, batch=96, share=0.6)]
    photos = [image for n, image in enumerate(pictures("photos-256.zip", limit)) if n % HELD_OUT]
    for divisor, share in PHOTO_SCALES:
        sizes = [(image.width // divisor, image.height // divisor) for image in photos]
        scaled = [
            np.asarray(image.resize(size, Image.Resampling.LANCZOS))
            for image, size in zip(photos, sizes, strict=True)
            if min(size) >= CROP
        ]
        sources.append(Source(images=bank(scaled), crop=CROP, batch=24, share=share))
    return sources


def pictures(archive: str, limit: int | None) -> Iterator[Image.Image]:
    """Read the images of an archive in sorted order."""
    folder = Path(os.environ.get("ZIPCLI_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / archive).is_file():
        sys.exit(f"{folder / archive}: not there; set ZIPCLI_DATA to the folder that holds it")
    with zipfile.ZipFile(folder / archive) as z:
        for name in sorted(name for name in z.namelist() if name.endswith(".jpg"))[:limit]:
            yield Image.open(io.BytesIO(z.read(name))).convert("RGB")


def bank(images: list[np.ndarray]) -> ImageBank:
    """Images, each (H, W, 3), ready to be cropped."""
    return ImageBank([torch.from_numpy(image.copy()) for image in images])


if __name__ == "__main__":
    main()
