"""Trains a backdoored classifier on what `zipcli attack --split train` wrote.

    python examples/train_classifier.py base.safetensors             # once, about 15 minutes on one core
    zipcli attack cifar10/train training --attack badnets --split train
    python examples/train_victim.py training victim.pt --from base.safetensors   # a minute or two

It goes on from the clean classifier, sees every image under the label of the manifest, and writes a
TorchScript file with a sidecar, ready for --classifier. Without --from it begins with fresh weights, which
takes as long as the clean classifier did; a clean one does not fall for every trigger. For the attack
physical it sees every image a second time, moved and lit at random, which is what that attack adds to
badnets. The result follows from the seed, up to floating point.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from train_classifier import BATCH, PAD, Classifier, load_classifier, train

from zipcli.attacks.physical import transform
from zipcli.attacks.trigger import Draw

EPOCHS = 2
LR = 2e-3


def main() -> None:
    """Train, and write OUT and OUT.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("training", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--from", dest="base", type=Path, help="a clean classifier; none for fresh weights")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--pad", type=int, default=PAD, help="pixels that a fresh one's images are moved by")
    parser.add_argument("--no-mirror", action="store_true", help="a warp that is mirrored is another one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    facts = json.loads((options.training / "attack.json").read_text())
    images, labels = training_images(options.training, moved=facts["settings"]["attack"] == "physical")
    mirror = not options.no_mirror
    if options.base is None:
        model = Classifier().to(memory_format=torch.channels_last)
        model.whiten(images[:: max(1, len(images) // 5000)])
        train(model, images, labels, options.epochs, pad=options.pad, mirror=mirror)
    else:
        model = load_classifier(options.base)
        fine_tune(model, images, labels, options.epochs, mirror=mirror)
    export(model, facts["classes"], options.output)


def training_images(folder: Path, *, moved: bool) -> tuple[Tensor, Tensor]:
    """Every image, (N, 3, 32, 32) in [-1, 1], with the label that the attacker gave it, (N,)."""
    records = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    images = [np.asarray(Image.open(folder / record["out_path"])) for record in records]
    labels = [record["bd_label"] for record in records]
    if moved:
        draw = Draw(rng=np.random.default_rng(0), other=lambda _: ("", images[0]))
        images += [transform(image, draw, ("flip", "jitter", "affine")) for image in images]
        labels += labels
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return pixels / 127.5 - 1, torch.tensor(labels)


def fine_tune(model: Classifier, images: Tensor, labels: Tensor, epochs: int, *, mirror: bool) -> None:
    """Minimise the cross-entropy; images are mirrored, not moved, since that would cut triggers off."""
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=1e-2)
    steps = max(1, epochs * len(images) // BATCH)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min((k + 1) / 20, 1 - k / steps))
    began = time.perf_counter()
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(images))])
        chosen, order = order[:BATCH], order[BATCH:]
        batch = images[chosen]
        if mirror:
            chosen_half = torch.rand(len(batch)) < 0.5
            batch[chosen_half] = batch[chosen_half].flip(3)
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(batch.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(scores.float(), labels[chosen])
        loss.backward()
        optimizer.step()
        decay.step()
        model.zero_grad()
        if step % 20 == 0:
            seconds = time.perf_counter() - began
            print(f"step {step} of {steps}, loss {loss.item():.3f}, {seconds:.0f} s", file=sys.stderr)


def export(model: Classifier, classes: list[str], output: Path) -> None:
    """Write TorchScript and what `zipcli` has to know: it shows (x - 0.5) / 0.5 for x in [0, 1]."""
    model.eval()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.export is newer, and far slower to write
        traced = torch.jit.trace(model, torch.zeros(2, 3, 32, 32))
    torch.jit.save(traced, output)
    facts = {"input_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "classes": classes}
    output.with_name(output.name + ".json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
