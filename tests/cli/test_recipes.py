"""The shell recipes of the README, each as real processes, word for word."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.shell import BLUR, ENVIRONMENT, PATIENCE, invoke, json_lines, picture, size_of, tree
from cli.test_readme import RECIPES

NAMES = ["a.jpg", "b.png", "new\nline.jpg", "sub/-c.jpg", "sub/it's $HOME.png"]


def shell(line: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of a shell, which finds this zipcli and purifies without the network of the prior."""
    return subprocess.run(
        ["bash", "-c", line],
        cwd=cwd,
        env=ENVIRONMENT
        | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(cwd),  # GNU parallel keeps files there
            "ZIPCLI_PURIFY_METHOD": "blur",
            **environment,
        },
        capture_output=True,
        timeout=PATIENCE,
    )


def recipe(word: str) -> str:
    """The one recipe with this word, when its tools are here."""
    (line,) = (line for line in RECIPES if word in line)
    for tool in ("jq", "parallel"):
        if f"| {tool} " in line and shutil.which(tool) is None:
            pytest.fail(f"{tool} is not installed; the test command of the README installs it")
    return line


@pytest.fixture
def photos(here: Path) -> Path:
    for n, name in enumerate(NAMES):
        picture(here / "photos" / name, seed=n)
    return here


@pytest.fixture
def cleaned(photos: Path) -> dict[str, bytes]:
    """The tree that one plain run makes."""
    assert invoke("purify", "photos", "whole", *BLUR).exit_code == 0
    return tree(photos / "whole")


def test_find(photos: Path, cleaned: dict[str, bytes]) -> None:
    done = shell(recipe("find"), photos)
    assert done.returncode == 0, done.stderr
    jpegs = {name.replace(".jpg", ".png") for name in NAMES if name.endswith(".jpg")}
    assert tree(photos / "clean") == {name: data for name, data in cleaned.items() if name in jpegs}


def test_one_picture_through_a_pipe(here: Path) -> None:
    picture(here / "in.png", (12, 8))
    done = shell(recipe("in.png"), here)
    assert done.returncode == 0, done.stderr
    assert size_of(here / "out.png") == (12, 8)


def test_tar(photos: Path, cleaned: dict[str, bytes]) -> None:
    done = shell(f"set -o pipefail; {recipe('--tar')}", photos)
    assert done.returncode == 0, done.stderr
    assert tree(photos / "clean" / "photos") == cleaned


def test_jq_names_what_has_failed(photos: Path) -> None:
    assert shell(recipe("jq"), photos).stdout == b""
    (photos / "photos" / "sub" / "bad one.png").write_bytes(b"text")
    done = shell(f"set -o pipefail; {recipe('jq')}", photos)
    assert done.stdout == b"sub/bad one.png\n"
    assert done.returncode == 3


BAD: dict[str, Callable[[Path], object]] = {
    "a bad image": lambda folder: (folder / "bad.png").write_bytes(b"text"),
    "half an image": lambda folder: (folder / "bad.png").write_bytes((folder / "b.png").read_bytes()[:-60]),
    "an empty file": lambda folder: (folder / "bad.png").touch(),
}


@pytest.mark.parametrize("bad", [None, *BAD])
def test_inputs_are_removed_only_when_all_are_done(photos: Path, bad: str | None) -> None:
    if bad:
        BAD[bad](photos / "photos")
    done = shell(recipe("rm -rf"), photos)
    assert (photos / "photos").exists() == bool(bad)
    assert done.returncode == (3 if bad else 0)
    assert len(tree(photos / "clean")) == len(NAMES)


def test_watch_appends_to_its_log(photos: Path, cleaned: dict[str, bytes]) -> None:
    line = recipe("--watch")
    log = photos / "log.jsonl"
    environment = ENVIRONMENT | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ZIPCLI_PURIFY_METHOD": "blur",
        "ZIPCLI_PURIFY_SETTLE": "0.3",
    }
    for _ in range(2):
        lines_before = len(json_lines(log.read_bytes())) if log.exists() else 0
        with subprocess.Popen(["bash", "-c", f"exec {line}"], cwd=photos, env=environment) as process:
            deadline = time.monotonic() + PATIENCE
            while (
                not log.exists()
                or log.read_bytes().count(b'"type": "image"') % len(NAMES)
                or len(log.read_bytes().splitlines()) <= lines_before + len(NAMES)
            ):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
    states = [line["state"] for line in json_lines(log.read_bytes()) if line["type"] == "image"]
    assert states == ["done"] * len(NAMES) + ["skipped"] * len(NAMES)
    assert tree(photos / "clean") == cleaned


def test_xargs_and_merge(photos: Path, cleaned: dict[str, bytes]) -> None:
    done = shell(recipe("xargs"), photos)
    assert done.returncode == 0, done.stderr
    assert tree(photos / "clean") == cleaned
    assert [file.name for file in (photos / "clean" / ".zipcli").glob("ledger-*")] == [
        "ledger-00001-of-00001.jsonl"
    ]


def test_a_merge_tells_that_an_image_has_failed_in_some_shard(photos: Path) -> None:
    (photos / "photos" / "bad.png").write_bytes(b"text")
    done = shell(recipe("xargs"), photos)
    assert done.returncode == 3
    assert b"1 failed" in done.stderr


def test_parallel_runs_each_shard_once_and_failed_ones_again(photos: Path, cleaned: dict[str, bytes]) -> None:
    (photos / "photos" / "bad.png").write_bytes(b"text")
    first = shell(recipe("parallel"), photos)
    assert first.returncode == 1, first.stderr  # as many jobs as have failed
    picture(photos / "photos" / "bad.png", seed=50)
    assert invoke("purify", "photos", "whole", *BLUR).exit_code == 0
    again = shell(recipe("parallel"), photos)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(b"purified 1, ") == 1
    assert tree(photos / "clean") == tree(photos / "whole")
    assert len((photos / "log").read_text().splitlines()) == 1 + 8 + 1


def test_an_array_of_jobs(photos: Path, cleaned: dict[str, bytes]) -> None:
    """What the scheduler runs, for a few of its numbers."""
    line = recipe("sbatch")
    command = line.partition("--wrap ")[2].strip("'")
    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "64", "SLURM_ARRAY_TASK_COUNT": "64"}
    codes = [shell(command, photos, SLURM_ARRAY_TASK_ID=str(n), **array).returncode for n in (1, 33, 64)]
    assert codes == [0, 0, 0]
    status = json.loads(invoke("status", "clean", "--json").stdout)
    assert {shard["shard"] for shard in status["shards"]} <= {"1/64", "33/64", "64/64"}
    assert tree(photos / "clean").items() <= cleaned.items()
