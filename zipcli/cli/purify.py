"""zipcli purify."""

import os
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from zipcli.cli.classifier_options import classifier_config
from zipcli.cli.console import closed_streams, say
from zipcli.cli.detector_options import detector_config, detector_options
from zipcli.cli.options import (
    Location,
    Name,
    completing,
    given,
    limit_options,
    model_names,
    selection_options,
    transform_names,
)
from zipcli.cli.purify_crew import CREW_OPTIONS, crew_options
from zipcli.cli.purify_folder import Wishes, purify_folder
from zipcli.cli.purify_stream import purify_picture, purify_tar
from zipcli.cli.signals import StopSignals
from zipcli.config import (
    AUTOENCODER,
    DETECTOR_SETTINGS,
    DTYPES,
    FITS,
    FORMATS,
    GRIDS,
    METADATA,
    METHOD_ASKS,
    METHOD_SETTINGS,
    ON_COLLISION,
    REMOTE_JOBS,
    SAMPLER_SETTINGS,
    VARIANTS,
    CrewConfig,
    DetectConfig,
    FolderConfig,
    PurifyConfig,
    Shard,
    purify_config,
)
from zipcli.errors import ConfigError
from zipcli.pipeline.url import Url

WISHES = [
    field.name
    for field in fields(Wishes)
    if field.name not in ("source", "out", "verbosity", "as_json", "crew")
]
NOT_OF_TARS = (
    *("files_from", "retry_failed", "watch", "dry_run", "as_json", "allow_empty"),
    *("shard", "overwrite", "paranoid", "force_unlock", "on_collision", "portable_names", "tar_shards"),
    *CREW_OPTIONS,
)
NOT_OF_URLS = ("watch", "tar_shards", *CREW_OPTIONS)
NOT_OF_TAR_SHARDS = ("watch", "on_collision", "portable_names", *CREW_OPTIONS)
NOT_OF_PICTURES = (*NOT_OF_TARS, "include", "exclude", "jobs", "detector", "fail_on", "strict_ext")
PIXEL_OPTIONS = [field.name for field in fields(PurifyConfig) if field.name != "classifier"]
FOLDER_OPTIONS = [field.name for field in fields(FolderConfig)]


@click.command(
    epilog="\b\nExamples:\n"
    "  zipcli purify photos clean -t blur:4 -t gray\n"
    "  zipcli purify - - < in.png > out.png\n"
    "  tar c photos | zipcli purify --tar - - | tar x -C clean\n"
    "  zipcli purify shards clean --tar-shards"
)
@click.argument("folders", nargs=-1, metavar="IN OUT", type=Location(path_type=Path))
@click.option(
    "--transform",
    "-t",
    "transforms",
    multiple=True,
    metavar="NAME[:ARG]",
    shell_complete=completing(transform_names),
    default=PurifyConfig.transforms,
    show_default="blur, for methods that have transforms",
    help="What destroys the trigger: blur[:N], gray, identity, mask:FILE, or several joined with + "
    "(blur:4+gray). Given twice, the corrections are averaged. blur without N takes blocks of 2 pixels "
    "below 128 pixels and of 4 above.",
)
@click.option(
    "--method",
    type=Name("method", ("auto", *METHOD_SETTINGS)),
    default=PurifyConfig.method,
    show_default=True,
    help="blind forgets fine colours and the white balance, and takes out what is no part of a photograph, "
    "wherever it is; it needs no transform. zip refills what the transforms removed; nullspace does, too, "
    "and hides nothing else under noise. For blind and nullspace a model must be trained. auto is the "
    "first of blind, nullspace (one transform) and zip that uses all options given and that the model was "
    "trained for. To compare with: ddnm refills like zip and never lets go of what it kept; diffpure adds "
    "noise and takes it away again, blur+diffpure after the transforms; sampdetox does so twice, the "
    "second time where the first changed most. Without a network: shrinkpad shrinks and shifts, blur only "
    "transforms, gray takes the colour, none changes nothing. Two ask the suspect --classifier for "
    "labels: bdmae 46 for an image, to restore with a masked autoencoder what the answers betray; "
    "sancdifi --masks and one, to refill what they depend on.",
)
@click.option(
    "--sampler",
    type=Name("sampler", ("auto", *SAMPLER_SETTINGS)),
    default=PurifyConfig.sampler,
    show_default=True,
    help="How a chain gets from one step to the next. zip, nullspace: warm (auto), decoupled and multistep "
    "begin near the image; ddim is the chain of the ZIP paper, from pure noise, and the one for several "
    "transforms. diffpure: sde (auto), ddpm, ode. sampdetox: ddpm (auto), and ddim for fewer evaluations.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    default=PurifyConfig.steps,
    show_default=True,
    help="Steps of the chain; each costs an evaluation of the network. 0 is 3 for nullspace, 5 for zip, "
    "20 with --sampler ddim, and 100 for ddnm.",
)
@click.option(
    "--lambda",
    "lambda_",
    type=float,
    default=PurifyConfig.lambda_,
    show_default="10; inf for a mask",
    help="How long the image is held to what the transforms kept: a finite one lets go in the last steps, "
    "and so of a faint trigger; inf holds on exactly, to the end; 0 never corrects.",
)
@click.option(
    "--eta",
    type=float,
    default=PurifyConfig.eta,
    show_default="1; 0.85 for ddnm",
    help="ddim, warm, multistep: fresh noise in each step: 0 none (DDIM), 1 full (DDPM). ddnm: its share of "
    "all noise.",
)
@click.option(
    "--grid",
    type=Name("grid", GRIDS),
    default=PurifyConfig.grid,
    show_default=True,
    help="ddim, ddnm: which timesteps are visited: official (950 ... 50, 0), paper (999 ... 49, 0), full "
    "(all).",
)
@click.option(
    "--variant",
    type=Name("variant", VARIANTS),
    default=None,
    help="Published settings by name; they fix the method and what is published of it.",
)
@click.option("--clip-x0", is_flag=True, help="ddim: clip the estimate of the clean image in every step.")
@click.option(
    "--travel-length",
    type=click.IntRange(min=1),
    default=PurifyConfig.travel_length,
    show_default=True,
    help="ddim, ddnm: time travel: steps that each jump goes back.",
)
@click.option(
    "--travel-repeat",
    type=click.IntRange(min=1),
    default=PurifyConfig.travel_repeat,
    show_default=True,
    help="ddim, ddnm: time travel: how often each stretch is walked.",
)
@click.option(
    "--simplified",
    is_flag=True,
    help="ddnm: weaken the noise of the last steps, as its program does with the option of this name.",
)
@click.option(
    "--t-star",
    type=click.IntRange(1, 1000),
    default=PurifyConfig.t_star,
    metavar="STEPS",
    help="diffpure, sancdifi: timesteps of noise that are added and taken away, each one evaluation. "
    "Timesteps here and below are those of DDPM's linear schedule, whatever that of the model is.  [default: "
    "100; 500 for sancdifi]",
)
@click.option(
    "--t1",
    type=click.IntRange(1, 999),
    default=PurifyConfig.t1,
    show_default=True,
    help="sampdetox: timestep, from 0, that the whole image is noised to.",
)
@click.option(
    "--t2",
    type=click.IntRange(1, 999),
    default=PurifyConfig.t2,
    show_default=True,
    help="sampdetox: timestep that the pixels are noised to that changed most.",
)
@click.option(
    "--stride",
    type=click.IntRange(1, 999),
    default=PurifyConfig.stride,
    show_default=True,
    help="sampdetox with ddim: timesteps from one evaluation to the next.",
)
@click.option(
    "--ssim-range",
    type=int,
    default=PurifyConfig.ssim_range,
    show_default=True,
    metavar="255|1",
    help="sampdetox: range of values that SSIM is told: 255, as its program says, finds changes of "
    "brightness; 1, which is meant, those of structure, and many more.",
)
@click.option(
    "--pad",
    type=click.IntRange(min=0),
    default=PurifyConfig.pad,
    metavar="PIXELS",
    help="shrinkpad: what each side loses.  [default: an eighth, and at least 4]",
)
@click.option(
    "--masks",
    type=click.IntRange(1, 1_000_000),
    default=PurifyConfig.masks,
    show_default=True,
    help="sancdifi: random masks for an image; each is a query to the classifier.",
)
@click.option(
    "--saliency-threshold",
    type=click.FloatRange(0, 1, max_open=True),
    default=PurifyConfig.saliency_threshold,
    show_default=True,
    metavar="SHARE",
    help="sancdifi: share of the pixels that are kept, the least salient ones.",
)
@click.option(
    "--sigma",
    type=click.FloatRange(0, 1),
    default=PurifyConfig.sigma,
    show_default=True,
    help="blind: standard deviation of the noise that is put on the image, whose values go from -1 to 1, and "
    "taken away with the rest; it drowns triggers that nobody sees.",
)
@click.option(
    "--passes",
    type=click.IntRange(1, 10),
    default=PurifyConfig.passes,
    show_default=True,
    help="blind: how often the network goes over the image; the noise is there in the last pass. More take "
    "out more, of triggers and of fine detail.",
)
@click.option(
    "--colour-cell",
    type=click.IntRange(1, 64),
    default=PurifyConfig.colour_cell,
    show_default=True,
    metavar="PIXELS",
    help="blind: of the colours, keep only the means of squares of so many pixels, and all of the "
    "brightness, from which the network follows the rest. 1 keeps every colour.",
)
@click.option(
    "--keep-colour",
    is_flag=True,
    help="blind: trust the mean colour of the image. Without it the network judges what it most likely was, "
    "since a tint of the whole image may be a trigger.",
)
@click.option(
    "--doubt",
    type=float,
    default=PurifyConfig.doubt,
    show_default=True,
    help="blind: images from 48 pixels are looked at in small copies first, and half of a change by so much "
    "(of [-1, 1]) is believed there. More spares what stands alone, such as a bird in the sky, and large "
    "triggers; inf believes nothing.",
)
@click.option(
    "--model",
    "-m",
    default=PurifyConfig.model,
    show_default=True,
    metavar="NAME",
    shell_complete=completing(model_names),
    help="The diffusion prior: a name that `zipcli models list` shows, owner/name[@revision][/file] on the "
    "Hugging Face Hub, or a file or folder; builtin is the one for the method that comes with zipcli. For "
    f"bdmae a masked autoencoder.  [bdmae: {AUTOENCODER}]",
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
@crew_options
@click.option(
    "--dtype",
    type=Name("dtype", DTYPES),
    default=PurifyConfig.dtype,
    show_default=True,
    help="Precision inside the network. auto is bfloat16 for our own networks on a CPU that multiplies in "
    "it, float16 for published ones on a GPU, and else float32.",
)
@click.option(
    "--compile/--no-compile",
    default=PurifyConfig.compile,
    show_default=True,
    help="Let torch.compile fuse the network, on a GPU with CUDA graphs. Each size of images is compiled "
    "anew, which takes a minute: for many images of few sizes. On a CPU it is no faster; elsewhere "
    "`zipcli bench --compile` tells.",
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
    help="Threads that read and write while the network runs; 16 by default where IN or OUT is a URL.",
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
@click.option(
    "--on-collision",
    type=Name("answer", ON_COLLISION),
    default=FolderConfig.on_collision,
    show_default=True,
    help="When images would share an output, such as a.jpg and a.png: error stops before anything is "
    "written; append writes a.jpg.png.",
)
@click.option(
    "--portable-names",
    is_flag=True,
    help="Refuse names that Windows or macOS cannot hold, or cannot tell apart.",
)
@detector_options(
    default=FolderConfig.detector,
    help="Purify only what a detector suspects, and let the rest pass; none purifies everything.",
)
@selection_options
@limit_options
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
    type=Location(path_type=Path),
    metavar="FOLDER",
    help="With --files-from: the folder that the tree is mirrored from.  [default: here]",
)
@click.option("--allow-empty", is_flag=True, help="A folder without images is no error.")
@click.option(
    "--shard",
    default=FolderConfig.shard,
    show_default=True,
    metavar="I/N|auto",
    help="Take part I of N, by a digest of each path; run all parts, 1/N to N/N, anywhere, in any order. "
    "auto asks the environment: ZIPCLI_SHARD, or what Slurm's job arrays, Kubernetes' indexed jobs and AWS "
    "Batch's array jobs set; the last two with ZIPCLI_SHARD_COUNT where they do not say of how many.",
)
@click.option(
    "--force-unlock",
    is_flag=True,
    help="Take OUT from a run on another machine that has ended without letting go of it.",
)
@click.option(
    "--tar",
    is_flag=True,
    help="IN and OUT are - and -: a tar stream on standard input, which may be compressed, becomes one on "
    "standard output. An image that fails is not in it.",
)
@click.option(
    "--tar-shards",
    is_flag=True,
    help="IN holds tar files, as WebDataset has them (*.tar, *.tar.gz, *.tgz; --include chooses among them). "
    "Each becomes a tar of the same name in OUT once it is complete: images are purified (7.jpg becomes "
    "7.png unless --format same; masks that are pictures are images, too), all other files are copied. A "
    "sample of which an image failed is left out with all its files; such a tar is written all the same, "
    "every run says again what failed (exit code 3), and --retry-failed makes it anew.",
)
@click.option(
    "--watch",
    is_flag=True,
    help="Go on for ever: purify each image that comes to IN, or changes there, once it is complete.",
)
@click.option(
    "--settle",
    type=click.FloatRange(min=0, min_open=True),
    default=Wishes.settle,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: how long a file must stay as it is to count as complete.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Say what would be done; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="No progress; failures and a summary only.")
@click.option("--verbose", "-v", count=True, help="A line for each image.")
@click.pass_context
def purify(
    ctx: click.Context,
    /,
    folders: tuple[Path | Url, ...],
    files_from: Path | None,
    base: Path | Url | None,
    tar: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **_options: Any,
) -> int:
    """Purify the images below IN into the same tree below OUT.

    Each is a folder, or a URL such as s3://bucket/photos (pip install 'zipcli[remote]').

    `zipcli purify - -` purifies one picture from standard input to standard output, and with --tar the
    pictures of a tar stream.
    """
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose contradict each other")
    _refuse_contradictions(ctx)
    config = pixel_config(ctx)
    folder_config = _folder_config(given(ctx, FOLDER_OPTIONS))
    detect = _detect_config(ctx, config, folder_config.detector)
    stop = StopSignals()
    verbosity = -1 if quiet else verbose
    piped = [str(folder) for folder in folders] == ["-", "-"]
    if tar and not piped:
        raise click.UsageError("--tar reads and writes streams: zipcli purify --tar - - < IN.tar > OUT.tar")
    if tar:
        _refuse_unused(ctx, NOT_OF_TARS, "a tar stream")
        return purify_tar(config, folder_config, detect, stop, verbosity)
    if piped:
        _refuse_unused(ctx, NOT_OF_PICTURES, "one picture through a pipe")
        return purify_picture(config, folder_config, stop, verbose=bool(verbose))
    if "tar_shards" in given(ctx, WISHES):
        _refuse_unused(ctx, NOT_OF_TAR_SHARDS, "a run over tar shards")
    source, out = _folders(folders, files_from, base)
    if isinstance(source, Url) or isinstance(out, Url):
        _refuse_unused(ctx, NOT_OF_URLS, "a URL")
        if not given(ctx, ["jobs"]):
            folder_config = replace(folder_config, jobs=REMOTE_JOBS)
    if as_json and "stdout" in closed_streams:
        raise click.UsageError("--json: standard output is closed")
    again = shlex.join(["zipcli", *sys.argv[1:]])
    stop.last_words = f"stopped; to go on, run the same command again: {again}"
    crew = CrewConfig(**given(ctx, CREW_OPTIONS))
    wishes = Wishes(
        source=source, out=out, verbosity=verbosity, as_json=as_json, crew=crew, **given(ctx, WISHES)
    )
    return purify_folder(wishes, config, folder_config, detect, stop)


def pixel_config(ctx: click.Context) -> PurifyConfig:
    """The settings of the purification, with the classifier where the method asks it."""
    settings = given(ctx, PIXEL_OPTIONS)
    classifier = classifier_config(ctx) if settings.get("method") in METHOD_ASKS else None
    return purify_config(**settings, classifier=classifier)


def _refuse_contradictions(ctx: click.Context) -> None:
    """Refuse options that say different things about which files to take."""
    set_by_user = given(ctx, ("files_from", "null", "base", "retry_failed", "watch", "settle", "dry_run"))
    for name, needed in (("null", "files_from"), ("base", "files_from"), ("settle", "watch")):
        if name in set_by_user and needed not in set_by_user:
            raise click.UsageError(f"{_option(name)} needs {_option(needed)}")
    ways = [name for name in ("files_from", "retry_failed", "watch", "dry_run") if name in set_by_user]
    if len(ways) > 1 and ways[1:] != ["dry_run"]:
        raise click.UsageError(f"{_option(ways[0])} and {_option(ways[1])} contradict each other; give one")
    if ways == ["watch", "dry_run"]:
        raise click.UsageError("--watch and --dry-run contradict each other; give one")
    for name in given(ctx, ("watch",) if given(ctx, CREW_OPTIONS) else ()):
        raise click.UsageError(f"{_option(name)} works in one process; leave out --devices and --engine")
    if given(ctx, ("device", "devices")).keys() >= {"device", "devices"}:
        raise click.UsageError("--device and --devices contradict each other; give one")


def _refuse_unused(ctx: click.Context, names: tuple[str, ...], what: str) -> None:
    for name in given(ctx, names):
        raise click.UsageError(f"{_option(name)}: {what} does not use it; leave it out")


def _option(name: str) -> str:
    return "--" + name.removeprefix("as_").replace("_", "-")


def _detect_config(ctx: click.Context, config: PurifyConfig, detector: str) -> DetectConfig:
    """Settings of the detector; its seed and device are those of the purification."""
    if config.method == "none" and detector != "none":
        raise ConfigError(f"detector: with --method none all images pass anyway; leave out {detector}")
    used = DETECTOR_SETTINGS[detector] & {"seed", "device"}
    shared = {name: getattr(config, name) for name in used}
    return detector_config(ctx, detector, others_ask=config.asks, **shared)


def _folder_config(options: dict[str, Any]) -> FolderConfig:
    """Settings of the files, refusing a quality that nothing would use."""
    if options.get("shard") == "auto":
        shard, variable = Shard.from_environment(os.environ)
        say(f"Note: shard {shard}, by {variable}")
        options |= {"shard": str(shard)}
    config = FolderConfig(**options)
    if "quality" in options and config.format not in ("jpg", "same"):
        raise ConfigError(f"quality: format {config.format} is lossless; use it with --format jpg or same")
    return config


def _folders(
    folders: tuple[Path | Url, ...], files_from: Path | None, base: Path | Url | None
) -> tuple[Path | Url, Path | Url]:
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
