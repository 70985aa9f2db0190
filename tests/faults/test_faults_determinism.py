"""The same input, settings and model give the same bytes, whatever the batch, the order and the history."""

import colorsys
import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli.shell import BLUR, noise, pixels, tree
from faults.forked import Forks
from PIL import Image

PRIOR = ("--device", "cpu", "--steps", "20", "--seed", "7")
IMAGES = 7


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way to come to the same result."""

    batch: int
    jobs: int
    order: str
    interrupted: bool

    def words(self) -> tuple[str, ...]:
        where = ("in", "out") if self.order == "walk" else ("out", "--files-from", "names", "--base", "in")
        return ("purify", *where, *PRIOR, "--batch-size", str(self.batch), "--jobs", str(self.jobs))


CELLS = [
    Cell(batch=batch, jobs=jobs, order=order, interrupted=interrupted)
    for batch, jobs, order, interrupted in itertools.product(
        (1, 3, 8), (1, 4), ("walk", "reversed", "shuffled"), (False, True)
    )
]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Pictures of two sizes, each of which has a colour of its own."""
    for n in range(IMAGES):
        red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(n / IMAGES, 0.8, 0.8))
        side = 16 if n % 3 else 24
        path = tmp_path / "in" / ("sub" if n % 2 else ".") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = Image.new("RGB", (side, side), (red, green, blue))
        Image.blend(plain, noise((side, side), seed=n), 0.1).save(path)
    return tmp_path


def write_names(folder: Path, order: str) -> None:
    names = sorted(tree(folder / "in"))
    if order == "shuffled":
        random.Random(6).shuffle(names)
    (folder / "names").write_text("\n".join(names[::-1] if order == "reversed" else names))


def differences(forks: Forks, folder: Path, cell: Cell, expected: dict[str, bytes], kill: float) -> list[str]:
    """Run in one way; the files that are not the same."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    write_names(folder, cell.order)
    if cell.interrupted:
        forks.run(*cell.words(), cwd=folder, kill_after=kill)
    done = forks.run(*cell.words(), cwd=folder)
    assert done.returncode == 0, done.err
    found = tree(folder / "out")
    wrong = [path for path in expected.keys() | found.keys() if found.get(path) != expected.get(path)]
    return [f"{cell}: {path}" for path in sorted(wrong)]


@pytest.mark.slow
@pytest.mark.fault("F01")
def test_batch_order_jobs_and_history_change_no_byte(
    here: Path, forks: Forks, full: bool, scoreboard: Callable[..., None]
) -> None:
    reference = forks.run("purify", "in", "expected", *PRIOR, "--batch-size", "1", cwd=here)
    assert reference.returncode == 0, reference.err
    expected = tree(here / "expected")
    assert len(set(expected.values())) == IMAGES
    cells = CELLS if full else random.Random(6).sample(CELLS, 5)
    wrong: list[str] = []
    for n, cell in enumerate(cells):
        moment = reference.seconds * (0.3 + 0.6 * n / len(cells))
        wrong += differences(forks, here, cell, expected, moment)
    scoreboard("determinism", wrong, combinations=len(cells))


def test_each_output_is_the_picture_of_its_own_input(here: Path, forks: Forks) -> None:
    done = forks.run("purify", "in", "out", *BLUR, "--batch-size", "3", "--jobs", "4", cwd=here)
    assert done.returncode == 0, done.err
    for path in tree(here / "in"):
        before, after = pixels(here / "in" / path), pixels(here / "out" / path)
        assert abs(before.mean((0, 1)) - after.mean((0, 1))).max() < 2
