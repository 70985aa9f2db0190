"""Somebody has been in the output folder: links, other runs, crashes at bad moments."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.shell import (
    BLUR,
    ENVIRONMENT,
    PATIENCE,
    everything,
    images,
    invoke,
    picture,
    pictures,
    run,
    start,
    tree,
    until,
)

STATE = ".zipcli"
PART = "00001-of-00001"

LINKS = [
    f"{STATE}",
    f"{STATE}/lock-{PART}",
    f"{STATE}/ledger-{PART}.jsonl",
    f"{STATE}/ledger-{PART}.damaged",
    f"{STATE}/reserve-{PART}",
    f"{STATE}/run.json",
    f"{STATE}/tmp",
    f"{STATE}/tmp/{PART}",
    "sub",
    "00.png",
]


@pytest.fixture
def victim(here: Path) -> Path:
    """Somebody's folder beside ours."""
    pictures(here / "in", 2)
    folder = here / "victim"
    (folder / PART).mkdir(parents=True)
    for name in ("thesis.txt", f"{PART}/thesis.txt", "00.png", "01.png"):
        (folder / name).write_bytes(b"years of work")
    return folder


@pytest.mark.fault("F50")
@pytest.mark.parametrize("is_second_run", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
@pytest.mark.parametrize("link", LINKS)
def test_no_link_in_the_output_folder_leads_us_out_of_it(
    victim: Path, here: Path, link: str, kind: str, is_second_run: bool
) -> None:
    if is_second_run:
        assert invoke("purify", "in", "out", *BLUR).exit_code == 0
        picture(here / "in" / "00.png", seed=50)  # is to be done again
        (here / "in" / "sub" / "01.png").write_bytes(b"bad")  # is to be taken back
        with (here / "out" / STATE / f"ledger-{PART}.jsonl").open("ab") as ledger:
            ledger.write(b"damage\n")
    place = here / "out" / link
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        subprocess.run(["rm", "-r", place], check=True)
    target = {"file": "thesis.txt", "folder": "", "nothing": "new"}[kind]
    place.symlink_to(victim / target)
    before = everything(victim)
    for words in ((), ("--overwrite",)):
        result = invoke("purify", "in", "out", *BLUR, *words)
        assert result.exit_code in (0, 2, 3, 5), result.output
        assert everything(victim) == before


@pytest.mark.fault("F18")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((), ("--shard", "1/2")),
        (("--shard", "1/2"), ()),
        (("--shard", "1/2"), ("--shard", "2/2", "-t", "blur:4", "--overwrite")),
    ],
)
def test_a_folder_is_shared_by_equal_shards_alone(
    here: Path, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    pictures(here / "in", 4)
    with start("purify", "in", "out", "--watch", "--json", *BLUR, *first, cwd=here) as process:
        until(process, "image")
        result = run("purify", "in", "out", *BLUR, *second, cwd=here)
        process.terminate()
        process.communicate(timeout=PATIENCE)
    # Parts that do not fit those whose ledgers are there are refused anyway (2).
    assert result.returncode in (2, 6)
    assert run("verify", "out", cwd=here).returncode == 0


def test_overwrite_does_not_let_two_inputs_become_one_output(here: Path) -> None:
    picture(here / "in" / "a.jpg")
    words = ("purify", "in", "out", "--watch", "--settle", "0.2", "--overwrite", "--json", *BLUR)
    with start(*words, cwd=here) as process:
        assert process.stdout is not None
        until(process, "image")
        picture(here / "in" / "a.png", seed=3)
        line = json.loads(process.stdout.readline())
        while line.get("path") != "a.png":
            line = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert (line["state"], line["reason"]) == ("failed", "collision")
    assert run("verify", "out", cwd=here).returncode == 0


MERGE = """
import os, sys
from pathlib import Path
unlink, rename, left = Path.unlink, Path.replace, int(sys.argv.pop(1))

def counted(function):
    def call(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return function(*args, **options)
    return call

Path.unlink, Path.replace = counted(unlink), counted(rename)
from zipcli.cli.main import cli
cli()
"""


@pytest.mark.fault("F01")
@pytest.mark.parametrize("step", range(7))
def test_a_merge_that_is_killed_at_any_step_can_be_done_again(here: Path, step: int) -> None:
    pictures(here / "in", 6)
    for n in (1, 2, 3):
        assert invoke("purify", "in", "out", "--shard", f"{n}/3", *BLUR).exit_code == 0
    subprocess.run(
        [sys.executable, "-c", MERGE, str(step), "merge", "out"], cwd=here, env=ENVIRONMENT, check=False
    )
    assert invoke("merge", "out").exit_code == 0
    result = invoke("purify", "in", "out", "--json", *BLUR)
    assert result.exit_code == 0
    assert {line["state"] for line in images(result.stdout).values()} == {"skipped"}
    assert len((here / "out" / STATE / f"ledger-{PART}.jsonl").read_bytes().splitlines()) == 12
    assert invoke("verify", "out").exit_code == 0


def test_damage_in_the_ledger_of_all_can_be_healed_when_there_are_shards(here: Path) -> None:
    pictures(here / "in", 3)
    assert invoke("purify", "in", "out", *BLUR).exit_code == 0
    with (here / "out" / STATE / f"ledger-{PART}.jsonl").open("ab") as ledger:
        ledger.write(b"damage\n")
    for n in (1, 2):
        assert invoke("purify", "in", "out", "--shard", f"{n}/2", *BLUR).exit_code == 0
    result = invoke("verify", "out")
    assert result.exit_code == 2
    assert "zipcli merge out" in result.stderr
    assert invoke("merge", "out").exit_code == 0
    assert invoke("verify", "out").exit_code == 0


def test_the_output_of_an_earlier_version_goes_even_after_a_crash(here: Path) -> None:
    """v1 was done; v2 was started and the run killed; v2 fails."""
    picture(here / "in" / "a.png")
    assert invoke("purify", "in", "out", *BLUR).exit_code == 0
    (here / "in" / "a.png").write_bytes(b"v2 is bad")
    ledger = here / "out" / STATE / f"ledger-{PART}.jsonl"
    started = ledger.read_text().splitlines()[0]
    digest = started.partition('"in_sha256": "')[2][:64]
    ledger.write_text(ledger.read_text() + started.replace(digest, "0" * 64) + "\n")
    assert invoke("purify", "in", "out", *BLUR).exit_code == 3
    assert tree(here / "out") == {}


def test_outputs_of_other_settings_do_not_outlive_the_failure_of_the_new_ones(here: Path) -> None:
    for n in range(3):
        picture(here / "in" / f"{n}.png", (8, 8), seed=n)
    picture(here / "mask.png", (9, 9), "L")
    assert invoke("purify", "in", "out", *BLUR).exit_code == 0
    result = invoke("purify", "in", "out", "--overwrite", "-t", "mask:mask.png", *BLUR)
    assert result.exit_code == 3
    assert tree(here / "out") == {}


def test_a_file_of_the_user_is_not_ours_because_a_batch_was_split(here: Path) -> None:
    """Two starts and a failure are as one start and a failure: what comes there later is the user's."""
    from zipcli.errors import Reason
    from zipcli.pipeline.ledger import Ledger
    from zipcli.pipeline.outcome import Outcome

    def ledger() -> Ledger:
        made = Ledger(here / "out")
        made.use_settings({}, overwrite=False)
        return made

    with ledger().open() as book:
        book.start([("a.png", "a.png", "0")], 0)
        book.start([("a.png", "a.png", "0")], 0)
        book.finish(Outcome(path="a.png", state="failed", reason=Reason.FOREIGN_OUTPUT, in_sha256="0"))
    assert not ledger().owns("a.png", "a.png")


@pytest.mark.fault("F30")
def test_a_folder_that_could_not_be_listed_fails_no_longer_than_that(
    here: Path, as_user: tuple[str, ...]
) -> None:
    picture(here / "in" / "a.png")
    picture(here / "in" / "closed" / "b.png")
    (here / "in" / "closed").chmod(0)
    here.chmod(0o777)
    assert run("purify", "in", "out", *BLUR, cwd=here, before=as_user).returncode == 3
    (here / "in" / "closed").chmod(0o755)
    assert run("purify", "in", "out", "--retry-failed", *BLUR, cwd=here).returncode == 0
    assert run("purify", "in", "out", *BLUR, cwd=here).returncode == 0
    assert '"failed": 0' in run("status", "out", "--json", cwd=here).stdout.decode()


@pytest.mark.fault("F50")
def test_a_listed_file_behind_a_link_that_leaves_the_input_is_refused(here: Path) -> None:
    picture(here / "outside" / "x.png")
    picture(here / "in" / "a.png")
    (here / "in" / "d").symlink_to("../outside")
    (here / "list").write_text("d/x.png\na.png\n")
    result = invoke("purify", "--files-from", "list", "--base", "in", "out", "--json", *BLUR)
    assert result.exit_code == 3
    assert images(result.stdout)["d/x.png"]["reason"] == "symlink"
    assert list(tree(here / "out")) == ["a.png"]
    assert "already done" not in result.stderr


def test_a_stop_is_not_held_by_a_reader_who_sleeps(here: Path) -> None:
    """Standard error is a pipe that nobody reads, and it is full."""
    (here / "in").mkdir()
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, bytes(2**16))
    except BlockingIOError:
        os.set_blocking(write, True)
    with start("purify", "in", "out", "--watch", "--json", *BLUR, cwd=here, stderr=write) as process:
        until(process, "run_start")
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == 143
        finally:
            process.kill()
    os.close(read)
    os.close(write)


def test_endless_input_is_read_no_further_than_its_limit() -> None:
    with subprocess.Popen(["cat", "/dev/zero"], stdout=subprocess.PIPE) as zeros:
        result = run("purify", "-", "-", "--max-bytes", "100000", *BLUR, stdin=zeros.stdout)
        zeros.kill()
    assert result.returncode == 3
    assert b"--max-bytes" in result.stderr


@pytest.mark.parametrize("settle", ["inf", "nan", "1e300", "-1"])
def test_a_time_that_makes_no_sense_is_refused(here: Path, settle: str) -> None:
    pictures(here / "in", 1)
    assert invoke("purify", "in", "out", "--watch", "--settle", settle, *BLUR).exit_code == 2
