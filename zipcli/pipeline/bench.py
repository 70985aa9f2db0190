"""How fast this machine purifies, beside what it could do at best; measured on pictures made here.

Shares of time are busy seconds of each stage of a whole run: reading and writing work beside the network, so
together they may be more than has passed. Peaks are the best of several sizes and turns, in the precision of
the network and in this process; what a network reaches of them is its operations over its seconds, timed in
the same batches before the run, with nothing beside it.
"""

import math
import resource
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zipcli.config import DetectConfig, FolderConfig, PurifyConfig, check
from zipcli.methods import EVALUATIONS
from zipcli.models.loading import LoadedModel, load_model
from zipcli.models.packed import is_batch_invariant
from zipcli.pipeline.detection import open_detector
from zipcli.pipeline.folder import FolderRun, Item, Loaded
from zipcli.pipeline.ledger import Ledger
from zipcli.pipeline.outcome import Outcome
from zipcli.pipeline.peers import DiffusersDDIM, import_diffusers
from zipcli.pipeline.plan import Entry, Plan
from zipcli.pipeline.purifier import Purifier, laid_out
from zipcli.pipeline.windows import WindowedModel
from zipcli.protocols import EpsModel

STAGES = ("decode", "network", "maths", "encode")
FEWEST = 8
MOST = 5000
"""Bounds of the number of images of a row."""
FEWEST_TURNS = 3
ALONE_SECONDS = 2.0
"""Most of a row's time that the network gets with nothing beside it."""

CONVOLUTIONS = ((4, 48, 32), (4, 96, 16), (4, 128, 32), (1, 64, 128), (4, 256, 32))
"""(images, channels, side) of the 3x3 convolutions whose best is the peak."""
MATRICES = (512, 1024)


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """The best that plain PyTorch reaches here, in GFLOP/s.

    Attributes:
        convolution: Of 3x3 convolutions, channels last.
        matmul: Of square matrices.
    """

    convolution: float
    matmul: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One size of images, and one batch size.

    Attributes:
        size: Side of the images, in pixels.
        batch_size: Images purified together.
        images: How many there were.
        images_per_s: Of the whole run, from files to files.
        evaluations: Of the network, for each image.
        evaluation_s: Seconds of one evaluation of one image, with nothing else at work.
        gflop: Floating-point operations of one evaluation of one image, in 1e9; None without a network.
        network_gflops: What the network reaches with nothing else at work, in GFLOP/s.
        run_gflops: What the whole run reaches.
        network_share: The first over the peak of convolutions.
        run_share: The second over the first.
        shares: Of busy time, for each of `STAGES`; they add up to 1.
        peak_mb: Highest memory of the process so far, in MiB; on a GPU, of that.
    """

    size: int
    batch_size: int
    images: int
    images_per_s: float
    evaluations: float
    evaluation_s: float | None
    gflop: float | None
    network_gflops: float | None
    run_gflops: float | None
    network_share: float | None
    run_share: float | None
    shares: dict[str, float]
    peak_mb: float

    def as_json(self) -> dict[str, Any]:
        """The values, rounded to what they are worth."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class PeerRow:
    """Diffusers' DDIMPipeline and our sampler in turns, without files, with equal batches and evaluations.

    Attributes:
        size: Side of the images, in pixels.
        batch_size: Images in a batch.
        evaluations: Of the network, for each image.
        diffusers_images_per_s: What diffusers reaches; the median of the turns.
        zipcli_images_per_s: What we reach.
        ratio: The second over the first.
    """

    size: int
    batch_size: int
    evaluations: float
    diffusers_images_per_s: float
    zipcli_images_per_s: float
    ratio: float

    def as_json(self) -> dict[str, Any]:
        """The values, rounded to what they are worth."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


class Stopwatch:
    """Busy seconds by name, from any thread."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def measuring(self, name: str, device: torch.device | None = None) -> Iterator[None]:
        """Add the time of a block; that of a device whose calls return early when it has ended."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._stop(name, began, device)

    def _stop(self, name: str, began: float, device: torch.device | None) -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        with self._lock:
            self.seconds[name] += time.perf_counter() - began


class TimedModel:
    """An `EpsModel` under a stopwatch."""

    def __init__(self, model: EpsModel, watch: Stopwatch, device: torch.device) -> None:
        """Wrap `model`."""
        self.model, self.watch, self.device = model, watch, device
        self.schedule, self.channels = model.schedule, model.channels
        self.native_side, self.minimum_side = model.native_side, model.minimum_side

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """Predict the noise; see `EpsModel`."""
        with self.watch.measuring("network", self.device):
            return self.model(x_t, t)


class TimedRun(FolderRun):
    """A run whose stages are under a stopwatch."""

    watch: Stopwatch

    def load(self, entry: Entry) -> Loaded | Outcome:
        """Read one file."""
        with self.watch.measuring("decode"):
            return super().load(entry)

    def decode(self, loaded: Loaded) -> Item | Outcome:
        """Decode one file."""
        with self.watch.measuring("decode"):
            return super().decode(loaded)

    def write(self, item: Item) -> Outcome:
        """Encode one image."""
        with self.watch.measuring("encode"):
            return super().write(item)


class TimedPurifier(Purifier):
    """A purifier under a stopwatch."""

    watch: Stopwatch

    def purify_pixels(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Purify images of one shape together."""
        with self.watch.measuring("purify", self.device):
            return super().purify_pixels(images)


class Bench:
    """Measures one set of settings on several sizes.

    Attributes:
        device: Where it runs.
        config: The settings, with what the model has to say.
        dtype: Precision of the network.
    """

    def __init__(self, config: PurifyConfig) -> None:
        """Load the model.

        Raises:
            ConfigError: The settings do not fit.
            ModelError: The model cannot be had.
        """
        self.device = Purifier(config).device
        self._loaded: LoadedModel | None = None
        self._gflop: dict[int, float] = {}
        dtype = torch.float32
        if config.needs_model:
            self._loaded = load_model(config.model, self.device, config.dtype, offline=config.offline)
            dtype = getattr(torch, self._loaded.fingerprint["dtype"])
            config = config.for_model(self._loaded.card)
            self._plain = self._loaded.model
            window = Purifier(config).window(self._plain.schedule, self._plain.native_side)
            self._side, self._overlap = window
        self.config = config
        self.dtype = dtype

    @cached_property
    def peaks(self) -> Peaks:
        """What the machine reaches at best; measured when it is asked for first."""
        return measure_peaks(self.device, self.dtype)

    def check_peers(self, sizes: Sequence[int]) -> None:
        """Refuse what diffusers cannot do as we do.

        Raises:
            ConfigError: It is missing, an image is more than one window, or the chain has more evaluations
                than the model has timesteps.
        """
        import_diffusers()
        timesteps = self._plain.schedule.timesteps
        check(self._evaluations(1) <= timesteps, f"--peers: diffusers takes {timesteps} steps at most")
        for size in sizes:
            check(
                size <= self._side and self._plain.native_side in (None, size),
                f"--peers: size {size} is not one image of the network; give --size {self._side}",
            )

    def count(self, sizes: Sequence[int]) -> None:
        """Count the operations at some sizes; a network laid out for inference cannot be counted any more."""
        for size in sizes if self._loaded else ():
            self._gflop[size] = self._operations(size)

    def _operations(self, size: int) -> float:
        """GFLOP of one evaluation for one image of `size`."""
        model = self._plain
        windowed = WindowedModel(model, self._side, self._overlap)
        per_canvas = windowed.images_per_canvas((size, size))
        side = model.native_side or windowed.window((size, size))[0]
        x = torch.zeros(1, model.channels, side, side, device=self.device)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(x, torch.zeros(1, device=self.device))
        windows = _windows(size, side, self._overlap) if per_canvas == 1 else 1 / per_canvas
        return float(counter.get_total_flops() * windows / 1e9)

    def row(self, size: int, batch_size: int | None, seconds: float, check_stop: Callable[[], None]) -> Row:
        """Purify a folder of pictures.

        Args:
            size: Side of the pictures, in pixels.
            batch_size: Images purified together; None to leave it to the purifier.
            seconds: About how long it may take.
            check_stop: Called between images; it may raise to stop.
        """
        watch = Stopwatch()
        purifier = self._purifier(batch_size, watch, check_stop)
        batch = purifier.batch_size((size, size))
        some = [picture(size, n) for n in range(batch)]
        purifier.purify_pixels(some)  # once for caches and clocks
        watch.seconds.clear()
        turns = 0
        while watch.seconds["purify"] < min(ALONE_SECONDS, seconds / 4) or turns < 2:
            purifier.purify_pixels(some)
            check_stop()
            turns += 1
        alone = watch.seconds["network"] / (turns * batch)
        expected = watch.seconds["purify"] / (turns * batch)
        count = batch * math.ceil(min(MOST, max(FEWEST, seconds / expected)) / batch)
        watch.seconds.clear()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with tempfile.TemporaryDirectory(prefix="zipcli-bench-") as name:
            source, out = Path(name) / "in", Path(name) / "out"
            source.mkdir()
            for n in range(count):
                Image.fromarray(picture(size, n)).save(source / f"{n:06}.png")
                check_stop()
            passed = self._run(source, out, purifier, watch, check_stop)
        return self._result(size, batch, count, passed, alone, watch)

    def beside(
        self, size: int, batch_size: int | None, seconds: float, check_stop: Callable[[], None]
    ) -> PeerRow:
        """Let diffusers and our sampler take turns.

        Args:
            size: Side of the images, in pixels; see `check_peers`.
            batch_size: Images in a batch; None to leave it to the purifier.
            seconds: About how long it may take.
            check_stop: Called between the turns; it may raise to stop.

        Raises:
            ConfigError: Diffusers is missing.
        """
        purifier = self._purifier(batch_size, Stopwatch(), check_stop)
        batch, evaluations = purifier.batch_size((size, size)), round(self._evaluations(size))
        peer = DiffusersDDIM(self.config, self.device, self.dtype, size)
        some = [picture(size, n) for n in range(batch)]
        turns: tuple[tuple[Callable[[], object], list[float]], ...] = (
            (lambda: peer.draw(batch, evaluations), []),
            (lambda: purifier.purify_pixels(some), []),
        )
        ends = time.perf_counter() + seconds
        while len(turns[0][1]) < FEWEST_TURNS or time.perf_counter() < ends:
            for purify, passed in turns:
                began = time.perf_counter()
                purify()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                passed.append(time.perf_counter() - began)
                check_stop()
        theirs, ours = (batch / median(passed) for _, passed in turns)
        return PeerRow(
            size=size,
            batch_size=batch,
            evaluations=evaluations,
            diffusers_images_per_s=theirs,
            zipcli_images_per_s=ours,
            ratio=ours / theirs,
        )

    def _purifier(
        self, batch_size: int | None, watch: Stopwatch, check_stop: Callable[[], None]
    ) -> TimedPurifier:
        """A purifier under `watch`."""
        purifier = TimedPurifier(self.config.changed(batch_size=batch_size))
        purifier.watch = watch
        if self._loaded is not None:
            model = laid_out(self._loaded.model, self.config, check_stop)
            self._loaded = replace(self._loaded, model=model)
            timed, invariant = TimedModel(model, watch, self.device), is_batch_invariant(model)
            purifier.use(timed, self._loaded.fingerprint, batch_invariant=invariant)
            purifier.stop_with(check_stop)
        return purifier

    def _run(
        self, source: Path, out: Path, purifier: Purifier, watch: Stopwatch, check_stop: Callable[[], None]
    ) -> float:
        """Seconds that a folder takes."""
        files = FolderConfig()
        ledger = Ledger(out, source, files.part)
        with open_detector(DetectConfig(detector="none")) as screening:
            ledger.use_settings({**purifier.fingerprint_parts, **files.file_settings()}, overwrite=False)
            run = TimedRun(Plan(base=source, config=files, out=out), purifier, screening.detector, ledger)
            run.watch = watch
            began = time.perf_counter()
            with ledger.open():
                run.run(lambda outcome: None, check_stop)
        return time.perf_counter() - began

    def _result(
        self, size: int, batch: int, count: int, passed: float, alone: float, watch: Stopwatch
    ) -> Row:
        """A row, from the seconds of a whole run and those of the network alone for an image."""
        busy = {name: watch.seconds[name] for name in ("decode", "network", "encode")}
        busy["maths"] = max(0.0, watch.seconds["purify"] - busy["network"])
        total = sum(busy.values())
        evaluations = self._evaluations(size)
        gflop = self._gflop.get(size)
        network = gflop * evaluations / alone if gflop else None
        whole = gflop * evaluations * count / passed if gflop else None
        return Row(
            size=size,
            batch_size=batch,
            images=count,
            images_per_s=count / passed,
            evaluations=evaluations,
            evaluation_s=alone / evaluations if evaluations else None,
            gflop=gflop,
            network_gflops=network,
            run_gflops=whole,
            network_share=network / self.peaks.convolution if network else None,
            run_share=whole / network if whole and network else None,
            shares={name: busy[name] / total for name in STAGES},
            peak_mb=self._peak_memory(),
        )

    def _evaluations(self, size: int) -> float:
        """Calls of the network for an image of a side, as if it were one window."""
        if self._loaded is None:
            return 0.0
        return float(EVALUATIONS[self.config.method](self.config, self._loaded.model.schedule, (size, size)))

    def _peak_memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure_peaks(device: torch.device, dtype: torch.dtype, turns: int = 20) -> Peaks:
    """Measure what the machine reaches at best."""
    convolution = max(_convolution(device, dtype, shape, turns) for shape in CONVOLUTIONS)
    return Peaks(
        convolution=convolution, matmul=max(_matmul(device, dtype, side, turns) for side in MATRICES)
    )


def _convolution(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], turns: int) -> float:
    images, channels, side = shape
    order = torch.channels_last
    x = torch.randn(images, channels, side, side, device=device).to(dtype, memory_format=order)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=order)
    seconds = _best(lambda: F.conv2d(x, weight, padding=1), device, turns)
    return 2 * images * channels**2 * 9 * side**2 / seconds / 1e9


def _matmul(device: torch.device, dtype: torch.dtype, side: int, turns: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: a @ b, device, turns) / 1e9


def _best(call: Callable[[], object], device: torch.device, turns: int) -> float:
    """The shortest time of some calls, in seconds."""
    shortest = math.inf
    with torch.inference_mode():
        for _ in range(turns):
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            shortest = min(shortest, time.perf_counter() - began)
    return shortest


def picture(side: int, seed: int) -> np.ndarray:
    """A picture that is as smooth as photographs are: uint8, (side, side, 3)."""
    random = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(random.standard_normal((3, side, side)))
    frequency = np.hypot(*np.meshgrid(np.fft.rfftfreq(side), np.fft.fftfreq(side)))
    smooth = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / side) ** 1.5, s=(side, side))
    levels = 128 + 60 * smooth / smooth.std()
    return np.ascontiguousarray(levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def _windows(size: int, side: int, overlap: int) -> int:
    """Windows of `side` that cover a square image."""
    if size <= side:
        return 1
    return math.ceil((size - overlap) / (side - overlap)) ** 2


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
