"""Signals, and a reader who goes away, in every phase of a run: it stops soon, says why, and can go on."""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli.shell import BLUR, PATIENCE, PRIOR, originals, pictures, redone, start, tree, until
from faults.forked import Forks
from faults.promises import again, ledger_lines, unfinished_files, wrong_files
from PIL import Image

SOON = 5.0
"""Seconds in which a run stops on an idle machine."""

AT_ONCE = 0.5
"""Seconds in which it ends there at a second signal."""

BUSY = 20.0
"""How much longer either may take where other tests run beside it; with `--full` nothing does."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A run that spends its time in one phase.

    Attributes:
        folder: Where it stands; holds `in` and `expected`.
        words: The command.
        expected: The visible files of a whole run.
    """

    folder: Path
    words: tuple[str, ...]
    expected: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """How a run stopped: seconds from the signal to its end, and what was wrong then or later."""

    seconds: float
    wrong: list[str]


STOPS = {
    "INT": ((signal.SIGINT,), 130),
    "INT twice": ((signal.SIGINT, signal.SIGINT), 130),
    "TERM": ((signal.SIGTERM,), 143),
    "HUP": ((signal.SIGHUP,), 129),
    "PIPE": ((), 141),
}

MARKS = {"INT": "F03", "INT twice": "F04", "TERM": "F05", "HUP": "F05", "PIPE": "F06"}

PHASES = ("plan", "decode", "sample", "write")


def phase_words(phase: str) -> tuple[str, ...]:
    blur = (*BLUR, "--batch-size", "1")
    if phase == "plan":
        return ("purify", "out", "--files-from", "-", "--base", "in", "--json", *blur)
    return ("purify", "in", "out", "--json", *(PRIOR if phase == "sample" else blur))


def fill(phase: str, folder: Path) -> None:
    """The pictures of a phase: slow to decode, slow to purify, or more than a pipe holds the lines of."""
    if phase == "decode":
        folder.mkdir(parents=True)
        for side in (2000, 1990, 1980, 1970):
            Image.radial_gradient("L").resize((side, side)).save(folder / f"{side}.png")
    else:
        pictures(folder, {"plan": 6, "sample": 6, "write": 300}[phase], (16, 16))


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> dict[str, Phase]:
    """A folder for each phase."""
    found = {}
    for name in PHASES:
        folder = tmp_path_factory.mktemp(name)
        fill(name, folder / "in")
        method = PRIOR if name == "sample" else BLUR
        done = forks.run("purify", "in", "expected", *method, cwd=folder)
        assert done.returncode == 0, done.err
        found[name] = Phase(folder=folder, words=phase_words(name), expected=tree(folder / "expected"))
    return found


def wait_for(phase: str, process: "subprocess.Popen[bytes]", chance: random.Random) -> None:
    """Return when the run is in the phase, at a random moment of it."""
    assert process.stdin is not None
    if phase == "plan":
        process.stdin.write(b"\n" * 2**20)  # more than a pipe holds: once this returns, it is being read
        process.stdin.flush()
    elif phase == "decode":
        until(process, "run_start")
    else:
        until(process, "image", chance.randrange(1, 4) if phase == "sample" else chance.randrange(1, 60))
    time.sleep(chance.uniform(0, {"plan": 0.1, "decode": 0.2, "sample": 0.1, "write": 0.01}[phase]))


def stop(phase: Phase, name: str, stop: str, chance: random.Random) -> tuple[int, bytes, float]:
    """Stop a run in a phase; its exit code, what it said, and the seconds until it was gone."""
    numbers, _ = STOPS[stop]
    with start(*phase.words, cwd=phase.folder, stdin=subprocess.PIPE, loitering=True) as process:
        assert process.stdout is not None
        try:
            wait_for(name, process, chance)
            began = time.monotonic()
            if not numbers:
                process.stdout.close()
                process.stdout = None
                lines = "".join(f"{path}\n" for path in phase.expected).encode()
                talk = process.communicate(lines if name == "plan" else None, timeout=PATIENCE)[1]
                return process.returncode, talk, time.monotonic() - began
            process.send_signal(numbers[0])
            for number in numbers[1:]:
                time.sleep(0.05)
                began = time.monotonic()
                process.send_signal(number)
            talk = process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
    return process.returncode, talk, time.monotonic() - began


def survive(forks: Forks, phase: Phase, name: str, how: str, chance: random.Random) -> Stopped:
    """Stop a run, look, and go on."""
    out = phase.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    before = originals(phase.folder / "in")
    code, talk, seconds = stop(phase, name, how, chance)
    wrong = wrong_stop(code, talk.decode(), name, how) + wrong_files(out, phase.expected)
    wrong += wrong_next(forks, phase, name, how)
    wrong += ["an original was changed"] * (originals(phase.folder / "in") != before)
    return Stopped(seconds=seconds, wrong=wrong)


def wrong_stop(code: int, talk: str, name: str, how: str) -> list[str]:
    """What is wrong with the way that a run stopped."""
    # A second Ctrl-C may find the interpreter at its very end, where it kills; a shell says 130 to both.
    codes = (STOPS[how][1], -signal.SIGINT) if how == "INT twice" else (STOPS[how][1],)
    says_how = how in ("INT", "TERM", "HUP") and name != "plan"
    claims = {
        f"exit code {code}": code not in codes,
        "it has much to say": "Traceback" in talk or (how == "PIPE" and talk != ""),
        "it does not say how to go on": says_how and "run the same command again" not in talk,
    }
    return [f"{claim}: {talk}" for claim, is_so in claims.items() if is_so]


def wrong_next(forks: Forks, phase: Phase, name: str, how: str) -> list[str]:
    """What is wrong with the run that goes on."""
    out, left = phase.folder / "out", tree(phase.folder / "out")
    words = phase.words if name != "plan" else ("purify", "in", "out", "--json", *BLUR, "--batch-size", "1")
    done = forks.run(*words, cwd=phase.folder)
    wrong = [f"the next run exits {done.returncode}: {done.err.decode()}"] * (done.returncode != 0)
    wrong += [f"{path} was left" for path in unfinished_files(out)]
    if tree(out) != phase.expected:
        wrong.append("the next run does not end in what a whole run makes")
    if again(ledger_lines(out))[1] or (how != "INT twice" and left.keys() & {*redone(done.out)}):
        wrong.append("finished images were done again")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("how", [pytest.param(how, marks=pytest.mark.fault(MARKS[how])) for how in STOPS])
def test_a_run_that_is_stopped_in_any_phase_stops_soon_and_goes_on_exactly(
    phases: dict[str, Phase], forks: Forks, full: bool, scoreboard: Callable[..., None], how: str
) -> None:
    wrong, times = [], []
    limit = (AT_ONCE if how == "INT twice" else SOON) * (1 if full else BUSY)
    for repeat in range(8 if full else 1):
        for name, phase in phases.items():
            stopped = survive(forks, phase, name, how, random.Random(f"{how} {name} {repeat}"))
            times.append(stopped.seconds)
            late = [f"it took {stopped.seconds:.1f} s"] * (stopped.seconds > limit)
            wrong += [f"{how} in {name}, repeat {repeat}: {what}" for what in stopped.wrong + late]
    scoreboard(f"stop by {how}", wrong, runs=len(times), slowest=f"{max(times):.2f} s")
