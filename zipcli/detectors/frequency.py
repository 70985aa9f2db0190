"""Frequency: a small network that knows the spectra of images and of edited images.

It was trained by examples/train_frequency.py on generic edits, none of which is the trigger of an
attack. It sees windows of 32 pixels, since resizing would blur what it looks for; the most suspicious
one decides, and the score takes into account how many there were.

Source: Zeng et al. 2021, "Rethinking the backdoor attacks' triggers: a frequency perspective".
"""

import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from zipcli.config import DetectConfig
from zipcli.detectors.calibration import thresholded
from zipcli.detectors.parts import Parts, Pixels, Thresholded
from zipcli.detectors.shipped import Shipped
from zipcli.detectors.surprise import Tail
from zipcli.protocols import Suspicion

SIDE = 32
"""Side of what the network sees, in pixels."""

WEIGHTS = "frequency"

CALL = 256
"""Windows in one call of the network."""


class Frequency:
    """Scores images by their spectra."""

    def __init__(self, net: "FrequencyNet", tail: Tail) -> None:
        """Take the trained network, in eval mode, and how it answers for clean images."""
        self._net = net
        self._tail = tail

    def __call__(self, images: Sequence[Pixels]) -> list[Suspicion]:
        """Score each image: -log10 of the share of clean images that look as much edited."""
        return [self._suspicion(image) for image in images]

    @torch.inference_mode()
    def _suspicion(self, image: Pixels) -> Suspicion:
        windows = spectrum(windows_of(image))
        odds = torch.cat([self._net(part) for part in torch.split(windows, CALL)])
        return Suspicion(score=self._tail.surprise(odds.max().item(), len(odds)))


def make(config: DetectConfig, parts: Parts) -> Thresholded:
    """Build the detector; clean images decide the threshold, if there are any."""
    shipped = Shipped.load(WEIGHTS)
    net = FrequencyNet()
    net.load_state_dict(shipped.tensors)
    tail = Tail.from_json(json.loads(shipped.metadata["tail"]))
    return thresholded(Frequency(net.eval().requires_grad_(False), tail), config, parts)


def windows_of(image: Pixels) -> Tensor:
    """Windows side by side, (N, 3, SIDE, SIDE) in 0 ... 255; the last ones end with the image.

    A smaller image is mirrored until it is large enough.
    """
    missing = [(0, max(0, SIDE - side)) for side in image.shape[:2]]
    padded = np.pad(image, (*missing, (0, 0)), mode="symmetric")
    starts = [(*range(0, side - SIDE, SIDE), side - SIDE) for side in padded.shape[:2]]
    windows = [padded[top : top + SIDE, left : left + SIDE] for top in starts[0] for left in starts[1]]
    return torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).float()


class FrequencyNet(nn.Module):
    """Three convolutions over the plane of frequencies, four of which make one place, and a linear layer.

    The paper's network has six, three times the weights and six times the work.
    """

    def __init__(self) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            *_convolution(12, 48),
            *_convolution(48, 64, stride=2),
            *_convolution(64, 96),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(96 * 16, 1),
        )

    def forward(self, spectra: Tensor) -> Tensor:
        """How edited spectra look, (N,), as log odds; (N, 3, 32, 32) as `spectrum` gives them."""
        odds: Tensor = self.layers(spectra)[:, 0]
        return odds


def _convolution(width_in: int, width_out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(width_in, width_out, 3, stride, padding=1),
        nn.ELU(),
        nn.BatchNorm2d(width_out),
    )


def spectrum(images: Tensor) -> Tensor:
    """The orthonormal DCT-II of each channel, as sign(c) ln(1 + |c|).

    The paper takes c itself, of which the lowest are a thousand times the highest.

    Args:
        images: (N, 3, 32, 32) in 0 ... 255.
    """
    basis = _dct_basis().to(images)
    coefficients = basis @ images @ basis.T
    return coefficients.sign() * coefficients.abs().log1p()


def _dct_basis() -> Tensor:
    """Row k is cos(pi k (2 n + 1) / (2 SIDE)) over the pixels n, of length 1."""
    k, n = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    basis: Tensor = torch.cos(torch.pi * k * (2 * n + 1) / (2 * SIDE)) * (2 / SIDE) ** 0.5
    basis[0] /= 2**0.5
    return basis
