"""Ways to run zipcli, small pictures to run it on, and ways to look at what it left behind."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from zipcli.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "zipcli")
PATIENCE = 600
"""Seconds after which a process counts as hung."""

LOITERING = (
    "from zipcli.cli import signals\n"
    f"signals.StopSignals.__init__.__defaults__ = ({PATIENCE},)\n"
    "from zipcli.cli.main import cli\n"
    "cli(prog_name='zipcli')\n"
)
"""zipcli, but nothing ends it if it does not stop by itself: for tests of how it does, on a busy machine."""

BLUR = ("--method", "blur", "--device", "cpu")
"""A method without a network: what happens around it is the same, in milliseconds."""

PRIOR = ("--device", "cpu", "--steps", "40", "--batch-size", "1")
"""The prior, slow enough for a signal to find it at work."""

ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith("ZIPCLI_") and "COLOR" not in k},
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",  # tiny pictures; threads would only wait for each other
}


def invoke(*args: str | Path, input: bytes | None = None, env: Mapping[str, str] | None = None) -> Result:
    """Run a command inside this process."""
    return CliRunner().invoke(cli, [str(a) for a in args], input=input, env=env, prog_name="zipcli")


def start(
    *args: str | Path,
    env: Mapping[str, str] = {},
    before: Sequence[str] = (),
    loitering: bool = False,
    **options: Any,
) -> "subprocess.Popen[bytes]":
    """Start a command as a process of its own; `before` is a program that runs it."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = (sys.executable, "-c", LOITERING) if loitering else COMMAND
    return subprocess.Popen([*before, *command, *map(str, args)], env={**ENVIRONMENT, **env}, **options)


def run(
    *args: str | Path, input: bytes | None = None, **options: Any
) -> "subprocess.CompletedProcess[bytes]":
    """Run a command as a process of its own and wait for it."""
    options.setdefault("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE)
    with start(*args, **options) as process:
        try:
            out, err = process.communicate(input, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out or b"", err or b"")


def until(process: "subprocess.Popen[bytes]", kind: str, count: int = 1) -> None:
    """Read JSON lines from a process until `count` of one type have come."""
    assert process.stdout is not None
    while count:
        line = process.stdout.readline()
        assert line, f"the process ended before it printed {kind}"
        count -= json.loads(line)["type"] == kind


def read_terminal(master: int) -> bytes:
    """Everything that was written to a terminal until its last writer was gone."""
    parts = []
    with suppress(OSError):  # EIO is how Linux says that
        while part := os.read(master, 65_536):
            parts.append(part)
    return b"".join(parts)


def json_lines(stdout: str | bytes) -> list[dict[str, Any]]:
    """Standard output as objects; anything that is not one JSON object per line is an error."""
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return lines


def images(stdout: str | bytes) -> dict[str, dict[str, Any]]:
    """The lines about images, by path."""
    lines = [line for line in json_lines(stdout) if line["type"] == "image"]
    found = {line["path"]: line for line in lines}
    assert len(found) == len(lines), "an image was reported twice"
    return found


def redone(stdout: str | bytes) -> list[str]:
    """The images that a run purified, not those that it found done."""
    return sorted(path for path, line in images(stdout).items() if line["state"] == "done")


def noise(size: tuple[int, int] = (8, 8), mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture of `size` (width, height) that nothing can compress or confuse with another."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode=None)


def picture(
    path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB", seed: int = 0, **options: Any
) -> Path:
    """Write a picture, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    format = {".jpg": "JPEG", ".tif": "TIFF"}.get(path.suffix.lower(), path.suffix[1:].upper() or "PNG")
    noise(size, mode, seed).save(buffer, format, **options)
    path.write_bytes(buffer.getvalue())
    return path


def pictures(folder: Path, count: int, size: tuple[int, int] = (8, 8)) -> Path:
    """Write `count` different pictures, every other one in a subfolder."""
    for n in range(count):
        picture(folder / ("sub" if n % 2 else ".") / f"{n:02}.png", size, seed=n)
    return folder


def pixels(path: Path) -> np.ndarray:
    """What a picture shows."""
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture."""
    with Image.open(path) as image:
        return image.size


def tree(folder: Path) -> dict[str, bytes]:
    """The visible files below a folder with their bytes."""
    return {
        path: path_bytes for path, path_bytes in everything(folder).items() if not path.startswith(".zipcli/")
    }


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their bytes; empty where there is no folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def originals(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Digest, modification time and mode of every file, and the folders' times and modes."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        status = path.lstat()
        found[str(path)] = (digest, status.st_mtime_ns, status.st_mode)
    return found
