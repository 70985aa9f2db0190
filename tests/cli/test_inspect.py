"""`zipcli verify` and `zipcli status`: what they say of an output folder, and that they change nothing."""

import fcntl
import json
import os
import signal
from pathlib import Path

import pytest
from cli.shell import (
    BLUR,
    PATIENCE,
    invoke,
    json_lines,
    originals,
    picture,
    pictures,
    redone,
    run,
    start,
    tree,
    until,
)

from zipcli.errors import ExitCode, LockedError
from zipcli.pipeline.lock import locked

INTACT = 6
"""Outputs of the folder `finished`."""


def findings(*words: str | Path, code: ExitCode = ExitCode.SOME_FAILED) -> dict[str, str]:
    """State of each output that is not intact."""
    result = invoke("verify", "out", "--json", *words)
    assert result.exit_code == code, result.output
    *lines, end = json_lines(result.stdout)
    assert (end["type"], end["exit_code"], end["checked"]) == ("verify_end", code, len(lines))
    assert sum(end["counts"].values()) == len(lines)
    return {line["out_path"]: line["state"] for line in lines if line["state"] != "intact"}


def an_output(folder: Path) -> Path:
    return sorted((folder / "out").rglob("*.png"))[0]


def test_outputs_that_nobody_touched_are_intact(finished: Path) -> None:
    before = originals(finished)
    done = run("verify", "out", cwd=finished)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"6 outputs intact\n")
    assert originals(finished) == before
    assert findings(code=ExitCode.DONE) == {}


@pytest.mark.fault("F42")
def test_every_kind_of_damage_is_found_and_named(finished: Path) -> None:
    flipped, shorter, gone, link, folder = sorted((finished / "out").rglob("*.png"))[:5]
    data = bytearray(flipped.read_bytes())
    data[-20] ^= 1
    flipped.write_bytes(data)
    shorter.write_bytes(shorter.read_bytes()[:-1])
    gone.unlink()
    other = picture(finished / "other.png")
    link.unlink()
    link.symlink_to(other)
    folder.unlink()
    folder.mkdir()
    picture(finished / "out" / "new" / "foreign.JPG")
    (finished / "out" / "notes.txt").write_text("not an image")

    def name(path: Path) -> str:
        return path.relative_to(finished / "out").as_posix()

    assert findings() == {
        name(flipped): "changed",
        name(shorter): "changed",
        name(gone): "missing",
        name(link): "changed",
        name(folder): "changed",
        "new/foreign.JPG": "foreign",
    }
    result = invoke("verify", "out")
    assert result.exit_code == ExitCode.SOME_FAILED
    assert f"missing: {name(gone)}: it was written, and is not there any more" in result.stdout
    assert result.stderr == "1 outputs intact, 4 changed, 1 foreign, 1 missing\n"
    assert invoke("verify", "out", "-q").stderr == ""


def test_an_output_that_cannot_be_read_is_named(finished: Path, as_user: tuple[str, ...]) -> None:
    output = an_output(finished)
    output.chmod(0)
    done = run("verify", "out", cwd=finished, before=as_user)
    assert done.returncode == ExitCode.SOME_FAILED
    assert b"unreadable: " in done.stdout
    assert b"Permission denied" in done.stdout


def test_a_repaired_folder_is_intact_again(finished: Path) -> None:
    an_output(finished).unlink()
    assert len(findings()) == 1
    assert invoke("purify", "in", "out", *BLUR, "-q").exit_code == 0
    assert findings(code=ExitCode.DONE) == {}


@pytest.mark.fault("F42")
def test_paranoid_purifies_again_what_was_edited_without_a_trace(finished: Path) -> None:
    output = an_output(finished)
    written = output.read_bytes()
    output.write_bytes(written[:-20] + bytes(20))  # of the same size
    again = ["purify", "in", "out", *BLUR, "--json"]
    assert redone(invoke(*again).stdout) == []
    for words, count in (([], 0), (["--paranoid"], 1)):
        assert json_lines(invoke(*again, "--dry-run", *words).stdout)[-1]["purify"] == count
    assert redone(invoke(*again, "--paranoid").stdout) == [output.relative_to(finished / "out").as_posix()]
    assert output.read_bytes() == written
    assert redone(invoke(*again, "--paranoid").stdout) == []
    output.unlink()
    output.symlink_to(finished / "in" / "nowhere")
    assert len(redone(invoke(*again, "--paranoid").stdout)) == 1
    assert findings(code=ExitCode.DONE) == {}


def test_what_a_crash_left_is_unfinished(finished: Path) -> None:
    """The line that a kill between the rename and the last line leaves."""
    ledger = finished / "out" / ".zipcli" / "ledger-00001-of-00001.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    last = json.loads(lines[-1])
    assert last["state"] == "done"
    ledger.write_text("".join(lines[:-1]))
    assert findings() == {last["out_path"]: "unfinished"}


def test_what_was_begun_is_unfinished_even_without_a_file(finished: Path) -> None:
    (finished / "out" / "00.png").unlink()
    ledger = finished / "out" / ".zipcli" / "ledger-00001-of-00001.jsonl"
    started = next(line for line in ledger.read_text().splitlines() if '"00.png"' in line)
    with ledger.open("a") as file:
        file.write(started + "\n")
    result = invoke("verify", "out")
    assert result.exit_code == 3
    assert "unfinished: 00.png" in result.stdout


def test_an_output_whose_input_fails_now_is_outdated(finished: Path) -> None:
    """Somebody edited the output, so that zipcli left it alone when the input failed."""
    output = an_output(finished)
    relative = output.relative_to(finished / "out")
    output.write_bytes(output.read_bytes() + b"edited")
    (finished / "in" / relative).write_bytes(b"no image any more")
    assert invoke("purify", "in", "out", *BLUR, "-q").exit_code == ExitCode.SOME_FAILED
    assert findings() == {relative.as_posix(): "outdated"}


def test_a_failed_image_without_an_output_is_no_finding(here: Path) -> None:
    picture(here / "in" / "good.png")
    (here / "in" / "bad.png").write_text("no image")
    assert invoke("purify", "in", "out", *BLUR, "-q").exit_code == ExitCode.SOME_FAILED
    assert findings(code=ExitCode.DONE) == {}


def test_outputs_of_other_settings_are_told_apart(finished: Path) -> None:
    inner = ["--exclude", "sub/*", "--overwrite", "-q"]
    assert invoke("purify", "in", "out", "--method", "blur", "-t", "blur:4", *inner).exit_code == 0
    states = findings()
    assert states
    assert all(state == "other-settings" and name.startswith("sub/") for name, state in states.items())
    facts = json.loads(invoke("status", "out", "--json").stdout)
    assert facts["other_settings"] == len(states)


@pytest.mark.parametrize("command", ["verify", "status"])
def test_a_folder_that_is_not_ours_is_refused(here: Path, command: str) -> None:
    pictures(here / "in", 2)
    for folder in ("in", "nowhere", "in/00.png"):
        result = invoke(command, folder)
        assert result.exit_code == ExitCode.USAGE
        assert "holds no ledger; give the output folder of zipcli purify" in result.stderr
    assert not (here / "in" / ".zipcli").exists()


def test_a_damaged_ledger_is_no_proof(finished: Path) -> None:
    ledger = finished / "out" / ".zipcli" / "ledger-00001-of-00001.jsonl"
    ledger.write_bytes(b"garbage\n" + ledger.read_bytes())
    result = invoke("verify", "out")
    assert result.exit_code == ExitCode.USAGE
    assert "1 damaged lines in the ledger" in result.stderr
    facts = json.loads(invoke("status", "out", "--json").stdout)
    assert (facts["damaged_lines"], facts["counts"]["done"]) == (1, INTACT)


@pytest.mark.fault("F44", "F45")
def test_names_of_any_bytes_are_shown_harmlessly(here: Path) -> None:
    name = os.fsdecode(b"\xff\x1b[31m.png")
    picture(here / "in" / "a.png").rename(here / "in" / name)
    assert invoke("purify", "in", "out", *BLUR, "-q").exit_code == 0
    (here / "out" / name).unlink()
    done = run("verify", "out", cwd=here)
    assert b"\x1b" not in done.stdout
    (line,) = json_lines(run("verify", "out", "--json", cwd=here).stdout)[:-1]
    assert line["out_path_b64"]


def test_status_says_how_far_a_folder_is(finished: Path) -> None:
    (finished / "in" / "bad.png").write_text("no image")
    assert invoke("purify", "in", "out", *BLUR, "-q").exit_code == ExitCode.SOME_FAILED
    before = originals(finished)
    facts = json.loads(invoke("status", "out", "--json").stdout)
    assert facts["counts"] == {"done": INTACT, "passed": 0, "skipped": 0, "failed": 1, "started": 0}
    assert facts["reasons"] == {"unidentified": 1}
    assert facts["settings"]["method"] == "blur"
    assert facts["input"] == str(finished / "in")
    assert facts["running"] is None
    assert facts["out_bytes"] == sum(map(len, tree(finished / "out").values()))
    assert facts["first"] <= facts["last"]
    shown = invoke("status", "out").stdout
    assert "images:         6 done, 1 failed" in shown
    assert originals(finished) == before


def test_a_look_at_the_lock_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`zipcli status` is done while we sleep a moment; whoever holds it for longer has a run."""
    file = tmp_path / "lock"
    file.touch()
    with file.open() as f:
        fcntl.flock(f, fcntl.LOCK_SH)
        with monkeypatch.context() as patch:
            patch.setattr("zipcli.pipeline.lock.time.sleep", lambda seconds: fcntl.flock(f, fcntl.LOCK_UN))
            with locked(file, tmp_path):
                pass
        fcntl.flock(f, fcntl.LOCK_SH)
        with pytest.raises(LockedError), locked(file, tmp_path):
            pass


def test_status_says_who_is_at_work(here: Path) -> None:
    pictures(here / "in", 400, (16, 16))  # so many lines that a pipe cannot hold them
    process = start("purify", "in", "out", "--json", cwd=here)
    until(process, "image")
    facts = json.loads(invoke("status", "out", "--json").stdout)
    assert facts["running"].startswith(f"process {process.pid} on ")
    assert 0 < facts["counts"]["done"] < 400
    assert "running:" in invoke("status", "out").stdout
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert json.loads(invoke("status", "out", "--json").stdout)["running"] is None
