"""How many evaluations of the prior are enough? Samplers and steps side by side, on CIFAR-10 test images.

    python examples/train_classifier.py base.safetensors                       # once
    python examples/measure_samplers.py --classifier base.safetensors
    python examples/measure_samplers.py --classifier base.safetensors --victims work --images 500

For each chain: PSNR of the purified clean images against the originals, and how many of them the classifier
gets right. WORK is a folder that attack_loop.py has filled: then also the mean over its victims of the
accuracy on purified clean images (CA), and on purified images with a trigger the share that is taken for the
target (ASR, other classes) and the share that is right (PA). All chains see the same images and the same
seed. It reads cifar10-test.zip from ../shared/data, or from the folder that ZIPCLI_DATA names.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from measure_prior import data_folder, pictures
from PIL import Image
from torch import Tensor
from train_classifier import CLASSES, classify, load_classifier

from zipcli import Purifier
from zipcli.classifiers import open_classifier
from zipcli.config import ClassifierConfig
from zipcli.images.write import psnr

Pixels = np.ndarray

CHAINS = (
    ("zip", "ddim", "20", "10"),
    ("zip", "warm", "5", "10"),
    ("nullspace", "warm", "5", "10"),
    ("nullspace", "warm", "3", "10"),
    ("nullspace", "warm", "20", "10"),
    ("nullspace", "warm", "8", "10"),
    ("nullspace", "warm", "4", "10"),
    ("nullspace", "warm", "2", "10"),
    ("nullspace", "decoupled", "3", "10"),
    ("nullspace", "decoupled", "2", "10"),
    ("nullspace", "warm", "5", "100"),
    ("nullspace", "warm", "5", "inf"),
    ("nullspace", "warm", "3", "inf"),
)
"""Method, sampler, evaluations and lambda."""


def main() -> None:
    """Print one row for each chain."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--classifier", type=Path, required=True, metavar="FILE")
    parser.add_argument("--victims", type=Path, metavar="WORK", help="what attack_loop.py has made")
    parser.add_argument("--poisoned", type=int, default=250, help="images with a trigger, for each victim")
    parser.add_argument("--attacks", default="badnets,blended,issba,bpp,trojannn")
    parser.add_argument("--transform", default="blur:2")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--chains", help="such as zip/ddim/20/10,nullspace/warm/5/inf")
    options = parser.parse_args()
    found = list(pictures(data_folder() / "cifar10-test.zip", 1, options.images))
    clean, labels = [pixels for _, pixels in found], [CLASSES.index(name) for name, _ in found]
    victims, attacks = {}, options.attacks.split(",")
    if options.victims:
        victims = {attack: Victim(options.victims, attack, options.poisoned) for attack in attacks}
    classifier = load_classifier(options.classifier)
    print(f"{'chain':24}{'PSNR':>7}{'right':>7}{'CA':>7}{'ASR':>7}{'PA':>7}  ms/image")
    chains = [tuple(chain.split("/")) for chain in options.chains.split(",")] if options.chains else CHAINS
    for method, sampler, steps, lambda_ in chains:
        purifier = Purifier.from_pretrained(
            options.model,
            method=method,
            sampler=sampler,
            steps=int(steps),
            lambda_=float(lambda_),
            transforms=[options.transform],
            dtype=options.dtype,
        )
        began = time.process_time()
        purified = purify(purifier, clean)
        cost = 1000 * (time.process_time() - began) / len(clean)
        quality = np.mean([psnr(a, b) for a, b in zip(clean, purified, strict=True)])
        right = 100 * (classify(classifier, tensor(purified)) == torch.tensor(labels)).float().mean()
        rows = [victim.measure(purified, labels, purifier) for victim in victims.values()]
        shares = "".join(f"{100 * share:7.1f}" for share in np.mean(rows, axis=0)) if rows else " " * 21
        print(
            f"{method}/{sampler}/{steps}/{lambda_}".ljust(24)
            + f"{quality:7.2f}{right:7.1f}{shares}{cost:10.1f}",
            flush=True,
        )


class Victim:
    """A classifier with a backdoor, and test images with its trigger."""

    def __init__(self, work: Path, attack: str, limit: int) -> None:
        """Open what attack_loop.py has made."""
        self.file = work / f"{attack}-victim.pt"
        folder = work / f"{attack}-poisoned"
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["role"] == "poison"]
        rows = rows[:: max(1, len(rows) // limit)][:limit]
        self.images = [np.asarray(Image.open(folder / row["out_path"]).convert("RGB")) for row in rows]
        self.labels = np.array([row["orig_label"] for row in rows])
        self.targets = np.array([row["target_label"] for row in rows])

    def measure(
        self, clean: list[Pixels], labels: list[int], purifier: Purifier
    ) -> tuple[float, float, float]:
        """CA, ASR and PA."""
        with open_classifier(ClassifierConfig(classifier=str(self.file)), lambda: None) as classifier:
            on_clean = classifier(clean).labels
            on_poisoned = classifier(purify(purifier, self.images)).labels
        others = self.labels != self.targets
        asr = (on_poisoned == self.targets)[others].mean()
        return float((on_clean == labels).mean()), float(asr), float((on_poisoned == self.labels).mean())


def purify(purifier: Purifier, images: list[Pixels]) -> list[Pixels]:
    """Purify images of one size in batches."""
    step = purifier.batch_size(images[0].shape[:2])
    return [out for k in range(0, len(images), step) for out in purifier.purify_pixels(images[k : k + step])]


def tensor(images: list[Pixels]) -> Tensor:
    """Images in [-1, 1], (N, 3, H, W)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1


if __name__ == "__main__":
    main()
