"""What is left of large triggers in large photographs, and what looking at small copies of them gives.

    python examples/measure_large.py                          # 16 photographs of 256 pixels
    python examples/measure_large.py --side 128 --photos 40
    python examples/measure_large.py --doubts 0.1,0.2,inf    # changes that are half believed
    python examples/measure_large.py --victims work          # what attack_loop.py has filled

Rows are settings of `--doubt`: the default, and inf, with which small copies decide the tint alone. For
each the PSNR of purified photographs without a trigger, that of their brightness alone, and how much of
the contrast of each trigger is left after purification, in % (less than 0: its place became brighter
where the trigger was dark). The photographs are those that no network was trained on. It reads
photos-256.zip from ../shared/data, or from the folder that ZIPCLI_DATA names.

With WORK, the victims of attack_loop.py instead: its images are enlarged, purified, and shrunk again to what
the victim takes; CA / ASR / PA in %, before purification, too. Enlarged images are smoother than photographs.
"""

import argparse
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure_prior import HELD_OUT, data_folder, pictures
from measure_samplers import Victim, purify
from PIL import Image
from train_classifier import CLASSES

from zipcli import Purifier
from zipcli.config import PurifyConfig, purify_config
from zipcli.images.write import psnr

Pixels = np.ndarray
"""uint8, (H, W, 3)."""


def square(image: Pixels, share: float, colour: tuple[int, int, int]) -> Pixels:
    """Cover a square near a corner; its side is a share of that of the image."""
    image, side, margin = image.copy(), round(share * len(image)), round(0.05 * len(image))
    image[-margin - side : -margin, -margin - side : -margin] = colour
    return image


def board(image: Pixels) -> Pixels:
    """Cover a square near a corner with black and white fields."""
    field = max(1, round(len(image) / 64))
    pattern = 255 * (np.indices((6, 6)).sum(0) % 2).repeat(field, 0).repeat(field, 1)
    image, side = image.copy(), 6 * field
    image[-2 * field - side : -2 * field, -2 * field - side : -2 * field] = pattern[..., None]
    return image


def sinusoid(image: Pixels) -> Pixels:
    """Add six cycles across the image, as the attack SIG does."""
    wave = 20 * np.sin(2 * np.pi * 6 * np.arange(image.shape[1]) / image.shape[1])
    return np.clip(image + wave[:, None], 0, 255).round().astype(np.uint8)


def blended(image: Pixels) -> Pixels:
    """Let random colours, 32 of them across, shine through."""
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pattern = np.asarray(Image.fromarray(colours).resize(image.shape[1::-1], Image.Resampling.BILINEAR))
    return (0.8 * image + 0.2 * pattern).round().astype(np.uint8)


TRIGGERS: dict[str, Callable[[Pixels], Pixels]] = {
    "yellow": lambda image: square(image, 0.16, (255, 255, 0)),
    "white": lambda image: square(image, 0.1, (255, 255, 255)),
    "black": lambda image: square(image, 0.25, (0, 0, 0)),
    "board": board,
    "sinusoid": sinusoid,
    "blended": blended,
}


def main() -> None:
    """Print one row for each setting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--doubts", default=f"{PurifyConfig.doubt},inf", help="settings of doubt")
    parser.add_argument("--victims", type=Path, metavar="WORK", help="what attack_loop.py has made")
    parser.add_argument("--attacks", default="badnets,blended,trojannn", help="whose victims")
    parser.add_argument("--images", type=int, default=250, help="of each kind, for each victim")
    parser.add_argument("--enlarge", type=int, default=4, help="how many times the side")
    options = parser.parse_args()
    if options.victims:
        enlarged(options)
    else:
        photographs(options)


def photographs(options: Namespace) -> None:
    """Print one row for each doubt."""
    found = pictures(data_folder() / "photos-256.zip", HELD_OUT, options.photos)
    clean = [resized(image, options.side) for _, image in found]
    print(f"{'':22}{'PSNR':>7}{'grey':>7}" + "".join(f"{name:>10}" for name in TRIGGERS))
    for doubt in map(float, options.doubts.split(",")):
        purifier = Purifier.from_config(purify_config(method="blind", doubt=doubt))
        after = purifier.purify_pixels(clean)
        quality = [mean_psnr(clean, after), mean_psnr(grey(clean), grey(after))]
        left = []
        for trigger in TRIGGERS.values():
            poisoned = [trigger(image) for image in clean]
            change = np.stack(poisoned) - np.stack(clean).astype(float)
            kept = np.stack(purifier.purify_pixels(poisoned)) - np.stack(after).astype(float)
            left.append(100 * (kept * change).sum() / np.square(change).sum())
        name = f"doubt {doubt:g}"
        print(
            f"{name:22}" + "".join(f"{p:7.2f}" for p in quality) + "".join(f"{x:10.0f}" for x in left),
            flush=True,
        )


def enlarged(options: Namespace) -> None:
    """Print one row for each doubt, after one for no purification."""
    attacks = options.attacks.split(",")
    victims = [Victim(options.victims, attack, options.images) for attack in attacks]
    clean = list(pictures(data_folder() / "cifar10-test.zip", 1, options.images))
    labels = [CLASSES.index(name) for name, _ in clean]
    print(f"{'':22}" + "".join(f"{attack:>22}" for attack in attacks))
    for doubt in (None, *map(float, options.doubts.split(","))):
        lens = Lens(doubt, options.enlarge)
        purified = purify(lens, [image for _, image in clean])
        rows = [victim.measure(purified, labels, lens) for victim in victims]
        cells = [" / ".join(f"{100 * share:.1f}" for share in row) for row in rows]
        name = "not purified" if doubt is None else f"doubt {doubt:g}"
        print(f"{name:22}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


class Lens:
    """Purifies images that it enlarges first and shrinks again afterwards."""

    def __init__(self, doubt: float | None, times: int) -> None:
        """Purify with the method blind, or, without a doubt, not at all."""
        settings = {"method": "none"} if doubt is None else {"method": "blind", "doubt": doubt}
        self.purifier = Purifier.from_config(purify_config(**settings))
        self.times = times

    def batch_size(self, size: tuple[int, int]) -> int:
        """Images to purify together."""
        return self.purifier.batch_size((size[0] * self.times, size[1] * self.times))

    def purify_pixels(self, images: list[Pixels]) -> list[Pixels]:
        """Purify images, (H, W, 3)."""
        side = len(images[0])
        large = [resized(image, side * self.times) for image in images]
        return [resized(image, side) for image in self.purifier.purify_pixels(large)]


def resized(image: Pixels, side: int) -> Pixels:
    """The middle of an image, (side, side, 3)."""
    short = min(image.shape[:2])
    top, left = ((length - short) // 2 for length in image.shape[:2])
    middle = Image.fromarray(image[top : top + short, left : left + short])
    return np.asarray(middle.resize((side, side), Image.Resampling.LANCZOS))


def grey(images: list[Pixels]) -> list[Pixels]:
    """The brightness of images, (H, W)."""
    return [image.mean(2).round().astype(np.uint8) for image in images]


def mean_psnr(images: list[Pixels], others: list[Pixels]) -> float:
    """In dB."""
    return float(np.mean([psnr(a, b) for a, b in zip(images, others, strict=True)]))


if __name__ == "__main__":
    main()
