"""Every call that a run makes about its files fails once, with every error that a disk can answer."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli.shell import BLUR, originals, picture, pictures, tree
from faults.forked import Forks
from faults.promises import wrong_end, wrong_files, wrong_report
from faults.syscalls import ERRORS

WORDS = ("purify", "in", "out", *BLUR, "--batch-size", "1", "--jobs", "1")
WRITING = ("write", "pwrite", "fsync", "ftruncate", "mkdir", "link", "replace", "rename", "unlink", "flock")
READING = ("open", "read", "fstat")

FOREIGN = {"notes.txt": b"somebody's", "sub/notes.txt": b"somebody else's"}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A folder before a run, and what it must become.

    Attributes:
        folder: Holds `in`, and `before`, which is what `out` starts from.
        expected: The visible files of a run without a fault.
        calls: That such a run makes about its files.
    """

    folder: Path
    expected: dict[str, bytes]
    calls: int

    def set_up(self) -> None:
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        shutil.copytree(self.folder / "before", self.folder / "out")


def sabotage(scene: Path, n: int = 0, error: str = "EIO", *, lasting: bool = False) -> dict[str, Any]:
    """What makes the n-th call of a run fail; with 0 none does."""
    return {
        "before": "faults.syscalls:fail_nth",
        "settings": {
            "folders": [str(scene / "in"), str(scene / "out")],
            "n": n,
            "number": ERRORS[error],
            "lasting": lasting,
            "report": str(scene / "report"),
        },
    }


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report").read_bytes())
    return found


def _scene(forks: Forks, folder: Path) -> Scene:
    """Run without a fault, and count."""
    scene = Scene(folder=folder, expected={}, calls=0)
    scene.set_up()
    done = forks.run(*WORDS, cwd=folder, **sabotage(folder))
    assert done.returncode == 0, done.err
    return Scene(folder=folder, expected=tree(folder / "out"), calls=report_of(folder)["calls"])


def _foreign(out: Path) -> None:
    for name, data in FOREIGN.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)


@pytest.fixture
def first_run(tmp_path: Path, forks: Forks) -> Scene:
    """Three pictures, and an output folder that holds files of somebody else."""
    pictures(tmp_path / "in", 3)
    _foreign(tmp_path / "before")
    return _scene(forks, tmp_path)


@pytest.fixture
def next_run(tmp_path: Path, forks: Forks) -> Scene:
    """One picture is done, one was changed since, the output of one was lost; a crash has left a half."""
    pictures(tmp_path / "in", 3)
    _foreign(tmp_path / "out")
    assert forks.run(*WORDS, cwd=tmp_path).returncode == 0
    picture(tmp_path / "in" / "sub" / "01.png", seed=99)
    (tmp_path / "out" / "02.png").unlink()
    (tmp_path / "out" / ".zipcli" / "tmp" / "00001-of-00001" / "half.part").write_bytes(b"half")
    (tmp_path / "out").rename(tmp_path / "before")
    return _scene(forks, tmp_path)


def wrong_tree(scene: Scene, at_start: dict[str, bytes]) -> list[str]:
    """Files that neither the run may have written nor were there before it."""
    now = tree(scene.folder / "out")
    # What an earlier run has left may still be there; it was complete then, and is not called done now.
    left = {path for path, data in now.items() if at_start.get(path) == data}
    wrong = [
        what for what in wrong_files(scene.folder / "out", scene.expected) if what.split()[0] not in left
    ]
    touched = [name for name, data in FOREIGN.items() if now.get(name) != data]
    return wrong + [f"{name} of somebody else was touched" for name in touched]


def wrong_code(code: int, failed: str, *, lasting: bool) -> list[str]:
    """What is wrong with an exit code: 0 is right where the run could do without the call that failed."""
    name, _, path = failed.partition(" ")
    if name in WRITING and path.startswith("/out/") and code not in (0, 5):
        return [f"exit code {code}, though the output cannot be written"]
    if name in READING and path.startswith("/in/") and not lasting and code not in (0, 3):
        return [f"exit code {code}, though all other images can be read"]
    return []


def attack(forks: Forks, scene: Scene, n: int, error: str, *, lasting: bool) -> list[str] | None:
    """Let one call fail, look, and go on; None when the run ended before that call."""
    scene.set_up()
    folder, out = scene.folder, scene.folder / "out"
    before = originals(folder / "in")
    at_start = tree(out)
    done = forks.run(*WORDS, "--json", cwd=folder, **sabotage(folder, n, error, lasting=lasting))
    report = report_of(folder)
    if not report["failed"]:
        return None
    wrong = wrong_report(done, out, 3) + wrong_tree(scene, at_start)
    if done.returncode == 0 and tree(out) != scene.expected:
        wrong.append("exit code 0, and not everything is done")
    failed: str = report["failed"][0].replace(str(folder), "")
    wrong += wrong_code(done.returncode, failed, lasting=lasting)
    if b"standard output" in done.err:
        wrong.append("the message blames standard output")
    wrong += wrong_end(forks, WORDS, folder, scene.expected)
    wrong += ["an original was changed"] * (originals(folder / "in") != before)
    kind = "from then on" if lasting else "once"
    talk = (done.err.splitlines() or [b""])[-1].decode()
    return [f"call {n} ({failed}) {error} {kind}: {what} [{done.returncode}: {talk}]" for what in wrong]


def cells(scene: Scene, share: float) -> list[tuple[int, str, bool]]:
    """Which call, which error, and whether it lasts; all of them, or a share that stays the same."""
    found = [(n, error, False) for n in range(1, scene.calls + 20) for error in ERRORS]
    found += [
        (n, error, True) for n in range(1, scene.calls + 1) for error in ("ENOSPC", "EDQUOT", "EROFS", "EIO")
    ]
    return found if share == 1 else random.Random(3).sample(found, round(share * len(found)))


def run_all(forks: Forks, scene: Scene, share: float, scoreboard: Callable[..., None], test: str) -> None:
    wrong: list[str] = []
    runs = bad = 0
    for n, error, lasting in cells(scene, share):
        found = attack(forks, scene, n, error, lasting=lasting)
        runs += found is not None
        bad += bool(found)
        wrong += found or []
    assert runs > 30
    scoreboard(f"n-th operation, {test}", wrong, calls=scene.calls, faults=runs, bad=bad)


@pytest.mark.slow
@pytest.mark.fault("F26", "F27", "F28", "F29", "F30", "F39")
def test_whatever_call_of_a_first_run_fails_no_promise_is_broken(
    first_run: Scene, forks: Forks, full: bool, scoreboard: Callable[..., None]
) -> None:
    run_all(forks, first_run, 1 if full else 0.025, scoreboard, "first run")


@pytest.mark.slow
@pytest.mark.fault("F26", "F27", "F28", "F29", "F30", "F39", "F41")
def test_whatever_call_of_the_next_run_fails_no_promise_is_broken(
    next_run: Scene, forks: Forks, full: bool, scoreboard: Callable[..., None]
) -> None:
    run_all(forks, next_run, 1 if full else 0.025, scoreboard, "next run")
