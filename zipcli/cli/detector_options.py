"""The options that describe a detector, for every command that takes one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from zipcli.cli.classifier_options import classifier_config, classifier_options
from zipcli.cli.options import F, Name, given, with_options
from zipcli.config import DETECTOR_SETTINGS, DetectConfig, detect_config
from zipcli.detectors import DETECTORS, MEASURED_ON_CIFAR

OPTIONS = ("clean", "threshold", "fpr", "superimposed")
"""Fields of `DetectConfig` that have an option of their own here."""


def detector_options(*, default: str, help: str) -> Callable[[F], F]:
    """Add --detector and what describes it to a command; `detector_config` reads them.

    Only a command whose default is none offers it.
    """
    names = [name for name in DETECTORS if default == "none" or name != "none"]
    options = (
        click.option(
            "--detector", type=Name("detector", names), default=default, show_default=True, help=help
        ),
        click.option(
            "--clean",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Images that nobody tampered with, like those to judge: the detector finds its threshold on "
            "them. strip lays them over others; scaleup compares within their class folders.",
        ),
        click.option(
            "--threshold",
            type=float,
            metavar="SCORE",
            help="Score from which an image is suspicious.  [default: by --fpr; 0.5 for scaleup]",
        ),
        click.option(
            "--fpr",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            metavar="SHARE",
            help="Share of clean images that may be called suspicious.  [default: 0.05; 0.01 for strip]",
        ),
        click.option(
            "--superimposed",
            type=click.IntRange(1, 10_000),
            default=DetectConfig.superimposed,
            show_default=True,
            help="strip: clean images that are laid over each image.",
        ),
    )

    return with_options(*options, classifier_options(required=False))


def advice(config: DetectConfig) -> str | None:
    """What to tell a user whose images the threshold may not fit."""
    if config.detector not in MEASURED_ON_CIFAR or config.clean is not None or config.threshold is not None:
        return None
    return (
        f"detector {config.detector}: its threshold is that of CIFAR-10 images; of other clean images it "
        "suspects more. Give --clean DIR with some of yours that are clean"
    )


def detector_config(
    ctx: click.Context, detector: str, *, others_ask: bool = False, **shared: Any
) -> DetectConfig:
    """The settings of the detector that the user named.

    Args:
        ctx: Of the command.
        detector: Its name.
        others_ask: Whether the classifier may be there for somebody else.
        **shared: Fields of `DetectConfig` that come from options of the command's own; None where
            nothing was said.

    Raises:
        click.UsageError: A classifier is described, but not named.
        ConfigError: Something is missing, wrong or not used by the detector.
    """
    classifier = classifier_config(ctx)
    if others_ask and "classifier" not in DETECTOR_SETTINGS[detector]:
        classifier = None
    return detect_config(detector, classifier=classifier, **given(ctx, OPTIONS), **shared)
