"""The options that describe a classifier, for every command that takes one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from zipcli.cli.options import F, given, with_options
from zipcli.config import ClassifierConfig
from zipcli.errors import shown

CLASSES_LIMIT = 10_000_000
"""Bytes of a file of class names."""

FIELDS = {
    "classifier": "classifier",
    "input_size": "input_size",
    "mean": "mean",
    "std": "std",
    "classes": "classes",
    "classifier_timeout": "timeout",
    "classifier_batch": "batch_size",
}
"""The field of `ClassifierConfig` that each option sets."""


class Numbers(click.ParamType[tuple[float, ...]]):
    """Three numbers with commas between them."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return the numbers, or fail."""
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 3:
            self.fail(f"{value!r} is not three numbers such as 0.485,0.456,0.406", param, ctx)
        return numbers


class ClassNames(click.ParamType[tuple[str, ...]]):
    """Names with commas between them, or a file with one name per line."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names, or fail."""
        file = Path(value)
        try:
            if not file.is_file() and "," in value:
                return tuple(name.strip() for name in value.split(","))
            with file.open("rb") as f:
                data = f.read(CLASSES_LIMIT + 1)
            if len(data) > CLASSES_LIMIT:
                self.fail(f"{shown(value)}: too large for a list of names", param, ctx)
            return tuple(line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as e:
            why = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
            self.fail(
                f"{shown(value)}: {why}; give a file with one name per line, or names with commas", param, ctx
            )


def classifier_options(*, required: bool) -> Callable[[F], F]:
    """Add --classifier and what describes it to a command; `classifier_config` reads them."""
    options = (
        click.option(
            "--classifier",
            required=required,
            metavar="WHAT",
            help="The black box: a TorchScript, torch.export or ONNX file, http://... or https://..., "
            "cmd:PROGRAM (talks JSON lines) or cmd-paths:PROGRAM (gets paths, prints labels). A model file "
            "is a program: open none from a stranger.",
        ),
        click.option(
            "--input-size",
            type=click.IntRange(1, 65_500),
            metavar="PIXELS",
            help="Resize images to this square before the classifier sees them.  [default: what a model "
            "file says, or not at all]",
        ),
        click.option(
            "--mean",
            type=Numbers(),
            metavar="R,G,B",
            help="What a model file wants subtracted from channels in [0, 1].  [default: 0,0,0]",
        ),
        click.option(
            "--std",
            type=Numbers(),
            metavar="R,G,B",
            help="What it wants them divided by then.  [default: 1,1,1]",
        ),
        click.option(
            "--classes",
            type=ClassNames(),
            metavar="NAMES",
            help="Class names in the order of their indices: a file with one per line, or with commas.",
        ),
        click.option(
            "--classifier-timeout",
            type=click.FloatRange(0, 86_400, min_open=True),
            metavar="SECONDS",
            help="How long a service or program may take for a batch.  [default: 60]",
        ),
        click.option(
            "--classifier-batch",
            type=click.IntRange(1, 65_536),
            default=ClassifierConfig.batch_size,
            show_default=True,
            help="Images shown to the classifier together.",
        ),
    )

    return with_options(*options)


def classifier_config(ctx: click.Context) -> ClassifierConfig | None:
    """The settings of the classifier that the user named; None where none was named.

    Raises:
        click.UsageError: It is described, but not named.
        ConfigError: A setting does not fit.
    """
    options = given(ctx, FIELDS)
    if "classifier" not in options:
        for name in options:
            raise click.UsageError(
                f"--{name.replace('_', '-')}: describes a classifier; give --classifier too"
            )
        return None
    return ClassifierConfig(**{FIELDS[name]: value for name, value in options.items()})
