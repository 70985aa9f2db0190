"""zipcli evaluate."""

import copy
import csv
import io
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zipcli.cli.classifier_options import classifier_config, classifier_options
from zipcli.cli.console import PLAIN_SECONDS, clock, printable, say
from zipcli.cli.downloads import model_listener
from zipcli.cli.options import LocalPath, given
from zipcli.cli.purify import PIXEL_OPTIONS, pixel_config
from zipcli.cli.purify import purify as purify_command
from zipcli.cli.signals import StopSignals
from zipcli.config import FolderConfig
from zipcli.errors import ExitCode, shown

if TYPE_CHECKING:
    from zipcli.metrics import Share
    from zipcli.pipeline.evaluation import Evaluation, Purify, Side

MEASURES = (
    ("ca", "CA", "clean images with their own label"),
    ("asr", "ASR", "poisoned images with the target's label, other classes only"),
    ("pa", "PA", "poisoned images with their own label, of all (ZIP)"),
    ("ra", "RA", "the same, other classes than the target only (BackdoorBench)"),
    ("asr_all", "ASR*", "ASR with the target's own images counted in (BackdoorBox)"),
)


@click.command(
    epilog="\b\nExamples:\n"
    "  zipcli evaluate poisoned --classifier model.pt -t blur:2 -t gray\n"
    "  zipcli evaluate poisoned --classifier http://127.0.0.1:8000/predict --purified cleaned\n"
    "  zipcli evaluate photos --classifier 'cmd:python my_model.py' --no-purify"
)
@click.argument("folder", metavar="IN", type=LocalPath(path_type=Path))
@classifier_options(required=True)
@click.option(
    "--purified",
    multiple=True,
    metavar="DIR",
    type=LocalPath(path_type=Path),
    help="Take the images that `zipcli purify IN DIR` wrote, instead of purifying them now.",
)
@click.option("--no-purify", is_flag=True, help="Only without a defence.")
@click.option("--name", help="What the result calls itself.  [default: the attack]")
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the result as JSON, too, for `zipcli report`.",
)
@click.option("--overwrite", is_flag=True, help="Replace the FILE of --output if it is there.")
@click.option("--per-class", is_flag=True, help="A row for each class.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object on standard output.")
@click.option("--csv", "as_csv", is_flag=True, help="The result as CSV on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="No progress; the result only.")
@click.pass_context
def evaluate(
    ctx: click.Context,
    /,
    folder: Path,
    purified: tuple[Path, ...],
    no_purify: bool,
    name: str | None,
    output: Path | None,
    overwrite: bool,
    per_class: bool,
    as_json: bool,
    as_csv: bool,
    quiet: bool,
    **_options: Any,
) -> int:
    """Measure a classifier on IN, which `zipcli attack` wrote, before and after purification.

    IN may also be plain images in one folder for each class: then only clean accuracy is measured.
    Labels are all that is asked of the classifier. Percentages come with counts and 95 % intervals.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv: give one of them")
    settings = given(ctx, PIXEL_OPTIONS)
    _refuse_contradictions(settings, purified, no_purify=no_purify)
    config = pixel_config(ctx)
    black_box = classifier_config(ctx)
    assert black_box is not None
    stop = StopSignals()
    from zipcli.classifiers import open_classifier
    from zipcli.pipeline.evaluation import evaluate as run
    from zipcli.pipeline.evaluation import library_ssim
    from zipcli.pipeline.one_file import check_target, write_target
    from zipcli.pipeline.plan import check_folder
    from zipcli.pipeline.poisoned_set import read_poisoned_set
    from zipcli.pipeline.purifier import Purifier

    check_folder(folder)
    if output is not None:
        check_target(output, overwrite=overwrite)
    images = read_poisoned_set(folder, FolderConfig(), stop.check)
    progress = _Progress(quiet=quiet)
    with open_classifier(black_box, stop.check) as classifier:
        purify: Purify | None = None
        purifier: Purifier | None = None
        if purified:
            from zipcli.pipeline.evaluation import PurifiedFolders

            purify = PurifiedFolders(purified)
        elif not no_purify:
            from zipcli.pipeline.evaluation import PurifyNow

            purifier = Purifier.from_config(config, model_listener(stop, quiet=quiet))
            purifier.stop_with(stop.check)
            purifier.ask_with(classifier)
            purify = PurifyNow(purifier)
        ssim = next(library_ssim(), None)
        result = run(images, classifier, purify, ssim=ssim, progress=progress, check_stop=stop.check)
    facts = result.as_json() | ({"name": name} if name else {})
    if purifier is not None and (queries := purifier.queries_for(1)):
        facts["notes"].append(f"the method asked the classifier {queries:,} times")
    if ssim is None:
        facts["notes"].append("no SSIM: pip install 'zipcli[evaluate]'")
    if as_json:
        click.echo(json.dumps(facts))
    elif as_csv:
        click.echo(_as_csv(result, facts["name"]), nl=False)
    else:
        _show(result, facts, per_class=per_class)
    if output is not None:  # after it was shown: a full disk does not cost the result
        write_target((json.dumps(facts, indent=2) + "\n").encode(), output, overwrite=overwrite)
    return ExitCode.DONE


# The options of purify that decide pixels, written once.
evaluate.params += [copy.copy(p) for p in purify_command.params if p.name in PIXEL_OPTIONS]


def _refuse_contradictions(settings: dict[str, Any], purified: tuple[Path, ...], *, no_purify: bool) -> None:
    if purified and no_purify:
        raise click.UsageError("--purified and --no-purify contradict each other")
    for option in settings if purified or no_purify else ():
        what = "--purified takes images that are there" if purified else "--no-purify purifies nothing"
        raise click.UsageError(f"{what}; leave out --{option.rstrip('_').replace('_', '-')}")


class _Progress:
    """A line now and then."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.began = self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        if self.quiet or (now - self._said < (1 if on_terminal else PLAIN_SECONDS) and done < total):
            return
        self._said = now
        left = (now - self.began) / done * (total - done)
        say(f"evaluated {done:,} of {total:,} images, {clock(left)} left")


def _show(result: "Evaluation", facts: dict[str, Any], *, per_class: bool) -> None:
    lines = [f"{facts['name']}: {_counts(result)}"]
    lines.append(f"{'':6}{'before':>9}{'':34}" + (f"{'after':>9}" if result.after else ""))
    for key, short, words in MEASURES:
        before = getattr(result.before, key)
        if before is None:
            continue
        row = f"{short:6}{_percent(before):43}"
        row += f"{_percent(getattr(result.after, key)):43}" if result.after else ""
        lines.append(f"{row}{words}")
    if per_class:
        lines += _class_rows(result)
    fidelity = facts["fidelity"]
    for key, words in (
        ("poisoned", "poisoned against clean"),
        ("purified_clean", "purified clean against clean"),
        ("purified_poisoned", "purified poisoned against clean"),
    ):
        values = fidelity[key]
        if values and values["psnr"] is not None:
            equal = values["identical"]
            which = f" ({values['images'] - equal:,} images; {equal:,} others are equal)" if equal else ""
            ssim = f", SSIM {values['ssim']:.3f}" if values["ssim"] is not None else ""
            lines.append(f"{words}: PSNR {values['psnr']:.2f} dB{which}{ssim}")
    lines += _gate_lines(result)
    if facts["der"] is not None:
        lines.append(f"DER {facts['der']:.3f} (0.5 is a defence that does nothing, 1 a perfect one)")
    cost = facts["cost_ms"]
    lines += [f"{cost['purify']:.1f} ms to purify an image"] if cost["purify"] is not None else []
    lines += [f"{cost['classify']:.1f} ms to classify one"] if cost["classify"] is not None else []
    for note in facts["notes"]:
        say(f"Note: {note}")
    click.echo(printable("\n".join(lines)))


def _gate_lines(result: "Evaluation") -> list[str]:
    """What the detector did, and what that can save."""
    if (gate := result.gate) is None:
        return []
    gain = f", which is at most {1 / gate.flagged.value:.1f} times as fast" if gate.flagged.count else ""
    parts = [f"{words} {_short(share)}" for words, share in (("poisoned", gate.tpr), ("clean", gate.fpr))]
    return [f"% purified after the detector: all {_short(gate.flagged)}{gain}; {', '.join(parts)}"]


def _class_rows(result: "Evaluation") -> list[str]:
    rows = [
        f"{'class':20}{'CA':>16}{'ASR':>16}" + (f"{'CA after':>16}{'ASR after':>16}" if result.after else "")
    ]
    for number, (name, ca, asr, _) in enumerate(result.before.per_class):
        cells = [ca, asr]
        if result.after:
            cells += result.after.per_class[number][1:3]
        rows.append(f"{shown(name)[:19]:20}" + "".join(f"{_short(cell):>16}" for cell in cells))
    return rows


def _counts(result: "Evaluation") -> str:
    ca, pa = result.before.ca, result.before.pa
    words = [f"{ca.total:,} clean"] if ca else []
    words += [f"{pa.total:,} poisoned"] if pa else []
    target = f", target {shown(result.target)}" if result.target is not None else ""
    return " and ".join(words) + " images" + target


def _percent(share: "Share | None") -> str:
    if share is None:
        return "-"
    low, high = share.interval
    return (
        f"{100 * share.value:8.2f} %  {share.count:>6,}/{share.total:<6,} [{100 * low:.2f}, {100 * high:.2f}]"
    )


def _short(share: "Share | None") -> str:
    return "-" if share is None else f"{100 * share.value:.2f} ({share.count}/{share.total})"


def _as_csv(result: "Evaluation", name: str) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["name", "when", "class", "measure", "value", "count", "total", "low", "high"])
    for when, side in (("before", result.before), ("after", result.after)):
        if side is not None:
            rows = _csv_rows(side)
            table.writerows([_no_formula(name), when, _no_formula(row[0]), *row[1:]] for row in rows)
    return text.getvalue()


def _no_formula(text: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _csv_rows(side: "Side") -> list[list[Any]]:
    cells: list[tuple[str, str, Share | None]] = [("", key, getattr(side, key)) for key, _, _ in MEASURES]
    for name, *shares in side.per_class:
        cells += [(name, key, share) for key, share in zip(("ca", "asr", "pa"), shares, strict=True)]
    rows: list[list[Any]] = []
    for name, key, share in cells:
        numbers = ["", "", "", "", ""]
        if share is not None:
            low, high = share.interval
            numbers = [f"{share.value:.6f}", str(share.count), str(share.total), f"{low:.6f}", f"{high:.6f}"]
        rows.append([name, key, *numbers])
    return rows
