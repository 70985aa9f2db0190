"""Kills that nothing can catch, at any instant of a run, and of the run that goes on after them."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cli.shell import BLUR, originals, pictures, tree
from faults.forked import Forks
from faults.promises import again, ledger_lines, wrong_end, wrong_files

WORDS = ("purify", "in", "out", *BLUR, "--batch-size", "1")
PRIOR = ("purify", "in", "out", "--device", "cpu", "--steps", "20", "--batch-size", "1")

IN_FLIGHT = 1 + 2
"""Images that a kill may cost: the batch, and those that are written meanwhile.

Without a network images are purified faster than a disk takes them, and more of them wait to be written.
"""


@dataclass
class Score:
    """What some kills did."""

    kills: int = 0
    runs: int = 0
    broken: int = 0
    changed: int = 0
    lost: int = 0
    redone: int = 0
    most: float = 0
    wrong: list[str] = field(default_factory=list)

    def look(self, here: Path, expected: dict[str, bytes], before: object, moment: str) -> None:
        """Look at what is visible, and at the originals."""
        broken = wrong_files(here / "out", expected)
        changed = originals(here / "in") != before
        self.broken += len(broken)
        self.changed += changed
        self.wrong += [f"{moment}: {what}" for what in broken]
        self.wrong += [f"{moment}: an original was changed"] * changed


def attack(
    forks: Forks, here: Path, words: tuple[str, ...], kills: int, seed: int, most: int | None = None
) -> Score:
    """Kill runs until `kills` of them were hit, and let each folder be finished."""
    reference = forks.run(*words[:2], "expected", *words[3:], cwd=here)
    assert reference.returncode == 0, reference.err
    expected, before = tree(here / "expected"), originals(here / "in")
    moments, score = random.Random(seed), Score()
    while score.kills < kills:
        shutil.rmtree(here / "out", ignore_errors=True)
        hits = 0
        while hits == 0 or moments.random() < 0.5:  # the run that goes on may be hit as well
            moment = moments.uniform(0, reference.seconds)
            done = forks.run(*words, cwd=here, kill_after=moment)
            hits += done.killed
            score.runs += 1
            name = f"kill {score.kills + hits} of seed {seed}, after {moment * 1000:.1f} ms"
            score.look(here, expected, before, name)
            if done.lingered:
                score.wrong.append(f"{name}: a process was left behind")
            if not done.killed:
                assert done.returncode == 0, done.err
                if hits:
                    break
                shutil.rmtree(here / "out")
        score.kills += hits
        score.wrong += [f"{name}, then: {what}" for what in wrong_end(forks, words, here, expected)]
        score.look(here, expected, before, f"the run after {name}")
        redone, lost = again(ledger_lines(here / "out"))
        score.redone += redone
        score.most = max(score.most, redone / hits)
        score.lost += lost
        score.wrong += [f"{name}: {lost} finished images were done again"] * (lost > 0)
        if most is not None and redone > hits * most:
            score.wrong.append(f"{name}: {hits} kills cost {redone} images")
    return score


def publish(scoreboard: Callable[..., None], test: str, score: Score) -> None:
    scoreboard(
        test,
        score.wrong,
        kills=score.kills,
        runs=score.runs,
        broken=score.broken,
        lost=score.lost,
        changed=score.changed,
        redone=score.redone,
        most_per_kill=round(score.most, 1),
    )


@pytest.mark.slow
@pytest.mark.fault("F01", "F41")
def test_a_kill_at_any_instant_leaves_no_broken_file_and_the_next_run_completes(
    tmp_path: Path, forks: Forks, full: bool, scoreboard: Callable[..., None]
) -> None:
    pictures(tmp_path / "in", 24, (16, 16))
    score = attack(forks, tmp_path, WORDS, 1000 if full else 200, seed=1)
    publish(scoreboard, "kill", score)


@pytest.mark.slow
@pytest.mark.fault("F01", "F41")
def test_a_kill_at_any_instant_of_a_run_with_the_prior_costs_nothing_that_was_finished(
    tmp_path: Path, forks: Forks, full: bool, scoreboard: Callable[..., None]
) -> None:
    pictures(tmp_path / "in", 4, (16, 16))
    score = attack(forks, tmp_path, PRIOR, 60 if full else 4, seed=2, most=IN_FLIGHT)
    publish(scoreboard, "kill with the prior", score)
