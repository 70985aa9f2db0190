"""The study of all defences, and the attackers who know the defence, on few images."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptive import Lab, smooth_change, to_pixels
from cli.shell import ENVIRONMENT, ROOT, run
from measure_samplers import tensor
from real_images import DATA, cifar
from study import Study

from zipcli.pipeline.purifier import ImageNoise, pixel_digest

FEW = ("--images", "20", "--training-images", "200")
STUDY = (*FEW, "--attacks", "badnets,blended", "--methods", "blur", "--seeds", "2")
ADAPTIVE = (
    *FEW, "--epochs", "1", "--steps", "12", "--batch-size", "4", "--patches", "3", "--bounds", "32",
    "--bands", "2", "--submissions", "3", "--attacks", "badnets",
)  # fmt: skip


def script(name: str, *words: str | Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, words)]
    env = {**ENVIRONMENT, "ZIPCLI_DATA": str(DATA)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean classifier that was trained for a moment."""
    file = tmp_path_factory.mktemp("base") / "base.safetensors"
    script("train_classifier.py", file, "--limit", "500", "--epochs", "2")
    return file


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """What a study has left behind."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "out.md").write_text(script("study.py", folder, base, *STUDY, "--made-at", "0"))
    return folder


def result(work: Path) -> dict[str, Any]:
    return json.loads((work / "study/result.json").read_text())


def cells(work: Path, **wanted: Any) -> list[dict[str, Any]]:
    return [cell for cell in result(work)["cells"] if wanted.items() <= cell.items()]


@pytest.mark.parametrize("attack", ["badnets", "blended"])
def test_a_cell_is_what_zipcli_evaluate_says(work: Path, attack: str) -> None:
    folder, victim, out = (work / f"{attack}-{part}" for part in ("poisoned", "victim.pt", "said.json"))
    done = run("evaluate", folder, "--classifier", victim, "--seed", "1", "-q", "-o", out)
    assert done.returncode == 0, done.stderr
    facts = json.loads(out.read_text())
    for side, defence in (("before", "none"), ("after", "default")):
        (cell,) = cells(work, attack=attack, defence=defence, seed=1)
        for name in ("CA", "ASR", "PA"):
            assert cell[name] == facts[side][name.lower()]
    row = next(row for row in result(work)["rows"] if (row["attack"], row["defence"]) == (attack, "default"))
    both = [cell["CA"]["value"] for cell in cells(work, attack=attack, defence="default")]
    assert row["CA"]["mean"] == pytest.approx(50 * sum(both))


def test_evaluations_are_counted(work: Path) -> None:
    assert {cell["evaluations"] for cell in cells(work, defence="default")} == {1}
    assert {cell["evaluations"] for cell in cells(work, defence="blur")} == {0}
    assert {cell["labels"] for cell in cells(work)} == {0}


def test_nothing_is_measured_twice(work: Path, base: Path) -> None:
    def made() -> dict[Path, int]:
        files = (work / "study").glob("*-*")
        return {file: file.stat().st_mtime_ns for file in files}

    before = made()
    again = script("study.py", work, base, *STUDY, "--made-at", "0")
    assert made() == before
    assert again == (work / "out.md").read_text()
    lost = next(file for file in before if file.name.startswith("blur-badnets"))
    lost.unlink()
    script("study.py", work, base, *STUDY, "--made-at", "0")
    assert set(made()) == set(before)
    assert {file for file, when in made().items() if when != before[file]} == {lost}


def test_a_weak_attack_is_named_and_left_out_of_the_means(work: Path, base: Path) -> None:
    (cell, _) = cells(work, attack="badnets", defence="none")
    found = script("study.py", work, base, *STUDY, "--made-at", "101")
    assert f"Not made: badnets, whose ASR without a defence is {100 * cell['ASR']['value']:.1f} %." in found
    assert "Means over the 0 attacks" in found
    assert "Not made" not in (work / "out.md").read_text()


def synthetic(defence: str, seed: int, successes: list[int], attack: str = "a") -> dict[str, Any]:
    n = len(successes)
    each = {"CA": [1, 0] * (n // 2), "ASR": [*successes], "PA": [1, 0] * (n // 2), "PSNR": [30.0] * n}
    costs = {"evaluations": 3, "labels": 0, "images_per_s": 9.0, "images": [n, n]}
    settings = {"method": defence} | ({} if defence in ("none", "blur") else {"seed": seed})
    return {"defence": defence, "attack": attack, "seed": seed, "settings": settings, "each": each, **costs}


def test_losses_come_first_and_not_purifying_is_no_rival() -> None:
    counts = {"none": (45, 45, 45), "default": (5, 10, 15), "blur": (9, 9, 9)}
    cells = [
        synthetic(name, seed, [1] * count + [0] * (50 - count))
        for name, three in counts.items()
        for seed, count in enumerate(three)
    ]
    weak = [synthetic(name, seed, [0] * 50, "weak") for name in counts for seed in range(3)]
    study = Study(cells + weak, {"a": 80.0, "weak": 80.0}, made_at=85)
    assert study.made == ["a"]
    # 4.303 times the deviation, 10 points, over the root of three.
    assert study.losses() == [["a", "ASR", "20.0 ± 24.8", "18.0", "blur", "yes"]]
    assert next(study.lines()).startswith("## Where another defence is better than default: 1 of 4")
    assert study.means["none"]["ASR"].half is None
    assert study.means["default"]["ASR"].value == pytest.approx(20)


def test_a_rival_that_saw_fewer_images_is_compared_on_those() -> None:
    every_other = [1, 0] * 10  # of 20 images; a rival that can afford ten sees the first of each two
    cells = [synthetic("none", 0, [1] * 20), synthetic("default", 0, every_other)]
    rival = synthetic("zip", 0, [1] * 9 + [0])
    study = Study([*cells, rival], {"a": 80.0}, made_at=85)
    assert study.rows["a", "default"]["ASR"].value == 50
    assert ["a", "ASR", "100.0", "90.0", "zip", ""] in study.losses()


def test_attackers_who_know_the_defence_are_measured(work: Path, base: Path) -> None:
    first = script("adaptive.py", work, base, *ADAPTIVE)
    files = {file: file.stat().st_mtime_ns for file in (work / "adaptive").glob("*-*.*")}
    for stage in ("poisoning", "optimised", "smooth", "resubmit"):
        assert f"## {stage}\n" in first
    (summary,) = (work / "adaptive").glob("result-*.json")
    facts = json.loads(summary.read_text())
    names = [row["trigger"] for stage in ("poisoning", "optimised", "smooth") for row in facts[stage]]
    assert names == ["badnets-purified", "blended-purified", "patch-3", "change-32", "smooth-16-band-2"]
    (row,) = facts["resubmit"]
    assert row["best of 3"]["value"] >= row["ASR after, mean"]["value"]
    assert row["ASR before"] == cells(work, attack="badnets", defence="none", seed=0)[0]["ASR"]
    (fitted,) = (work / "adaptive").glob("*-change-32-*.npz")
    with np.load(fitted) as found:
        kept = json.loads(str(found["facts"]))["kept"]
    assert kept[-1] > kept[0] + 0.1, "gradients through the defence have made the trigger no better"

    assert script("adaptive.py", work, base, *ADAPTIVE) == first
    again = {file: file.stat().st_mtime_ns for file in files}
    assert {file for file in files if files[file] != again[file]} == {summary}


def test_the_defence_with_a_gradient_is_the_defence(tmp_path: Path, base: Path) -> None:
    options = Namespace(work=tmp_path, base=base, method=None, set=["dtype=float32"])
    lab = Lab(Namespace(**vars(options), images=8, training_images=8, rate=0.1, epochs=1))
    images = cifar(8)
    x = tensor(images).requires_grad_()
    noise = ImageNoise(5, [pixel_digest(image) for image in images])
    purified = lab.differentiable(x, noise)
    ours = np.stack(to_pixels(purified.detach())).astype(int)
    assert np.abs(ours - np.stack(lab.purify(images, 5))).max() <= 1  # levels: packed weights round otherwise
    (gradient,) = torch.autograd.grad(purified.sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(("bound", "band"), [(16, 2), (8, 4)])
def test_a_smooth_change_is_bounded_and_has_low_frequencies_only(bound: int, band: int) -> None:
    parameters = torch.randn(3, band, band, generator=torch.Generator().manual_seed(0))
    family = smooth_change(bound, band)
    assert family.size == parameters.shape
    pattern = family.put_on(torch.zeros(1, 3, 32, 32), parameters)[0].double()
    assert pattern.abs().max().item() == pytest.approx(bound / 127.5)
    n = torch.arange(32, dtype=torch.float64)
    waves = torch.cos(torch.pi * n[:, None] * (n + 0.5) / 32)
    spectrum = waves @ pattern @ waves.T
    low = spectrum[:, :band, :band].clone()
    spectrum[:, :band, :band] = 0
    assert spectrum.abs().max() < 1e-4 * low.abs().max()


def test_small_copies_take_large_triggers_out_of_large_photographs() -> None:
    title, *rows = script("measure_large.py", "--photos", "4", "--side", "128").splitlines()
    yellow = title.split().index("yellow") - len(title.split())
    assert [row.split("  ")[0] for row in rows] == ["doubt 0.2", "doubt inf"]
    taken, left = (float(row.split()[yellow]) for row in rows)
    assert abs(taken) < 30 < left - 20


def test_victims_are_shown_images_through_a_lens(work: Path) -> None:
    few = ("--attacks", "badnets,blended", "--images", "10", "--enlarge", "2", "--doubts", "inf")
    title, *rows = script("measure_large.py", "--victims", work, *few).splitlines()
    assert title.split() == ["badnets", "blended"]
    assert [row[:22].strip() for row in rows] == ["not purified", "doubt inf"]
    cells = [[float(cell) for cell in row[22:].replace("/", " ").split()] for row in rows]
    assert all(len(row) == 6 and all(0 <= cell <= 100 for cell in row) for row in cells)
    assert cells[0] != cells[1]
