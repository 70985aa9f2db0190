"""Measures how well the diffusion prior denoises, beside denoisers that need no training.

    pip install scikit-image bm3d scipy
    python examples/measure_denoising.py                       # 1,000 CIFAR-10 test images, 50 photos
    python examples/measure_denoising.py --images 200 --photos 0 --json
    python examples/measure_denoising.py --baseline-images 0 --baseline-photos 0   # needs neither

Images lie in [-1, 1], noise is Gaussian, PSNR is per image, then averaged, and nothing is clipped.
Everyone sees the same noisy images and knows the noise level. The other denoisers are slow and see
a part of the images only; the column "prior there" is the prior on that part. The photos were kept
out of the training of the built-in prior; of those with sides of 256 pixels or more, the central
square is taken. It reads cifar10-test.zip and photos-256.zip from ../shared/data, or from the folder
that ZIPCLI_DATA names.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure_prior import HELD_OUT, data_folder, pictures
from torch import Tensor

from zipcli.models.loading import load_model
from zipcli.pipeline.purifier import to_tensor
from zipcli.protocols import EpsModel
from zipcli.training.validation import denoising_table, eps_mse

SEED = 0

NL_MEANS = {0.05: (3, 5, 1.4), 0.1: (3, 5, 1.4), 0.2: (5, 5, 1.0), 0.5: (7, 5, 0.7), 1.0: (7, 5, 0.8)}
"""Patch size, patch distance and h / noise: the best of a grid on 32 CIFAR-10 training images. On training
photos no other choice with this distance does better by more than 0.1 dB."""

VERY_NOISY = 0.4
"""Above it BM3D has other settings, which did better on the same 32 images."""

Denoise = Callable[[np.ndarray, float], np.ndarray]
"""A noisy image (H, W, 3) in [-1, 1] and the standard deviation of its noise to a clean image."""


def main() -> None:
    """Print eps-MSE and PSNR at each noise level for each data set."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--baseline-images", type=int, default=100, metavar="N")
    parser.add_argument("--baseline-photos", type=int, default=10, metavar="N")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    baselines = load_baselines() if options.baseline_images or options.baseline_photos else {}
    model = load_model(options.model, torch.device("cpu"), "float32").model
    sets = (
        ("cifar10-test", 1, 32, options.images, options.baseline_images),
        ("photos-256", HELD_OUT, 256, options.photos, options.baseline_photos),
    )
    for name, every, side, count, baseline_count in sets:
        if not count:
            continue
        archive = data_folder() / f"{name}.zip"
        squares = [to_tensor(square(pixels, side)) for pixels in large_enough(archive, every, side)]
        images = torch.stack(spread(squares, count))
        few = torch.stack(spread(squares, baseline_count)) if baseline_count else images[:0]
        result = measure(model, images, few, baselines)
        print(
            json.dumps({"data": name, **result}) if options.json else f"{name}: {table(result)}", flush=True
        )


def measure(model: EpsModel, images: Tensor, few: Tensor, baselines: dict[str, Denoise]) -> dict[str, Any]:
    """Denoise `images` by the prior, and `few` by everyone; both are (N, 3, H, W) in [-1, 1]."""
    batch = max(1, 64 * 32**2 // images[0, 0].numel())
    rows = [
        {"std": row.std, "noisy": row.noisy_psnr, "prior": row.denoised_psnr}
        for row in denoising_table(model, images, seed=SEED, batch=batch)
    ]
    if len(few):
        noise = torch.randn(few.shape, generator=torch.Generator().manual_seed(SEED))  # as denoising_table
        for row, there in zip(rows, denoising_table(model, few, seed=SEED, batch=batch), strict=True):
            row["prior_there"] = there.denoised_psnr
            noisy = few + row["std"] * noise
            assert abs(psnr(noisy, few) - there.noisy_psnr) < 1e-3, "the same noisy images for everyone"
            row |= {name: psnr(applied(f, noisy, row["std"]), few) for name, f in baselines.items()}
    return {
        "images": len(images),
        "eps_mse": eps_mse(model, images, seed=SEED, batch=batch),
        "baseline_images": len(few),
        "rows": rows,
    }


def load_baselines() -> dict[str, Denoise]:
    """Denoisers of other libraries, each told the true noise."""
    try:
        from bm3d import BM3DProfile, BM3DProfileVN, bm3d_rgb
        from skimage.restoration import denoise_nl_means
    except ImportError as e:
        sys.exit(f"{e}; pip install scikit-image bm3d scipy, or give --baseline-images 0 --baseline-photos 0")

    def nl_means(image: np.ndarray, std: float) -> np.ndarray:
        patch, distance, h = NL_MEANS[std]
        return denoise_nl_means(image, patch, distance, h * std, fast_mode=False, sigma=std, channel_axis=2)

    def bm3d(image: np.ndarray, std: float) -> np.ndarray:
        profile = BM3DProfileVN() if std > VERY_NOISY else BM3DProfile()
        profile.num_threads = torch.get_num_threads()
        return 2 * bm3d_rgb((image + 1) / 2, std / 2, profile) - 1  # its thresholds are for [0, 1]

    return {"nl_means": nl_means, "bm3d": bm3d}


def applied(denoise: Denoise, noisy: Tensor, std: float) -> Tensor:
    """Denoise (N, 3, H, W), one image after the other."""
    arrays = noisy.permute(0, 2, 3, 1).double().numpy()
    return torch.from_numpy(np.stack([denoise(image, std) for image in arrays])).permute(0, 3, 1, 2)


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of images (N, C, H, W) in [-1, 1], mean over the images."""
    return (10 * (4 / (a - b).square().flatten(1).mean(1)).log10()).mean().item()


def table(result: dict[str, Any]) -> str:
    """The figures of one data set as text."""
    lines = [f"eps-MSE {result['eps_mse']:.4f}, PSNR in dB on {result['images']} images"]
    if result["baseline_images"]:
        lines[0] += f", of the other denoisers on {result['baseline_images']}"
    lines.append("  ".join(f"{name:>11}" for name in result["rows"][0]))
    lines += ["  ".join(f"{value:11.2f}" for value in row.values()) for row in result["rows"]]
    return "\n".join(lines)


def large_enough(archive: Path, every: int, side: int) -> Iterator[np.ndarray]:
    """Pixels of the images of an archive whose sides are all at least `side`."""
    for _, pixels in pictures(archive, every, sys.maxsize):
        if min(pixels.shape[:2]) >= side:
            yield pixels


def square(pixels: np.ndarray, side: int) -> np.ndarray:
    """The central square of an image (H, W, 3)."""
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def spread(items: list[Tensor], count: int) -> list[Tensor]:
    """At most `count` of the items, spread evenly."""
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]


if __name__ == "__main__":
    main()
