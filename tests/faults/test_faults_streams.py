"""What goes where: standard output is data that the schema describes, whatever the terminal (T18)."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from cli import conftest as cli_fixtures
from cli.shell import BLUR, ENVIRONMENT, ROOT, invoke, json_lines, pictures, read_terminal
from faults.schema import SCHEMA, check_line, faults_of

from zipcli.errors import ExitCode, Reason

here = cli_fixtures.here
_signals_and_environment = cli_fixtures._signals_and_environment

SERVER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import zipcli.pipeline.folder, zipcli.pipeline.detection, zipcli.cli.purify, rich.progress
from zipcli.cli.main import cli
for line in sys.stdin:
    case = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(case["cwd"])
        os.environ.update(case["env"])
        for descriptor in (1, 2):
            stream = os.open(case["streams"][descriptor - 1], os.O_WRONLY | os.O_CREAT | os.O_NOCTTY)
            os.dup2(stream, descriptor)
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        code = 99
        try:
            cli(case["words"], prog_name="zipcli")
        except SystemExit as e:
            code = e.code
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks a process for each line of its input; torch is imported once."""

ENVIRONMENTS = {
    "plain": {"TERM": "xterm-256color"},
    "no-color": {"TERM": "xterm-256color", "NO_COLOR": "1"},
    "force-color": {
        "TERM": "xterm-256color",
        "FORCE_COLOR": "1",
        "CLICOLOR_FORCE": "1",
        "TTY_COMPATIBLE": "1",
    },
    "dumb": {"TERM": "dumb"},
}
WIDTHS = (20, 80, 200)
CASES = list(product(ENVIRONMENTS, WIDTHS, ("terminal", "pipe"), ("json", "words")))

GOLDEN = """\
failed (empty) empty.png: the file is empty; copy it again from its source
failed (unidentified) text.jpg: not an image that we know; convert it to PNG or leave it out
purified 4, skipped 1 links and special files, failed 2 of 7 images in TIME, RATE images/s; \
output in out; ignored 2 other files
"""
"""Standard error of every one of the runs, once what moves is taken away."""


@dataclass(frozen=True)
class Streams:
    code: int
    stdout: bytes
    stderr: bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four good pictures, two bad ones, a link that leads nowhere, and two files that are no pictures."""
    folder = tmp_path_factory.mktemp("streams") / "in"
    pictures(folder, 4)
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "nowhere.png").symlink_to("gone.png")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "sub" / "01.xmp").write_bytes(b"x")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator["subprocess.Popen[str]"]:
    words = [sys.executable, "-c", SERVER, str(ROOT)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, env=ENVIRONMENT, text=True, **pipes) as process:
        yield process


def ask(server: "subprocess.Popen[str]", **case: Any) -> int:
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps(case), file=server.stdin, flush=True)
    return int(server.stdout.readline())


def run_into(
    server: "subprocess.Popen[str]",
    cwd: Path,
    words: list[str],
    environment: dict[str, str],
    width: int,
    kind: str,
) -> Streams:
    """Run a command with its standard error in a terminal or a file."""
    out, err = cwd / "stdout", cwd / "stderr"
    if kind == "pipe":
        code = ask(server, cwd=str(cwd), words=words, env=environment, streams=[str(out), str(err)])
        return Streams(code, out.read_bytes(), err.read_bytes())
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    try:
        streams = [str(out), os.ttyname(slave)]
        code = ask(server, cwd=str(cwd), words=words, env=environment, streams=streams)
        os.close(slave)
        return Streams(code, out.read_bytes(), read_terminal(master))
    finally:
        os.close(master)


ESCAPE = re.compile(r"\x1b\[[0-9;?]*([A-Za-z])")


def screen(data: bytes) -> list[str]:
    """What is left on a terminal of endless width, for the few codes that a progress bar uses."""
    lines, row = [""], 0
    text = data.decode()
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r\n|\r|\n)", text):
        escape = ESCAPE.fullmatch(part)
        if escape and escape.group(1) == "A":
            row -= int(part[2:-1] or 1)
            assert row >= 0
        elif escape and escape.group(1) == "K":
            lines[row] = ""
        elif escape:
            assert escape.group(1) in "hlm"
        elif part in ("\n", "\r\n"):
            row += 1
            lines += [""] * (row == len(lines))
        elif part != "\r":
            lines[row] += part
    return lines


def without_time(text: str) -> str:
    text = re.sub(r"\d\d:\d\d:\d\d", "TIME", text)
    return re.sub(r"[\d.]+ images/s", "RATE images/s", text)


@pytest.mark.parametrize(("environment", "width", "kind", "form"), CASES)
def test_streams_are_the_same_everywhere(
    server: "subprocess.Popen[str]",
    folder: Path,
    here: Path,
    environment: str,
    width: int,
    kind: str,
    form: str,
) -> None:
    words = ["purify", str(folder), "out", *BLUR, *(["--json"] if form == "json" else [])]
    variables = {**ENVIRONMENTS[environment], "COLUMNS": str(width)}
    done = run_into(server, here, words, variables, width, kind)
    assert done.code == ExitCode.SOME_FAILED
    if form == "json":
        lines = json_lines(done.stdout)
        for line in lines:
            check_line(line)
        assert [line["type"] for line in lines] == ["run_start", *["image"] * 7, "run_end"]
        assert lines[-1]["ignored"] == 2
    else:
        assert done.stdout == b""
    if kind == "pipe":
        assert without_time(done.stderr.decode()) == GOLDEN
        return
    left = screen(done.stderr)
    assert without_time("\n".join(left)).endswith(GOLDEN)
    bar = [line for line in left[: len(left) - len(GOLDEN.splitlines()) - 1] if line]
    assert len(bar) == 1
    if environment == "dumb":
        assert b"\x1b" not in done.stderr
    elif width >= 80:
        assert "7/7 failed 2" in bar[0]
    if environment in ("dumb", "no-color"):
        assert not re.search(rb"\x1b\[[0-9;]*(3[0-7]|38|9[0-7])[;m]", done.stderr)
    # Where TERM is dumb, Rich takes 80 columns whatever the terminal says.
    assert len(ESCAPE.sub("", bar[0])) <= (80 if environment == "dumb" else width)


def test_a_dry_run_says_what_the_schema_says(folder: Path, here: Path) -> None:
    result = invoke("purify", folder, "out", "--dry-run", "--json", *BLUR)
    lines = json_lines(result.stdout)
    for line in lines:
        check_line(line)
    assert [line["type"] for line in lines] == [*["plan"] * 6, "plan_end"]


def test_an_error_says_what_the_schema_says(here: Path) -> None:
    (line,) = json_lines(invoke("purify", "nowhere", "out", "--json").stderr)
    check_line(line)


def test_the_schema_knows_every_reason_and_no_other() -> None:
    assert SCHEMA["$defs"]["image"]["properties"]["reason"]["enum"] == [reason.value for reason in Reason]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"found": -1}, "out of range"),
        ({"found": True}, "no integer"),
        ({"found": "1"}, "no integer"),
        ({"fingerprint": "xyz"}, "does not match"),
        ({"schema": 2}, "is not 1"),
        ({"settings": []}, "no object"),
        ({"more": 1}, "not in the schema"),
        ({"found": None}, "no integer"),
    ],
    ids=lambda value: str(value),
)
def test_the_validator_finds_what_is_wrong(change: dict[str, Any], fault: str) -> None:
    line = {"type": "run_start", "schema": 1, "found": 1, "fingerprint": "ab", "settings": {}}
    check_line(line)
    (found,) = faults_of(line | change, SCHEMA["$defs"]["run_start"])
    assert fault in found
    for name in line:
        assert faults_of({k: v for k, v in line.items() if k != name}, SCHEMA["$defs"]["run_start"])
