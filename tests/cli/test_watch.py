"""--watch: what comes is purified once it is complete, and Ctrl-C ends it in order."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli.shell import (
    BLUR,
    PATIENCE,
    images,
    invoke,
    json_lines,
    noise,
    picture,
    pictures,
    run,
    start,
    tree,
    until,
)

from zipcli.config import FolderConfig
from zipcli.pipeline.plan import Plan
from zipcli.pipeline.watch import Watch

SETTLE = "0.3"


@contextmanager
def watching(cwd: Path, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A run that watches `in`, past its first look."""
    with start(
        "purify", "in", "out", "--watch", "--settle", SETTLE, "--json", *BLUR, *words, cwd=cwd
    ) as process:
        try:
            until(process, "run_start")
            yield process
        finally:
            process.kill()


def next_image(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    assert process.stdout is not None
    while (line := json.loads(process.stdout.readline()))["type"] != "image":
        pass
    assert isinstance(line, dict)
    return line


def end(process: "subprocess.Popen[bytes]", number: signal.Signals = signal.SIGINT) -> tuple[bytes, bytes]:
    process.send_signal(number)
    return process.communicate(timeout=PATIENCE)


def nothing() -> None:
    """Nobody asks to stop."""


def test_what_is_there_and_what_comes_is_purified(here: Path) -> None:
    pictures(here / "in", 2)
    with watching(here) as process:
        assert {next_image(process)["path"] for _ in range(2)} == {"00.png", "sub/01.png"}
        picture(here / "in" / "new" / "late.png", seed=7)
        assert next_image(process)["path"] == "new/late.png"
        picture(here / "in" / "00.png", seed=8)  # another picture in its place
        assert next_image(process)["path"] == "00.png"
        out, err = end(process)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert json_lines(out)[-1] | {"reasons": {}} == {
        **{"type": "run_end", "found": 4, "done": 4, "passed": 0, "skipped": 0, "failed": 0},
        **{"already": 0, "left": 0, "ignored": 0, "reasons": {}, "exit_code": 130},
    }
    assert invoke("verify", "out").exit_code == 0
    assert invoke("purify", "in", "whole", *BLUR).exit_code == 0
    assert tree(here / "out") == tree(here / "whole")


def test_a_folder_may_be_empty_at_first(here: Path) -> None:
    (here / "in").mkdir()
    with watching(here) as process:
        picture(here / "in" / "a.png")
        assert next_image(process)["state"] == "done"
        end(process, signal.SIGTERM)
    assert process.returncode == 143


def test_a_file_is_taken_when_its_writer_is_done(here: Path) -> None:
    """The writer is slow, but never pauses for as long as a file has to settle."""
    data = picture(here / "whole.png", (64, 64)).read_bytes()
    (here / "in").mkdir()
    with watching(here, "--settle", "3") as process:
        with (here / "in" / "a.png").open("wb", buffering=0) as f:
            for start_ in range(0, len(data), len(data) // 20 + 1):
                f.write(data[start_ : start_ + len(data) // 20 + 1])
                time.sleep(0.1)
        assert next_image(process)["state"] == "done"
        end(process)


def test_half_a_picture_whose_writer_pauses_fails_and_is_purified_when_it_is_whole(here: Path) -> None:
    data = picture(here / "whole.png", (64, 64)).read_bytes()
    (here / "in").mkdir()
    with watching(here) as process:
        (here / "in" / "a.png").write_bytes(data[:-500])
        line = next_image(process)
        assert (line["state"], line["reason"]) == ("failed", "truncated")
        assert tree(here / "out") == {}
        (here / "in" / "a.png").write_bytes(data)
        assert next_image(process)["state"] == "done"
        end(process)
    assert invoke("verify", "out").exit_code == 0


def test_what_was_done_before_is_not_done_again(finished: Path) -> None:
    with watching(finished) as process:
        states = [next_image(process)["state"] for _ in range(6)]
        picture(finished / "in" / "late.png", seed=7)
        assert next_image(process)["state"] == "done"
        end(process)
    assert states == ["skipped"] * 6


def test_an_image_that_stays_bad_is_reported_once(here: Path) -> None:
    (here / "in").mkdir()
    (here / "in" / "bad.png").write_bytes(b"text")
    with watching(here) as process:
        assert next_image(process)["state"] == "failed"
        time.sleep(4 * float(SETTLE))
        out, _ = end(process)
    assert images(out) == {}
    assert json_lines(out)[-1]["failed"] == 1


def test_who_comes_second_to_a_name_fails_and_the_service_can_start_again(here: Path) -> None:
    picture(here / "in" / "a.jpg")
    with watching(here) as process:
        assert next_image(process)["state"] == "done"
        picture(here / "in" / "a.png", seed=3)
        line = next_image(process)
        assert (line["state"], line["reason"]) == ("failed", "collision")
        assert "a.jpg has become a.png" in line["message"]
        end(process)
    with watching(here) as process:
        states = {(line := next_image(process))["path"]: line["state"] for _ in range(2)}
        end(process)
    assert states == {"a.jpg": "skipped", "a.png": "failed"}
    assert invoke("verify", "out").exit_code == 0


def test_a_second_run_is_kept_out(here: Path) -> None:
    pictures(here / "in", 1)
    with watching(here) as process:
        next_image(process)
        assert run("purify", "in", "out", *BLUR, cwd=here).returncode == 6
        end(process)


@pytest.mark.parametrize(
    "words",
    [
        ("--watch", "--dry-run"),
        ("--watch", "--retry-failed"),
        ("--settle", "1"),
        ("--watch", "--settle", "0"),
    ],
)
def test_what_makes_no_sense_with_watch_exits_2(here: Path, words: tuple[str, ...]) -> None:
    pictures(here / "in", 1)
    assert invoke("purify", "in", "out", *BLUR, *words).exit_code == 2
    assert not (here / "out").exists()


CHANGES: dict[str, Callable[[Path], object]] = {
    "grown": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "replaced by one of its size": lambda file: (
        file.with_suffix(".new").write_bytes(file.read_bytes()),
        file.with_suffix(".new").rename(file),
    ),
    "touched": lambda file: os.utime(file, (1, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_looks_makes_a_file_wait(tmp_path: Path, change: str) -> None:
    file = picture(tmp_path / "in" / "a.png")
    watch = Watch(Plan(base=tmp_path / "in", config=FolderConfig()))
    assert watch.look(nothing) == frozenset()
    CHANGES[change](file)
    assert watch.look(nothing) == frozenset()
    assert watch.look(nothing) == {"a.png"}
    assert watch.look(nothing) == frozenset()
    noise().save(file)
    assert watch.look(nothing) == frozenset()
    assert watch.look(nothing) == {"a.png"}


def test_a_file_that_goes_and_comes_back_is_taken_again(tmp_path: Path) -> None:
    file = picture(tmp_path / "in" / "a.png")
    watch = Watch(Plan(base=tmp_path / "in", config=FolderConfig()))
    looks = [watch.look(nothing), watch.look(nothing)]
    away = file.rename(tmp_path / "away.png")
    looks.append(watch.look(nothing))
    away.rename(file)
    looks += [watch.look(nothing), watch.look(nothing)]
    assert looks == [frozenset(), {"a.png"}, frozenset(), frozenset(), {"a.png"}]
