"""zipcli doctor."""

from typing import Any

import click

from zipcli.cli.console import emit
from zipcli.errors import ExitCode, shown


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def doctor(*, as_json: bool) -> int:
    """Say what a bug report needs: versions, devices, model cache, disk.

    Looks only, and connects to nothing. Exit code 4 if a built-in model is damaged.
    """
    from zipcli.pipeline.doctor import examine

    facts = examine()
    code = ExitCode.MODEL if any(model["error"] for model in facts["models"].values()) else ExitCode.DONE
    if as_json:
        emit("doctor", **facts, exit_code=int(code))
        return code
    for name, value in _rows(facts):
        click.echo(f"{name + ':':<14}{shown(value)}")
    for problem in facts["problems"]:
        click.echo(f"{'problem:':<14}{shown(problem)}")
    if not facts["problems"]:
        click.echo("No problem found.")
    return code


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    hub = facts["hub"]
    mode = "offline" if hub["offline"] else f"from {hub['endpoint']}"
    devices = [
        f"{one['name']} ({one['model']})" if "model" in one else one["name"] for one in facts["devices"]
    ]
    return [
        ("zipcli", facts["zipcli"]),
        ("python", f"{facts['python']} on {facts['platform']}"),
        ("packages", ", ".join(f"{name} {version or '-'}" for name, version in facts["packages"].items())),
        ("codecs", ", ".join(name for name, there in facts["codecs"].items() if there)),
        ("memory", f"{facts['memory_bytes'] / 1e9:,.1f} GB"),
        ("devices", f"{', '.join(devices)}; auto is {facts['device']}, {facts['threads']} threads"),
        *(
            ("model", f"{name}, SHA-256 {model['sha256']}" if model["sha256"] else f"{name} is damaged")
            for name, model in facts["models"].items()
        ),
        ("hub", f"{mode}, {'with' if hub['token'] else 'without'} a token"),
        ("cache", _place(hub["cache"])),
        ("this folder", _place(facts["folder"])),
    ]


def _place(place: dict[str, Any]) -> str:
    state = "" if place["exists"] else ", not there yet"
    writable = "" if place["writable"] else ", not writable"
    return f"{place['path']}{state}{writable}, {place['free_bytes'] / 1e9:,.1f} GB free"
