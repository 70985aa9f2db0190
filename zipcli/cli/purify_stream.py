"""Purifies what comes through a pipe, for `zipcli purify - -`: one picture, or a tar stream of them."""

import sys
from typing import IO

import click

from zipcli.cli.console import Progress, closed_streams, say
from zipcli.cli.downloads import model_listener
from zipcli.cli.purify_engine import engine
from zipcli.cli.signals import StopSignals
from zipcli.config import DetectConfig, FolderConfig, PurifyConfig
from zipcli.errors import ExitCode


def stdin() -> IO[bytes]:
    """Standard input for bytes."""
    if "stdin" in closed_streams:
        raise click.UsageError("standard input is closed; there is nothing to read")
    return sys.stdin.buffer


def _stdout(what: str, command: str) -> IO[bytes]:
    """Standard output for bytes; `command` is how to use it."""
    if "stdout" in closed_streams:
        raise click.UsageError(f"standard output is closed; the {what} has nowhere to go")
    if sys.stdout.isatty():
        raise click.UsageError(f"the {what} would fill your terminal; redirect it: {command} > OUT")
    return sys.stdout.buffer


def purify_picture(config: PurifyConfig, files: FolderConfig, stop: StopSignals, *, verbose: bool) -> int:
    """One picture from standard input to standard output; returns the exit code."""
    stdout = _stdout("picture", "zipcli purify - -")

    from zipcli.images.guard import decode, shared_pool

    shared_pool().warm(1)  # it starts while we import torch
    from zipcli.errors import InputError, MemoryExhaustedError, NonFiniteError
    from zipcli.images.write import encode, output_format
    from zipcli.pipeline.purifier import Purifier, asked_classifier

    data = stop.read(stdin(), files.limits.max_bytes)
    try:
        picture = decode(data, "standard input", files.limits)
        with asked_classifier(config, stop.check) as classifier:
            purifier = Purifier.from_config(config, model_listener(stop, quiet=not verbose))
            purifier.stop_with(stop.check)
            if classifier is not None:
                purifier.ask_with(classifier)
            clean = purifier.purify_pixels([picture.pixels])[0]
        metadata = picture.metadata if files.metadata == "safe" else None
        out_format = output_format(files.format, picture.format)
        encoded = encode(clean, out_format, quality=files.quality, metadata=metadata)
    except (InputError, MemoryExhaustedError, NonFiniteError) as e:
        say(f"Error: {e}")
        return ExitCode.SOME_FAILED
    stop.check()
    stdout.write(encoded)
    stdout.flush()
    if verbose:
        queries = purifier.queries_for(1)
        asked = [] if queries is None else [f"{queries:,} queries to the classifier"]
        say("; ".join(["done standard input", *picture.notes, *asked]))
    return ExitCode.DONE


def purify_tar(
    config: PurifyConfig, files: FolderConfig, detect: DetectConfig, stop: StopSignals, verbosity: int
) -> int:
    """The pictures of a tar stream from standard input to standard output; returns the exit code."""
    stdout, descriptor = _stdout("tar stream", "zipcli purify --tar - -"), stdin().fileno()

    from zipcli.images.guard import shared_pool

    shared_pool().warm(files.jobs)
    from zipcli.pipeline.folder import FolderRun
    from zipcli.pipeline.tar import TarSink, TarSource

    progress = Progress(None, verbosity=verbosity, as_json=False)
    with engine(config, detect, stop, verbosity) as (purifier, screening), progress:
        source = TarSource(lambda: stop.read_some(descriptor), files)
        sink = TarSink(stdout, source)
        run = FolderRun(source, purifier, screening.detector, sink)
        code = run.run(progress.add, stop.check).exit_code(files.tolerated)
        sink.close()
        stdout.flush()
    progress.finish("the tar stream")
    return code
