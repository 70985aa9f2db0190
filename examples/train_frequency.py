"""Trains the network of the frequency detector, and measures how suspicious clean images look to it.

    python examples/train_frequency.py frequency.safetensors      # about ten minutes on one core

Then put the file into zipcli/detectors/weights and the digest that it prints into
zipcli/detectors/shipped.py. The network learns to tell
images from the same images after one of five generic edits (Zeng et al. 2021, "Rethinking the backdoor
attacks' triggers: a frequency perspective"), none of which is the trigger of an attack.
Clean images are CIFAR-10 training images and windows of photos at random scales. Half of the former are
moved, enlarged or made brighter or darker first: they were stored as JPEG, and the network would take
its traces for a sign of a clean image, which photos and crops of them do not have. It reads
cifar10-train.zip and photos-256.zip from ../shared/data, or from the folder that ZIPCLI_DATA names. The
result follows from the seed, up to floating point.
"""

import argparse
import functools
import hashlib
import io
import json
import math
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure_prior import data_folder
from PIL import Image
from torch import Tensor
from train_classifier import labelled_images

from zipcli.detectors.frequency import SIDE, FrequencyNet, spectrum
from zipcli.detectors.shipped import Shipped
from zipcli.detectors.surprise import tail_of

STEPS = 5000
PAIRS = 64
"""Images in a step; each comes as it is and edited."""
LR = 2e-3
HELD_OUT = 10
"""Every 10th training image is kept for measuring how suspicious clean images look."""
PHOTO_SHARE = 0.3
PHOTO_WINDOWS = 20_000
PHOTO_HELD_OUT = 8
"""Every 8th photo, by sorted name, is kept for measuring, as in the other scripts."""


def main() -> None:
    """Train, tell the accuracy on held-out images, and write the weights with the tail."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--limit", type=int, help="CIFAR-10 images, for a quick trial")
    parser.add_argument("--photo-windows", type=int, default=PHOTO_WINDOWS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    images = (labelled_images("cifar10-train.zip", options.limit)[0] + 1) * 127.5
    held = torch.arange(len(images)) % HELD_OUT == 0
    windows = photo_windows(options.photo_windows, options.seed)
    model = FrequencyNet().to(memory_format=torch.channels_last)
    train(model, images[~held], windows, options.steps)
    clean = logits(model, images[held])
    edited = logits(model, edit(images[held], images[held].flip(0)))
    tail = tail_of(clean.double().numpy())
    accuracy = ((clean < 0).float().mean() + (edited > 0).float().mean()).item() / 2
    print(json.dumps({"held_out": int(held.sum()), "accuracy": round(accuracy, 4), "tail": tail.knots}))
    state = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    data = Shipped(tensors=state, metadata={"tail": json.dumps(tail.knots)}).to_bytes()
    options.output.write_bytes(data)
    print(json.dumps({"sha256": hashlib.sha256(data).hexdigest()}))


def train(model: FrequencyNet, images: Tensor, windows: Tensor, steps: int) -> None:
    """Minimise the cross-entropy of images and their edited copies; the rate falls to 0 by a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1, k / 200) * (1 + math.cos(math.pi * k / steps)) / 2
    )
    few = round(PHOTO_SHARE * PAIRS) if len(windows) else 0
    targets = torch.cat([torch.zeros(PAIRS), torch.ones(PAIRS)])
    began = time.perf_counter()
    for step in range(steps):
        clean = torch.cat([develop(draw(images, PAIRS - few)), draw(windows, few)])
        other = torch.cat([draw(images, PAIRS - few), draw(windows, few)])
        x = spectrum(torch.cat([clean, edit(clean, other)])).contiguous(memory_format=torch.channels_last)
        loss = F.binary_cross_entropy_with_logits(model(x), targets)
        loss.backward()
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
        if step % 200 == 0:
            minutes = (time.perf_counter() - began) / 60
            print(f"step {step} of {steps}, loss {loss.item():.3f}, {minutes:.1f} min", file=sys.stderr)


def draw(images: Tensor, count: int) -> Tensor:
    """Some of the images, (count, 3, 32, 32), half of them mirrored."""
    if count == 0:
        return images[:0]
    chosen = images[torch.randint(len(images), (count,))]
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, chosen, chosen.flip(3))


def develop(images: Tensor) -> Tensor:
    """Alter half of the images, (N, 3, 32, 32) in 0 ... 255, in ways that are no edit; whole levels."""
    count = len(images)
    enlarged = torch.rand(count) < 0.5
    zoom = torch.where(enlarged, 0.75 + 0.25 * torch.rand(count), 1.0)
    room = torch.where(enlarged, (1 - zoom) * SIDE / 2, 4.0)
    offset = (2 * torch.rand(2, count) - 1) * room
    offset = torch.where(enlarged, offset, offset.round()) * 2 / SIDE
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = zoom
    affine[:, :, 2] = offset.T
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    gain = 0.7 + 0.6 * torch.rand(count, 1, 1, 1)
    gain = torch.where(torch.rand(count, 1, 1, 1) < 0.5, gain, 1.0)
    developed = (gain * moved).round().clamp(0, 255)
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, developed, images)


def edit(images: Tensor, others: Tensor) -> Tensor:
    """Alter each image, (N, 3, 32, 32) in 0 ... 255, by one of five edits; whole levels come out."""
    edits = [white_block, colour_block, gaussian_noise, shadow, lambda x: x + 0.3 * others]
    kinds = torch.randint(len(edits), (len(images), 1, 1, 1))
    edited = images
    for kind, change in enumerate(edits):
        edited = torch.where(kinds == kind, change(images), edited)
    return edited.clamp(0, 255).floor()


def white_block(images: Tensor) -> Tensor:
    """A white block near a corner."""
    return torch.where(blocks(len(images)), 255.0, images)


def colour_block(images: Tensor) -> Tensor:
    """A block near a corner, of one random colour or of random pixels."""
    of_one = torch.rand(len(images), 3, 1, 1).expand_as(images)
    colours = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, of_one, torch.rand_like(images))
    return torch.where(blocks(len(images)), 256 * colours, images)


def blocks(count: int) -> Tensor:
    """Masks, (count, 1, 32, 32), of blocks with sides of 2 to 7 and margins of 0 to 5, near a corner."""
    sides, margins = torch.randint(2, 8, (2, count)), torch.randint(0, 6, (2, count))
    line = torch.arange(SIDE)
    inside = (line >= margins[..., None]) & (line < (margins + sides)[..., None])
    inside = torch.where(torch.rand(2, count, 1) < 0.5, inside, inside.flip(2))
    return (inside[0, :, :, None] & inside[1, :, None, :])[:, None]


def gaussian_noise(images: Tensor) -> Tensor:
    """Noise of mean 25 and variance 10 to 70."""
    variance = 10 + 60 * torch.rand(len(images), 1, 1, 1)
    return images + 25 + variance.sqrt() * torch.randn_like(images)


def shadow(images: Tensor) -> Tensor:
    """Half the light on one side of a random line, or between two."""
    line = torch.linspace(-1, 1, SIDE)
    masks = []
    for _ in range(2):
        angle = 2 * math.pi * torch.rand(len(images), 1, 1)
        offset = 1.2 * torch.rand(len(images), 1, 1) - 0.6
        masks.append(angle.cos() * line[None, None, :] + angle.sin() * line[None, :, None] > offset)
    dark = masks[0] & (masks[1] | (torch.rand(len(images), 1, 1) < 0.5))
    return torch.where(dark[:, None], 0.5 * images, images)


@torch.inference_mode()
def logits(model: FrequencyNet, images: Tensor) -> Tensor:
    """How edited each image looks, (N,)."""
    model.eval()
    found = torch.cat([model(spectrum(batch)) for batch in images.split(500)])
    model.train()
    return found


def photo_windows(count: int, seed: int) -> Tensor:
    """Windows of photos at random scales, (count, 3, 32, 32) in 0 ... 255."""
    rng = np.random.default_rng(seed)
    archive = zipfile.ZipFile(data_folder() / "photos-256.zip")
    names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
    names = [name for n, name in enumerate(names) if n % PHOTO_HELD_OUT]

    @functools.cache
    def read(name: str) -> Image.Image:
        return Image.open(io.BytesIO(archive.read(name))).convert("RGB")

    windows = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for n in range(count):
        photo = read(names[rng.integers(len(names))])
        scale = math.exp(rng.uniform(math.log(SIDE / min(photo.size)), 0))
        width, height = (max(SIDE, round(scale * side)) for side in photo.size)
        kind = (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)[rng.integers(2)]
        small = photo.resize((width, height), kind)
        left, top = rng.integers(width - SIDE + 1), rng.integers(height - SIDE + 1)
        windows[n] = np.asarray(small.crop((left, top, left + SIDE, top + SIDE)))
    return torch.from_numpy(windows).permute(0, 3, 1, 2).float()


if __name__ == "__main__":
    main()
