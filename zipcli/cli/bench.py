"""zipcli bench."""

import copy
from typing import TYPE_CHECKING, Any

import click

from zipcli.cli.console import emit, say
from zipcli.cli.options import given
from zipcli.cli.purify import PIXEL_OPTIONS
from zipcli.cli.purify import purify as purify_command
from zipcli.cli.signals import StopSignals
from zipcli.config import METHOD_ASKS, check, purify_config
from zipcli.errors import ExitCode

if TYPE_CHECKING:
    from zipcli.pipeline.bench import Row

HEAD = ("size", "batch", "images", "images/s", "evals", "ms/eval", "GFLOP/s", "of peak", "run", "MiB")
SHOWN = [name for name in PIXEL_OPTIONS if name not in ("batch_size", "masks", "saliency_threshold")]


@click.command(
    epilog="\b\nExamples:\n"
    "  zipcli bench\n"
    "  zipcli bench --size 32 --batch-size 1 --batch-size 64 --dtype bfloat16\n"
    "  zipcli bench --method zip --sampler ddim --json"
)
@click.option(
    "--size",
    "sizes",
    type=click.IntRange(1, 8192),
    multiple=True,
    default=(32, 256),
    show_default=True,
    metavar="PIXELS",
    help="Side of the images.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(min=1),
    multiple=True,
    help="Images purified together.  [default: by image size]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    default=10.0,
    show_default=True,
    help="About how long each row may take.",
)
@click.option(
    "--peers",
    is_flag=True,
    help="After all rows let diffusers' DDIMPipeline and our sampler take turns on the network, without "
    "files, with equal batches and evaluations; diffusers must be installed.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line on standard output.")
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    sizes: tuple[int, ...],
    batch_sizes: tuple[int, ...],
    seconds: float,
    peers: bool,
    as_json: bool,
    **_options: Any,
) -> int:
    """Measure how fast this machine purifies.

    Each row purifies a folder of pictures made for it, from files to files: images/s; evaluations of the
    network for an image, and the milliseconds of one; what the network reaches, and its share of the best
    convolution measured here in the same run; what the whole run reaches of that; and the memory at the
    highest. Below each row: how the busy time divides.
    """
    settings = given(ctx, SHOWN)
    method = settings.get("method")
    check(method not in METHOD_ASKS, f"method: {method} waits for a classifier most of the time; use another")
    config = purify_config(**settings)
    check(config.needs_model or not peers, f"--peers: {config.method} has no network; leave it out")
    stop = StopSignals()
    from zipcli.pipeline.bench import Bench

    bench = Bench(config)
    if peers:
        bench.check_peers(sizes)
    bench.count(sizes)
    facts = {
        **{"device": str(bench.device), "dtype": str(bench.dtype).removeprefix("torch.")},
        **{"peak_convolution_gflops": round(bench.peaks.convolution, 1)},
        **{"peak_matmul_gflops": round(bench.peaks.matmul, 1), "settings": bench.config.pixel_settings()},
    }
    if as_json:
        emit("bench_start", **facts, threads=_threads())
    else:
        best = (
            f"{bench.peaks.convolution:,.0f} GFLOP/s in convolutions, {bench.peaks.matmul:,.0f} in matrices"
        )
        say(f"{facts['device']}, {facts['dtype']}, {_threads()} threads; at best {best}")
        sampler = bench.config.pixel_settings().get("sampler")
        say(f"method {bench.config.method}" + (f", sampler {sampler}" if sampler else ""))
        click.echo("  ".join(f"{name:>8}" for name in HEAD))
    for size in sizes:
        for batch_size in batch_sizes or (None,):
            row = bench.row(size, batch_size, seconds, stop.check)
            if as_json:
                emit("bench", **row.as_json())
            else:
                click.echo(_line(row))
                shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row.shares.items())
                click.echo(f"{'':10}{shares}")
    for size in sizes if peers else ():  # after all rows, whose memory they would add to
        for batch_size in batch_sizes or (None,):
            peer = bench.beside(size, batch_size, seconds, stop.check)
            if as_json:
                emit("bench_peer", **peer.as_json())
            else:
                click.echo(
                    f"{size:>8}  {peer.batch_size:>8}  no files: {peer.zipcli_images_per_s:.3g} images/s, "
                    f"diffusers' DDIMPipeline {peer.diffusers_images_per_s:.3g}: {peer.ratio:.2f} times"
                )
    return ExitCode.DONE


# The options of purify that decide pixels, written once.
bench.params += [copy.copy(p) for p in purify_command.params if p.name in SHOWN]


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _line(row: "Row") -> str:
    cells = [
        *(f"{row.size}", f"{row.batch_size}", f"{row.images}", f"{row.images_per_s:.3g}"),
        *(f"{row.evaluations:g}", _cell(row.evaluation_s, 1000, ".3g"), _cell(row.network_gflops, 1, ".0f")),
        *(_cell(row.network_share, 100, ".0f", " %"), _cell(row.run_share, 100, ".0f", " %")),
        f"{row.peak_mb:.0f}",
    ]
    return "  ".join(f"{cell:>8}" for cell in cells)


def _cell(value: float | None, factor: float, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value * factor:{form}}{unit}"
