"""Workers for `zipcli purify`: which the user wants, and where they come from."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zipcli.cli.console import say
from zipcli.cli.detector_options import advice
from zipcli.cli.downloads import model_listener
from zipcli.cli.options import F, Name, with_options
from zipcli.cli.signals import StopSignals
from zipcli.config import ENGINES, CrewConfig, DetectConfig, PurifyConfig

if TYPE_CHECKING:
    from zipcli.pipeline.crew import Crew, CrewRun
    from zipcli.pipeline.ledger import Ledger
    from zipcli.pipeline.messages import Job
    from zipcli.pipeline.plan import Plan

CREW_OPTIONS = ("devices", "workers", "engine")


def crew_options(command: F) -> F:
    """Add the options that say which processes purify a folder together."""
    return with_options(
        click.option(
            "--devices",
            metavar="LIST",
            help="Purify in several processes, one for each device: cuda:0,cuda:1, or all. A CPU is one "
            "device, and a process keeps one core busy: cpu,cpu for two.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(1, 4096),
            metavar="N",
            help="With --devices or --engine ray: how many processes; devices are taken in turn.  "
            "[default: one for each device]",
        ),
        click.option(
            "--engine",
            type=Name("engine", ENGINES),
            default=CrewConfig.engine,
            show_default=True,
            help="ray purifies on a Ray cluster, that of RAY_ADDRESS or a new one on this machine.",
        ),
    )(command)


@contextlib.contextmanager
def crew_run(
    wanted: CrewConfig,
    plan: "Plan",
    ledger: "Ledger",
    config: PurifyConfig,
    detect: DetectConfig,
    stop: StopSignals,
    verbosity: int,
) -> Iterator["CrewRun"]:
    """Start the workers; they end with the block."""
    from zipcli.pipeline.crew import CrewRun
    from zipcli.pipeline.messages import Job

    if verbosity >= 0 and (text := advice(detect)):
        say(f"Note: {text}")
    bare = replace(plan, listed=None, only=None, contested=frozenset())
    job = Job(plan=bare, out=ledger.out, config=config, detect=detect, folder=Path(os.getcwd()))  # noqa: PTH109
    listener = model_listener(stop, quiet=verbosity < 0)
    with _crew(wanted, job) as crew, CrewRun(plan, ledger, crew, config.seed, listener) as run:
        yield run


@contextlib.contextmanager
def _crew(wanted: CrewConfig, job: "Job") -> Iterator["Crew"]:
    if wanted.engine == "ray":
        from zipcli.pipeline.ray_actors import ray_crew

        with ray_crew(job, wanted.workers) as crew:
            yield crew
        return
    from zipcli.pipeline.processes import Processes

    devices = list(wanted.device_names)
    if devices == ["all"]:
        from zipcli.pipeline.device import every_device

        devices = every_device()
    yield Processes(job, devices, wanted.workers)
