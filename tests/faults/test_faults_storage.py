"""Disks that are full, read-only or fail, inputs that go, limits of the system (F16 to F39)."""

import errno
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli.shell import (
    BLUR,
    ENVIRONMENT,
    PATIENCE,
    images,
    invoke,
    originals,
    picture,
    pictures,
    run,
    start,
    tree,
    until,
)

from zipcli.config import FolderConfig
from zipcli.errors import InputError, Reason
from zipcli.images import load
from zipcli.pipeline.plan import Entry, Plan

STATE = ".zipcli"


def one_entry(folder: Path) -> tuple[Plan, Entry]:
    plan = Plan(base=folder, config=FolderConfig())
    (entry,) = plan.entries()
    assert isinstance(entry, Entry)
    return plan, entry


def name_of(descriptor: int) -> str:
    """Path of an open file."""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


@pytest.mark.fault("F28", "F39")
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("times", [1, 2])
def test_a_disk_that_fails_once_is_asked_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, times: int
) -> None:
    data = picture(tmp_path / "in" / "a.png").read_bytes()
    plan, entry = one_entry(tmp_path / "in")
    read, failures = os.read, [number] * times

    def failing(descriptor: int, count: int) -> bytes:
        if failures:
            raise OSError(failures.pop(), "a fault")
        return read(descriptor, count)

    monkeypatch.setattr(load.os, "read", failing)
    if times == 1:
        assert plan.read(entry) == data
    else:
        with pytest.raises(InputError, match="a fault") as caught:
            plan.read(entry)
        assert caught.value.reason is Reason.UNREADABLE


@pytest.mark.fault("F30")
def test_a_permission_that_is_missing_is_not_asked_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "in" / "a.png")
    plan, entry = one_entry(tmp_path / "in")
    asked = []

    def failing(descriptor: int, count: int) -> bytes:
        asked.append(count)
        raise OSError(errno.EACCES, "no")

    monkeypatch.setattr(load.os, "read", failing)
    with pytest.raises(InputError):
        plan.read(entry)
    assert len(asked) == 1


@pytest.mark.fault("F30")
def test_a_folder_that_may_not_be_listed_is_a_failure(here: Path, as_user: tuple[str, ...]) -> None:
    picture(here / "in" / "a.png")
    picture(here / "in" / "closed" / "b.png")
    (here / "in" / "closed").chmod(0)
    here.chmod(0o777)
    result = run("purify", "in", "out", "--json", *BLUR, cwd=here, before=as_user)
    assert result.returncode == 3
    found = images(result.stdout)
    assert found["a.png"]["state"] == "done"
    assert (found["closed"]["state"], found["closed"]["reason"]) == ("failed", "unreadable")


@pytest.mark.fault("F31")
def test_inputs_that_go_come_and_grow_while_a_run_is_at_work(here: Path) -> None:
    """A writer appends to a file all the time, removes one and adds one."""
    pictures(here / "in", 30)
    growing = picture(here / "in" / "z-growing.png")
    ended = threading.Event()

    def write() -> None:
        with growing.open("ab", buffering=0) as f:
            while not ended.is_set():
                f.write(b"x")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with start(
            "purify", "in", "out", "--json", "--batch-size", "1", "-j", "1", *BLUR, cwd=here
        ) as process:
            until(process, "run_start")
            (here / "in" / "sub" / "29.png").unlink()
            picture(here / "in" / "sub" / "30-new.png", seed=30)
            out, err = process.communicate(timeout=PATIENCE)
    finally:
        ended.set()
        writer.join()
    lines = [json.loads(line) for line in out.splitlines()]
    reasons = {line["path"]: line.get("reason") for line in lines if line["type"] == "image"}
    assert b"Traceback" not in err
    assert reasons["00.png"] is None
    # Whether the writer gets in between looking and reading is a race; trailing bytes alone are no failure.
    assert reasons["z-growing.png"] in (None, "changed_during_read")
    assert reasons.get("sub/29.png", "vanished") in (None, "vanished")
    growing.unlink()
    assert run("purify", "in", "out", *BLUR, cwd=here).returncode == 0
    assert (here / "out" / "sub" / "30-new.png").exists()


@pytest.mark.fault("F31")
def test_a_file_that_grows_while_it_is_read_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = picture(tmp_path / "in" / "a.png")
    plan, entry = one_entry(tmp_path / "in")
    fstat = os.fstat

    def then_grow(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        with file.open("ab") as f:
            f.write(b"more")
        return found

    monkeypatch.setattr(load.os, "fstat", then_grow)
    with pytest.raises(InputError) as caught:
        plan.read(entry)
    assert caught.value.reason is Reason.CHANGED_DURING_READ


@pytest.mark.fault("F31")
def test_a_file_that_goes_after_the_plan_has_vanished(tmp_path: Path) -> None:
    file = picture(tmp_path / "in" / "a.png")
    plan, entry = one_entry(tmp_path / "in")
    file.unlink()
    with pytest.raises(InputError) as caught:
        plan.read(entry)
    assert caught.value.reason is Reason.VANISHED


@pytest.mark.fault("F27")
@pytest.mark.parametrize("kind", ["read-only disk", "no permission"])
def test_an_output_that_cannot_be_written_is_told_before_a_model_loads(
    here: Path, kind: str, small_disk: Callable[..., Path], as_user: tuple[str, ...]
) -> None:
    picture(here / "in" / "a.png")
    here.chmod(0o555)
    if kind == "read-only disk":
        out, before = small_disk("64k", "ro") / "out", ()
    else:
        out, before = here / "out", as_user
    result = run("purify", "in", out, "--model", "missing.safetensors", cwd=here, before=before)
    assert result.returncode == 5, result.stderr  # the missing model would be 4
    assert str(out) in result.stderr.decode()


@pytest.mark.fault("F26")
@pytest.mark.parametrize("size", ["1150k", "1300k"])
def test_on_a_full_disk_the_reserve_keeps_what_was_done(
    here: Path, small_disk: Callable[..., Path], size: str
) -> None:
    """The disk has room for the reserve and for some of the images."""
    pictures(here / "in", 60, (150, 150))
    disk = small_disk(size)
    result = run("purify", "in", disk / "out", "--json", *BLUR, cwd=here)
    assert result.returncode == 5
    written = tree(disk / "out")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    done = {line["out_path"] for line in lines if line["type"] == "image" and line["state"] == "done"}
    assert set(written) == done, "an output without its line, or a line without its output"
    assert not list((disk / "out").rglob("*.part"))
    assert not list((disk / "out" / STATE).glob("reserve*"))
    subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
    again = run("purify", "in", disk / "out", "--json", *BLUR, cwd=here)
    assert again.returncode == 0
    states = [line["state"] for line in images(again.stdout).values()]
    assert states.count("skipped") == len(written)
    assert invoke("verify", disk / "out").exit_code == 0


@pytest.mark.fault("F26")
@pytest.mark.parametrize("limit", [0, 1000, 10_000])
def test_a_limit_on_file_sizes_exits_5(here: Path, limit: int) -> None:
    pictures(here / "in", 4, (200, 200))  # some 120 kB each

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = run("purify", "in", "out", *BLUR, cwd=here, preexec_fn=limited)
    assert result.returncode == 5
    assert tree(here / "out") == {}
    assert run("purify", "in", "out", *BLUR, cwd=here).returncode == 0


@pytest.mark.fault("F27")
def test_a_quota_exits_5(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(here / "in", 3)
    write = os.write

    def over_quota(descriptor: int, data: bytes) -> int:
        if "out/.zipcli/tmp" in name_of(descriptor):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", over_quota)
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code == 5
    assert "quota" in result.stderr
    assert tree(here / "out") == {}


@pytest.mark.fault("F29")
def test_a_failed_sync_is_a_failed_write(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(here / "in", 3)
    fsync, failed = os.fsync, []

    def failing(descriptor: int) -> None:
        if ".part" in name_of(descriptor) and "run-" not in name_of(descriptor):
            failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    assert invoke("purify", "in", "out", "-j", "1", *BLUR).exit_code == 5
    assert len(failed) <= 3  # each file once: what a second sync says is worth nothing
    assert tree(here / "out") == {}
    monkeypatch.undo()
    os.chdir(here)
    assert invoke("purify", "in", "out", *BLUR).exit_code == 0


@pytest.mark.fault("F16")
@pytest.mark.parametrize("limit", [24, 40, 64])
def test_few_descriptors_are_enough_or_the_message_says_so(here: Path, limit: int) -> None:
    pictures(here / "in", 30)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    result = run("purify", "in", "out", *BLUR, cwd=here, preexec_fn=limited)
    if result.returncode:
        assert "Too many open files" in result.stderr.decode()
        assert b"Traceback" not in result.stderr
    assert run("purify", "in", "out", *BLUR, cwd=here).returncode == 0
    assert len(tree(here / "out")) == 30


ENVIRONMENTS = {
    "locale C": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "a terminal of 20 columns": {"COLUMNS": "20", "TERM": "dumb"},
    "a home that is not there": {"HOME": "/nonexistent"},
    "a home that is no folder": {"HOME": "/dev/null", "HF_HOME": "/dev/null/hf"},
    "no path": {"PATH": ""},
}


@pytest.mark.fault("F24")
@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_a_strange_environment_changes_nothing(here: Path, kind: str) -> None:
    pictures(here / "in", 2)
    picture(here / "in" / "\u00e9\u65e5.png", seed=5)
    result = run("purify", "in", "out", *BLUR, cwd=here, env=ENVIRONMENTS[kind])
    assert result.returncode == 0, result.stderr
    assert invoke("purify", "in", "usual", *BLUR).exit_code == 0
    assert tree(here / "out") == tree(here / "usual")


@pytest.mark.fault("F17")
def test_clocks_that_jump_decide_nothing(finished: Path) -> None:
    """The outputs are of the future, the inputs of the past, and so is the ledger."""
    for file in (finished / "out").rglob("*"):
        os.utime(file, (4_100_000_000, 4_100_000_000))
    for file in (finished / "in").rglob("*"):
        os.utime(file, (0, 0))
    ledger = finished / "out" / STATE / "ledger-00001-of-00001.jsonl"
    ledger.write_text(ledger.read_text().replace('"time": "20', '"time": "90'))
    result = run("purify", "in", "out", "--json", *BLUR, cwd=finished)
    assert result.returncode == 0
    assert {line["state"] for line in images(result.stdout).values()} == {"skipped"}


@pytest.mark.fault("F17")
def test_durations_come_from_a_clock_that_never_jumps(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(here / "in", 3)
    times = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr("time.time", lambda: float(next(times)))
    result = invoke("purify", "in", "out", "--json", *BLUR)
    assert result.exit_code == 0
    assert all(0 <= line["ms"] < 60_000 for line in images(result.stdout).values())


@pytest.mark.fault("F22")
def test_an_upgrade_that_changes_pixels_is_refused_and_named(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zipcli.pipeline.settings.ALGORITHM", 2)
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code == 2
    assert "algorithm: 1 there, 2 now" in result.stderr
    assert invoke("purify", "in", "out", "--overwrite", *BLUR).exit_code == 0


@pytest.mark.fault("F25")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders of somebody else to write to")
def test_root_in_a_container_leaves_files_that_follow_the_umask(here: Path) -> None:
    """The volume belongs to a user of the host."""
    pictures(here / "in", 1)
    (here / "volume").mkdir(mode=0o700)
    os.chown(here / "volume", 12345, 12345)
    result = run("purify", "in", "volume/out", *BLUR, cwd=here, umask=0o027)
    assert result.returncode == 0, result.stderr
    assert stat.S_IMODE((here / "volume" / "out" / "00.png").stat().st_mode) == 0o640
    assert (here / "volume").stat().st_uid == 12345


@pytest.mark.fault("F34")
@pytest.mark.parametrize("words", [(), ("--json",)])
def test_an_empty_folder_is_well_when_the_user_says_so(here: Path, words: tuple[str, ...]) -> None:
    (here / "in").mkdir()
    assert invoke("purify", "in", "out", *BLUR, *words).exit_code == 2
    result = invoke("purify", "in", "out", "--allow-empty", *BLUR, *words)
    assert result.exit_code == 0
    assert tree(here / "out") == {}


@pytest.fixture
def deep(here: Path) -> Iterator[Path]:
    """An image below a path that is longer than the system takes in one piece."""
    (here / "in").mkdir()
    picture(here / "in" / "a.png")
    descriptor = os.open(here / "in", os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=descriptor)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    file = os.open("b.png", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
    os.write(file, (here / "in" / "a.png").read_bytes())
    os.close(file)
    os.close(descriptor)
    yield here
    subprocess.run(["rm", "-rf", "in", "out"], cwd=here, check=True)


@pytest.mark.fault("F38")
def test_a_path_longer_than_the_system_takes_is_a_failure_and_the_rest_is_done(deep: Path) -> None:
    result = run("purify", "in", "out", "--json", *BLUR, cwd=deep)
    assert result.returncode == 3
    found = images(result.stdout)
    assert found.pop("a.png")["state"] == "done"
    (lost,) = found.values()
    assert (lost["state"], lost["reason"]) == ("failed", "name_unsupported")


@pytest.mark.fault("F38")
def test_a_tree_of_200_folders_in_each_other_is_mirrored(here: Path) -> None:
    picture(here / "in" / "/".join("d" * 200) / "a.png")
    assert run("purify", "in", "out", *BLUR, cwd=here).returncode == 0
    assert len(tree(here / "out")) == 1


PLAN = """
import resource, sys
from pathlib import Path
from zipcli.config import FolderConfig
from zipcli.pipeline.plan import Plan, collisions
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(1 for _ in Plan(base=Path(sys.argv[1]), config=FolderConfig()).entries())
shared = collisions(Plan(base=Path(sys.argv[1]), config=FolderConfig()).entries())
print(count, len(shared), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.fault("F38")
def test_a_folder_with_very_many_entries_is_planned_in_little_memory(tmp_path: Path, full: bool) -> None:
    count = 1_000_000 if full else 50_000
    (tmp_path / "one").write_bytes(b"x")
    folders = [tmp_path / "in" / str(n) for n in range(count // 50_000)]
    for folder in folders:  # hard links, of which a file may have 65,000
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(b"x")
        for n in range(1, 50_000):
            os.link(folder / "0.png", folder / f"{n}.png")
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(tmp_path / "in")], env=ENVIRONMENT, capture_output=True, text=True
    )
    shutil.rmtree(tmp_path / "in")
    found, shared, megabytes = map(int, done.stdout.split())
    assert (found, shared) == (count, 0)
    assert megabytes < 60, "the names of one folder may be held, not those of all"


@pytest.mark.fault("F37")
def test_an_output_folder_on_a_disk_of_its_own_takes_no_other_for_its_halves(
    here: Path, small_disk: Callable[..., Path]
) -> None:
    before = originals(pictures(here / "in", 4))
    disk = small_disk("2m")
    assert run("purify", "in", disk, *BLUR, cwd=here).returncode == 0
    assert len(tree(disk)) == 4
    assert originals(here / "in") == before
