"""Trains a small CIFAR-10 classifier, the black box that purified images are shown to.

    python examples/train_classifier.py classifier.safetensors             # about 15 minutes on one core
    python examples/measure_prior.py --classifier classifier.safetensors   # what purification costs it

It reads cifar10-train.zip and cifar10-test.zip from ../shared/data, or from the folder that
ZIPCLI_DATA names. The result follows from the seed, up to floating point.
"""

import argparse
import io
import json
import os
import sys
import time
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WIDTHS = (64, 192, 256)
EPOCHS = 10
BATCH = 250
PAD = 4
"""Pixels by which a training image is moved at most, in each direction."""


def main() -> None:
    """Train, tell the accuracy on the test images, and write the weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--limit", type=int, help="images of each archive, for a quick trial")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    images, labels = labelled_images("cifar10-train.zip", options.limit)
    model = Classifier().to(memory_format=torch.channels_last)
    model.whiten(images[:5000])
    train(model, images, labels, options.epochs)
    test_images, test_labels = labelled_images("cifar10-test.zip", options.limit)
    accuracy = (classify(model, test_images) == test_labels).float().mean().item()
    print(json.dumps({"test_images": len(test_images), "accuracy": round(accuracy, 4)}))
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, options.output)


class Conv(nn.Module):
    """A 3x3 convolution without bias, whose weight is a matrix: that is what Muon takes."""

    def __init__(self, width_in: int, width_out: int) -> None:
        """Start with outputs of about unit variance."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, 9 * width_in) / (9 * width_in) ** 0.5)

    def forward(self, h: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width_out, H, W)."""
        return F.conv2d(h, self.weight.unflatten(1, (-1, 3, 3)), padding=1)


class Stage(nn.Module):
    """Halves the side, then adds a second convolution to its input."""

    def __init__(self, width_in: int, width_out: int) -> None:
        """Build two convolutions with their normalisations."""
        super().__init__()
        self.conv1, self.norm1 = Conv(width_in, width_out), nn.BatchNorm2d(width_out)
        self.conv2, self.norm2 = Conv(width_out, width_out), nn.BatchNorm2d(width_out)

    def forward(self, h: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width_out, H // 2, W // 2)."""
        h = F.silu(self.norm1(F.max_pool2d(self.conv1(h), 2)))
        return h + F.silu(self.norm2(self.conv2(h)))


class Classifier(nn.Module):
    """Three stages on whitened 2x2 patches, and one linear layer."""

    def __init__(self) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        self.register_buffer("patches", torch.zeros(24, 3, 2, 2))
        widths = (24, *WIDTHS)
        self.stages = nn.Sequential(*(Stage(a, b) for a, b in pairwise(widths)))
        self.head = nn.Linear(WIDTHS[-1], len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Map images, (N, 3, 32, 32) in [-1, 1], to scores, (N, 10)."""
        h = F.conv2d(x, self.patches)
        return self.head(self.stages(h).amax((2, 3)))

    def whiten(self, images: Tensor) -> None:
        """Set the first, fixed convolution to the principal components of patches, and their negatives.

        Each has unit variance then, so the layers after it learn fine contrasts as fast as coarse ones.
        """
        patches = images.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
        variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (components / (variances + 1e-3).sqrt()).T.unflatten(1, (3, 2, 2))
        self.patches = torch.cat([filters, -filters])


def train(
    model: Classifier, images: Tensor, labels: Tensor, epochs: int, *, pad: int = PAD, mirror: bool = True
) -> None:
    """Minimise the smoothed cross-entropy over images that are moved by up to `pad` pixels, and mirrored.

    Convolutions are moved by Muon, the rest by AdamW; both rates fall linearly to 0.
    """
    matrices = [p for p in model.stages.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.15, momentum=0.6, weight_decay=0.02),
        torch.optim.AdamW(others, lr=0.01, weight_decay=0.0),
    ]
    steps = epochs * len(images) // BATCH
    decay = [torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1 - k / steps) for o in optimizers]
    began = time.perf_counter()
    for step in range(steps):
        if step * BATCH % len(images) == 0:
            order = torch.randperm(len(images))
        chosen = order[step * BATCH % len(images) :][:BATCH]
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(augmented(images[chosen], pad, mirror=mirror))
        loss = F.cross_entropy(scores.float(), labels[chosen], label_smoothing=0.1)
        loss.backward()
        for each in (*optimizers, *decay):
            each.step()
        model.zero_grad()
        if step % 50 == 0:
            minutes = (time.perf_counter() - began) / 60
            print(f"step {step} of {steps}, loss {loss.item():.3f}, {minutes:.1f} min", file=sys.stderr)


def augmented(images: Tensor, pad: int, *, mirror: bool) -> Tensor:
    """Move each image by up to `pad` pixels, and mirror half of them."""
    n, _, height, width = images.shape
    padded = F.pad(images, (pad,) * 4, mode="reflect").permute(0, 2, 3, 1)
    rows = torch.arange(height) + torch.randint(2 * pad + 1, (n, 1))
    columns = torch.arange(width) + torch.randint(2 * pad + 1, (n, 1))
    if mirror:
        columns = torch.where(torch.rand(n, 1) < 0.5, columns, columns.flip(1))
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


@torch.inference_mode()
def classify(model: Classifier, images: Tensor) -> Tensor:
    """The index in CLASSES, (N,), that the classifier gives each image, (N, 3, 32, 32) in [-1, 1]."""
    model.eval()
    return torch.cat([model(batch).argmax(1) for batch in images.split(BATCH)])


def load_classifier(file: Path) -> Classifier:
    """Read a classifier that this script has written."""
    model = Classifier()
    model.load_state_dict(load_file(file))
    return model.eval()


def labelled_images(archive: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Read (N, 3, 32, 32) in [-1, 1] and their classes, (N,), spread evenly over an archive."""
    folder = Path(os.environ.get("ZIPCLI_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / archive).is_file():
        sys.exit(f"{folder / archive}: not there; set ZIPCLI_DATA to the folder that holds it")
    with zipfile.ZipFile(folder / archive) as z:
        names = sorted(name for name in z.namelist() if name.endswith(".jpg"))
        names = names[:: max(1, len(names) // (limit or len(names)))]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(z.read(name))).convert("RGB")) for name in names])
    labels = torch.tensor([CLASSES.index(Path(name).parent.name) for name in names])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1, labels


if __name__ == "__main__":
    main()
