"""zipcli purify as a process: its streams, its signals, and what it leaves behind whenever it ends."""

import base64
import fcntl
import json
import os
import pty
import random
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli.shell import (
    BLUR,
    PATIENCE,
    PRIOR,
    everything,
    images,
    invoke,
    json_lines,
    originals,
    picture,
    pictures,
    read_terminal,
    redone,
    run,
    start,
    tree,
    until,
)

STATE = Path(".zipcli")
LEDGER = "ledger-00001-of-00001.jsonl"

HOSTILE = {
    "[bold]x[/bold].png": "[bold]x[/bold].png",
    "[/x].png": "[/x].png",
    ":smile:.png": ":smile:.png",
    "\x1b[31mred\x1b[0m.png": r"\x1b[31mred\x1b[0m.png",
    "bell\a.png": r"bell\x07.png",
    "back\b\b.png": r"back\x08\x08.png",
    "return\r.png": r"return\r.png",
    "right\u202eleft.png": r"right\u202eleft.png",
    "%o.png": "%o.png",
    "$HOME.png": "$HOME.png",
    "~.png": "~.png",
    "*.png": "*.png",
    "-v.png": "-v.png",
    " spaces .png": " spaces .png",
    "quo\"te's.png": "quo\"te's.png",
    "back\\slash.png": "back\\slash.png",
    os.fsdecode(b"caf\xe9.png"): r"caf\udce9.png",
}
"""File names that are text for somebody else, and how they are shown."""


def parts(folder: Path) -> list[Path]:
    """Unfinished files anywhere below a folder."""
    return [*folder.rglob("*.part")]


# Streams


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good pictures, two bad ones, and a link that leads nowhere."""
    folder = tmp_path_factory.mktemp("mixed") / "in"
    pictures(folder, 2)
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "nowhere.png").symlink_to("gone.png")
    return folder


def test_json_is_all_that_stdout_holds_and_its_counts_add_up(mixed: Path, here: Path) -> None:
    done = run("purify", mixed, "out", "--json", *BLUR, cwd=here)
    assert done.returncode == 3
    first, *_, last = lines = json_lines(done.stdout)
    assert done.stdout.endswith(b"\n")
    assert [line["type"] for line in lines] == ["run_start", *["image"] * 5, "run_end"]
    assert first["schema"] == 1
    assert first["found"] == last["found"] == 5
    counts = {state: last[state] for state in ("done", "passed", "skipped", "failed")}
    assert counts == {"done": 2, "passed": 0, "skipped": 1, "failed": 2}
    assert last["found"] == sum(counts.values())
    assert last["reasons"] == {"unidentified": 1, "empty": 1, "symlink": 1}
    assert last["exit_code"] == 3
    # jq 'select(.type=="image" and .status!="ok") | .path'
    wrong = {
        line["path"]: line["status"] for line in lines if line["type"] == "image" and line["status"] != "ok"
    }
    assert wrong == {"text.jpg": "failed", "empty.png": "failed", "nowhere.png": "skipped"}
    assert b"\x1b" not in done.stderr


def test_without_json_stdout_is_empty_and_stderr_has_no_escape_codes(mixed: Path, here: Path) -> None:
    colours = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color"}
    done = run("purify", mixed, "out", "-v", *BLUR, cwd=here, env=colours)
    assert done.returncode == 3
    assert done.stdout == b""
    assert b"\x1b" not in done.stderr
    assert b"purified 2, skipped 1 links and special files, failed 2 of 5 images" in done.stderr


@pytest.mark.parametrize("words", [["purify", "nowhere", "out"], ["purify", "in", "out", "-t", "blur:0"]])
def test_an_error_that_ends_a_json_run_is_one_object_on_stderr(here: Path, words: list[str]) -> None:
    picture(here / "in" / "a.png")
    result = invoke(*words, "--json")
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    error = json.loads(line)
    assert (error["type"], error["exit_code"]) == ("error", 2)
    assert error["message"]


def test_a_usage_error_with_json_is_one_object_on_stderr(here: Path) -> None:
    (line,) = invoke("purify", "in", "out", "--fit", "nonsense", "--json").stderr.splitlines()
    assert json.loads(line)["exit_code"] == 2


@pytest.mark.fault("F44", "F45")
def test_hostile_names_are_purified_and_shown_escaped(here: Path) -> None:
    for n, name in enumerate(HOSTILE):
        picture(here / "in" / name, seed=n)
    done = run("purify", "in", "out", "-v", "--json", *BLUR, cwd=here)
    assert done.returncode == 0, done.stderr
    assert tree(here / "out").keys() == HOSTILE.keys()
    shown = [line.removeprefix("done ").rpartition(" in ")[0] for line in done.stderr.decode().splitlines()]
    assert sorted(shown[:-1]) == sorted(HOSTILE.values())
    lines = [line for line in json_lines(done.stdout) if line["type"] == "image"]
    exact = {
        base64.b64decode(line["path_b64"]) if "path_b64" in line else line["path"].encode() for line in lines
    }
    assert exact == {os.fsencode(name) for name in HOSTILE}


@pytest.mark.fault("F44")
def test_a_newline_in_a_name_does_not_forge_a_line(here: Path) -> None:
    (here / "in").mkdir()
    (here / "in" / "a\nError: all is lost.png").write_bytes(b"")
    picture(here / "in" / "b\ndone forged.png")
    result = invoke("purify", "in", "out", "-v", *BLUR)
    assert result.exit_code == 3
    first, second, _ = result.stderr.splitlines()
    assert r"a\nError: all is lost.png" in first + second
    assert r"b\ndone forged.png" in first + second


@pytest.mark.fault("F44", "F48")
def test_a_newline_in_a_listed_name_does_not_forge_a_line(here: Path) -> None:
    for name in ("x\ny.png", "x\ny.jpg"):
        picture(here / "in" / name)
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code == 2
    assert r"x\ny.jpg and x\ny.png" in result.stderr


@pytest.mark.fault("F45")
def test_json_about_a_failure_is_valid_unicode_whatever_the_name(here: Path) -> None:
    (here / "in").mkdir()
    (here / "in" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    result = invoke("purify", "in", "out", "--json", *BLUR)
    (line,) = images(result.stdout).values()
    assert base64.b64decode(line["path_b64"]) == b"caf\xe9.png"
    for value in line.values():
        str(value).encode()  # half a surrogate pair is not text for a strict reader


@contextmanager
def terminal(columns: int = 80) -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        yield master, slave
    finally:
        os.close(master)


@pytest.mark.fault("F44", "F45")
@pytest.mark.parametrize("columns", [80, 20])
def test_a_terminal_gets_a_live_bar_that_hostile_names_do_not_break(here: Path, columns: int) -> None:
    for n, name in enumerate(HOSTILE):
        picture(here / "in" / name, seed=n)
    (here / "in" / "empty.png").write_bytes(b"")
    with terminal(columns) as (master, slave):
        words = ("purify", "in", "out", "-v", *BLUR)
        with start(*words, cwd=here, stderr=slave, env={"TERM": "xterm", "COLUMNS": str(columns)}) as process:
            os.close(slave)
            shown = read_terminal(master).decode(errors="replace")
            assert process.stdout is not None
            assert process.stdout.read() == b""
    assert process.returncode == 3, shown
    assert "\x1b[?25l" in shown  # the cursor is hidden, and comes back
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    for escaped in HOSTILE.values():
        assert f"done {escaped} in " in shown
    assert "\x1b[31m" not in shown.replace("\x1b[31m━", "")
    assert "\a" not in shown
    assert "failed (empty) empty.png" in shown
    if columns == 80:
        assert f"{len(HOSTILE) + 1}/{len(HOSTILE) + 1}" in shown


def test_quiet_shows_no_bar_on_a_terminal(here: Path) -> None:
    picture(here / "in" / "a.png")
    with (
        terminal() as (master, slave),
        start("purify", "in", "out", "-q", *BLUR, cwd=here, stderr=slave, env={"TERM": "xterm"}) as process,
    ):
        os.close(slave)
        shown = read_terminal(master)
    assert process.returncode == 0
    assert b"\x1b" not in shown
    assert len(shown.splitlines()) == 1


def test_a_reader_who_leaves_early_ends_the_run_with_141_and_no_traceback(here: Path) -> None:
    pictures(here / "in", 400)  # so many lines that a pipe cannot hold them
    with start("purify", "in", "out", "--json", "--batch-size", "1", *BLUR, cwd=here) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()  # as head -1 does
        talk = process.stderr.read()
    assert process.returncode == 141
    assert talk == b""
    assert not parts(here / "out")
    again = run("purify", "in", "out", *BLUR, cwd=here)
    assert again.returncode == 0
    assert tree(here / "out").keys() == tree(here / "in").keys()


def test_a_picture_that_nobody_reads_exits_141(here: Path) -> None:
    data = picture(here / "a.png", (200, 200)).read_bytes()
    with start("purify", "-", "-", *BLUR, stdin=subprocess.PIPE, cwd=here) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, talk = process.communicate(data, timeout=PATIENCE)
    assert process.returncode == 141
    assert talk == b""


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-"])
@pytest.mark.fault("F07")
def test_a_closed_stream_that_is_not_needed_changes_nothing(here: Path, closed: str) -> None:
    pictures(here / "in", 2)
    done = run("purify", "in", "out", *BLUR, cwd=here, before=("sh", "-c", f'exec "$@" {closed}', "sh"))
    assert done.returncode == 0, done.stderr
    assert len(tree(here / "out")) == 2
    for line in (here / "out" / STATE / LEDGER).read_text().splitlines():
        json.loads(line)


def test_a_usage_error_never_goes_to_stdout(here: Path) -> None:
    done = run("purify", cwd=here, before=("sh", "-c", 'exec "$@" 2>&-', "sh"))
    assert done.returncode == 2
    assert done.stdout == b""


@pytest.mark.parametrize("words", [("purify", "-", "-"), ("purify", "in", "out", "--files-from", "-")])
def test_a_closed_stdin_that_is_needed_is_a_usage_error(here: Path, words: tuple[str, ...]) -> None:
    picture(here / "in" / "a.png")
    done = run(*words, *BLUR, cwd=here, before=("sh", "-c", 'exec "$@" <&-', "sh"))
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_a_bare_environment_is_enough(here: Path) -> None:
    picture(here / "in" / os.fsdecode(b"caf\xe9.png"))
    picture(here / "in" / "größe.png")
    bare = ("env", "-i", "LC_ALL=C", "TERM=dumb", *(f"{k}={os.environ[k]}" for k in ("PATH",)))
    root = Path(__file__).parents[2]
    done = run("purify", "in", "out", "-v", "--json", *BLUR, cwd=here, before=(*bare, f"PYTHONPATH={root}"))
    assert done.returncode == 0, done.stderr
    assert tree(here / "out").keys() == tree(here / "in").keys()
    assert len(json_lines(done.stdout)) == 4


# Going on. The first run was another process; see `finished`.


def again(*words: str) -> list[str]:
    """Run the same command again and say what it purified."""
    result = invoke("purify", "in", "out", "--json", *BLUR, *words)
    assert result.exit_code == 0, result.stderr
    lines = images(result.stdout)
    assert len(lines) == 6
    assert all(line["status"] == "ok" for line in lines.values())
    return redone(result.stdout)


def test_a_second_run_does_nothing_and_exits_0(finished: Path) -> None:
    before = tree(finished / "out")
    inodes = {path: path.stat().st_ino for path in (finished / "out").rglob("*.png")}
    done = run("purify", "in", "out", *BLUR, cwd=finished)
    assert done.returncode == 0
    assert b"purified 0, already done 6, failed 0 of 6" in done.stderr
    assert tree(finished / "out") == before
    assert {path: path.stat().st_ino for path in (finished / "out").rglob("*.png")} == inodes


def test_one_changed_byte_of_an_input_redoes_that_input(finished: Path) -> None:
    file = finished / "in" / "sub" / "03.png"
    picture(file, seed=99)
    clean = tree(finished / "out")["sub/03.png"]
    assert again() == ["sub/03.png"]
    assert tree(finished / "out")["sub/03.png"] != clean
    file.write_bytes(file.read_bytes() + b"\n")  # shows the same picture, but nobody looked yet
    assert again() == ["sub/03.png"]
    assert again() == []


def test_modification_times_mean_nothing(finished: Path) -> None:
    for n, path in enumerate(sorted(finished.rglob("*.png"))):
        os.utime(path, (0, 0) if n % 2 else (4_102_444_800, 4_102_444_800))
    assert again() == []


@pytest.mark.parametrize("damage", ["deleted", "cut short", "emptied"])
def test_one_lost_output_is_redone(finished: Path, damage: str) -> None:
    before = tree(finished / "out")
    file = finished / "out" / "sub" / "01.png"
    data = file.read_bytes()
    file.unlink()
    if damage != "deleted":
        file.write_bytes(data[:50] if damage == "cut short" else b"")
    assert again() == ["sub/01.png"]
    assert tree(finished / "out") == before


def test_a_new_input_is_added(finished: Path) -> None:
    picture(finished / "in" / "new.png")
    assert redone(invoke("purify", "in", "out", "--json", *BLUR).stdout) == ["new.png"]


def test_a_failure_is_tried_again(finished: Path) -> None:
    bad = finished / "in" / "bad.png"
    bad.write_bytes(b"")
    assert [invoke("purify", "in", "out", *BLUR).exit_code for _ in range(2)] == [3, 3]
    picture(bad)
    result = invoke("purify", "in", "out", "--json", *BLUR)
    assert result.exit_code == 0
    assert redone(result.stdout) == ["bad.png"]


def test_an_output_that_we_wrote_may_be_replaced_after_a_failure(finished: Path) -> None:
    file = finished / "in" / "00.png"
    data = file.read_bytes()
    file.write_bytes(data[:60])
    assert invoke("purify", "in", "out", *BLUR).exit_code == 3
    file.write_bytes(data + b"\n")
    assert again() == ["00.png"]


def test_the_folders_may_move(finished: Path) -> None:
    (finished / "in").rename(finished / "photos")
    (finished / "out").rename(finished / "clean")
    (finished / "elsewhere").mkdir()
    shutil.move(finished / "clean", finished / "elsewhere")
    assert redone(invoke("purify", "photos", "elsewhere/clean", "--json", *BLUR).stdout) == []


# A damaged ledger


@pytest.mark.parametrize(
    "garbage",
    [b"garbage\n", b"\0" * 512 + b"\n", b"\xff\xfe{}\n", b'{"path": 7}\n', b"[]\n", b"null\n", b"\n"],
)
def test_a_garbage_line_in_the_ledger_is_reported_and_ignored(finished: Path, garbage: bytes) -> None:
    ledger = finished / "out" / STATE / LEDGER
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join([*lines[:3], garbage, *lines[3:]]))
    result = invoke("purify", "in", "out", "--json", *BLUR)
    assert result.exit_code == 0
    assert redone(result.stdout) == []
    assert "1 damaged line" in result.stderr


def test_a_torn_last_line_is_ignored_and_what_follows_stays_whole(finished: Path) -> None:
    ledger = finished / "out" / STATE / LEDGER
    whole = ledger.read_bytes()
    last = json.loads(whole.splitlines()[-1])["path"]
    ledger.write_bytes(whole[:-40])
    before = tree(finished / "out")
    assert again() == [last]
    assert again() == []
    assert tree(finished / "out") == before


def test_a_lost_ledger_makes_every_output_foreign(finished: Path) -> None:
    (finished / "out" / STATE / LEDGER).unlink()
    before = tree(finished / "out")
    assert invoke("purify", "in", "out", *BLUR).exit_code == 2
    assert tree(finished / "out") == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 99, "settings": {}}'])
def test_a_damaged_or_newer_run_record_is_refused(finished: Path, content: str) -> None:
    (finished / "out" / STATE / "run.json").write_text(content)
    before = everything(finished / "out")
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code == 2
    assert "run.json" in result.stderr
    assert everything(finished / "out") == before


def test_overwrite_goes_past_a_damaged_run_record(finished: Path) -> None:
    (finished / "out" / STATE / "run.json").write_text("{")
    assert invoke("purify", "in", "out", *BLUR, "--overwrite").exit_code == 0


# Signals


@pytest.fixture
def prior(uninterrupted: Path, here: Path) -> Path:
    """A folder to stand in, with the inputs of `uninterrupted`."""
    shutil.copytree(uninterrupted / "in", here / "two words")
    return here


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_stops_soon_and_the_printed_command_goes_on(
    prior: Path, uninterrupted: Path, number: signal.Signals, code: int
) -> None:
    words = ("purify", "two words", "out", "--json", *PRIOR)
    before = originals(prior / "two words")
    with start(*words, cwd=prior, loitering=True) as process:
        until(process, "image")
        process.send_signal(number)
        began = time.monotonic()
        out, err = process.communicate(timeout=PATIENCE)
        took = time.monotonic() - began
    assert process.returncode == code
    assert took <= 30  # a second, on a free core
    last = json_lines(out)[-1]
    assert last["exit_code"] == code
    assert last["found"] + last["left"] == 6
    assert f"did not come to {last['left']} more" in err.decode()
    assert not parts(prior / "out")
    expected = tree(uninterrupted / "out")
    left = tree(prior / "out")
    assert 0 < len(left) < len(expected)
    assert left.items() <= expected.items()
    advice = err.decode().splitlines()[-1]
    assert "to go on" in advice

    if number == signal.SIGINT:  # the rest is the same for the others
        done = run(*words, cwd=prior)
        assert done.returncode == 0
        assert len(redone(done.stdout)) == len(expected) - len(left)
        assert tree(prior / "out") == expected
        assert originals(prior / "two words") == before
    assert shlex.split(advice.partition("again: ")[2]) == ["zipcli", *words]


def test_a_second_signal_does_not_wait_for_the_network(here: Path) -> None:
    picture(here / "in" / "large.png", (1000, 1000))
    words = ("purify", "in", "out", "--json", *PRIOR, "--tile", "1024")  # one call takes a second and more
    with start(*words, cwd=here) as process:
        until(process, "run_start")
        ledger = here / "out" / STATE / LEDGER
        while not (ledger.exists() and b"started" in ledger.read_bytes()):
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.communicate(timeout=PATIENCE)
        took = time.monotonic() - began
    assert process.returncode == 130
    assert took <= 3  # the first would end it after four
    assert tree(here / "out") == {}


def test_a_second_signal_while_python_ends_changes_nothing(tmp_path: Path) -> None:
    program = """
import os, signal, sys, time
from zipcli.cli.signals import StopSignals
from zipcli.errors import StoppedError

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):  # they have their default again
        kill(pid, number)

late, stop = Late(), StopSignals()
late.self = late  # the collector's last round finds it
os.kill(os.getpid(), signal.SIGINT)
try:
    while True:
        stop.check()
except StoppedError as e:
    sys.exit(int(e.exit_code))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=PATIENCE, check=False)
    assert done.returncode == 130


@pytest.mark.fault("F03", "F05")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_not_lost_on_a_network_that_computes_for_long(here: Path, number: signal.Signals) -> None:
    picture(here / "in" / "large.png", (1000, 1000))
    words = ("purify", "in", "out", *PRIOR, "--tile", "1024")  # one call takes longer than anybody waits
    with start(*words, cwd=here) as process:
        ledger = here / "out" / STATE / LEDGER
        while not (ledger.exists() and b"started" in ledger.read_bytes()):
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(number)
        began = time.monotonic()
        _, err = process.communicate(timeout=PATIENCE)
        took = time.monotonic() - began
    assert process.returncode == 128 + number
    assert took <= 20  # the network alone takes minutes
    assert tree(here / "out") == {}
    assert "to go on, run the same command again" in err.decode()


@pytest.mark.parametrize("words", [("purify", "-", "-"), ("purify", "in", "out", "--files-from", "-")])
def test_ctrl_c_ends_a_command_that_waits_for_its_input(here: Path, words: tuple[str, ...]) -> None:
    picture(here / "in" / "a.png")
    with start(*words, *BLUR, cwd=here, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(bytes(2**20))  # more than a pipe holds: once this returns, it is being read
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
    assert not (here / "out").exists()


def test_an_ignored_interrupt_stays_ignored(here: Path) -> None:
    """A shell starts `command &` in a script with SIGINT ignored."""
    pictures(here / "in", 20)
    ignore = ("sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh")
    words = ("purify", "in", "out", "--json", "--batch-size", "1", *BLUR)
    with start(*words, cwd=here, before=ignore) as process:
        until(process, "image")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert len(tree(here / "out")) == 20


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_whole_files_and_the_rest_is_done_later(here: Path) -> None:
    pictures(here / "in", 300, (24, 24))  # so many lines that a pipe cannot hold them
    assert invoke("purify", "in", "expected", *BLUR).exit_code == 0
    expected, before = tree(here / "expected"), originals(here / "in")
    words = ("purify", "in", "out", "--json", "--batch-size", "2", *BLUR)
    moments = random.Random(0)
    killed = 0
    for _ in range(8):
        with start(*words, cwd=here) as process:
            until(process, "run_start")
            if count := moments.randrange(4):
                until(process, "image", count)
            time.sleep(moments.uniform(0, 0.02))
            process.kill()
        killed += process.returncode == -signal.SIGKILL
        assert tree(here / "out").items() <= expected.items()
        assert originals(here / "in") == before
    assert killed == 8
    assert 0 < len(tree(here / "out")) < 300
    done = run(*words, cwd=here)
    assert done.returncode == 0, done.stderr
    assert tree(here / "out") == expected
    assert not parts(here / "out")
    assert originals(here / "in") == before


# Two runs, and disks


def test_two_runs_in_one_folder_do_not_mix(prior: Path, uninterrupted: Path) -> None:
    words = ("purify", "two words", "out", "--json", *PRIOR)
    with start(*words, cwd=prior) as process:
        until(process, "image")
        process.send_signal(signal.SIGSTOP)
        second = invoke(*words)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=PATIENCE)
    assert second.exit_code == 6
    assert f"process {process.pid}" in second.stderr
    assert images(second.stdout) == {}
    assert process.returncode == 0
    assert tree(prior / "out") == tree(uninterrupted / "out")


def test_a_full_disk_exits_5_and_the_same_command_completes(
    here: Path, small_disk: Callable[..., Path]
) -> None:
    disk = small_disk("256k")
    pictures(here / "in", 12, (48, 48))
    words = ("--method", "none")
    assert invoke("purify", "in", "expected", *words).exit_code == 0
    expected, before = tree(here / "expected"), originals(here / "in")
    assert sum(map(len, expected.values())) > 80_000
    (disk / "filler").write_bytes(bytes(180 * 1024))
    done = run("purify", "in", disk / "out", "--json", *words, cwd=here)
    assert done.returncode == 5
    assert b"Traceback" not in done.stderr
    error = json.loads(done.stderr.splitlines()[-1])
    assert "free" in error["message"]
    assert "same command again" in error["message"]
    left = tree(disk / "out")
    assert 0 < len(left) < 12
    assert left.items() <= expected.items()
    (disk / "filler").unlink()
    assert run("purify", "in", disk / "out", *words, cwd=here).returncode == 0
    assert tree(disk / "out") == expected
    assert not parts(disk / "out")
    assert originals(here / "in") == before


@pytest.mark.parametrize("kilobytes", [0, 4, 8, 12])
def test_a_disk_with_hardly_a_page_left_exits_5_and_says_so(
    here: Path, small_disk: Callable[..., Path], kilobytes: int
) -> None:
    disk = small_disk("64k")
    (disk / "filler").write_bytes(bytes((64 - kilobytes) * 1024))
    pictures(here / "in", 3, (48, 48))
    result = invoke("purify", "in", disk / "out", "--method", "none")
    assert result.exit_code == 5, result.output
    assert "Traceback" not in result.stderr
    assert "No space left" in result.stderr
    assert len(tree(disk / "out")) < 3
    (disk / "filler").unlink()
    assert invoke("purify", "in", disk / "out", "--method", "none").exit_code == 0
    assert len(tree(disk / "out")) == 3


def test_a_read_only_disk_exits_5_and_says_so(here: Path, small_disk: Callable[..., Path]) -> None:
    disk = small_disk("64k", "ro")
    picture(here / "in" / "a.png")
    for out in (disk, disk / "new"):
        result = invoke("purify", "in", out, *BLUR)
        assert result.exit_code == 5
        assert str(out) in result.stderr
        assert "Read-only" in result.stderr


def test_outputs_of_a_disk_that_became_read_only_are_not_done_again(
    finished: Path, small_disk: Callable[..., Path]
) -> None:
    disk = small_disk("1m")
    shutil.copytree(finished / "out", disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    result = invoke("purify", "in", disk / "out", *BLUR)
    assert result.exit_code == 5
    assert tree(disk / "out") == tree(finished / "out")


def test_a_folder_on_another_disk_inside_the_output_works(
    here: Path, small_disk: Callable[..., Path]
) -> None:
    pictures(here / "in", 4)
    disk = small_disk("256k")
    (here / "out").mkdir()
    (disk / "sub").mkdir()
    subprocess.run(["mount", "--bind", str(disk / "sub"), str(make(here / "out" / "sub"))], check=True)
    try:
        assert invoke("purify", "in", "out", *BLUR).exit_code == 0
        assert tree(here / "out").keys() == tree(here / "in").keys()
        assert not parts(here / "out")
    finally:
        subprocess.run(["umount", str(here / "out" / "sub")], check=True)


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_an_output_folder_without_permission_exits_5(here: Path, as_user: tuple[str, ...]) -> None:
    picture(here / "in" / "a.png")
    (here / "out").mkdir(mode=0o500)
    done = run("purify", "in", "out", *BLUR, cwd=here, before=as_user)
    (here / "out").chmod(0o700)
    assert done.returncode == 5, done.stderr
    assert b"Permission denied" in done.stderr
    assert everything(here / "out") == {}


# Originals


def test_originals_keep_their_bytes_times_and_modes(here: Path) -> None:
    pictures(here / "in", 4)
    (here / "in" / "00.png").chmod(0o400)
    (here / "in" / "bad.png").write_bytes(b"bad")
    os.utime(here / "in" / "02.png", ns=(1, 1))
    before = originals(here / "in")
    assert invoke("purify", "in", "out", *BLUR).exit_code == 3
    assert invoke("purify", "in", "out", "--overwrite", *BLUR).exit_code == 3
    assert originals(here / "in") == before


def test_a_read_only_input_is_enough(here: Path, small_disk: Callable[..., Path]) -> None:
    disk = small_disk("64k")
    pictures(disk, 2)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert invoke("purify", disk, "out", *BLUR).exit_code == 0
    assert len(tree(here / "out")) == 2


@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
def test_outputs_have_the_mode_that_the_umask_leaves(here: Path, umask: int) -> None:
    picture(here / "in" / "a.png").chmod(0o400)
    before = os.umask(umask)
    try:
        assert invoke("purify", "in", "out", *BLUR).exit_code == 0
    finally:
        os.umask(before)
    assert (here / "out" / "a.png").stat().st_mode & 0o777 == 0o666 & ~umask
