"""zipcli models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from zipcli.cli.console import emit, say
from zipcli.cli.downloads import model_listener
from zipcli.cli.options import Name, NamedCommands, completing, model_names
from zipcli.cli.signals import StopSignals
from zipcli.errors import ExitCode, ModelError, shown
from zipcli.models.catalog import ARCHITECTURES

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """Add --json."""
    return click.option(
        "--json", "as_json", is_flag=True, help="One JSON object per line on standard output."
    )(command)


@click.group(cls=NamedCommands, context_settings={"help_option_names": ["-h", "--help"]})
def models() -> None:
    """List, fetch, check and convert diffusion models.

    NAME is what `zipcli models list` shows, owner/name[@revision][/file] on the Hugging Face Hub, or a file
    or folder. Models are kept in the Hub's own cache (HF_HOME, HF_HUB_CACHE); HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE mean what they always mean.
    """


@models.command("list")
@json_option
def list_command(*, as_json: bool) -> int:
    """List the models that have a name here, and those that were pulled."""
    from zipcli.models.survey import list_models

    rows = list_models()
    if as_json:
        for row in rows:
            emit("model", **row)
        return ExitCode.DONE
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        size = f"{row['size'] / 1e6:,.0f} MB" if row["size"] else ""
        here = "here" if row["cached"] else "on the Hub"
        click.echo(f"{row['name']:<{width}}  {here:<10}  {size:>8}  {row['data']}  [{row['licence']}]")
    return ExitCode.DONE


@models.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completing(model_names))
@click.option("--force", is_flag=True, help="Fetch again what is here, such as a damaged file.")
@json_option
def pull(names: tuple[str, ...], *, force: bool, as_json: bool) -> int:
    """Fetch models, check them, and keep them for use without a network."""
    from zipcli.models.store import find_model
    from zipcli.models.survey import describe_model

    listener = model_listener(StopSignals(), quiet=as_json)
    for name in names:
        found = find_model(name, listener, again=force)
        from zipcli.models.published import unpickled  # torch comes after what may fail without it

        files = unpickled(found, listener, again=force)
        about = describe_model(files)
        sha256 = about["weights_sha256"]
        if as_json:
            emit("pulled", name=name, path=str(files.weights), sha256=sha256, **_sizes(about))
        else:
            say(f"{shown(name)}: {about['parameters']:,} parameters, SHA-256 {sha256}")
            click.echo(str(files.weights))
    return ExitCode.DONE


@models.command()
@click.argument("name", shell_complete=completing(model_names))
@json_option
def info(name: str, *, as_json: bool) -> int:
    """Say what a model is: its network, noise schedule, size, licence and training data."""
    from zipcli.models.store import find_cached
    from zipcli.models.survey import describe_model, describe_name

    about = describe_name(name)
    files = find_cached(name)
    if files is not None:
        about |= describe_model(files)
        about["sha256"] = about["sha256"] or about["weights_sha256"]
    elif about["sha256"] is None:
        raise ModelError(f"{name}: not here yet; run `zipcli models pull {name}`")
    if as_json:
        emit("model", **about)
        return ExitCode.DONE
    width = max(map(len, about)) + 1
    for key, value in about.items():
        if value not in (None, {}, []):
            is_number = isinstance(value, int) and not isinstance(value, bool)
            text = f"{value:,}" if is_number else value if isinstance(value, str) else json.dumps(value)
            click.echo(f"{key + ':':<{width}} {shown(text)}")
    return ExitCode.DONE


@models.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=completing(model_names))
@json_option
def verify(names: tuple[str, ...], *, as_json: bool) -> int:
    """Read models completely and compare them with their digests; without a NAME, all that are here."""
    from zipcli.models.loading import check_model
    from zipcli.models.store import find_cached
    from zipcli.models.survey import list_models

    stop = StopSignals()
    chosen = names or tuple(row["name"] for row in list_models() if row["cached"])
    bad = 0
    for name in chosen:
        stop.check()
        try:
            if find_cached(name) is None:
                raise ModelError(f"{name}: not here; run `zipcli models pull {name}`")
            digest = check_model(name)
        except ModelError as e:
            bad += 1
            if as_json:
                emit("verified", name=name, ok=False, message=str(e))
            say(f"Error: {e}")
        else:
            if as_json:
                emit("verified", name=name, ok=True, sha256=digest)
            else:
                say(f"{shown(name)}: good, SHA-256 {digest}")
    return ExitCode.MODEL if bad else ExitCode.DONE


@models.command()
@click.argument("name", shell_complete=completing(model_names))
@json_option
def path(name: str, *, as_json: bool) -> int:
    """Print where the weights of a model are on this disk."""
    from zipcli.models.store import find_cached

    files = find_cached(name)
    if files is None:
        raise ModelError(f"{name}: not here yet; run `zipcli models pull {name}`")
    if as_json:
        emit("path", name=name, **{role: str(file) for role, file in files.paths.items()})
    else:
        click.echo(str(files.weights))
    return ExitCode.DONE


@models.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--like",
    type=Name("kind of network", ARCHITECTURES),
    help="What OpenAI's weights do not say of themselves: which of their networks they are.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The same from a file: the config.json of diffusers, or JSON with network, schedule and qkv_order.",
)
@json_option
def convert(source: str, target: Path, *, like: str | None, config: Path | None, as_json: bool) -> int:
    """Write a model as one safetensors file that says what it is.

    SOURCE may be a PyTorch pickle (.pt, .bin, .ckpt): it is read by the restricted loader, which takes
    tensors and nothing else. No other command opens a pickle of yours.
    """
    if like is not None and config is not None:
        raise click.UsageError("give --like or --config, not both")
    from zipcli.models.convert import convert_model

    listener = model_listener(StopSignals(), quiet=as_json)
    architecture = ARCHITECTURES[like] if like is not None else None
    result = convert_model(source, target, architecture=architecture, config=config, listener=listener)
    for note in result["notes"]:
        say(f"Note: {note}")
    if as_json:
        emit("converted", **result)
    else:
        say(f"SHA-256 {result['sha256']}")
        click.echo(result["file"])
    return ExitCode.DONE


def _sizes(about: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": about["parameters"], "layout": about["layout"], "notes": about["notes"]}
