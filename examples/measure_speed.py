"""Measures zipcli beside the loops of ZIP, SampDetox and DiffPure on one network, and beside diffusers.

    pip install scikit-image diffusers
    python examples/measure_speed.py                          # the built-in prior; some minutes
    OMP_NUM_THREADS=1 taskset -c 0 python examples/measure_speed.py      # on one core
    python examples/measure_speed.py --model google/ddpm-cifar10-32 --images 4 --slow-images 1
    python examples/measure_speed.py --peer-images 0 --json   # without diffusers

The loops are those of `baselines.py`. All take turns, a, b, c, a, b, c, so that a busy machine is as busy
for each of them; the figures are medians over the turns, so that a cold first one does not count. Wall time
counts whatever else the machine did, processor time only what this process did: where they are far apart,
believe the latter. Every evaluation of the network is counted as it happens, in images: a canvas of 64
images is 64. SampDetox sees fewer images, whole chains of each. Diffusers' DDIMPipeline draws images from
nothing, with as many steps in equal batches; its network has the shape of google/ddpm-cifar10-32 and random
weights, and zipcli loads it from the same folder. A loop that cannot use a network (DiffPure's with another
schedule, ZIP's canvases of 256 pixels with one for another side) is left out. CIFAR-10 test images are read
from ../shared/data, or from the folder that ZIPCLI_DATA names.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import CANVAS, diffpure, sampdetox, zip_official
from measure_prior import data_folder, pictures
from torch import Tensor

from zipcli import Purifier
from zipcli.config import NoiseSchedule, PurifyConfig, purify_config
from zipcli.models.loading import load_model
from zipcli.models.packed import for_inference, is_batch_invariant
from zipcli.protocols import EpsModel

CPU = torch.device("cpu")
SEED = 0
SIDE = 32

DDPM_CIFAR10: dict[str, Any] = {
    "sample_size": SIDE,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
"""The shape of google/ddpm-cifar10-32: 35.7 million weights."""


class Counting:
    """An `EpsModel` that counts what it evaluates, in images of 32 by 32 pixels."""

    def __init__(self, model: EpsModel) -> None:
        """Ask `model`."""
        self.model = model
        self.schedule = model.schedule
        self.channels = model.channels
        self.native_side = model.native_side
        self.minimum_side = model.minimum_side
        self.evaluations = 0.0

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """Predict, and count."""
        self.evaluations += len(x_t) * math.prod(x_t.shape[-2:]) / SIDE**2
        return self.model(x_t, t)


@dataclass
class Contender:
    """Something to time.

    Attributes:
        name: What the table calls it.
        images: How many images one turn takes.
        run: One turn over that many images; returns the evaluations of the network, counted in images.
        evaluations: What the last turn returned.
        wall: Wall time of each turn in seconds.
        cpu: Processor time of each turn in seconds.
    """

    name: str
    images: int
    run: Callable[[], float]
    evaluations: float = 0.0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def take_turn(self) -> None:
        """Run and time it once."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.evaluations = self.run()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def row(self, first: "Contender") -> dict[str, Any]:
        """Figures for each image, and how many times as long as `first` it takes."""
        wall, cpu = (float(np.median(times)) / self.images for times in (self.wall, self.cpu))
        first_wall, first_cpu = (float(np.median(times)) / first.images for times in (first.wall, first.cpu))
        each = self.evaluations / self.images
        return {
            "name": self.name,
            "images": self.images,
            "evaluations": each,
            "images_per_s": 1 / wall,
            "wall_s": wall,
            "wall_from_s": min(self.wall) / self.images,
            "wall_to_s": max(self.wall) / self.images,
            "cpu_s": cpu,
            "cpu_from_s": min(self.cpu) / self.images,
            "cpu_to_s": max(self.cpu) / self.images,
            "wall_per_evaluation_s": wall / each,
            "cpu_per_evaluation_s": cpu / each,
            "wall_ratio": wall / first_wall,
            "cpu_ratio": cpu / first_cpu,
        }


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--images", type=int, default=64, help="64 fill a canvas of ZIP's program")
    parser.add_argument("--slow-images", type=int, default=4, help="for SampDetox")
    parser.add_argument("--peer-images", type=int, default=4, help="beside diffusers, in one batch")
    parser.add_argument("--peer-steps", type=int, default=20, help="of zipcli and of diffusers")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if find_spec("skimage") is None:
        sys.exit("SampDetox compares images with scikit-image; pip install 'zipcli[evaluate]'")
    compare(options.model, of_loops(options), options)
    if options.peer_images:
        with tempfile.TemporaryDirectory() as folder:
            name = "random weights, shape of google/ddpm-cifar10-32"
            compare(name, of_diffusers(Path(folder), options.peer_images, options.peer_steps), options)


def compare(network: str, contenders: list[Contender], options: argparse.Namespace) -> None:
    """Let the contenders take turns, then print a row for each; ratios are to the first."""
    for _ in range(options.repeats):
        for contender in contenders:
            contender.take_turn()
    rows = [contender.row(contenders[0]) for contender in contenders]
    if options.json:
        shared = {"network": network, "repeats": options.repeats, "threads": torch.get_num_threads()}
        print("\n".join(json.dumps({**shared, **row}) for row in rows), flush=True)
    else:
        print(f"{network}; {options.repeats} turns, {torch.get_num_threads()} threads")
        print(table(rows), flush=True)


def of_loops(options: argparse.Namespace) -> list[Contender]:
    """What zipcli and the loops do, with the same weights; but the default has a network of its own."""
    prior = Counting(load_model(options.model, CPU, "float32").model)
    images, few = cifar(options.images), cifar(options.slow_images)
    generator = torch.Generator().manual_seed(SEED)

    def noise(x_t: Tensor) -> Tensor:
        return torch.randn(x_t.shape, generator=generator).to(x_t)

    def contender(name: str, images: Tensor, purify: Callable[[Tensor], Tensor]) -> Contender:
        return Contender(name, len(images), partial(counted, prior, purify, images))

    def zipcli(name: str, **settings: Any) -> Contender:
        purifier, network = counting_purifier(purify_config(model=options.model, device="cpu", **settings))
        return Contender(name, len(images), partial(counted, network, purifier, images))

    on_canvases, native = (prior.native_side in (None, side) for side in (CANVAS, SIDE))
    loops: list[tuple[bool, str, Tensor, Callable[..., Tensor]]] = [
        (on_canvases, "ZIP's loop, on canvases", images, zip_official),
        (native, "ZIP's loop, native", images, partial(zip_official, native=True)),
        (native and prior.schedule == NoiseSchedule(), "DiffPure's loop", images, diffpure),
        (native, "SampDetox's loop", few, sampdetox),
        (native, "SampDetox, gate at once", few, partial(sampdetox, by_pixel=False)),
    ]
    return [
        zipcli("zipcli, default"),
        zipcli("zipcli, nullspace", method="nullspace"),
        zipcli("zipcli, nullspace, float32", method="nullspace", dtype="float32"),
        zipcli("zipcli, variant official, float32", variant="official", dtype="float32"),
        *(
            contender(name, given, partial(loop, eps_model=prior, noise=noise))
            for usable, name, given, loop in loops
            if usable
        ),
    ]


def counting_purifier(config: PurifyConfig) -> tuple[Purifier, "Counting"]:
    """A purifier as the command makes it, and its network, which counts."""
    loaded = load_model(config.model, CPU, config.dtype)
    config = config.for_model(loaded.card)
    model = for_inference(loaded.model)
    network, purifier = Counting(model), Purifier(config)
    purifier.use(network, loaded.fingerprint, batch_invariant=is_batch_invariant(model))
    return purifier, network


def counted(network: "Counting", purify: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Purify, and return how many evaluations that took."""
    before = network.evaluations
    assert purify(images).shape == images.shape
    return network.evaluations - before


def of_diffusers(folder: Path, count: int, steps: int) -> list[Contender]:
    """Diffusers' DDIM and zipcli on one U-Net, the same steps in the same batches."""
    try:
        from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
        from diffusers.utils.logging import disable_progress_bar
    except ImportError as e:
        sys.exit(f"{e}; pip install diffusers, or give --peer-images 0")
    disable_progress_bar()  # of loading; that of drawing has its own switch
    torch.manual_seed(SEED)
    DDIMPipeline(UNet2DModel(**DDPM_CIFAR10), DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    generator = torch.Generator().manual_seed(SEED)
    images = cifar(count)

    def diffusers(name: str, dtype: torch.dtype) -> Contender:
        pipeline = DDIMPipeline.from_pretrained(folder, low_cpu_mem_usage=False).to(dtype)
        pipeline.set_progress_bar_config(disable=True)

        def draw() -> float:
            drawn = pipeline(
                batch_size=count, generator=generator, eta=1.0, num_inference_steps=steps, output_type="pt"
            )
            assert drawn.images.shape == (count, 3, SIDE, SIDE)
            return steps * count

        return Contender(name, count, draw)

    def zipcli(name: str, dtype: str) -> Contender:
        settings = {"transforms": ("gray", "blur:2"), "steps": steps, "batch_size": count, "dtype": dtype}
        config = purify_config(model=str(folder), sampler="ddim", device="cpu", **settings)
        purifier, network = counting_purifier(config)
        return Contender(name, count, partial(counted, network, purifier, images))

    return [
        zipcli("zipcli, gray and blur:2", "float32"),
        zipcli("zipcli, bfloat16", "bfloat16"),
        diffusers("diffusers' DDIMPipeline", torch.float32),
        diffusers("diffusers, bfloat16", torch.bfloat16),
    ]


def cifar(count: int) -> Tensor:
    """CIFAR-10 test images of all classes, uint8 (N, 3, 32, 32)."""
    chosen = [pixels for _, pixels in pictures(data_folder() / "cifar10-test.zip", 1, count)]
    return torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2).contiguous()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text: times in milliseconds, and the spread as least to most over the turns."""
    head = (
        f"{'':24}  images  eval/img   img/s  wall ms/img      (spread)   cpu ms/img      (spread)"
        "  wall/eval  cpu/eval  x wall   x cpu"
    )
    lines = [head]
    for row in rows:
        ms = {key: 1000 * value for key, value in row.items() if key.endswith("_s")}
        lines.append(
            f"{row['name']:24}  {row['images']:6}  {row['evaluations']:8.1f}  {row['images_per_s']:6.2f}"
            f"  {ms['wall_s']:11.1f}  {ms['wall_from_s']:5.0f}..{ms['wall_to_s']:<5.0f}"
            f"  {ms['cpu_s']:10.1f}  {ms['cpu_from_s']:5.0f}..{ms['cpu_to_s']:<5.0f}"
            f"  {ms['wall_per_evaluation_s']:9.2f}  {ms['cpu_per_evaluation_s']:8.2f}"
            f"  {row['wall_ratio']:6.2f}  {row['cpu_ratio']:6.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
