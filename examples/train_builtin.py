"""Trains the built-in models: python examples/train_builtin.py WORK.

One network learns all noise levels; then three copies of it each learn one band of them while the
learning rate falls to zero, the upper two with noise only where a transform keeps nothing in part of each
batch (low noise has nothing to hide). They become WORK/prior.safetensors. A fourth, which begins as that
of the middle band, learns to take out of images what does not belong there: WORK/blind.safetensors.
Data: cifar10-train.zip, and photos-256.zip without every 8th photo (those are for measuring), from
../shared/data or from the folder that ZIPCLI_DATA names. A stopped run goes on from the checkpoints in WORK.
Batches, noise and noise levels follow from the seed and the step, so the result is the same up to floating
point.
"""

import argparse
import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zipcli.config import BLIND_SIGMA, LoopConfig, NoiseSchedule
from zipcli.models.denoiser import Denoiser
from zipcli.models.local_unet import SIZES, BandedUNet, LocalUNet
from zipcli.models.prior import Prior
from zipcli.models.weights import write_model
from zipcli.pipeline.train import PARTIAL_SHARE, with_partial_noise
from zipcli.training.data import ImageBank, Source, batch_at
from zipcli.training.losses import BlindStates, denoising_loss
from zipcli.training.trainer import Checkpoint, Loss, Report, Trainer

SHARED_STEPS = 5_513
BAND_STEPS = 2_500
BLIND = LoopConfig(
    steps=10_922, decay=0.0, lr=3e-3, seed=7,
    lowest_sigma=BLIND_SIGMA, highest_sigma=BLIND_SIGMA, uniform_share=1.0,
)  # fmt: skip
"""The rate does not fall: a network that restores the last detail restores the traces of a warp, too."""
LOSS_IS = "preconditioned error of the network in training over what it was shown, mean of the last minute"
BANDS: dict[str, dict[str, float]] = {
    "low": {"lowest_sigma": 0.01, "highest_sigma": 0.18, "uniform_share": 1.0},
    "middle": {"lowest_sigma": 0.12, "highest_sigma": 0.7, "uniform_share": 1.0},
    "high": {
        "lowest_sigma": 0.4,
        "highest_sigma": 100.0,
        "uniform_share": 0.2,
        "log_sigma_mean": 0.0,
        "log_sigma_std": 0.7,
    },
}
"""The noise levels that each copy learns; they overlap a little, so that no seam shows."""
EDGES = (0.15, 1.0)
"""Where one copy takes over from another: measured on training images, the middle one is better up to 1."""
HELD_OUT = 8
PHOTO_SCALES = ((1, 0.2), (2, 0.1), (3, 0.1))  # shrunk by, share of the steps
CROP = 64


def main() -> None:
    """Train, and write the averaged weights with their model cards."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=SHARED_STEPS, help="of the shared part")
    parser.add_argument("--band-steps", type=int, default=BAND_STEPS, help="of each copy")
    parser.add_argument(
        "--blind-steps", type=int, default=BLIND.steps, help="of the one that is told no noise level"
    )
    parser.add_argument(
        "--only", choices=BANDS, help="train this band and write nothing; two can run at once"
    )
    parser.add_argument("--limit", type=int, help="images of each kind, for a quick trial")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    sources = load_sources(options.limit)
    shared = options.work / "shared.safetensors"
    train(shared, LoopConfig(steps=options.steps, decay=0.0), sources, options.limit)
    total = options.steps + options.band_steps
    experts: list[Denoiser] = []
    losses: dict[str, float] = {}
    for name, levels in BANDS.items():
        if options.only in (None, name):
            checkpoint = options.work / f"{name}.safetensors"
            if not checkpoint.exists():
                shutil.copyfile(shared, checkpoint)
            config = LoopConfig(steps=total, decay=options.band_steps / total, **levels)
            wrap = None if name == "low" else lambda loss: with_partial_noise(loss, 3)
            experts.append(train(checkpoint, config, sources, options.limit, wrap))
            losses[name] = json.loads(loss_file(checkpoint).read_text())
    if options.only is not None:
        return
    steps = {"shared": options.steps, "of each band": options.band_steps}
    facts = {
        "name": "zipcli built-in prior, third version",
        "steps": steps,
        "partial_noise": PARTIAL_SHARE,
        "loss_is": LOSS_IS,
    }
    write(options.work / "prior.safetensors", joined(experts), facts, losses)
    checkpoint = options.work / "blind-checkpoint.safetensors"
    config = replace(BLIND, steps=options.blind_steps)
    blind = train(
        *(checkpoint, config, sources, options.limit, lambda loss: BlindStates(loss, 1.0), experts[1]),
        root=True,
    )
    steps = {**steps, "blind": options.blind_steps}
    facts = {
        "name": "zipcli built-in blind network, second version",
        "steps": steps,
        "blind_states": 1.0,
        "loss_is": f"{LOSS_IS}, of which the root is taken for each image",
    }
    losses = {"blind": json.loads(loss_file(checkpoint).read_text())}
    write(options.work / "blind.safetensors", blind, facts, losses)


def joined(experts: list[Denoiser]) -> Denoiser:
    """One network out of those of the bands."""
    network = BandedUNet(replace(SIZES["small"], bands=EDGES))
    for place, expert in zip(network.experts, experts, strict=True):
        place.load_state_dict(expert.net.state_dict())
    return Denoiser(network)


def loss_file(checkpoint: Path) -> Path:
    """Where the loss over the last minute of a run is noted."""
    return checkpoint.with_suffix(".loss.json")


def train(
    file: Path,
    config: LoopConfig,
    sources: list[Source],
    limit: int | None,
    wrap: Callable[[Loss], Loss] | None = None,
    start: Denoiser | None = None,
    *,
    root: bool = False,
) -> Denoiser:
    """Go on from a checkpoint to the end, and return the averaged network.

    `wrap` changes what the loss is shown. Without a checkpoint the weights are those of `start`, or fresh.
    `root` is of `denoising_loss`.
    """
    torch.manual_seed(config.seed)
    denoiser = Denoiser(LocalUNet(SIZES["small"])).to(memory_format=torch.channels_last)
    if start is not None:
        denoiser.load_state_dict(start.state_dict())

    def loss(x_0: Tensor, sigma: Tensor, noise: Tensor, _: torch.Generator) -> Tensor:
        return denoising_loss(denoiser, x_0, sigma, noise, root=root)

    trainer = Trainer(
        denoiser,
        wrap(loss) if wrap else loss,
        lambda step: batch_at(sources, step, config.seed),
        config,
        dtype=torch.bfloat16,
    )
    checkpoint = Checkpoint(file, {"seed": config.seed, "limit": limit})
    checkpoint.load(trainer)
    losses: list[float] = []

    def report(progress: Report) -> None:
        losses.append(progress.loss)
        if len(losses) % 60 == 1 or progress.share == 1:
            mean = float(np.mean(losses[-60:]))
            print(json.dumps({"of": file.stem} | asdict(progress) | {"loss": round(mean, 4)}), flush=True)

    trainer.run(checkpoint, report, lambda: None)
    if losses:
        loss_file(file).write_text(json.dumps(round(float(np.mean(losses[-60:])), 4)))
    return trainer.average  # type: ignore[return-value]  # a copy of a Denoiser


def write(file: Path, denoiser: Denoiser, facts: dict[str, Any], losses: dict[str, float]) -> None:
    """Write a model whose card says how it was made."""
    card = facts | {
        "data": "CIFAR-10 train (50,000 images of 32 pixels) and 64-pixel crops of 700 photographs, one per "
        "ImageNet class, at 1, 1/2 and 1/3 of 256 pixels; mirrored at random",
        "licence": "weights Apache-2.0; the images are for research use under their owners' terms",
        "recipe": "examples/train_builtin.py",
        "batch": "96 crops of 32 pixels or 24 of 64",
        "loss": losses,
    }
    denoiser = denoiser.half()  # to the disk; it runs as float32
    print(write_model(file, Prior(denoiser, NoiseSchedule(), channels=3), card))


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
