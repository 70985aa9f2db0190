"""The scripts that train, fit and measure detectors, on few images."""

import json
import subprocess
import sys
from pathlib import Path

from cli.shell import ENVIRONMENT, ROOT
from safetensors import safe_open


def script(name: str, *words: str | Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, words)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_network_is_trained_the_same_way_each_time(tmp_path: Path) -> None:
    words = ("--steps", "2", "--limit", "300", "--photo-windows", "20")
    digests = []
    for name in ("one", "two"):
        out = script("train_frequency.py", tmp_path / name, *words)
        digests.append(json.loads(out.splitlines()[-1])["sha256"])
    assert digests[0] == digests[1]
    with (
        safe_open(tmp_path / "one", "pt") as ours,
        safe_open(ROOT / WEIGHTS / "frequency.safetensors", "pt") as f,
    ):
        assert {k: ours.get_tensor(k).shape for k in ours.keys()} == {  # noqa: SIM118  # no mapping
            k: f.get_tensor(k).shape
            for k in f.keys()  # noqa: SIM118
        }
        assert set(ours.metadata()) == set(f.metadata())


def test_what_is_usual_is_measured_anew(tmp_path: Path) -> None:
    script("fit_residual.py", tmp_path / "usual", "--images", "200")
    with (
        safe_open(tmp_path / "usual", "pt") as ours,
        safe_open(ROOT / WEIGHTS / "residual.safetensors", "pt") as f,
    ):
        assert ours.metadata()["prior"] == f.metadata()["prior"]
        for name in f.keys():  # noqa: SIM118
            assert ours.get_tensor(name).shape == f.get_tensor(name).shape
        near = (ours.get_tensor("spot_mean") - f.get_tensor("spot_mean")).abs().max()
        assert near < 0.6


def test_detectors_are_measured() -> None:
    out = script("measure_detectors.py", "--images", "20", "--trigger", "noise 3x3", "--json")
    rows = {row["detector"]: row for row in map(json.loads, out.splitlines())}
    assert set(rows) == {"residual", "frequency", "high share"}
    assert rows["residual"]["auroc"] > 0.95
    assert rows["residual"]["asked"] == 0


WEIGHTS = "zipcli/detectors/weights"
