"""zipcli verify, zipcli status and zipcli merge."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zipcli.cli.console import emit, say
from zipcli.cli.options import Location
from zipcli.cli.signals import StopSignals
from zipcli.errors import ExitCode, shown
from zipcli.pipeline.outcome import json_path
from zipcli.pipeline.url import Url

if TYPE_CHECKING:
    from zipcli.pipeline.inspection import Finding


@click.command(epilog="\b\nExample:\n  zipcli purify photos clean && zipcli verify clean && rm -rf photos")
@click.argument("out", metavar="OUT", type=Location(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="No summary; only what is wrong.")
def verify(*, out: Path | Url, as_json: bool, quiet: bool) -> int:
    """Check that every output is, byte for byte, what was written.

    OUT is the output folder or URL of `zipcli purify`. Reads every output and compares its digest with
    the ledger; names those that are missing, changed or unfinished, and images that no run has written.
    Exit code 3 if there is any. Nothing is changed. Of images that no run has come to yet, nothing is known
    here.
    """
    stop = StopSignals()
    from zipcli.pipeline import inspection

    counts: Counter[str] = Counter()
    for finding in inspection.verify(inspection.place(out), stop.check):
        counts[finding.state] += 1
        if as_json:
            emit("output", **_as_json(finding))
        elif finding.message is not None:
            click.echo(f"{finding.state}: {shown(finding.out_path)}: {finding.message}")
    wrong = counts.total() - counts["intact"]
    code = ExitCode.SOME_FAILED if wrong else ExitCode.DONE
    if as_json:
        emit("verify_end", checked=counts.total(), counts=dict(counts), exit_code=int(code))
    elif not quiet:
        named = "".join(f", {counts[state]:,} {state}" for state in sorted(counts.keys() - {"intact"}))
        say(f"{counts['intact']:,} outputs intact{named}")
    return code


def _as_json(finding: "Finding") -> dict[str, Any]:
    values = {name: value for name, value in asdict(finding).items() if value is not None}
    for name in ("path", "out_path"):
        if name in values:
            values |= json_path(name, values[name])
    return values


@click.command()
@click.argument("out", metavar="OUT", type=Location(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def status(*, out: Path | Url, as_json: bool) -> int:
    """Say how far an output folder is, and with which settings.

    OUT is the output folder or URL of `zipcli purify`; a run may be writing there. Nothing is changed, and no
    file but the ledger is read.
    """
    from zipcli.pipeline import inspection

    facts = inspection.status(inspection.place(out))
    if as_json:
        emit("status", **facts)
        return ExitCode.DONE
    counts = ", ".join(f"{count:,} {state}" for state, count in facts["counts"].items() if count)
    tars = ", ".join(f"{count:,} {state}" for state, count in facts.get("tars", {}).items() if count)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(facts["reasons"].items()))
    settings = ", ".join(f"{name.rstrip('_')} {value}" for name, value in sorted(facts["settings"].items()))
    rows = {
        "images": counts or "none yet",
        "tars": tars,
        "reasons": reasons,
        "other settings": f"{facts['other_settings']:,} outputs" if facts["other_settings"] else "",
        "outputs": _size(facts["out_bytes"]),
        "input": facts.get("input", ""),
        "first, last": " to ".join(time for time in (facts["first"], facts["last"]) if time),
        "running": facts["running"] or "",
        "damaged lines": str(facts["damaged_lines"] or ""),
        "version": facts["version"],
        "settings": settings,
    }
    for shard in facts.get("shards", ()):
        counts = ", ".join(f"{count:,} {state}" for state, count in shard["counts"].items() if count)
        running = f", running: {shard['running']}" if shard["running"] else ""
        rows[f"shard {shard['shard']}"] = f"{counts or 'none yet'}{running}"
    for name, value in rows.items():
        if value:
            click.echo(f"{name + ':':<16}{shown(value)}")
    return ExitCode.DONE


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


@click.command(epilog="\b\nExample:\n  zipcli merge clean && zipcli verify clean")
@click.argument("out", metavar="OUT", type=Location(path_type=Path))
def merge(*, out: Path | Url) -> int:
    """Join what `zipcli purify --shard` has written.

    OUT is the output folder or URL of all shards. Checks that every shard has run, that no image was taken
    twice and that all have the same settings, and makes one ledger of theirs; a run without --shard can go
    on then. No image is touched. Exit code 3 if images have failed, or are not finished.
    """
    StopSignals(grace=None)  # it takes a moment
    if isinstance(out, Url):
        from zipcli.pipeline.remote_merge import merge_remote

        records = merge_remote(out)
    else:
        from zipcli.pipeline.merge import merge

        records = merge(out)
    counts = Counter(record.state for record in records.by_path.values())
    say(", ".join(f"{count:,} {state}" for state, count in sorted(counts.items())) or "no images")
    return ExitCode.SOME_FAILED if counts["failed"] or counts["started"] else ExitCode.DONE
