"""Trains or fine-tunes a prior on a folder: reads it, runs the loop, measures, draws and writes.

OUT.safetensors is the model, there only when it is finished; OUT.png shows what it makes of images
that it was not trained on; OUT.safetensors.training holds what a stopped run goes on from, and is gone
when the model is there.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zipcli import __version__
from zipcli.config import NoiseSchedule, TrainConfig, check
from zipcli.errors import ConfigError, ModelError, OutputError, shown
from zipcli.images.write import publish
from zipcli.models.catalog import CATALOG, parse_name
from zipcli.models.denoiser import Denoiser
from zipcli.models.hub import Listener
from zipcli.models.loading import LoadedModel, load_model
from zipcli.models.local_unet import SIZES, LocalUNet
from zipcli.models.prior import Prior, UNetPrior
from zipcli.models.weights import write_model
from zipcli.pipeline.device import is_out_of_memory, pick_device
from zipcli.pipeline.lock import locked
from zipcli.pipeline.one_file import check_name
from zipcli.pipeline.picture_set import FileWatcher, PictureFiles, TrainingSet, read_training_set
from zipcli.pipeline.plan import check_folder
from zipcli.pipeline.sheet import draw_sheet
from zipcli.protocols import EpsModel
from zipcli.training.data import batch_at
from zipcli.training.losses import BlindStates, NoiseLoss, PartialNoise, denoising_loss
from zipcli.training.trainer import Checkpoint, Loss, Report, Trainer, unfinished
from zipcli.training.validation import DenoisingRow, denoising_table, eps_mse
from zipcli.transforms import make_operator

LR_NEW, LR_TUNED, LR_PUBLISHED = 4e-3, 1e-3, 5e-5
"""Highest learning rates: of a new network, of one that Muon trained, of one that Adam did."""

CURVE_POINTS = 10
CHECKPOINT, MODEL, SHEET, LOCK = "checkpoint.safetensors", "model.safetensors", "sheet.png", "lock"

PARTIAL_SHARE = 0.4
PARTIAL = ("blur:2", "blur:2", "blur:4", "blur:8", "gray", "gray", "blur:2 gray", "blur:4 gray")
"""In this share of every batch there is noise only where the transforms, of one word or two, keep nothing;
the finest blur and the colours are what is most often asked for. Without a prior that has seen such states
the method nullspace is of no use."""

BLIND_SHARE = 0.25
"""Likewise, and a share of its own: images with something in them that does not belong there, for the method
blind."""

RUINED = 1.5
"""A model that was tuned and errs this many times as much as before is not worth having."""

BYTES_PER_PARAMETER = 36
"""Two checkpoints with weights, average and two moments in float32 each, and the model."""


class Watcher(FileWatcher, Protocol):
    """Whoever is told how a training run goes."""

    def doing(self, what: str) -> None:
        """Something begins that takes a while."""

    def started(self, facts: Mapping[str, Any]) -> None:
        """The images are read and the network is there."""

    def progressed(self, report: Report) -> None:
        """Some steps more are done."""

    def measured(self, share: float, eps_mse: float) -> None:
        """The error on images held out, at a share of the run."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """How well a prior knows the images held out.

    Attributes:
        eps_mse: Error of the predicted noise, over the whole schedule.
        rows: The images denoised, for each noise level.
    """

    eps_mse: float
    rows: list[DenoisingRow]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run left.

    Attributes:
        file: The model.
        sheet: The pictures.
        sha256: Digest of the model.
        card: How it was made, as its file says.
        before: Measures of the model that it started from, if any.
        after: Measures of the model.
    """

    file: Path
    sheet: Path
    sha256: str
    card: dict[str, Any]
    before: Measures | None
    after: Measures


def train_prior(
    folder: Path,
    target: Path,
    config: TrainConfig,
    watcher: Watcher,
    listener: Listener,
    *,
    overwrite: bool = False,
    restart: bool = False,
) -> TrainResult:
    """Train a prior on the images below a folder.

    Args:
        folder: The images.
        target: The model file to write.
        config: Settings.
        watcher: Who is told how it goes.
        listener: Who is told of a download; its `check_stop` raises where a signal came.
        overwrite: Replace a model that is there.
        restart: Begin anew, whatever an earlier run left.

    Raises:
        ConfigError: The folder has too few images, or a setting does not fit them or the model.
        ModelError: The model to start from cannot be had, or what an earlier run left is damaged.
        OutputError: The disk is full, or the place cannot be written.
        LockedError: Another run is training the same model.
    """
    check_folder(folder)
    check_target(folder, target, overwrite=overwrite)
    device = pick_device(config.device)
    files = PictureFiles(folder, config, watcher, listener.check_stop)
    work = target.with_name(f"{target.name}.training")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{shown(str(work))}: cannot be made: {e.strerror}") from e
    with locked(work / LOCK, target), _left_only_if_needed(work), _within_memory():
        start = load_start(config, device, watcher, listener) if config.model is not None else None
        lessons = read_training_set(
            files,
            config,
            device,
            channels=start.model.channels if start else 3,
            native_side=start.model.native_side if start else None,
        )
        run = TrainRun(target, config, start, lessons, work)
        if restart:
            run.checkpoint.remove()
        result = run.run(watcher, listener.check_stop, overwrite=overwrite)
        run.checkpoint.remove()
    return result


@contextmanager
def _left_only_if_needed(work: Path) -> Iterator[None]:
    """Remove our files and their folder after a run that has nothing to go on from.

    It is finished, or never began. What others put there stays.
    """
    unfinished(work / CHECKPOINT).unlink(missing_ok=True)  # of a run that was killed
    try:
        yield
    finally:
        if not (work / CHECKPOINT).exists():
            with suppress(OSError):
                for name in (MODEL, SHEET, LOCK):
                    (work / name).unlink(missing_ok=True)
                work.rmdir()


def load_start(
    config: TrainConfig, device: torch.device, watcher: Watcher, listener: Listener
) -> LoadedModel:
    """Load the model to begin with.

    Raises:
        ModelError: It cannot be had, or its images are neither grey nor RGB.
    """
    assert config.model is not None
    start = load_model(config.model, device, "float32", offline=config.offline, listener=listener)
    if start.model.channels not in (1, 3):
        raise ModelError(
            f"model {shown(config.model)}: it has {start.model.channels} channels; images have 3, or 1"
        )
    for note in start.notes:
        watcher.note(note)
    return start


def check_target(folder: Path, target: Path, *, overwrite: bool) -> None:
    """Refuse a target that is there, is no model file, or would be learned from next time."""
    name = shown(str(target))
    check(target.suffix == ".safetensors", f"{name}: the model must be called something.safetensors")
    check(
        not target.resolve().is_relative_to(folder.resolve()),
        f"{name}: lies in the folder that is learned from, and so would the sheet of pictures beside it; "
        "choose a place outside",
    )
    check_free(target, overwrite=overwrite)


def check_free(target: Path, *, overwrite: bool) -> None:
    """Refuse to replace a model, or what has the name of the sheet beside it, unless that was asked for."""
    for file in (target, sheet_of(target)):
        check_name(file, overwrite=overwrite)


def sheet_of(target: Path) -> Path:
    """Where the sheet of pictures of a model goes."""
    return target.with_suffix(".png")


class TrainRun:
    """One model in training.

    Attributes:
        checkpoint: What a stopped run goes on from.
    """

    def __init__(
        self, target: Path, config: TrainConfig, start: LoadedModel | None, lessons: TrainingSet, work: Path
    ) -> None:
        """Prepare a run that begins with `start`, or with a new network, and keeps its state in `work`."""
        self.target, self.config, self.start, self.lessons, self.work = target, config, start, lessons, work
        self.model = start.model if start else new_model(config, lessons)
        is_ours = isinstance(self.model, Prior)
        usual = LR_NEW if start is None else LR_TUNED if is_ours else LR_PUBLISHED
        self.loop = config.loop(config.lr or usual, muon=is_ours)
        self.dtype = pick_dtype(config.dtype, lessons.device)
        # The length of the run is left out: a run may be stopped and go on with another one.
        self.settings = asdict(replace(self.loop, steps=1, minutes=None)) | {
            "images": lessons.digest,
            "crop": lessons.source.crop,
            "batch_size": lessons.source.batch,
            "holdout": config.holdout,
            "start": start.sha256 if start else config.size,
            "dtype": str(self.dtype),
            "partial": [PARTIAL_SHARE, *PARTIAL],
            "blind": BLIND_SHARE,
        }
        self.checkpoint = Checkpoint(work / CHECKPOINT, self.settings)

    def run(self, watcher: Watcher, check_stop: Callable[[], None], *, overwrite: bool) -> TrainResult:
        """Train to the end and write what came of it."""
        images, batch = self.lessons.validation, self.lessons.source.batch
        network, loss = trained_part(self.model, images.device)
        require_space(self.checkpoint.path, sum(p.numel() for p in network.parameters()))
        resumed = self.checkpoint.begun()
        before = None
        if self.start:
            watcher.doing("measuring the model to begin with")
            before = measure(Careful(self.model, batch, check_stop), images)
        source, seed = self.lessons.source, self.loop.seed
        trainer = Trainer(
            network, loss, lambda step: batch_at([source], step, seed), self.loop, dtype=self.dtype
        )
        if resumed:
            self.checkpoint.load(trainer)
        else:
            self.checkpoint.save(trainer)
        watcher.started(self._facts(trainer))
        point = int(trainer.share * CURVE_POINTS)

        def report(progress: Report) -> None:
            nonlocal point
            watcher.progressed(progress)
            if int(progress.share * CURVE_POINTS) > point and progress.share < 1:
                point = int(progress.share * CURVE_POINTS)
                average = Careful(self._finished(trainer), batch, check_stop)
                watcher.measured(progress.share, eps_mse(average, images))

        trainer.run(self.checkpoint, report, check_stop)
        watcher.doing("measuring and drawing")
        return self._write(trainer, before, check_stop, overwrite=overwrite)

    def _write(
        self,
        trainer: Trainer,
        before: Measures | None,
        check_stop: Callable[[], None],
        *,
        overwrite: bool,
    ) -> TrainResult:
        """Measure the model, draw its sheet, and write both."""
        model, images = self._finished(trainer), self.lessons.validation
        careful = Careful(model, self.lessons.source.batch, check_stop)
        after = measure(careful, images)
        if before and not after.eps_mse <= RUINED * before.eps_mse:  # NaN is not, either
            raise ModelError(
                f"training has ruined {shown(str(self.config.model))}: its error on the images held out rose "
                f"from {before.eps_mse:.4f} to {after.eps_mse:.4f}; train again with a lower --lr "
                "and --restart"
            )
        card = {
            "made_by": f"zipcli {__version__} train, torch {torch.__version__}",
            **self._facts(trainer),
            "measured_on": len(images),
            "eps_mse": round(after.eps_mse, 5),
            "denoised_psnr": {f"{row.std:g}": round(row.denoised_psnr, 2) for row in after.rows},
        }
        publish(draw_sheet(careful, images, seed=self.loop.seed), self.work, SHEET, self.work, replace=True)
        sha256 = write_model(self.work / MODEL, model, card, check_stop)
        check_free(self.target, overwrite=overwrite)  # hours may have passed
        sheet = sheet_of(self.target)
        try:  # both are on the disk already: a name needs no space
            (self.work / MODEL).replace(self.target)
            (self.work / SHEET).replace(sheet)
        except OSError as e:
            raise OutputError(f"{shown(str(self.target))}: cannot be written: {e.strerror}") from e
        return TrainResult(
            file=self.target, sheet=sheet, sha256=sha256, card=card, before=before, after=after
        )

    def _facts(self, trainer: Trainer) -> dict[str, Any]:
        return {
            **self._origin(),
            "parameters": sum(p.numel() for p in trainer.network.parameters()),
            **self.lessons.facts,
            "step": trainer.step,
            "lr": self.loop.lr,
            **(
                {"partial_noise": PARTIAL_SHARE, "blind_states": BLIND_SHARE}
                if isinstance(self.model, Prior)
                else {}
            ),
            "seed": self.loop.seed,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.lessons.device),
        }

    def _origin(self) -> dict[str, Any]:
        """What the card says of the model that this one began with, if any; its licence binds this one."""
        if self.start is None:
            return {}
        name = str(self.config.model)
        known = CATALOG.get(name)
        about = {"licence": known.licence, "data": known.data} if known else dict(self.start.card)
        # The path of a file is nobody's business.
        shown_name = Path(name).name if isinstance(parse_name(name), Path) else name
        return {"from": {"name": shown_name, "sha256": self.start.sha256, **about}}

    def _finished(self, trainer: Trainer) -> Prior | UNetPrior:
        """The moving average, served as a noise predictor."""
        if isinstance(self.model, UNetPrior):
            return UNetPrior(trainer.average, self.model.schedule)  # type: ignore[arg-type]  # a copy of a UNet
        return Prior(trainer.average, self.model.schedule, self.model.channels)  # type: ignore[arg-type]


def measure(model: EpsModel, images: Tensor) -> Measures:
    """Measure a prior on images in [-1, 1], (N, C, H, W)."""
    return Measures(eps_mse=eps_mse(model, images), rows=denoising_table(model, images))


class Careful:
    """An `EpsModel` that takes no more images at once than a step, and asks each time whether to stop."""

    def __init__(self, model: EpsModel, batch: int, check_stop: Callable[[], None]) -> None:
        """Serve `model`; `check_stop` raises where a signal came."""
        self.model, self.batch, self.check_stop = model, batch, check_stop
        self.schedule, self.channels = model.schedule, model.channels
        self.native_side, self.minimum_side = model.native_side, model.minimum_side

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """Predict the noise, (N, C, H, W), unless we are to stop."""
        parts = []
        for x, times in zip(torch.split(x_t, self.batch), torch.split(t, self.batch), strict=True):
            self.check_stop()
            parts.append(self.model(x, times))
        return torch.cat(parts)


def new_model(config: TrainConfig, lessons: TrainingSet) -> Prior:
    """A network that knows nothing yet, preconditioned for images that vary as these do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = LocalUNet(SIZES[config.size])
    denoiser = Denoiser(network, lessons.spread)
    denoiser = denoiser.to(lessons.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Prior(denoiser, NoiseSchedule(), network.config.channels)


def trained_part(model: Prior | UNetPrior, device: torch.device) -> tuple[nn.Module, Loss]:
    """What of a model has weights, and the loss that they are trained with."""
    if isinstance(model, UNetPrior):
        return model.net, NoiseLoss(model, device)

    def loss(x_0: Tensor, sigma: Tensor, noise: Tensor, _: torch.Generator) -> Tensor:
        return denoising_loss(model.denoiser, x_0, sigma, noise)

    return model.denoiser, BlindStates(with_partial_noise(loss, model.channels), BLIND_SHARE)


def with_partial_noise(loss: Loss, channels: int) -> Loss:
    """The loss of a network of ours, which learns from the states of the method nullspace as well."""
    choices = [words.split() for words in PARTIAL if channels == 3 or "gray" not in words]
    operators = [[make_operator(word, _no_mask) for word in words] for words in choices]
    return PartialNoise(loss, operators, PARTIAL_SHARE)


def _no_mask(file: str) -> Tensor:
    raise AssertionError(file)  # none of the transforms above reads one


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Precision of the multiplications: bfloat16 where the device multiplies it faster."""
    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    if device.type == "cuda":
        with torch.cuda.device(device):
            has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        asks = getattr(torch.cpu, "get_capabilities", dict)  # newer than the oldest torch that we take
        known: dict[str, Any] = asks() if device.type == "cpu" else {}
        has_it = bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    return torch.bfloat16 if has_it else torch.float32


def require_space(checkpoint: Path, parameters: int) -> None:
    """Refuse to begin where the disk cannot hold a checkpoint, its successor, and the model.

    Raises:
        OutputError: The disk is too full.
    """
    there = checkpoint.stat().st_size if checkpoint.exists() else 0
    needed, free = BYTES_PER_PARAMETER * parameters - there, shutil.disk_usage(checkpoint.parent).free
    if free < needed:
        raise OutputError(
            f"{shown(str(checkpoint.parent))}: {free / 1e6:,.1f} MB are free on this disk, and the run needs "
            f"{needed / 1e6:,.1f} MB; free some space, or choose another disk"
        )


@contextmanager
def _within_memory() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        raise ConfigError(
            "not enough memory; use a smaller --batch-size or --crop, or a smaller network"
        ) from e
