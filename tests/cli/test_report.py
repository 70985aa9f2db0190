"""`zipcli report`: one page, where it goes, and what bad input gets."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli.shell import BLUR, COMMAND, ENVIRONMENT, invoke, picture, pictures, read_terminal, run, start
from test_report_page import EVALUATION, data_of

from zipcli.errors import ExitCode


def page(file: Path) -> dict[str, Any]:
    return data_of(file.read_text())


def refused(*words: str | Path, code: ExitCode = ExitCode.USAGE) -> str:
    """The one line that a refusal prints."""
    result = invoke("report", *words)
    assert result.exit_code == code, result.output
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    return line


def test_a_report_holds_every_image_before_and_after(finished: Path) -> None:
    done = run("report", "out", "-o", "report.html", cwd=finished)
    assert (done.returncode, done.stdout) == (0, b"report.html\n")
    assert done.stderr.startswith(b"6 images, 0 failed; ")
    shown = page(finished / "report.html")
    assert len(shown["cards"]) == 6
    assert all({"before", "after", "difference", "change", "psnr"} <= card.keys() for card in shown["cards"])
    assert shown["title"] == "out"
    assert shown["settings"]["method"] == "blur"
    left = {path.name for path in finished.iterdir()}
    assert left == {"in", "out", "report.html"}


def test_suspicion_maps_are_drawn_when_asked_for(here: Path) -> None:
    picture(here / "in" / "grey.png", (40, 33), mode="L")
    picture(here / "in" / "tiny.png", (8, 8))
    assert invoke("purify", "in", "out", *BLUR, "-q").exit_code == 0
    assert invoke("report", "out", "-o", "plain.html").exit_code == 0
    assert invoke("report", "out", "-o", "maps.html", "--maps").exit_code == 0
    assert not any("suspicion" in card for card in page(here / "plain.html")["cards"])
    assert all(card["suspicion"] for card in page(here / "maps.html")["cards"])


def test_a_report_says_what_failed_and_why(here: Path) -> None:
    picture(here / "in" / "good.png")
    (here / "in" / "empty.png").write_bytes(b"")
    (here / "in" / "letter.jpg").write_text("Dear reader")
    assert invoke("purify", "in", "out", *BLUR).exit_code == ExitCode.SOME_FAILED
    result = invoke("report", "out", "-o", "r.html", "--limit", "1")
    assert result.exit_code == 0
    assert "2 images, 2 failed" in result.stderr
    assert "Note: 1 of 3 images are left out" in result.stderr
    shown = page(here / "r.html")
    assert {card["name"]: card["reason"] for card in shown["cards"]} == {
        "empty.png": "empty",
        "letter.jpg": "unidentified",
    }
    assert shown["cards"][0]["message"] == "the file is empty; copy it again from its source"
    assert shown["counts"] == {"done": 1, "failed": 2}


def test_the_heading_and_the_evaluations_are_those_that_were_given(finished: Path) -> None:
    for name in ("one", "two"):
        (finished / f"{name}.json").write_text(json.dumps(EVALUATION | {"name": name}))
    result = invoke(
        "report",
        "out",
        "-o",
        "r.html",
        "--title",
        "<i>T",
        "--evaluation",
        "one.json",
        "--evaluation",
        "two.json",
    )
    assert result.exit_code == 0, result.stderr
    shown = page(finished / "r.html")
    assert shown["title"] == "<i>T"
    assert [evaluation["name"] for evaluation in shown["evaluations"]] == ["one", "two"]


def test_images_that_moved_are_found_where_the_user_says(finished: Path) -> None:
    (finished / "out2").mkdir()
    shutil.copytree(finished / "out", finished / "out2", dirs_exist_ok=True)
    run_file = finished / "out2" / ".zipcli" / "run.json"
    run_file.write_text(json.dumps(json.loads(run_file.read_text()) | {"input": str(finished / "gone")}))
    result = invoke("report", "out2", "-o", "r.html")
    assert result.exit_code == 0
    assert "Note: The folder gone is not there any more" in result.stderr
    assert not any("before" in card for card in page(finished / "r.html")["cards"])
    assert invoke("report", "out2", "-o", "r.html", "--input", "in", "--overwrite").exit_code == 0
    assert all("before" in card for card in page(finished / "r.html")["cards"])


@pytest.mark.fault("F44", "F45")
def test_names_of_all_kinds_come_through(here: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.png"), "a\u202egnp.exe.png", "<b>\n\x1b[31m.png", "%2e%2e.png", "-o.png"]
    for n, name in enumerate(names):
        picture(here / "in" / name, seed=n)
    assert run("purify", "in", "out", *BLUR, cwd=here).returncode == 0
    target = os.fsdecode(b"r\xe9port \x1b.html")
    done = run("report", "out", "-o", target, cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout == os.fsencode(target) + b"\n"
    cards = page(here / target)["cards"]
    assert len(cards) == len({card["id"] for card in cards}) == len(names)
    assert all(card["name"].isprintable() and "difference" in card for card in cards)


def test_a_file_that_is_there_is_replaced_only_when_asked(finished: Path) -> None:
    (finished / "r.html").write_text("mine")
    assert refused("out", "-o", "r.html") == (
        "Error: r.html: is there already; use --overwrite or choose another name"
    )
    assert (finished / "r.html").read_text() == "mine"
    assert invoke("report", "out", "-o", "r.html", "--overwrite").exit_code == 0
    assert len(page(finished / "r.html")["cards"]) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere", "-o", "r.html"), "nowhere: there is no such folder"),
        (("in", "-o", "r.html"), "in: holds no ledger; give the output folder of zipcli purify"),
        (("in/00.png", "-o", "r.html"), "in/00.png: not a folder"),
        (("out", "-o", "in"), "in: a folder is in the way; give the name of a file"),
        (("out", "-o", "nowhere/r.html"), "nowhere: there is no such folder"),
        (("out", "-o", "in/00.png/r.html"), "in/00.png: not a folder"),
        (("out", "-o", "r.html", "--input", "nowhere"), "nowhere: there is no such folder"),
        (
            ("out", "-o", "r.html", "--evaluation", "nowhere.json"),
            "nowhere.json: cannot be read: No such file",
        ),
        (("out", "-o", "r.html", "--evaluation", "in"), "in: cannot be read: Is a directory"),
        (
            ("out", "-o", "r.html", "--evaluation", "in/00.png"),
            "in/00.png: not what `zipcli evaluate` writes",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_is_refused_and_named(finished: Path, words: tuple[str, ...], said: str) -> None:
    assert said in refused(*words)
    assert not (finished / "r.html").exists()


@pytest.mark.parametrize("words", [(), ("out",), ("out", "-o", "r.html", "--limit", "0")], ids=" ".join)
def test_wrong_usage_exits_2(finished: Path, words: tuple[str, ...]) -> None:
    assert invoke("report", *words).exit_code == ExitCode.USAGE


def test_a_folder_that_may_not_be_written_exits_5(finished: Path, as_user: tuple[str, ...]) -> None:
    (finished / "shut").mkdir(mode=0o500)
    done = run("report", "out", "-o", "shut/r.html", cwd=finished, before=as_user)
    assert done.returncode == ExitCode.OUTPUT, done.stderr
    assert b"Permission denied" in done.stderr


def test_a_full_disk_exits_5_and_leaves_nothing(finished: Path, small_disk: Any) -> None:
    disk = small_disk("16k")
    result = invoke("report", "out", "-o", disk / "r.html")
    assert result.exit_code == ExitCode.OUTPUT
    assert "free some space" in result.stderr
    assert not list(disk.iterdir())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many images in `out` that a signal comes before the last one is read."""
    folder = tmp_path_factory.mktemp("many")
    pictures(folder / "in", 300, (48, 48))
    assert run("purify", "in", "out", *BLUR, cwd=folder).returncode == 0
    return folder


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)]
)
def test_a_signal_stops_it_and_nothing_is_written(many: Path, number: signal.Signals, code: ExitCode) -> None:
    master, slave = os.openpty()
    with start(
        "report", "out", "-o", "r.html", cwd=many, stderr=slave, env={"TERM": "xterm"}, loitering=True
    ) as process:
        os.close(slave)
        said = os.read(master, 1)  # the bar: it has begun to read
        process.send_signal(number)
        said += read_terminal(master)
        out, _ = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == code, said
    assert b"stopped; r.html was not written" in said
    assert not out
    assert sorted(path.name for path in many.iterdir()) == ["in", "out"]


def test_a_report_needs_no_torch(finished: Path) -> None:
    program = (
        "import sys\n"
        "from zipcli.cli.main import cli\n"
        "try:\n"
        "    cli(['report', 'out', '-o', 'r.html'], prog_name='zipcli')\n"
        "finally:\n"
        "    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, cwd=finished, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False"


def test_a_bar_is_shown_on_a_terminal_only(finished: Path) -> None:
    master, slave = os.openpty()
    done = subprocess.run(
        [*COMMAND, "report", "out", "-o", "r.html"],
        env=ENVIRONMENT | {"TERM": "xterm"},
        cwd=finished,
        stdout=subprocess.PIPE,
        stderr=slave,
    )
    os.close(slave)
    assert done.stdout == b"r.html\n"
    assert b"reading the images" in os.read(master, 65_536)
    os.close(master)
    plain = run("report", "out", "-o", "r.html", "--overwrite", cwd=finished)
    assert b"reading" not in plain.stderr
