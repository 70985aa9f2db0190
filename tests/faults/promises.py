"""What must hold whatever happens to a run, read from outside: visible files, ledger lines, exit codes."""

import io
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cli.shell import tree
from faults.forked import Done, Forks
from PIL import Image

STATES = ("done", "passed", "skipped", "failed")


def decodes(data: bytes) -> bool:
    """Whether every pixel of a picture can be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def wrong_files(out: Path, expected: Mapping[str, bytes]) -> list[str]:
    """Visible files that an uninterrupted run would not have left there, byte for byte."""
    wrong = []
    for path, data in tree(out).items():
        if path not in expected:
            wrong.append(f"{path} is not expected there")
        elif data != expected[path]:
            wrong.append(f"{path} is {'another picture' if decodes(data) else 'broken'}")
    return wrong


def ledger_lines(out: Path) -> list[dict[str, Any]]:
    """The lines of all ledgers of an output folder that say something, in order."""
    lines = []
    for file in sorted(out.glob(".zipcli/ledger-*.jsonl")):
        for raw in file.read_bytes().split(b"\n"):
            with suppress(ValueError):  # the last one may be torn; `verify` looks for others
                lines.append(json.loads(raw))
    return lines


def unfinished_files(out: Path) -> list[str]:
    """What a finished run must not leave anywhere."""
    return sorted(str(path) for path in out.rglob("*.part"))


def again(lines: list[dict[str, Any]]) -> tuple[int, int]:
    """Images that were begun again: those that were in flight, and those that were finished already."""
    begun: Counter[str] = Counter()
    finished: set[str] = set()
    lost = 0
    for line in lines:
        path = line["path"]
        if line["state"] == "started":
            begun[path] += 1
            lost += path in finished
        elif line["state"] == "done":
            finished.add(path)
    return sum(begun.values()) - len(begun) - lost, lost


def wrong_report(done: Done, out: Path, inputs: int) -> list[str]:
    """What is wrong with the end of a run with --json, or said there and not so."""
    lines = [json.loads(line) for line in done.out.splitlines()]
    images = [line for line in lines if line["type"] == "image"]
    counts = Counter(line["state"] for line in images)
    claims = {
        f"exit code {done.returncode}": done.returncode not in (0, 2, 3, 4, 5, 6),
        "a traceback": b"Traceback" in done.err,
        "a process was left behind": done.lingered,
        "an image was reported twice": len({line["path"] for line in images}) != len(images),
        f"exit code 0 after {len(images)} of {inputs}": done.returncode == 0 and len(images) != inputs,
        "exit code 3 and nothing failed": done.returncode == 3 and not counts["failed"],
    }
    wrong = [claim for claim, is_so in claims.items() if is_so]
    for line in images:
        if line["state"] == "done" and not (out / line["out_path"]).is_file():
            wrong.append(f"{line['path']} was reported as done, and is not there")
    for line in lines:
        if line["type"] == "run_end":
            wrong += _wrong_counts(line, counts, done.returncode)
    return wrong


def _wrong_counts(end: dict[str, Any], counts: Counter[str], code: int) -> list[str]:
    claims = {
        "the counts do not add up": end["found"] != sum(end[state] for state in STATES),
        "the counts are not those of the images": any(end[state] != counts[state] for state in STATES),
        f"run_end said {end['exit_code']}, the exit code is {code}": end["exit_code"] != code,
    }
    return [f"{claim}: {end}" for claim, is_so in claims.items() if is_so]


def wrong_end(forks: Forks, words: tuple[str, ...], cwd: Path, expected: Mapping[str, bytes]) -> list[str]:
    """Run the same command again, without a fault: it must end well, with everything in its place."""
    out = cwd / "out"
    done = forks.run(*words, cwd=cwd)
    wrong = [f"the next run exits {done.returncode}: {done.err.decode()}"] if done.returncode else []
    wrong += wrong_files(out, expected)
    wrong += [f"{path} is missing" for path in expected.keys() - tree(out).keys()]
    wrong += [f"{path} was left" for path in unfinished_files(out)]
    verified = forks.run("verify", "out", cwd=cwd)
    if verified.returncode:
        wrong.append(f"verify exits {verified.returncode}: {(verified.out + verified.err).decode()}")
    return wrong
