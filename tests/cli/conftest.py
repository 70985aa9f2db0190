"""Fixtures of the command-line tests; the ways to run zipcli are in shell.py."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli.shell import BLUR, ENVIRONMENT, PRIOR, invoke, pictures, run


@pytest.fixture(autouse=True)
def _signals_and_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command inside this process takes the signals over and reads the environment; undo both."""
    for name in os.environ.keys() - ENVIRONMENT.keys():
        monkeypatch.delenv(name)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in `in`, purified into `out` by another process."""
    folder = tmp_path_factory.mktemp("finished")
    pictures(folder / "in", 6)
    assert run("purify", "in", "out", *BLUR, cwd=folder).returncode == 0
    return folder


@pytest.fixture
def finished(finished_run: Path, here: Path) -> Path:
    """A copy of `finished_run` to stand in."""
    shutil.copytree(finished_run, here, dirs_exist_ok=True)
    return here


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in `in`, purified into `out` with the prior and without a break."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    pictures(folder / "in", 6, (16, 16))
    result = invoke("purify", folder / "in", folder / "out", *PRIOR)
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts disks of a few pages, which only root may."""
    mounted: list[Path] = []

    def mount(size: str, *options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs", str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("a real full disk needs the program mount")
        if done.returncode:
            pytest.skip(f"a real full disk needs the right to mount one: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def as_user() -> tuple[str, ...]:
    """Words before a command that make permissions count, which they do not for root."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root may read and write everything; to give that up needs the program setpriv")
    words = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("root may read and write everything, and is not allowed to give that up here")
    return words
