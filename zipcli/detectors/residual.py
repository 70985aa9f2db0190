"""Residual: how implausible an image is under the prior; no classifier is asked.

The prior takes the image as it is for a noisy one, at two noise levels, and predicts the noise in it. Of
what clean images have it predicts little; of a trigger it wants more gone. Two kinds of statistics are
compared with what is usual for clean images:

- spots: the energy of the weaker noise in 3x3 pixels, given the contrast around them. Patches stand out,
  and so does quantisation. This is the map.
- waves: the power of either noise at each frequency of a window of 32 pixels. Sinusoids and blended
  pictures stand out.

The rarest of them in any window of the image is the score. A smooth warp adds nothing that the prior
could miss: WaNet is not seen.

What is usual was measured on clean CIFAR-10 training images with the built-in prior, by
examples/fit_residual.py. Other kinds of images differ, and need a threshold of their own.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zipcli.config import DetectConfig
from zipcli.detectors.calibration import thresholded
from zipcli.detectors.parts import Parts, Pixels, Thresholded
from zipcli.detectors.shipped import Shipped
from zipcli.detectors.surprise import Tail, tail_of
from zipcli.errors import ModelError, NonFiniteError
from zipcli.protocols import EpsModel, Suspicion
from zipcli.schedule import sigmas

LEVELS = (0.1, 1.0)
"""Noise that is looked for, as its standard deviation in images in [-1, 1]."""

WINDOW = 32
"""Side of the windows that are judged on their own, in pixels."""

SPOT = 3
"""Side of a spot in pixels."""

AROUND = 7
"""Side of the surroundings whose contrast decides what is usual."""

BINS = 20
"""Classes of contrast, equally frequent in clean images."""

WEIGHTS = "residual"


@dataclass(frozen=True, kw_only=True)
class Usual:
    """What the prior says of clean images.

    Attributes:
        edges: Contrasts between the bins, rising, (BINS - 1,).
        spot_mean: Mean of ln(energy) of a spot, by contrast, (BINS,).
        spot_std: Its standard deviation.
        wave_mean: Mean of ln(power) at each level and frequency, (2, WINDOW, WINDOW // 2 + 1).
        wave_std: Its standard deviation.
        tails: Of the largest spot of a window, and of its largest wave at each level; then that of the
            rarest of the three.
    """

    edges: Tensor
    spot_mean: Tensor
    spot_std: Tensor
    wave_mean: Tensor
    wave_std: Tensor
    tails: tuple[Tail, ...] = ()

    def to_shipped(self, prior: str) -> Shipped:
        """As it is stored; `prior` is the SHA-256 of the weights that it belongs to."""
        tensors = {name: t for name, t in vars(self).items() if isinstance(t, Tensor)}
        knots = json.dumps([tail.knots for tail in self.tails])
        return Shipped(tensors=tensors, metadata={"tails": knots, "prior": prior})

    @classmethod
    def from_shipped(cls, shipped: Shipped) -> "Usual":
        """Undo `to_shipped`."""
        return cls(
            **shipped.tensors,
            tails=tuple(Tail.from_json(knots) for knots in json.loads(shipped.metadata["tails"])),
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the prior says of images of one size.

    Attributes:
        spots: ln(energy) around each pixel, (N, H, W).
        contrast: ln(variance) of the denoised image around each pixel, (N, H, W).
        waves: ln(power) of each window at each level, (2, N, windows, WINDOW, WINDOW // 2 + 1).
        origins: Where the windows begin, (top, left).
    """

    spots: Tensor
    contrast: Tensor
    waves: Tensor
    origins: tuple[tuple[int, int], ...] = ((0, 0),)


class Residual:
    """Scores images by the prior."""

    def __init__(self, model: EpsModel, usual: Usual, device: torch.device) -> None:
        """Judge by `model`, which takes images of any size on `device`, against what is usual for it."""
        self._model = model
        self._usual = usual
        self._device = device

    def __call__(self, images: Sequence[Pixels]) -> list[Suspicion]:
        """Score each image: -log10 of the share of clean images that look as implausible.

        The map, (H, W), tells by how many standard deviations a spot exceeds the usual.

        Raises:
            NonFiniteError: The prior gave no finite answer for some images; it names them.
        """
        of_size: dict[tuple[int, ...], list[int]] = {}
        for k, image in enumerate(images):
            of_size.setdefault(image.shape, []).append(k)
        found: dict[int, Suspicion] = {}
        for members in of_size.values():
            found |= dict(zip(members, self._of_one_size([images[k] for k in members]), strict=True))
        if lost := tuple(k for k in range(len(images)) if not math.isfinite(found[k].score)):
            raise NonFiniteError("in the residual", lost)
        return [found[k] for k in range(len(images))]

    def _of_one_size(self, images: list[Pixels]) -> list[Suspicion]:
        height, width = images[0].shape[:2]
        missing = [(0, max(0, WINDOW - side)) for side in (height, width)]
        padded = np.stack([np.pad(image, (*missing, (0, 0)), mode="symmetric") for image in images])
        x = torch.from_numpy(padded).permute(0, 3, 1, 2).contiguous() / 127.5 - 1
        measured = measure(self._model, x, self._device)
        spots = spot_deviations(measured, self._usual)
        scores = rarity(window_statistics(measured, spots, self._usual), self._usual)
        maps = spots[:, :height, :width].numpy()
        return [Suspicion(score=score, map=map) for score, map in zip(scores, maps, strict=True)]


def make(config: DetectConfig, parts: Parts) -> Thresholded:
    """Build the detector; clean images decide the threshold, not what is usual.

    Raises:
        ModelError: What is usual was measured with another prior.
    """
    assert parts.prior is not None
    shipped = Shipped.load(WEIGHTS)
    if shipped.metadata["prior"] != parts.prior_sha256:
        raise ModelError(
            "residual: what is usual was measured with another built-in prior; install zipcli again, or "
            "measure it anew with examples/fit_residual.py"
        )
    residual = Residual(parts.prior, Usual.from_shipped(shipped), parts.device)
    return thresholded(residual, config, parts)


@torch.inference_mode()
def measure(model: EpsModel, x: Tensor, device: torch.device) -> Measured:
    """Let the prior on `device` look at images, (N, 3, H, W) in [-1, 1], no side below WINDOW pixels."""
    noises = [predicted_noise(model, x.to(device), std).to(x.device) for std in LEVELS]
    grey = (x - LEVELS[0] * noises[0]).mean(1, keepdim=True)
    contrast = (_box(grey**2, AROUND) - _box(grey, AROUND) ** 2).clamp(min=0)[:, 0]
    origins = tuple((top, left) for top in _starts(x.shape[-2]) for left in _starts(x.shape[-1]))
    waves = [torch.stack([_power(part) for part in _windows(noise, origins)], dim=1) for noise in noises]
    return Measured(
        spots=(_box(noises[0] ** 2, SPOT).sum(1) + 1e-4).log(),
        contrast=(contrast + 1e-4).log(),
        waves=torch.stack(waves),
        origins=origins,
    )


def predicted_noise(model: EpsModel, x: Tensor, std: float) -> Tensor:
    """The noise that the prior sees in x, (N, C, H, W), taken for an image plus `std` N(0, I)."""
    log_sigma = sigmas(model.schedule).log().numpy()
    t = float(np.interp(math.log(std), log_sigma, np.arange(len(log_sigma))))
    times = torch.full((len(x),), t, device=x.device)
    return model(x / (1 + std**2) ** 0.5, times)[:, : model.channels]


def spot_deviations(measured: Measured, usual: Usual) -> Tensor:
    """Standard deviations by which each spot exceeds the usual, (N, H, W)."""
    bins = torch.bucketize(measured.contrast, usual.edges)
    return (measured.spots - usual.spot_mean[bins]) / usual.spot_std[bins]


def window_statistics(measured: Measured, spots: Tensor, usual: Usual) -> Tensor:
    """The largest spot, and the largest wave at each level, (3, N, windows)."""
    waves = (measured.waves - usual.wave_mean[:, None, None]) / usual.wave_std[:, None, None]
    largest = torch.stack([part.amax((-2, -1)) for part in _windows(spots, measured.origins)], dim=-1)
    return torch.stack([largest, *waves.amax((-2, -1))])


def rarity(statistics: Tensor, usual: Usual) -> list[float]:
    """The score of each image: the surprise of its rarest window.

    Args:
        statistics: (3, N, windows).
        usual: What they are compared with.
    """
    images = statistics.permute(1, 2, 0).tolist()
    return [
        usual.tails[-1].surprise(max(_rarest(window, usual.tails) for window in windows), len(windows))
        for windows in images
    ]


def fit(batches: Iterable[Tensor], model: EpsModel, device: torch.device) -> Usual:
    """Find what is usual, from batches of clean images, (N, 3, WINDOW, WINDOW) in [-1, 1]."""
    parts = [measure(model, x, device) for x in batches]
    everything = Measured(
        spots=torch.cat([part.spots for part in parts]),
        contrast=torch.cat([part.contrast for part in parts]),
        waves=torch.cat([part.waves for part in parts], dim=1),
    )
    inner = np.linspace(0, 1, BINS + 1)[1:-1]
    edges = torch.from_numpy(np.quantile(everything.contrast.numpy(), inner)).float()
    bins = torch.bucketize(everything.contrast, edges)
    by_contrast = [everything.spots[bins == b] for b in range(BINS)]
    usual = Usual(
        edges=edges,
        spot_mean=torch.stack([spots.mean() for spots in by_contrast]),
        spot_std=torch.stack([spots.std() for spots in by_contrast]),
        wave_mean=everything.waves.mean((1, 2)),
        wave_std=everything.waves.std((1, 2)),
    )
    statistics = window_statistics(everything, spot_deviations(everything, usual), usual)[..., 0]
    tails = tuple(tail_of(row.double().numpy()) for row in statistics)
    overall = tail_of([_rarest(row, tails) for row in statistics.T.tolist()])
    return replace(usual, tails=(*tails, overall))


def _rarest(statistics: Sequence[float], tails: Sequence[Tail]) -> float:
    return max(tail.surprise(s) for s, tail in zip(statistics, tails, strict=False))


def _box(x: Tensor, side: int) -> Tensor:
    """Mean over the square around each pixel, of those pixels that exist."""
    return F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False)


def _power(images: Tensor) -> Tensor:
    # One by one: how a transform rounds depends on how many are done together.
    powers = [torch.fft.rfft2(image.contiguous()).abs().square().sum(0) for image in images]
    return (torch.stack(powers) + 1e-2).log()


def _windows(x: Tensor, origins: Iterable[tuple[int, int]]) -> list[Tensor]:
    return [x[..., top : top + WINDOW, left : left + WINDOW] for top, left in origins]


def _starts(side: int) -> list[int]:
    """Windows side by side; the last ends with the image."""
    return [*range(0, side - WINDOW, WINDOW), side - WINDOW]
