"""zipcli purify."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from zipcli.cli.console import Progress, closed_streams, emit, say
from zipcli.cli.detector_options import advice, detector_config, detector_options
from zipcli.cli.downloads import model_listener
from zipcli.cli.options import Name, given, selection_options
from zipcli.cli.signals import StopSignals
from zipcli.config import (
    DETECTOR_SETTINGS,
    DTYPES,
    FITS,
    FORMATS,
    GRIDS,
    METADATA,
    METHOD_SETTINGS,
    VARIANTS,
    DetectConfig,
    FolderConfig,
    PurifyConfig,
    purify_config,
)
from zipcli.errors import ConfigError, ExitCode, StoppedError, shown

if TYPE_CHECKING:
    from zipcli.pipeline.folder import FolderRun
    from zipcli.pipeline.ledger import Ledger
    from zipcli.pipeline.outcome import Outcome
    from zipcli.pipeline.plan import Entry, Plan

PIXEL_OPTIONS = [field.name for field in fields(PurifyConfig)]
FOLDER_OPTIONS = [field.name for field in fields(FolderConfig)]


@click.command(
    epilog="\b\nExamples:\n"
    "  zipcli purify photos clean -t blur:4 -t gray\n"
    "  zipcli purify - - < in.png > out.png"
)
@click.argument("folders", nargs=-1, metavar="IN OUT", type=click.Path(path_type=Path))
@click.option(
    "--transform",
    "-t",
    "transforms",
    multiple=True,
    metavar="NAME[:ARG]",
    default=PurifyConfig.transforms,
    show_default=True,
    help="What destroys the trigger: blur[:N], gray, identity, mask:FILE, or several joined with + "
    "(blur:4+gray). Given twice, the corrections are averaged. blur without N takes blocks of 2 pixels "
    "below 128 pixels and of 4 above.",
)
@click.option(
    "--method",
    type=Name("method", METHOD_SETTINGS),
    default=PurifyConfig.method,
    show_default=True,
    help="zip refills what the transforms removed; nullspace does, too, and keeps the rest exactly as it is; "
    "blur only transforms.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=PurifyConfig.steps,
    show_default=True,
    help="Steps of the chain; each costs an evaluation of the network.",
)
@click.option(
    "--lambda",
    "lambda_",
    type=click.FloatRange(min=0),
    default=PurifyConfig.lambda_,
    show_default=True,
    help="How late the image is let go: 0 ignores the input, inf keeps what the transforms kept exactly.",
)
@click.option(
    "--eta",
    type=click.FloatRange(0, 1),
    default=PurifyConfig.eta,
    show_default=True,
    help="Fresh noise in each step: 0 none (DDIM), 1 full (DDPM).",
)
@click.option(
    "--grid",
    type=Name("grid", GRIDS),
    default=PurifyConfig.grid,
    show_default=True,
    help="Which timesteps are visited: official (950 ... 50, 0), paper (999 ... 49, 0), full (all 1000).",
)
@click.option(
    "--variant",
    type=Name("variant", VARIANTS),
    default=None,
    help="Published settings by name; they fix steps, eta and grid.",
)
@click.option("--clip-x0", is_flag=True, help="Clip the estimate of the clean image in every step.")
@click.option(
    "--travel-length",
    type=click.IntRange(min=1),
    default=PurifyConfig.travel_length,
    show_default=True,
    help="Time travel: steps that each jump goes back.",
)
@click.option(
    "--travel-repeat",
    type=click.IntRange(min=1),
    default=PurifyConfig.travel_repeat,
    show_default=True,
    help="Time travel: how often each stretch is walked.",
)
@click.option(
    "--model",
    "-m",
    default=PurifyConfig.model,
    show_default=True,
    metavar="NAME",
    help="The diffusion prior: a name that `zipcli models list` shows, owner/name[@revision][/file] on the "
    "Hugging Face Hub, or a file or folder.",
)
@click.option("--offline", is_flag=True, help="Never connect to the Hub; the model must be here.")
@click.option(
    "--fit",
    type=Name("fit", FITS),
    default=PurifyConfig.fit,
    show_default=True,
    help="Images larger than the model's window: tile keeps every pixel; resize and squash go there and "
    "back; center-crop writes the cropped square.",
)
@click.option(
    "--tile",
    type=click.IntRange(min=16),
    default=None,
    metavar="PIXELS",
    help="Side of a window.  [default: the model's own; else 512, or 256 to resize or crop]",
)
@click.option(
    "--overlap",
    type=click.IntRange(min=0),
    default=PurifyConfig.overlap,
    metavar="PIXELS",
    help="What neighbouring windows share.  [default: 64, or half a small window]",
)
@click.option(
    "--device",
    "-d",
    default=PurifyConfig.device,
    show_default=True,
    help="auto, cpu, cuda, cuda:N or mps; an absent device is an error.",
)
@click.option(
    "--dtype",
    type=Name("dtype", DTYPES),
    default=PurifyConfig.dtype,
    show_default=True,
    help="Precision inside the network.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=None,
    help="Images purified together; changes speed, never a pixel.  [default: by image size]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=PurifyConfig.seed,
    show_default=True,
    help="Seed of the noise.",
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(1, 256),
    default=FolderConfig.jobs,
    show_default=True,
    help="Threads that read and write while the network runs.",
)
@click.option(
    "--format",
    type=Name("format", FORMATS),
    default=FolderConfig.format,
    show_default=True,
    help="png and webp are lossless; same keeps the format of each input; jpg loses detail.",
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=FolderConfig.quality,
    show_default=True,
    help="Quality of JPEG files.",
)
@click.option(
    "--metadata",
    type=Name("metadata policy", METADATA),
    default=FolderConfig.metadata,
    show_default=True,
    help="safe keeps resolution, date and camera; thumbnails and comments never survive.",
)
@detector_options(
    default=FolderConfig.detector,
    help="Purify only what a detector suspects, and let the rest pass; none purifies everything.",
)
@selection_options
@click.option(
    "--overwrite", is_flag=True, help="Replace outputs of other settings, and files that are not ours."
)
@click.option(
    "--paranoid",
    is_flag=True,
    help="Read what an earlier run has written, and purify again where it was changed since.",
)
@click.option("--retry-failed", is_flag=True, help="Take only the images that failed in earlier runs to OUT.")
@click.option(
    "--fail-on",
    metavar="SHARE",
    default=FolderConfig.fail_on,
    show_default=True,
    help="Exit with 3 when: any image failed, more than 5% (or another share), all, or never.",
)
@click.option(
    "--files-from",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Read the files to take from FILE, or - for standard input, one per line.",
)
@click.option("--null", "-0", "null", is_flag=True, help="The names of --files-from end in NUL bytes.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="With --files-from: the folder that the tree is mirrored from.  [default: here]",
)
@click.option("--allow-empty", is_flag=True, help="A folder without images is no error.")
@click.option(
    "--shard",
    default=FolderConfig.shard,
    show_default=True,
    metavar="I/N",
    help="Take part I of N, by a digest of each path; run all parts, 1/N to N/N, anywhere, in any order.",
)
@click.option(
    "--force-unlock",
    is_flag=True,
    help="Take OUT from a run on another machine that has ended without letting go of it.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Say what would be done; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="No progress; failures and a summary only.")
@click.option("--verbose", "-v", count=True, help="A line for each image.")
@click.pass_context
def purify(
    ctx: click.Context,
    /,
    folders: tuple[Path, ...],
    files_from: Path | None,
    null: bool,
    base: Path | None,
    allow_empty: bool,
    retry_failed: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **_options: Any,
) -> int:
    """Purify the images below IN into the same tree below OUT.

    `zipcli purify - -` purifies one picture from standard input to standard output.
    """
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose contradict each other")
    if null and files_from is None:
        raise click.UsageError("--null needs --files-from")
    if base is not None and files_from is None:
        raise click.UsageError("--base needs --files-from; give IN instead")
    if retry_failed and files_from is not None:
        raise click.UsageError("--retry-failed and --files-from both say which files to take; give one")
    config = purify_config(**given(ctx, PIXEL_OPTIONS))
    folder_config = _folder_config(given(ctx, FOLDER_OPTIONS))
    detect = _detect_config(ctx, config, folder_config.detector)
    stop = StopSignals()
    if [str(folder) for folder in folders] == ["-", "-"]:
        of_folders = ("files_from", "retry_failed", "dry_run", "as_json", "include", "exclude", "jobs")
        unused = (*of_folders, "detector", "overwrite", "paranoid", "fail_on")
        for name in given(ctx, unused):
            option = name.removeprefix("as_").replace("_", "-")
            raise click.UsageError(f"--{option}: one picture through a pipe does not use it; leave it out")
        return _purify_pipe(config, folder_config, stop, verbose=verbose)
    again = shlex.join(["zipcli", *sys.argv[1:]])
    stop.last_words = f"stopped; to go on, run the same command again: {again}"
    source, out = _folders(folders, files_from, base)
    if as_json and "stdout" in closed_streams:
        raise click.UsageError("--json: standard output is closed")
    plan = _plan(source, out, folder_config, files_from, stop, null=null, retry_failed=retry_failed)
    if retry_failed and not plan.listed:
        return _nothing_to_do(out, as_json=as_json)
    total = _check_plan(plan, stop, allow_empty=allow_empty)
    verbosity = -1 if quiet else verbose
    return _purify_folder(config, detect, plan, out, total, stop, verbosity, as_json=as_json, dry_run=dry_run)


def _detect_config(ctx: click.Context, config: PurifyConfig, detector: str) -> DetectConfig:
    """Settings of the detector; its seed and device are those of the purification."""
    used = DETECTOR_SETTINGS[detector] & {"seed", "device"}
    shared = {name: getattr(config, name) for name in used}
    return detector_config(ctx, detector, **shared)


def _folder_config(options: dict[str, Any]) -> FolderConfig:
    """Settings of the files, refusing a quality that nothing would use."""
    config = FolderConfig(**options)
    if "quality" in options and config.format not in ("jpg", "same"):
        raise ConfigError(f"quality: format {config.format} is lossless; use it with --format jpg or same")
    return config


def _folders(folders: tuple[Path, ...], files_from: Path | None, base: Path | None) -> tuple[Path, Path]:
    """The input and output folder; with a list of files, the input is what the tree starts from."""
    if files_from is not None and len(folders) == 1:
        return base or Path(), folders[0]
    if len(folders) != 2:
        raise click.UsageError("give two folders, IN and OUT (or - - for one picture through a pipe)")
    if base is not None:
        raise click.UsageError("give IN or --base, not both")
    if Path("-") in folders:
        raise click.UsageError("- stands for one picture through a pipe: zipcli purify - - < IN > OUT")
    return folders[0], folders[1]


def _nothing_to_do(out: Path, *, as_json: bool) -> int:
    say(f"nothing has failed in {shown(str(out))}")
    if as_json:
        from zipcli.pipeline.outcome import Summary

        emit("run_end", **Summary().as_json(), exit_code=int(ExitCode.DONE))
    return ExitCode.DONE


def _plan(
    source: Path,
    out: Path,
    config: FolderConfig,
    files_from: Path | None,
    stop: StopSignals,
    *,
    null: bool,
    retry_failed: bool,
) -> "Plan":
    from zipcli.pipeline.plan import Plan, check_folders, relative_paths

    check_folders(source, out, inside=True)
    if retry_failed:
        from zipcli.pipeline.records import failed_paths

        return Plan(base=source, config=config, listed=failed_paths(out))
    if files_from is None:
        return Plan(base=source, config=config, out=out)
    names = _read_list(files_from, stop, null=null)
    return Plan(base=source, config=config, listed=relative_paths(names, source, out))


def _read_list(file: Path, stop: StopSignals, *, null: bool) -> list[str]:
    """Names from a file or standard input, as the file system spells them."""
    try:
        if str(file) == "-":
            data = stop.read(_stdin())
        else:
            with file.open("rb") as f:  # a pipe, perhaps
                data = stop.read(f)
    except OSError as e:
        raise ConfigError(f"{file}: cannot read the list of files: {e.strerror}") from e
    names = data.split(b"\0") if null else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    if any(b"\0" in name for name in names):
        raise click.UsageError("the names of --files-from hold NUL bytes; add -0")
    return [os.fsdecode(name) for name in names if name]


def _stdin() -> IO[bytes]:
    if "stdin" in closed_streams:
        raise click.UsageError("standard input is closed; there is nothing to read")
    return sys.stdin.buffer


def _check_plan(plan: "Plan", stop: StopSignals, *, allow_empty: bool) -> int:
    """Count the files of our shard, refusing names that collide and a run that would do nothing."""
    from zipcli.pipeline.plan import collisions, no_images

    found = ours = 0

    def counted() -> Iterator["Entry | Outcome"]:
        nonlocal found, ours
        for entry in plan.of_all_shards():
            stop.check()
            found += 1
            ours += plan.takes(entry)
            yield entry

    shared = collisions(counted())
    if not (found or allow_empty):
        raise ConfigError(no_images(plan))
    if shared:
        lines = [
            f"  {shown(a)} and {shown(b)} would both become {shown(target)}" for a, b, target in shared[:20]
        ]
        more = [f"  ... and {len(shared) - 20} more"] if len(shared) > 20 else []
        raise ConfigError(
            "\n".join(
                ["some images would get in each other's way; rename one, or use --format same", *lines, *more]
            )
        )
    return ours


def _purify_folder(
    config: PurifyConfig,
    detect: DetectConfig,
    plan: "Plan",
    out: Path,
    total: int,
    stop: StopSignals,
    verbosity: int,
    *,
    as_json: bool,
    dry_run: bool,
) -> int:
    from zipcli.pipeline.ledger import Ledger

    ledger = Ledger(out, plan.base, plan.config.part)
    _refuse_foreign(plan, ledger, stop)

    from zipcli.pipeline.detection import open_detector
    from zipcli.pipeline.folder import FolderRun
    from zipcli.pipeline.purifier import Purifier

    purifier = Purifier.from_config(config, model_listener(stop, quiet=verbosity < 0))
    if verbosity >= 0 and (text := advice(detect)):
        say(f"Note: {text}")
    with open_detector(detect, lambda text: say(f"Note: {text}"), stop.check) as screening:
        settings = {
            **purifier.fingerprint_parts,
            **plan.config.file_settings(),
            **screening.fingerprint_parts,
        }
        ledger.use_settings(settings, overwrite=plan.config.overwrite)
        if ledger.damaged_lines:
            say(f"Warning: {ledger.damaged_lines} damaged lines in the ledger of {out} are ignored")
        if dry_run:
            return _show_plan(plan, ledger, stop, as_json=as_json)
        stop.check()
        purifier.stop_with(stop.check)
        run = FolderRun(plan, purifier, screening.detector, ledger)
        return _run(run, total, stop, verbosity, as_json=as_json)


def _run(run: "FolderRun", total: int, stop: StopSignals, verbosity: int, *, as_json: bool) -> int:
    ledger, out = run.ledger, run.ledger.out
    if as_json:
        emit("run_start", schema=1, found=total, fingerprint=ledger.fingerprint, settings=ledger.settings)
    with (
        ledger.open(force=run.config.force_unlock),
        Progress(total, verbosity=verbosity, as_json=as_json) as progress,
    ):
        stopped = False
        if ledger.took_over:
            say(f"Note: {ledger.took_over} had {shown(str(out))} before and did not end in order; going on")
        try:
            code = run.run(progress.add, stop.check).exit_code(run.config.tolerated)
        except StoppedError as e:
            code, stopped = e.exit_code, True
    progress.finish(str(out))
    if as_json:
        emit("run_end", **progress.summary.as_json(), exit_code=int(code))
    if stopped:
        say(stop.last_words)
    elif stale := ledger.stale():
        say(f"Warning: {stale} images in {shown(str(out))} are still those of other settings; see the ledger")
    return code


def _refuse_foreign(plan: "Plan", ledger: "Ledger", stop: StopSignals) -> None:
    """Refuse before any work when outputs exist that we did not write."""
    from zipcli.pipeline.plan import Entry, files_in_the_way
    from zipcli.pipeline.resume import Decision

    foreign = []
    folders: set[str] = set()
    for entry in plan.entries():
        stop.check()
        if isinstance(entry, Entry):
            folders.update(entry.target_folders)
            decision = ledger.decide(entry.path, entry.target, None, overwrite=plan.config.overwrite)
            if decision is Decision.REFUSE:
                foreign.append(entry.target)
    blocking = files_in_the_way(folders, ledger.out)
    if blocking:
        names = "\n".join(f"  {shown(name)}" for name in blocking[:20])
        raise ConfigError(f"{ledger.out}: files are in the way where folders are needed; move them\n{names}")
    if foreign:
        names = "\n".join(f"  {shown(name)}" for name in foreign[:20])
        raise ConfigError(
            f"{ledger.out}: {len(foreign)} files are in the way and were not written by zipcli; move them, "
            f"choose another output folder, or use --overwrite\n{names}"
        )


def _show_plan(plan: "Plan", ledger: "Ledger", stop: StopSignals, *, as_json: bool) -> int:
    """Say what a run would do; inputs are not read, so those that were changed are not seen."""
    from zipcli.pipeline.plan import Entry
    from zipcli.pipeline.resume import Decision

    found = todo = size = 0
    for entry in plan.entries():
        stop.check()
        found += 1
        if isinstance(entry, Entry):
            decision = ledger.decide(
                entry.path,
                entry.target,
                None,
                overwrite=plan.config.overwrite,
                paranoid=plan.config.paranoid,
            )
            todo += decision is Decision.PURIFY
            size += entry.size if decision is Decision.PURIFY else 0
            if as_json:
                from zipcli.pipeline.outcome import json_path

                paths = json_path("path", entry.path) | json_path("out_path", entry.target)
                emit("plan", **paths, decision=decision.value, bytes=entry.size)
    free = shutil.disk_usage(next(p for p in (ledger.out, *ledger.out.absolute().parents) if p.exists())).free
    if as_json:
        emit("plan_end", found=found, purify=todo, bytes=size, free_bytes=free, settings=ledger.settings)
    else:
        say(f"would purify {todo} of {found} images ({size / 1e6:.1f} MB) into {ledger.out}")
        say(f"free disk there: {free / 1e9:.1f} GB; settings: {ledger.settings}")
    return ExitCode.DONE


def _purify_pipe(
    config: PurifyConfig, folder_config: FolderConfig, stop: StopSignals, *, verbose: int
) -> int:
    """One picture from standard input to standard output."""
    if "stdout" in closed_streams:
        raise click.UsageError("standard output is closed; the picture has nowhere to go")
    stdout: IO[bytes] = sys.stdout.buffer
    if sys.stdout.isatty():
        raise click.UsageError("the picture would fill your terminal; redirect it: zipcli purify - - > OUT")

    from zipcli.errors import InputError, MemoryExhaustedError, NonFiniteError
    from zipcli.images.load import decode
    from zipcli.images.write import encode, output_format
    from zipcli.pipeline.purifier import Purifier

    data = stop.read(_stdin())
    try:
        picture = decode(data, "standard input")
        purifier = Purifier.from_config(config, model_listener(stop, quiet=not verbose))
        purifier.stop_with(stop.check)
        clean = purifier.purify_pixels([picture.pixels])[0]
        metadata = picture.metadata if folder_config.metadata == "safe" else None
        out_format = output_format(folder_config.format, picture.format)
        encoded = encode(clean, out_format, quality=folder_config.quality, metadata=metadata)
    except (InputError, MemoryExhaustedError, NonFiniteError) as e:
        say(f"Error: {e}")
        return ExitCode.SOME_FAILED
    stop.check()
    stdout.write(encoded)
    stdout.flush()
    if verbose:
        say("; ".join(["done standard input", *picture.notes]))
    return ExitCode.DONE
