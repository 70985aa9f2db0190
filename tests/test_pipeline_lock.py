"""Who may write: the kernel's lock where it works, and the owner's record where it does not."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from zipcli.errors import LockedError
from zipcli.pipeline.lock import holder, locked, this_process


def owner(**changes: object) -> str:
    """A record in a lock, of this process but for the changes."""
    me = this_process()
    return json.dumps({"host": me.host, "pid": me.pid, "started": me.started} | changes)


def ended() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture(params=["yes to everybody", "no locks"])
def useless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks as some network file systems have them."""

    def flock(descriptor: int, kind: int) -> None:
        if request.param == "no locks":
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_lock_keeps_others_out_and_names_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locked(file, tmp_path) as before:
        assert before is None
        assert holder(file) == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(LockedError, match=f"process {os.getpid()} on"), locked(file, tmp_path):
            pass
    assert holder(file) is None


@pytest.mark.fault("F23")
@pytest.mark.parametrize(
    "record", [owner(pid=ended()), owner(started="12@an earlier boot")], ids=["ended", "earlier boot"]
)
def test_a_lock_of_a_crash_is_taken_over_with_a_note(tmp_path: Path, record: str) -> None:
    (tmp_path / "lock").write_text(record)
    with locked(tmp_path / "lock", tmp_path) as before:
        assert before is not None
        assert before.startswith("process ")


@pytest.mark.fault("F23")
def test_a_lock_of_another_machine_that_is_free_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(owner(host="elsewhere"))
    with locked(tmp_path / "lock", tmp_path) as before:
        assert before is not None
        assert "elsewhere" in before


@pytest.mark.parametrize("record", ["", "garbage", "[]", '{"host": 3}', "\xff", '{"pid": "x"}'])
def test_a_record_that_says_nothing_stops_nobody(tmp_path: Path, record: str) -> None:
    (tmp_path / "lock").write_text(record)
    with locked(tmp_path / "lock", tmp_path) as before:
        assert before is None


def test_an_end_with_an_error_lets_go_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours"), locked(tmp_path / "lock", tmp_path):
        raise ValueError("ours")
    with locked(tmp_path / "lock", tmp_path) as before:
        assert before is None


@pytest.mark.fault("F20")
@pytest.mark.usefixtures("useless")
def test_where_locks_do_not_work_a_living_owner_keeps_others_out(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locked(file, tmp_path):
        assert holder(file) is not None
        with pytest.raises(LockedError, match=r"wait for it$"), locked(file, tmp_path, force=True):
            pass
    with locked(file, tmp_path) as before:
        assert before is None


@pytest.mark.fault("F23")
@pytest.mark.usefixtures("useless")
def test_where_locks_do_not_work_a_dead_owner_is_nobody(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(owner(pid=ended()))
    with locked(tmp_path / "lock", tmp_path) as before:
        assert before is not None


@pytest.mark.fault("F20", "F23")
@pytest.mark.usefixtures("useless")
def test_where_locks_do_not_work_only_the_user_knows_of_another_machine(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text(owner(host="elsewhere"))
    with pytest.raises(LockedError, match=r"elsewhere.*remove .*lock"), locked(file, tmp_path):
        pass
    with pytest.raises(LockedError, match="press here"), locked(file, tmp_path, remedy="press here"):
        pass
    with locked(file, tmp_path, force=True) as before:
        assert before is not None
        assert "elsewhere" in before


def test_force_replaces_a_lock_that_a_lost_machine_still_holds(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locked(file, tmp_path):
        file.write_text(owner(host="elsewhere"))
        with pytest.raises(LockedError), locked(file, tmp_path):
            pass
        with locked(file, tmp_path, force=True):
            assert holder(file) == f"process {os.getpid()} on {socket.gethostname()}"
