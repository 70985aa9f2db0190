"""zipcli detect."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zipcli.cli.console import FAILURES_SHOWN, PLAIN_SECONDS, clock, closed_streams, emit, say
from zipcli.cli.detector_options import advice, detector_config, detector_options
from zipcli.cli.options import LIMIT_OPTIONS, LocalPath, given, limit_options, selection_options
from zipcli.cli.signals import StopSignals
from zipcli.config import DetectConfig, FolderConfig
from zipcli.errors import ConfigError, ExitCode, InputError, StoppedError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from zipcli.pipeline.detection import Screening, Verdict
    from zipcli.pipeline.plan import Plan


@click.command(
    epilog="\b\nExamples:\n"
    "  zipcli detect photos\n"
    "  zipcli detect photos --clean known-good --fpr 0.01 --maps maps --json\n"
    "  zipcli detect photos --detector scaleup --classifier model.pt"
)
@click.argument("folder", metavar="IN", type=LocalPath(path_type=Path))
@detector_options(
    default=DetectConfig.detector,
    help="residual and frequency look at the image alone; scaleup and strip ask a classifier.",
)
@click.option(
    "--maps",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="residual: write what is suspicious where, as DIR/PATH.png; white is 8 standard deviations above "
    "the usual.",
)
@click.option("--overwrite", is_flag=True, help="Write maps into a folder that is not empty.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=DetectConfig.seed,
    show_default=True,
    help="strip: seed of what is laid over an image.",
)
@click.option(
    "--device",
    "-d",
    default=DetectConfig.device,
    show_default=True,
    help="residual: auto, cpu, cuda, cuda:N or mps; an absent device is an error.",
)
@selection_options
@limit_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="No progress; failures and a summary only.")
@click.pass_context
def detect(
    ctx: click.Context,
    /,
    folder: Path,
    detector: str,
    maps: Path | None,
    overwrite: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **_options: Any,
) -> int:
    """Say which of the images below IN look as if a trigger was in them.

    Standard output has a line for each image: `suspicious` or `clear`, the score and the path, with tabs
    between them. An image that cannot be read has no line there, and the exit code is 3.
    """
    if maps is not None and detector != "residual":
        raise ConfigError(f"maps: detector {detector} does not use it; leave it out")
    if overwrite and maps is None:
        raise click.UsageError("--overwrite needs --maps")
    if as_json and "stdout" in closed_streams:
        raise click.UsageError("--json: standard output is closed")
    config = detector_config(ctx, detector, **given(ctx, ("seed", "device")))
    if not quiet and (text := advice(config)):
        say(f"Note: {text}")
    stop = StopSignals()
    from zipcli.images.guard import shared_pool

    files = FolderConfig(include=include, exclude=exclude, **given(ctx, LIMIT_OPTIONS))
    shared_pool().warm(files.jobs)  # they start while we import torch
    from zipcli.pipeline.detection import open_detector

    plan = _plan(folder, files, maps, overwrite=overwrite)
    total = _count(plan, stop)
    counts: Counter[str] = Counter()
    code = ExitCode.DONE
    began = time.monotonic()
    try:
        with open_detector(config, lambda text: say(f"Note: {text}"), stop.check) as screening:
            if as_json:
                settings = {"detector": detector, **screening.fingerprint_parts}
                threshold = screening.detector.threshold
                emit("detect_start", schema=1, found=total, threshold=threshold, settings=settings)
            for verdict in _verdicts(plan, screening, total, stop, quiet=quiet):
                verdict = _write_map(verdict, maps, replace=overwrite)
                counts[verdict.state] += 1
                _show(verdict, counts["failed"], as_json=as_json)
            threshold = screening.detector.threshold
    except StoppedError as e:
        say("stopped; what was said until now holds")
        code = e.exit_code
    else:
        code = ExitCode.SOME_FAILED if counts["failed"] else ExitCode.DONE
        seen = counts["suspicious"] + counts["clear"]
        ignored = f", skipped {counts['skipped']} links and special files" if counts["skipped"] else ""
        say(
            f"suspicious {counts['suspicious']} of {seen} images (score {threshold:.4g} and above), failed "
            f"{counts['failed']}{ignored}, in {clock(time.monotonic() - began)}"
        )
    if as_json:
        states = {state: counts[state] for state in ("clear", "suspicious", "skipped", "failed")}
        emit("detect_end", found=counts.total(), **states, exit_code=int(code))
    return code


def _plan(folder: Path, config: FolderConfig, maps: Path | None, *, overwrite: bool) -> "Plan":
    from zipcli.pipeline.detection import make_map_folder
    from zipcli.pipeline.plan import Plan, check_folder

    check_folder(folder)
    if maps is not None:
        make_map_folder(maps, folder, overwrite=overwrite)
    return Plan(base=folder, config=config)


def _count(plan: "Plan", stop: StopSignals) -> int:
    from zipcli.pipeline.plan import no_images

    total = 0
    for _ in plan.entries():
        stop.check()
        total += 1
    if total == 0:
        raise ConfigError(no_images(plan))
    return total


def _verdicts(
    plan: "Plan", screening: "Screening", total: int, stop: StopSignals, *, quiet: bool
) -> Iterator["Verdict"]:
    from zipcli.pipeline.detection import detect_folder

    with _progress(total, quiet=quiet) as advance:
        for verdict in detect_folder(plan, screening.detector, stop.check):
            yield verdict
            advance()
            stop.check()


def _write_map(verdict: "Verdict", maps: Path | None, *, replace: bool) -> "Verdict":
    """Write the map of an image; where that is not possible the image has failed."""
    if maps is None or verdict.map is None:
        return verdict
    from zipcli.pipeline.detection import Verdict, write_map

    try:
        write_map(verdict, maps, replace=replace)
    except InputError as e:
        return Verdict(path=verdict.path, state="failed", reason=e.reason, message=str(e))
    return verdict


def _show(verdict: "Verdict", failed: int, *, as_json: bool) -> None:
    if as_json:
        emit("image", **verdict.as_json())
    elif verdict.score is not None:
        click.echo(f"{verdict.state}\t{verdict.score:.6f}\t{shown(verdict.path)}")
    if verdict.state == "failed":
        if failed <= FAILURES_SHOWN:
            path, text = shown(verdict.path), verdict.message or ""
            text = text if text.startswith(path) else f"{path}: {text}"
            say(f"failed ({verdict.reason}) {text}")
        elif failed == FAILURES_SHOWN + 1:
            say("... and more failures; --json names all of them")


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator["Callable[[], None]"]:
    """A bar where somebody can see it and the results go elsewhere; else a line now and then."""
    done, said = 0, time.monotonic()
    on_terminal = sys.stderr is not None and sys.stderr.isatty() and not os.isatty(1)
    if quiet or not on_terminal:

        def count() -> None:
            nonlocal done, said
            done += 1
            if not quiet and time.monotonic() - said >= PLAIN_SECONDS:
                said = time.monotonic()
                say(f"judged {done} of {total} images")

        yield count
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("judging", total=total)
        yield lambda: bar.advance(task)
