"""A cluster on one folder: --engine ray, with a real one of two nodes on 127.0.0.1."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cli.shell import ENVIRONMENT, PATIENCE, images, invoke, picture, run, start, tree, until
from faults.promises import ledger_lines, unfinished_files
from PIL import Image
from real_images import cifar

SETTINGS = ("--method", "nullspace", "--steps", "6")
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Ray listens on every address of the machine: nobody else shall talk to it."""

NODE = {
    **ENVIRONMENT,
    **TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # at Ray's 15, actors starve where others work
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}
RAY = (sys.executable, "-W", "ignore", "-m", "ray.scripts.scripts", "start", "--block")


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 real images in `in`, purified into `out` by one process."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "in").mkdir()
    for n, pixels in enumerate(cifar(400)):
        Image.fromarray(pixels).save(folder / "in" / f"{n:03}.png")
    assert invoke("purify", folder / "in", folder / "out", *SETTINGS, "--device", "cpu").exit_code == 0
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster whose one node has one core."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The paths of sockets must be short.
    folder = tempfile.mkdtemp(prefix="zr", dir="/tmp")
    words = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
    with node(*words):
        yield f"127.0.0.1:{port}"
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def node(*words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A machine of the cluster, with one core."""
    options = ("--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats")
    with subprocess.Popen(
        [*RAY, *words, *options], env=NODE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        said = b""
        while b"Ray runtime started" not in said:
            line = process.stdout.readline()
            assert line, said.decode()
            said += line
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)


def below(parent: int) -> Iterator[int]:
    """The processes that a process has started, and those that these have."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                yield from below(int(folder.name))
                yield int(folder.name)


def test_a_machine_that_dies_loses_no_image(by_one: Path, here: Path, address: str) -> None:
    words = ("purify", by_one / "in", "out", "--json", "--engine", "ray", "--workers", "2", *SETTINGS)
    env = {"RAY_ADDRESS": address, **TOKEN}
    with node(f"--address={address}") as second, start(*words, "--device", "cpu", env=env) as process:
        until(process, "image")
        actors = [pid for pid in below(second.pid) if b"Actor" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert actors, "the second machine has nothing to do"
        for pid in reversed(list(below(second.pid))):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert b"is gone" in err
    assert tree(here / "out") == tree(by_one / "out")
    lines = ledger_lines(here / "out")
    done = Counter(line["path"] for line in lines if line["state"] == "done")
    assert set(done.values()) == {1}
    assert len(done) == 400
    assert not unfinished_files(here / "out")
    assert invoke("verify", "out").exit_code == 0

    again = run(*words, "--device", "cpu", env=env)
    assert again.returncode == 0
    assert {line["state"] for line in images(again.stdout).values()} == {"skipped"}
    assert ledger_lines(here / "out") == lines


def test_a_signal_stops_a_run_on_a_cluster_and_the_rest_is_done_later(
    by_one: Path, here: Path, address: str
) -> None:
    words = ("purify", by_one / "in", "out", "--json", "--engine", "ray", "--workers", "1", *SETTINGS)
    env = {"RAY_ADDRESS": address, **TOKEN}
    with start(*words, env=env) as process:
        until(process, "image")
        process.terminate()
        began = time.monotonic()
        process.communicate(timeout=PATIENCE)
        took = time.monotonic() - began
    assert process.returncode == 143
    assert took <= 60  # all of them take longer than the pipe lets them
    left = tree(here / "out")
    assert 0 < len(left) < 400
    assert left.items() <= tree(by_one / "out").items()
    done = run(*words, env=env)
    assert done.returncode == 0, done.stderr
    assert tree(here / "out") == tree(by_one / "out")


def test_a_cluster_that_is_not_there_and_a_device_that_it_lacks_are_refused(here: Path, address: str) -> None:
    picture(here / "in" / "a.png")
    words = ("purify", "in", "out", "--engine", "ray", *SETTINGS)
    nowhere = run(*words, env={"RAY_ADDRESS": "127.0.0.1:1"})
    assert nowhere.returncode == 2, nowhere.stderr
    assert b"no cluster at 127.0.0.1:1" in nowhere.stderr
    lacking = run(*words, "--device", "cuda", env={"RAY_ADDRESS": address, **TOKEN})
    assert lacking.returncode == 2, lacking.stderr
    assert b"the cluster has no cuda" in lacking.stderr
    assert not (here / "out").exists()


def test_without_ray_the_extra_is_named(here: Path) -> None:
    picture(here / "in" / "a.png")
    (here / "hidden" / "ray").mkdir(parents=True)
    (here / "hidden" / "ray" / "__init__.py").write_text("raise ImportError('no ray')")
    path = os.pathsep.join((str(here / "hidden"), ENVIRONMENT["PYTHONPATH"]))
    done = run("purify", "in", "out", "--engine", "ray", env={"PYTHONPATH": path})
    assert done.returncode == 2
    assert re.search(rb"pip install '?zipcli\[ray\]", done.stderr)
