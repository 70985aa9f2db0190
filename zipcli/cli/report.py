"""zipcli report."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zipcli.cli.console import say
from zipcli.cli.options import LocalPath, given
from zipcli.cli.signals import StopSignals
from zipcli.config import ReportConfig
from zipcli.errors import ExitCode, StoppedError, shown

if TYPE_CHECKING:
    from zipcli.pipeline.report import SuspicionMap, Watcher

OPTIONS = [field.name for field in fields(ReportConfig)]


@click.command(
    epilog="\b\nExamples:\n"
    "  zipcli report clean -o report.html\n"
    "  zipcli report clean -o report.html --evaluation badnets.json --evaluation wanet.json"
)
@click.argument("out", metavar="OUT", type=LocalPath(path_type=Path))
@click.option(
    "--output",
    "-o",
    "target",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The page to write.",
)
@click.option(
    "--input",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where the images are that were purified.  [default: where they were then]",
)
@click.option(
    "--evaluation",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Show what `zipcli evaluate` measured; may be given several times.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=ReportConfig.limit,
    show_default=True,
    help="Most images on the page; failures are never left out.",
)
@click.option(
    "--maps",
    is_flag=True,
    help="Show how implausible each part of an input is under the built-in prior; takes about a second for "
    "a photograph.",
)
@click.option("--title", help="Heading of the page.  [default: the name of OUT]")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@click.pass_context
def report(
    ctx: click.Context, /, out: Path, target: Path, maps: bool, overwrite: bool, **_options: Any
) -> int:
    """Show before and after on one HTML page.

    OUT is the output folder of `zipcli purify`. The page holds everything that it shows and opens without
    a connection. A picture on it is the one that the ledger recorded: what was changed since is named, not
    shown.
    """
    config = ReportConfig(**given(ctx, OPTIONS))
    stop = StopSignals()
    from zipcli.pipeline.report import write_report

    try:
        with _progress(stop) as watch, _maps(stop, wanted=maps) as draw:
            written = write_report(out, target, config, watch, overwrite=overwrite, suspicion_map=draw)
    except StoppedError as e:
        say(f"stopped; {shown(str(target))} was not written")
        return e.exit_code
    for note in written.notes:
        say(f"Note: {note}")
    say(f"{written.images:,} images, {written.failed:,} failed; {written.bytes / 1e6:.1f} MB")
    click.echo(os.fsencode(target))
    return ExitCode.DONE


@contextmanager
def _maps(stop: StopSignals, *, wanted: bool) -> Iterator["SuspicionMap | None"]:
    """What draws suspicion maps; without them torch is not needed."""
    if not wanted:
        yield None
        return
    from zipcli.pipeline.maps import residual_maps

    with residual_maps(stop.check) as draw:
        yield draw


@contextmanager
def _progress(stop: StopSignals) -> Iterator["Watcher"]:
    """A bar on a terminal, and nothing elsewhere: it is a matter of seconds."""
    if not sys.stderr.isatty():
        yield lambda done, total: stop.check()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = TextColumn("reading the images"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def watch(done: int, total: int) -> None:
            stop.check()
            bar.update(task, completed=done, total=total)

        yield watch
