"""Several processes on one folder: --devices."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cli.shell import PATIENCE, images, invoke, json_lines, picture, pictures, run, start, tree, until
from faults.promises import ledger_lines, unfinished_files
from PIL import Image
from real_images import cifar

QUICK = ("--method", "nullspace", "--steps", "6")
TWO = ("--devices", "cpu,cpu")
COUNT = 220


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images in `in`, more than a pipe holds the lines of, purified into `out` by one process."""
    folder = tmp_path_factory.mktemp("one")
    for n, pixels in enumerate(cifar(COUNT)):
        path = folder / "in" / str(n % 3) / f"{n:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    assert invoke("purify", folder / "in", folder / "out", *QUICK, "--device", "cpu").exit_code == 0
    return folder


@pytest.fixture
def words(by_one: Path, here: Path) -> tuple[str, ...]:
    """The command that makes the same with two processes, in a new folder."""
    return ("purify", str(by_one / "in"), "out", "--json", *QUICK, *TWO)


def workers_of(parent: int) -> list[int]:
    """The processes that purify for a run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if b"zipcli.pipeline.processes" in words and above == parent:
                found.append(int(folder.name))
    return found


def is_there(pid: int) -> bool:
    with suppress(OSError):
        return b"zipcli.pipeline.processes" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def done_once(out: Path) -> set[str]:
    """The images that the ledger calls done, each once."""
    counts = Counter(line["path"] for line in ledger_lines(out) if line["state"] == "done")
    assert set(counts.values()) <= {1}, counts.most_common(3)
    return set(counts)


def nothing_without_a_start(out: Path) -> bool:
    begun: set[str] = set()
    for line in ledger_lines(out):
        if line["state"] == "started":
            begun.add(line["path"])
        elif line["state"] == "done" and line["path"] not in begun:
            return False
    return True


def test_two_processes_write_the_bytes_of_one(by_one: Path, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert tree(Path("out")) == tree(by_one / "out")
    assert set(images(done.stdout)) == done_once(Path("out"))
    assert json_lines(done.stdout)[0]["fingerprint"] == ledger_lines(by_one / "out")[0]["fingerprint"]
    assert nothing_without_a_start(Path("out"))
    assert not unfinished_files(Path("out"))
    assert not list(Path("out/.zipcli/tmp").glob("*/*"))


def test_what_is_done_is_compared_and_no_line_is_written(here: Path) -> None:
    pictures(here / "in", 9)
    words = ("purify", "in", "out", "--json", "--method", "blur", *TWO)
    assert run(*words).returncode == 0
    before = ledger_lines(Path("out"))
    again = run(*words)
    assert {line["state"] for line in images(again.stdout).values()} == {"skipped"}
    assert len(images(again.stdout)) == 9
    assert ledger_lines(Path("out")) == before
    picture(here / "in" / "00.png", seed=99)
    (here / "out" / "02.png").unlink()
    third = images(run(*words).stdout)
    assert sorted(path for path, line in third.items() if line["state"] == "done") == ["00.png", "02.png"]
    fresh = ledger_lines(Path("out"))[len(before) :]
    assert Counter((line["path"], line["state"]) for line in fresh) == {
        (path, state): 1 for path in ("00.png", "02.png") for state in ("started", "done")
    }
    assert invoke("verify", "out").exit_code == 0


@pytest.mark.fault("F12")
def test_a_worker_that_is_killed_loses_no_image(by_one: Path, words: tuple[str, ...]) -> None:
    with start(*words) as process:
        until(process, "image")
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert b"was ended by SIGKILL; starting another" in err
    assert tree(Path("out")) == tree(by_one / "out")
    assert len(done_once(Path("out"))) == COUNT
    assert invoke("verify", "out").exit_code == 0


KILLER = """
import json, os, sys
from pathlib import Path
from PIL import Image

def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

for line in sys.stdin:
    asked = json.loads(line)
    if Image.open(asked["path"]).convert("L").getextrema() == (0, 0):
        pid = os.getpid()
        while b"zipcli.pipeline.processes" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            pid = parent(pid)
        os.kill(pid, 9)
    print(json.dumps({"id": asked["id"], "label": 0}), flush=True)
"""


@pytest.mark.fault("F12")
def test_images_that_kill_whoever_has_them_fail_alone(here: Path) -> None:
    """The classifier of the detector kills the worker that asks it about a black image."""
    pictures(here / "in", 12)
    for name in ("04.png", "sub/07.png"):
        Image.new("RGB", (8, 8)).save(here / "in" / name)
    (here / "killer.py").write_text(KILLER)
    program = f"cmd:{shlex.quote(sys.executable)} killer.py"
    words = ("purify", "in", "out", "--json", "--method", "blur", "--devices", "cpu")
    done = run(*words, "--detector", "scaleup", "--classifier", program)
    assert done.returncode == 3, done.stderr
    found = images(done.stdout)
    assert {path for path, line in found.items() if line["state"] == "failed"} == {"04.png", "sub/07.png"}
    assert {line.get("reason") for line in found.values()} == {None, "worker_crash"}
    assert len(found) == 12
    assert tree(Path("out")).keys() == tree(here / "in").keys() - {"04.png", "sub/07.png"}
    assert not list(Path("out/.zipcli/tmp").glob("*/*"))


@pytest.mark.fault("F12")
def test_without_a_worker_the_run_ends_and_the_same_command_goes_on(
    by_one: Path, words: tuple[str, ...]
) -> None:
    with start(*words) as process:
        until(process, "image")
        while process.poll() is None:
            for pid in workers_of(process.pid):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert b"no worker is left" in err
    assert b"Traceback" not in err
    assert tree(Path("out")).items() <= tree(by_one / "out").items()
    assert run(*words).returncode == 0
    assert tree(Path("out")) == tree(by_one / "out")
    assert len(done_once(Path("out"))) == COUNT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_its_workers(
    by_one: Path, words: tuple[str, ...], number: signal.Signals
) -> None:
    with start(*words, start_new_session=True, loitering=True) as process:
        until(process, "image")
        workers = workers_of(process.pid)
        began = time.monotonic()
        for pid in (process.pid, *workers):  # a terminal or a scheduler may tell everybody
            os.kill(pid, number)
        out, err = process.communicate(timeout=PATIENCE)
        took = time.monotonic() - began
    assert len(workers) == 2
    assert process.returncode == 128 + number
    assert took <= 30  # two, on a free core
    assert not any(map(is_there, workers))
    last = json_lines(out)[-1]
    assert last["found"] + last["left"] == COUNT
    assert last["left"] > 0
    assert b"to go on, run the same command again" in err
    assert not unfinished_files(Path("out"))
    assert len(tree(Path("out"))) == len(done_once(Path("out")))  # what was written was noted, too
    assert run(*words).returncode == 0
    assert tree(Path("out")) == tree(by_one / "out")
    assert len(done_once(Path("out"))) == COUNT


@pytest.mark.fault("F01")
def test_workers_do_not_outlive_a_run_that_is_killed(by_one: Path, words: tuple[str, ...]) -> None:
    with start(*words) as process:
        until(process, "image")
        workers = workers_of(process.pid)
        process.kill()
        wait_for(lambda: not any(map(is_there, workers)), 30)
        process.communicate(timeout=PATIENCE)
    assert len(workers) == 2
    assert tree(Path("out")).items() <= tree(by_one / "out").items()
    assert 0 < len(tree(Path("out"))) < COUNT
    assert run(*words).returncode == 0
    assert tree(Path("out")) == tree(by_one / "out")
    assert not unfinished_files(Path("out"))


def test_a_bad_image_and_a_foreign_file_cost_no_other(here: Path) -> None:
    pictures(here / "in", 6)
    (here / "in" / "bad.png").write_bytes(b"bad")
    (here / "in" / "link.png").symlink_to("nowhere")
    words = ("--method", "blur", "--json", "--shard", "1/1")
    expected = images(run("purify", "in", "one", *words, "--device", "cpu").stdout)
    done = run("purify", "in", "out", *words, *TWO, "--workers", "3")
    found = images(done.stdout)
    assert done.returncode == 3
    for line in (*expected.values(), *found.values()):
        line.pop("ms", None)
    assert found == expected
    assert tree(Path("out")) == tree(Path("one"))
    ends = [[line for line in ledger_lines(Path(out)) if line["state"] == "failed"] for out in ("one", "out")]
    assert [line["path"] for line in ends[0]] == [line["path"] for line in ends[1]] == ["bad.png"]
    picture(here / "in" / "bad.png")
    again = run("purify", "in", "out", *words, *TWO, "--retry-failed")
    assert again.returncode == 0
    assert [line["state"] for line in images(again.stdout).values()] == ["done"]


@pytest.mark.parametrize("engine", [(), TWO], ids=["one", "two"])
def test_nobody_elses_file_is_taken_for_the_output_of_an_image_that_was_never_read(
    here: Path, engine: tuple[str, ...]
) -> None:
    words = ("purify", "in", "out", "--method", "blur", "--max-bytes", "4000", *engine)
    picture(here / "in" / "b.png")
    (here / "in" / "a.png").write_bytes(b"x" * 5000)
    assert invoke(*words).exit_code == 3
    (here / "out" / "a.png").write_bytes(b"the user's own")
    picture(here / "in" / "a.png")
    result = invoke(*words)
    assert result.exit_code == 2, result.stderr
    assert (here / "out" / "a.png").read_bytes() == b"the user's own"


def test_an_image_that_has_become_bad_loses_its_output(here: Path) -> None:
    pictures(here / "in", 2)
    words = ("purify", "in", "out", "--method", "blur", *TWO)
    assert run(*words).returncode == 0
    (here / "in" / "00.png").write_bytes(b"bad")
    assert run(*words).returncode == 3
    assert list(tree(Path("out"))) == ["sub/01.png"]


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (("in", "out", *TWO, "--watch"), 2, "--watch"),
        (("-", "-", *TWO), 2, "--devices"),
        (("--tar", "-", "-", *TWO), 2, "--devices"),
        (("in", "out", *TWO, "--device", "cpu"), 2, "contradict"),
        (("in", "out", "--workers", "2"), 2, "give --devices, or --engine ray"),
        (("in", "out", "--engine", "ray", *TWO), 2, "--device"),
        (("in", "out", "--engine", "rai"), 2, "ray"),
        (("in", "out", "--devices", "cpu,"), 2, "a name is missing"),
        (("in", "out", "--devices", "cpu,cuda:77"), 2, "there is no cuda:77"),
        (("in", "out", *TWO, "--model", "./nowhere"), 4, "nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused(here: Path, words: tuple[str, ...], code: int, hint: str) -> None:
    picture(here / "in" / "a.png")
    result = invoke("purify", *words)
    assert result.exit_code == code, result.stderr
    assert hint in result.stderr
    assert not (here / "out").exists()


def test_all_devices_are_found_and_a_dry_run_needs_no_worker(here: Path) -> None:
    pictures(here / "in", 2)
    assert invoke("purify", "in", "out", "--devices", "all", "-n", "--method", "blur").exit_code == 0
    assert not (here / "out").exists()
    assert invoke("purify", "in", "out", "--devices", "all", "--method", "blur").exit_code == 0
    assert len(tree(here / "out")) == 2


def test_a_driver_imports_no_torch(here: Path) -> None:
    """What each worker has in memory, the driver need not have once more."""
    pictures(here / "in", 1)
    code = "import sys; from cli.shell import invoke; result = invoke(*sys.argv[1:]); "
    code += "print(result.exit_code, 'torch' in sys.modules)"
    words = [sys.executable, "-c", code, "purify", "in", "out", "--method", "blur", *TWO]
    folder = str(Path(__file__).parents[1])
    path = os.pathsep.join((folder, str(Path(folder).parent)))
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.stdout.split() == ["0", "False"], done.stderr
