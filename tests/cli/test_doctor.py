"""`zipcli doctor`: what it says of a machine, well or not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli.shell import ENVIRONMENT, invoke, run

from zipcli import __version__
from zipcli.errors import ExitCode

ROOT = Path(__file__).parents[2]


def test_a_sound_machine_is_described_in_full(here: Path) -> None:
    done = run("doctor", "--json", cwd=here)
    facts = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert facts["zipcli"] == __version__
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["packages"]["pillow"]
    assert facts["device"] in {device["name"].partition(":")[0] for device in facts["devices"]}
    assert all(len(model["sha256"]) == 64 for model in facts["models"].values())
    assert facts["folder"]["path"] == str(here)
    assert facts["problems"] == []
    assert list(here.iterdir()) == []  # nothing was made, not even a cache
    shown = invoke("doctor").stdout
    assert f"zipcli:       {__version__}" in shown
    assert shown.endswith("No problem found.\n")


@pytest.mark.parametrize(("file", "name"), [("prior", "builtin"), ("blind", "builtin-blind")])
def test_a_damaged_model_is_found(tmp_path: Path, file: str, name: str) -> None:
    """A copy of the package with one bit turned."""
    shutil.copytree(ROOT / "zipcli", tmp_path / "zipcli", ignore=shutil.ignore_patterns("__pycache__"))
    model = tmp_path / f"zipcli/models/builtin/{file}.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    command = [sys.executable, "-m", "zipcli", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == ExitCode.MODEL
    assert f"problem:      the model {name} is damaged, install zipcli again" in done.stdout


def test_no_secret_is_shown(here: Path) -> None:
    address = "https://me:hunter2@hub.example:8443/x"
    secrets = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "1"}
    for words in ([], ["--json"]):
        done = run("doctor", *words, cwd=here, env=secrets)
        assert done.returncode == 0
        assert b"hunter2" not in done.stdout
        assert b"hf_secret" not in done.stdout
    facts = json.loads(done.stdout)
    assert facts["hub"]["endpoint"] == "https://hub.example:8443/x"
    assert (facts["hub"]["token"], facts["hub"]["offline"]) == (True, True)


def test_a_cache_that_cannot_be_written_is_a_problem(here: Path, as_user: tuple[str, ...]) -> None:
    (here / "cache").mkdir(mode=0o500)
    done = run("doctor", "--json", cwd=here, env={"HF_HUB_CACHE": str(here / "cache")}, before=as_user)
    facts = json.loads(done.stdout)
    assert facts["hub"]["cache"]["writable"] is False
    assert any("not writable" in problem for problem in facts["problems"])
    assert done.returncode == 0
