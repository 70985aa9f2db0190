"""A power cut at every instant of a run: each state that the disk may be in must lead to the clean result."""

import json
import random
import shutil
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli.shell import BLUR, originals, pictures, redone, tree
from faults.forked import Forks
from faults.power import Disk, Tree, materialise
from faults.promises import ledger_lines, wrong_end, wrong_files

WORDS = ("purify", "in", "out", *BLUR, "--batch-size", "1", "--jobs", "1", "--json")
PICTURES = 5


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One state of the disk.

    Attributes:
        barrier: Operations that were done before the power cut.
        finished: Images that the run had called done by then.
        tree: What is on the disk.
    """

    barrier: int
    finished: int
    tree: Tree


def recorded(forks: Forks, folder: Path) -> list[dict[str, Any]]:
    """The operations of a whole run, which also leaves the result to compare with."""
    report = folder / "record"
    done = forks.run(
        *WORDS,
        cwd=folder,
        before="faults.syscalls:record",
        settings={"folders": [str(folder / "out")], "report": str(report)},
    )
    assert done.returncode == 0, done.err
    found: list[dict[str, Any]] = json.loads(report.read_bytes())
    return found


def cuts(record: list[dict[str, Any]], root: Path) -> Iterator[Cut]:
    """Every state, each once."""
    disk, chance, seen, finished = Disk(str(root)), random.Random(17), set(), 0
    for barrier, line in enumerate(record, start=1):
        disk.apply(line)
        finished += b'"state": "done"' in b64decode(line.get("data", ""))
        for state in disk.states(chance):
            key = hash(tuple(state.items()))
            if (key, finished) not in seen:
                seen.add((key, finished))
                yield Cut(barrier=barrier, finished=finished, tree=state)


def replayed(record: list[dict[str, Any]], root: Path) -> Tree:
    """What the record leads to when nothing is lost."""
    disk = Disk(str(root))
    for line in record:
        disk.apply(line)
    return {path: data for path, data in disk.everything().items() if data is not None}


def survive(forks: Forks, folder: Path, cut: Cut, expected: dict[str, bytes]) -> tuple[list[str], int]:
    """Put a state on the disk, and go on; what is wrong, and how many finished images were forgotten."""
    world = folder / "world"
    shutil.rmtree(world, ignore_errors=True)
    materialise(cut.tree, world)
    (world / "in").symlink_to(folder / "in")
    wrong = [f"before the next run: {what}" for what in wrong_files(world / "out", expected)]
    there = tree(world / "out")
    durable = {line["path"] for line in ledger_lines(world / "out") if line["state"] == "done"} & there.keys()
    done = forks.run(*WORDS, cwd=world)
    if done.returncode:
        wrong.append(f"the next run exits {done.returncode}: {done.err.decode()[:300]}")
        return wrong, 0
    wrong += wrong_end(forks, WORDS, world, expected)
    again = redone(done.out)
    wrong += [f"{path} was recorded as done, is there, and was done again" for path in durable & {*again}]
    return wrong, max(0, cut.finished - (PICTURES - len(again)))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    pictures(tmp_path / "in", PICTURES)
    return tmp_path


def test_the_record_of_a_run_leads_to_what_the_run_left(here: Path, forks: Forks) -> None:
    record = recorded(forks, here)
    files = {str(p.relative_to(here)): p.read_bytes() for p in (here / "out").rglob("*") if p.is_file()}
    assert replayed(record, here) == files


def test_the_model_finds_broken_files_in_a_run_that_never_syncs(here: Path, forks: Forks) -> None:
    unsynced = [line for line in recorded(forks, here) if line["op"] != "fsync"]
    expected = tree(here / "out")
    found = 0
    for cut in cuts(unsynced, here):
        found += any(cut.tree.get(f"out/{path}", data) != data for path, data in expected.items())
    assert found > 10


@pytest.mark.slow
@pytest.mark.fault("F02", "F41")
def test_after_a_power_cut_at_any_instant_the_next_run_completes(
    here: Path, forks: Forks, full: bool, scoreboard: Callable[..., None]
) -> None:
    record = recorded(forks, here)
    expected, before = tree(here / "out"), originals(here / "in")
    legal = list(cuts(record, here))
    chosen = random.Random(2).sample(legal, min(len(legal), 2000 if full else 60))
    wrong, bad, forgotten = [], 0, []
    for cut in chosen:
        found, lost = survive(forks, here, cut, expected)
        forgotten.append(lost)
        bad += bool(found)
        wrong += [f"after operation {cut.barrier} of {len(record)}: {what}" for what in found]
    wrong += ["an original was changed"] * (originals(here / "in") != before)
    scoreboard(
        "power cut",
        wrong,
        operations=len(record),
        legal=len(legal),
        states=len(chosen),
        bad=bad,
        most_forgotten=max(forgotten),
    )
