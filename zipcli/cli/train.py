"""zipcli train."""

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from zipcli.cli.console import FAILURES_SHOWN, PLAIN_SECONDS, clock, emit, printable, say
from zipcli.cli.downloads import model_listener
from zipcli.cli.options import LocalPath, Name, given, selection_options
from zipcli.cli.signals import StopSignals
from zipcli.config import SIZES, TRAIN_DTYPES, TrainConfig
from zipcli.errors import ExitCode, Reason, StoppedError, shown
from zipcli.pipeline.outcome import json_path

if TYPE_CHECKING:
    from zipcli.pipeline.train import TrainResult
    from zipcli.training.trainer import Report

OPTIONS = [field.name for field in fields(TrainConfig)]


@click.command(
    epilog="\b\nExamples:\n"
    "  zipcli train xrays xrays.safetensors --minutes 120\n"
    "  zipcli train signs signs.safetensors --from builtin --steps 3000\n"
    "  zipcli purify suspects clean --model signs.safetensors"
)
@click.argument("folder", metavar="IN", type=LocalPath(path_type=Path))
@click.argument("target", metavar="OUT", type=LocalPath(path_type=Path))
@click.option(
    "--from",
    "model",
    metavar="NAME",
    help="Go on from a model: builtin, another name that `zipcli models list` shows, "
    "owner/name[@revision][/file] on the Hugging Face Hub, or a file or folder.  [default: a new network]",
)
@click.option(
    "--size",
    type=Name("size", SIZES),
    default=TrainConfig.size,
    show_default=True,
    help="Of a new network: small is that of the built-in model; medium costs 4 times as much, and large "
    "13 times.",
)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="How long to train.  [default: 30]"
)
@click.option("--steps", type=click.IntRange(min=1), help="How long to train, instead of --minutes.")
@click.option(
    "--crop",
    type=click.IntRange(min=8),
    metavar="PIXELS",
    help="Side of the crops to learn from; smaller images are not used.  [default: 64, or less where most "
    "images are smaller, or what the model sees]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Crops in a step.  [default: 96 of 32 pixels or as much in larger ones; 4 times that on a GPU]",
)
@click.option(
    "--lr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Highest learning rate.  [default: 0.004 for a new network, 0.001 from one of ours, 0.00005 from "
    "others]",
)
@click.option(
    "--holdout",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=TrainConfig.holdout,
    show_default=True,
    help="Share of the images to measure with and not to learn from.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**40 - 1),
    default=TrainConfig.seed,
    show_default=True,
    help="Seed of everything that is drawn.",
)
@click.option(
    "--device",
    "-d",
    default=TrainConfig.device,
    show_default=True,
    help="auto, cpu, cuda, cuda:N or mps; an absent device is an error.",
)
@click.option(
    "--dtype",
    type=Name("dtype", TRAIN_DTYPES),
    default=TrainConfig.dtype,
    show_default=True,
    help="Precision of the multiplications; auto is bfloat16 where the device has it.",
)
@click.option("--offline", is_flag=True, help="Never connect to the Hub; the model must be here.")
@selection_options
@click.option(
    "--overwrite", is_flag=True, help="Replace OUT, and the sheet of pictures beside it, if they are there."
)
@click.option(
    "--restart", is_flag=True, help="Begin anew where an earlier run was stopped; leave it out to go on."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="No progress; the result only.")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    folder: Path,
    target: Path,
    overwrite: bool,
    restart: bool,
    as_json: bool,
    quiet: bool,
    **_options: Any,
) -> int:
    """Train a diffusion prior on the images below IN, and write it to OUT, a .safetensors file.

    A prior that was trained on images like yours restores them best. A tenth of the images is held
    out to measure with. A run that was stopped goes on where it was when the same command is run again;
    OUT appears when it is finished, with a sheet of pictures beside it to look at.
    """
    options = given(ctx, OPTIONS)
    if "model" in options and "size" in options:
        raise click.UsageError("--size: is of a new network; leave it out with --from")
    if "offline" in options and "model" not in options:
        raise click.UsageError("--offline: a new network needs no connection; leave it out")
    if "steps" in options and "minutes" in options:
        _prefer_flag(ctx, options)
    config = TrainConfig(**options)
    stop = StopSignals(grace=None)  # a checkpoint takes the time that it takes
    from zipcli.pipeline.train import train_prior

    listener = model_listener(stop, quiet=quiet or as_json)
    try:
        with TrainProgress(quiet=quiet, as_json=as_json) as progress:
            result = train_prior(
                folder, target, config, progress, listener, overwrite=overwrite, restart=restart
            )
    except StoppedError as e:
        if as_json:
            emit("train_end", exit_code=int(e.exit_code))
        words = [word for word in sys.argv[1:] if word != "--restart"]
        say(f"stopped; to go on, run: {shlex.join(['zipcli', *words])}")
        return e.exit_code
    _show(result, as_json=as_json)
    return ExitCode.DONE


def _prefer_flag(ctx: click.Context, options: dict[str, Any]) -> None:
    """Of --steps and --minutes keep the one that was typed, where the other is from the environment."""
    typed = [n for n in ("steps", "minutes") if ctx.get_parameter_source(n) is ParameterSource.COMMANDLINE]
    if len(typed) != 1:
        raise click.UsageError("give --steps or --minutes, not both")
    del options["minutes" if typed == ["steps"] else "steps"]


class TrainProgress:
    """Shows a training run: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        """Begin with nothing."""
        self.quiet = quiet
        self.as_json = as_json
        self._skipped = 0
        self._said = 0.0
        self._bar: Any = None

    def __enter__(self) -> "TrainProgress":
        """Nothing to show yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()

    def skipped(self, path: str, reason: Reason, message: str) -> None:
        """Name the first files that cannot be used; the others are only counted."""
        self._skipped += 1
        text = message if message.startswith(shown(path)) else f"{shown(path)}: {message}"
        if self.as_json:
            emit("skipped", **json_path("path", path), reason=str(reason), message=text)
        if self._skipped <= FAILURES_SHOWN:
            say(f"skipped ({reason}) {text}")
        elif self._skipped == FAILURES_SHOWN + 1:
            say("... and more; they are counted")

    def note(self, text: str) -> None:
        """Say it, quiet or not."""
        say(f"Note: {text}")

    def doing(self, what: str) -> None:
        """Say it, since nothing moves meanwhile."""
        if not self.quiet:
            self._line(f"{what} ...")

    def started(self, facts: Mapping[str, Any]) -> None:
        """Say what is about to be done."""
        if self.as_json:
            emit("train_start", **facts)
        if self.quiet:
            return
        begin = f"going on at step {facts['step']:,}" if facts["step"] else "beginning"
        say(
            f"{begin}: {facts['images']:,} images to learn from and {facts['held_out']:,} held out, "
            f"{self._skipped:,} skipped; {facts['parameters']:,} parameters, batches of "
            f"{facts['batch_size']} crops of {facts['crop']} pixels, {facts['dtype']} on {facts['device']}"
        )
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = _live_bar()
            self._bar.start()

    def progressed(self, report: "Report") -> None:
        """Show how far the run is."""
        left, rate = clock(report.seconds_left), f"{report.images_per_s:,.0f} images/s"
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=report.share, loss=report.loss, rate=rate, left=left
            )
        now = time.monotonic()
        if now - self._said < PLAIN_SECONDS and report.share < 1:
            return
        self._said = now
        if self.as_json:
            emit("progress", **asdict(report))
        if self._bar is None and not self.quiet:
            say(f"step {report.step:,} ({report.share:.0%}) loss {report.loss:.4f} {rate} {left} left")

    def measured(self, share: float, eps_mse: float) -> None:
        """Show a point of the learning curve."""
        if self.as_json:
            emit("measured", share=round(share, 4), eps_mse=eps_mse)
        if not self.quiet:
            self._line(f"at {share:.0%}: eps-MSE {eps_mse:.4f} on the images held out")

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(
                printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True
            )
        else:
            say(text)


def _show(result: "TrainResult", *, as_json: bool) -> None:
    if as_json:
        emit(
            "train_end",
            file=str(result.file),
            sheet=str(result.sheet),
            sha256=result.sha256,
            before=asdict(result.before) if result.before else None,
            after=asdict(result.after),
            card=result.card,
            exit_code=int(ExitCode.DONE),
        )
        return
    count = result.card["measured_on"]
    if skipped := sum(result.card["skipped"].values()):
        say(f"{skipped:,} files were skipped")
    say(f"on {count} crops of images held out: eps-MSE {result.after.eps_mse:.4f} over the schedule")
    say("noise std   noisy dB   denoised dB   eps-MSE" + ("   before: dB" if result.before else ""))
    for number, row in enumerate(result.after.rows):
        before = f"   {result.before.rows[number].denoised_psnr:10.2f}" if result.before else ""
        say(f"{row.std:9g}   {row.noisy_psnr:8.2f}   {row.denoised_psnr:11.2f}   {row.eps_mse:7.4f}{before}")
    say(f"SHA-256 {result.sha256}; pictures in {shown(str(result.sheet))}")
    click.echo(str(result.file))


def _live_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("loss {task.fields[loss]:.4f} {task.fields[rate]} {task.fields[left]} left"),
        console=Console(stderr=True),
    )
    bar.add_task("training", total=1.0, loss=0.0, rate="", left="")
    return bar
