"""Measures what the built-in prior says of clean images: the table that the residual detector ships.

    python examples/fit_residual.py residual.safetensors      # about a minute on one core

It must be run again whenever the built-in prior changes. Then put the file into zipcli/detectors/weights
and the digest that it prints into zipcli/detectors/shipped.py. Only clean CIFAR-10 training images are
looked at. It reads cifar10-train.zip from ../shared/data, or from the folder that ZIPCLI_DATA names.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from train_classifier import labelled_images

from zipcli.detectors.residual import fit
from zipcli.models.loading import load_model

IMAGES = 6000
BATCH = 50


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    options = parser.parse_args()
    cpu = torch.device("cpu")
    prior = load_model("builtin", cpu, "float32")
    images, _ = labelled_images("cifar10-train.zip", options.images)
    data = fit(images[: options.images].split(BATCH), prior.model, cpu).to_shipped(prior.sha256).to_bytes()
    options.output.write_bytes(data)
    print(json.dumps({"images": options.images, "sha256": hashlib.sha256(data).hexdigest()}))


if __name__ == "__main__":
    main()
