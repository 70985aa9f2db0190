"""zipcli attack."""

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from zipcli.attacks import ATTACKS
from zipcli.cli.console import FAILURES_SHOWN, Progress, describe, emit, say
from zipcli.cli.downloads import model_listener
from zipcli.cli.options import LocalPath, Name, given, selection_options
from zipcli.cli.signals import StopSignals
from zipcli.config import (
    CHOICES,
    LAYOUTS,
    PATTERNS,
    PHYSICAL_TESTS,
    PROFILES,
    SPLITS,
    AttackConfig,
    FolderConfig,
    attack_config,
    purify_config,
)
from zipcli.errors import ExitCode, shown

if TYPE_CHECKING:
    from zipcli.pipeline.outcome import Outcome
    from zipcli.pipeline.poison import PoisonResult
    from zipcli.pipeline.purifier import Purifier

OPTIONS = [field.name for field in fields(AttackConfig)]


@click.command(
    epilog="\b\nExamples:\n"
    "  zipcli attack cifar/test poisoned --attack badnets\n"
    "  zipcli attack cifar/train training --attack wanet --split train --rate 0.1\n"
    "  zipcli attack cifar/test poisoned --attack wanet --trigger training/trigger.safetensors"
)
@click.argument("folder", metavar="IN", type=LocalPath(path_type=Path))
@click.argument("out", metavar="OUT", type=LocalPath(path_type=Path))
@click.option("--attack", "-a", type=Name("attack", ATTACKS), required=True, help="What to put in.")
@click.option(
    "--profile",
    type=Name("profile", PROFILES),
    help="Published settings that give every value you do not.  [default: zip-code for badnets, blended and "
    "physical, else backdoorbench]",
)
@click.option(
    "--split",
    type=Name("split", SPLITS),
    default=AttackConfig.split,
    show_default=True,
    help="test poisons every image; train a share of them, and adds cover samples where the attack has any.",
)
@click.option("--target", metavar="CLASS", help="What the attacker wants: a class folder, or its number.")
@click.option(
    "--rate", type=float, metavar="SHARE", help="Share of the images to poison.  [default: 1 for test]"
)
@click.option(
    "--trigger",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use the trigger.safetensors of an earlier run: the one that a classifier was trained with.",
)
@click.option("--size", type=int, metavar="PIXELS", help="Resize to a square first.  [default: as they are]")
@click.option("--seed", type=int, help="Of the trigger and of the choice of images.")
@click.option(
    "--choice",
    type=Name("choice", CHOICES),
    help="How images are chosen: python and numpy as published; portable does not depend on other files.",
)
@click.option("--pattern", type=Name("pattern", PATTERNS), help="badnets, physical: what the patch shows.")
@click.option("--patch-size", type=int, metavar="PIXELS", help="badnets, physical: side of the patch.")
@click.option("--margin", type=int, metavar="PIXELS", help="badnets, physical: distance from the edges.")
@click.option(
    "--alpha", type=float, help="Weight of the trigger (blended, lc, dfst) or of the image (refool)."
)
@click.option(
    "--picture",
    metavar="FILE",
    help="Instead of noise (blended), a square mask (trojannn) or a sunset (dfst).",
)
@click.option(
    "--physical-test", type=Name("transform", PHYSICAL_TESTS), help="physical: transforms of test images."
)
@click.option(
    "--test-images", type=int, metavar="N", help="physical: size of the test split, for ZIP's very choice."
)
@click.option("--grid-k", type=int, help="wanet: control points of the warp a side.")
@click.option("--grid-s", type=float, help="wanet: strength of the warp.")
@click.option("--cover", type=float, metavar="SHARE", help="Share of cover samples in a training split.")
@click.option("--delta", type=float, help="sig, lf: amplitude in levels of 255.")
@click.option("--freq", type=float, help="sig: cycles across the image.")
@click.option("--levels", type=int, help="bpp: levels of each colour.")
@click.option("--dither/--no-dither", default=None, help="bpp: whether errors are passed on.")
@click.option("--eps", type=int, help="lc: largest change of a training image, in levels of 255.")
@click.option("--reflections", metavar="DIR", help="refool: photographs to reflect.")
@click.option("--sources", metavar="A,B", help="cba: the two classes that are joined; A is the true one.")
@click.option("--bits", type=int, help="issba: length of the secret.")
@click.option(
    "--then-purify",
    multiple=True,
    metavar="TRANSFORM",
    help="Purify the poisoned images with zip and these transforms (the enhanced attack of the ZIP paper).",
)
@click.option(
    "--layout",
    type=Name("layout", LAYOUTS),
    default="plain",
    show_default=True,
    help="plain: poisoned/CLASS; zip: val_pois/CLASS/TARGET; target: poisoned/TARGET without its own images, "
    "so that plain accuracy is the success rate; backdoorbench: bd_test_dataset/LABEL/INDEX.png.",
)
@click.option(
    "--clean-copy/--no-clean-copy", default=True, show_default=True, help="Write clean/CLASS as well."
)
@selection_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="No progress; failures and the result only.")
@click.pass_context
def attack(
    ctx: click.Context,
    /,
    folder: Path,
    out: Path,
    trigger: Path | None,
    then_purify: tuple[str, ...],
    layout: str,
    clean_copy: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **_options: Any,
) -> int:
    """Poison the images below IN, one folder for each class, and write them to OUT, a new folder.

    OUT/manifest.jsonl says of each image what was done, OUT/attack.json with which settings, and
    OUT/trigger.safetensors is the trigger, which a classifier and its test set must share. Images are
    written without loss. To test a defence; do not poison what others learn from.
    """
    options = given(ctx, OPTIONS)
    if "sources" in options:
        options["sources"] = _two_classes(options["sources"])
    config = attack_config(**options)
    stop = StopSignals()
    from zipcli.pipeline.poison import PoisonFiles, poison_folder

    with AttackProgress(stop.check, quiet=quiet, as_json=as_json) as progress:
        result = poison_folder(
            PoisonFiles(
                base=folder,
                out=out,
                folder_config=FolderConfig(include=include, exclude=exclude),
                layout=layout,
                clean_copy=clean_copy,
                trigger=trigger,
            ),
            config,
            progress,
            _purifier(then_purify, stop, quiet=quiet or as_json),
        )
    code = ExitCode.SOME_FAILED if result.counts["failed"] else ExitCode.DONE
    _show(result, config, code, as_json=as_json)
    return code


def _two_classes(text: str) -> tuple[str, str]:
    words = [word.strip() for word in text.split(",")]
    if len(words) != 2 or not all(words):
        raise click.UsageError(f"--sources: {shown(text)} is not two classes, such as cat,dog")
    return words[0], words[1]


def _purifier(transforms: tuple[str, ...], stop: StopSignals, *, quiet: bool) -> "Purifier | None":
    if not transforms:
        return None
    config = purify_config(transforms=transforms)
    from zipcli.pipeline.purifier import Purifier

    purifier = Purifier.from_config(config, model_listener(stop, quiet=quiet))
    purifier.stop_with(stop.check)
    return purifier


class AttackProgress:
    """Shows an attack: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, check_stop: Callable[[], None], *, quiet: bool, as_json: bool) -> None:
        """Begin with nothing; `check_stop` raises where a signal asked us to stop."""
        self.check_stop = check_stop
        self.quiet = quiet
        self.as_json = as_json
        self._failed = 0
        self._bar: Progress | None = None

    def __enter__(self) -> "AttackProgress":
        """Nothing to show yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    def doing(self, what: str) -> None:
        """Say it, since nothing moves meanwhile."""
        if not self.quiet:
            say(f"{what} ...")

    def note(self, text: str) -> None:
        """Say it, quiet or not."""
        say(f"Note: {text}")

    def started(self, total: int) -> None:
        """Show a bar."""
        if not self.quiet:
            self._bar = Progress(total, verbosity=0, as_json=False, word="poisoning").__enter__()

    def finished(self, outcome: "Outcome") -> None:
        """Count an image; name the first that cannot be used."""
        if outcome.state == "failed":
            self._failed += 1
            if self.as_json:
                emit("image", **outcome.as_json())
            if self._failed <= FAILURES_SHOWN:
                say(describe(outcome))
            elif self._failed == FAILURES_SHOWN + 1:
                say("... and more; attack.json names all of them")
        if self._bar is not None:
            self._bar.add(outcome)


def _show(result: "PoisonResult", config: AttackConfig, code: ExitCode, *, as_json: bool) -> None:
    counts = result.counts
    if as_json:
        emit(
            "attack_end",
            folder=str(result.folder),
            counts=counts,
            trigger_sha256=result.trigger_sha256,
            settings=asdict(config),
            exit_code=int(code),
        )
        return
    say(
        f"{counts['poison']:,} of {counts['images']:,} images poisoned with {config.attack} "
        f"({config.profile}), {counts['cover']:,} cover, {counts['clean']:,} clean, "
        f"{counts['failed']:,} failed; {counts['in_asr']:,} count for the attack success rate"
    )
    if counts["poison"] == 0:
        say("Note: nothing is poisoned; the rate asks for none of so few images")
    click.echo(str(result.folder))
