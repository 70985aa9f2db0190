"""Runs zipcli as real processes that start in milliseconds: a server imports everything once and forks.

A child has a session, files and a folder of its own, runs the real command group, and ends as the
interpreter would: it waits for its threads, runs what is registered for the exit, flushes, and is
gone. Only the interpreter's taking itself apart is left out, which needs ten times as long as the run.
The server has one thread, so that a fork is safe whatever the tests around it have started.
"""

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 600.0
"""Seconds after which a run counts as hung."""

LAST_WORKER = 60.0
"""Seconds in which what a run has started must end after it."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a run ended.

    Attributes:
        returncode: Exit code, or the negative number of the signal that killed it.
        out: Standard output.
        err: Standard error.
        seconds: From the fork to the end.
        lingered: Whether processes that it had started were still there `LAST_WORKER` seconds later.
    """

    returncode: int
    out: bytes
    err: bytes
    seconds: float
    lingered: bool

    @property
    def killed(self) -> bool:
        """Whether the end came from SIGKILL."""
        return self.returncode == -signal.SIGKILL


class Forks:
    """The server, seen from the tests."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start a server whose runs see `environment`."""
        self._scratch = tempfile.TemporaryDirectory(prefix="forks-")
        tests = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join([tests, environment.get("PYTHONPATH", "")])
        self._server = subprocess.Popen(
            [sys.executable, __file__, self._scratch.name],
            env={**environment, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def warm_up(self, *args: str | Path, cwd: Path) -> None:
        """Run a command once, and let the server import what it needed."""
        done = self._ask(args=[*map(str, args)], cwd=str(cwd), learn=True)
        assert done.returncode == 0, done.err.decode()

    def run(
        self,
        *args: str | Path,
        cwd: Path,
        kill_after: float | None = None,
        before: str | None = None,
        settings: Mapping[str, Any] = {},
    ) -> Done:
        """Run a command to its end.

        Args:
            *args: Words after `zipcli`.
            cwd: Where it stands.
            kill_after: Seconds after which it is killed, if it is still there.
            before: "module:function" that the child calls first, with `settings`.
            settings: Keyword arguments of `before`, ready for JSON.
        """
        words = [*map(str, args)]
        done = self._ask(
            args=words, cwd=str(cwd), kill_after=kill_after, before=before, settings=dict(settings)
        )
        assert not (kill_after is None and done.killed), f"hung: {words}"
        return done

    def _ask(self, **request: Any) -> Done:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        assert line, "the server of the runs has ended"
        out, err = (Path(self._scratch.name, name).read_bytes() for name in ("out", "err"))
        return Done(**json.loads(line), out=out, err=err)

    def close(self) -> None:
        """End the server."""
        self._server.communicate(timeout=PATIENCE)
        self._scratch.cleanup()


# The server.


def serve(scratch: Path) -> None:
    """Answer requests from standard input until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    import torch

    torch.set_num_threads(1)
    while line := sys.stdin.buffer.readline():  # iterating would read ahead, which a child would inherit
        reply = _run(json.loads(line), scratch)
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def _run(request: dict[str, Any], scratch: Path) -> dict[str, Any]:
    assert threading.active_count() == 1, "a fork would lose the other threads"
    began = time.monotonic()
    alive, held = os.pipe()  # held by the child alone, so its end can be waited for with a limit
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        _child(request, scratch)
    os.close(held)
    limit = request.get("kill_after")
    if not select.select([alive], [], [], PATIENCE if limit is None else limit)[0]:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - began
    os.close(alive)
    if request.get("learn"):
        _import_all(json.loads((scratch / "modules").read_bytes()))
    return {
        "returncode": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "lingered": _lingers(pid),
    }


def _lingers(group: int) -> bool:
    """Wait for the processes that a run has started; those that stay are ended, and told of."""
    until = time.monotonic() + LAST_WORKER
    try:
        while time.monotonic() < until:
            os.killpg(group, 0)
            time.sleep(0.002)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _import_all(names: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with contextlib.suppress(ImportError):  # a part of a package under another name
                importlib.import_module(name)


def _child(request: dict[str, Any], scratch: Path) -> None:
    """Become a run of zipcli; does not return."""
    os.setsid()
    _redirect(scratch)
    os.chdir(request["cwd"])
    code = 1
    try:
        code = _command(request)
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at its end
        atexit._run_exitfuncs()
        if request.get("learn"):
            (scratch / "modules").write_text(json.dumps([*sys.modules]))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # nothing may climb back into the server's loop
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _redirect(scratch: Path) -> None:
    """Give the child empty input and two files; the server's own streams stay out of its reach."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666), number)


def _command(request: dict[str, Any]) -> int:
    from zipcli.cli.main import cli

    sys.argv = ["zipcli", *request["args"]]
    if request.get("before"):
        module, function = request["before"].split(":")
        getattr(importlib.import_module(module), function)(**request["settings"])
    try:
        cli.main(request["args"], "zipcli")
    except SystemExit as e:
        return int(e.code or 0)
    raise AssertionError("the command group came back")


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
