"""`zipcli bench`: what it says of a machine, on pictures that it makes."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli.shell import ENVIRONMENT, invoke, run
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from zipcli.pipeline.bench import STAGES, picture

ROWS = ("bench", "--size", "16", "--seconds", "0.2", "--json")


def lines(*words: str, cwd: Path) -> list[dict[str, Any]]:
    done = run(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def test_a_row_says_what_was_measured_and_adds_up(here: Path) -> None:
    start, row = lines(*ROWS, "--steps", "3", "--batch-size", "5", cwd=here)
    assert (start["type"], row["type"]) == ("bench_start", "bench")
    assert start["peak_convolution_gflops"] > 1
    assert start["peak_matmul_gflops"] > 1
    assert start["settings"]["steps"] == 3
    assert (row["size"], row["batch_size"], row["evaluations"]) == (16, 5, 3)
    assert row["images"] % 5 == 0
    assert row["run_gflops"] == pytest.approx(row["images_per_s"] * 3 * row["gflop"], rel=1e-2)
    assert row["network_gflops"] == pytest.approx(row["gflop"] / row["evaluation_s"], rel=1e-2)
    assert row["network_share"] == pytest.approx(
        row["network_gflops"] / start["peak_convolution_gflops"], rel=1e-2
    )
    assert row["run_share"] == pytest.approx(row["run_gflops"] / row["network_gflops"], rel=1e-2)
    assert set(row["shares"]) == set(STAGES)
    assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-2)
    assert row["peak_mb"] > 50
    assert list(here.iterdir()) == []


def test_operations_are_those_of_the_network(here: Path) -> None:
    """The built-in prior: 0.49 GFLOP for an image of 32 pixels, and four times that for twice the side."""
    _, small, large = lines("bench", "--size", "32", "--size", "64", "--seconds", "0.2", "--json", cwd=here)
    assert small["gflop"] == pytest.approx(0.49, rel=0.01)
    assert large["gflop"] == pytest.approx(4 * small["gflop"], rel=0.01)


def test_a_method_without_a_network_has_no_operations(here: Path) -> None:
    _, row = lines(*ROWS, "--method", "blur", cwd=here)
    assert row["evaluations"] == 0
    assert (row["gflop"], row["network_gflops"], row["run_share"]) == (None, None, None)
    assert row["shares"]["network"] == 0
    assert row["images_per_s"] > 0


def test_diffusers_and_we_take_turns_on_one_network(here: Path, tmp_path: Path) -> None:
    """On our network, and on one that diffusers has saved, with as many evaluations of each."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        **{"sample_size": 16, "block_out_channels": (32, 32), "layers_per_block": 1},
        **{"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
    }
    DDIMPipeline(UNet2DModel(**shape), DDIMScheduler()).save_pretrained(tmp_path / "saved")
    saved = ["--model", str(tmp_path / "saved")]
    for more in ([], saved, [*saved, "--dtype", "bfloat16"]):
        *_, peer = lines(*ROWS, "--peers", "--batch-size", "2", "--steps", "2", *more, cwd=here)
        assert peer["type"] == "bench_peer"
        assert (peer["size"], peer["batch_size"], peer["evaluations"]) == (16, 2, 2)
        ours, theirs = peer["zipcli_images_per_s"], peer["diffusers_images_per_s"]
        assert min(ours, theirs) > 0
        assert peer["ratio"] == pytest.approx(ours / theirs, rel=1e-2)


def test_the_table_has_a_row_for_each_size_and_batch_size(here: Path) -> None:
    words = ("--size", "8", "--size", "16", "--batch-size", "1", "--batch-size", "4", "--method", "blur")
    done = run("bench", *words, "--seconds", "0.1", cwd=here)
    rows = [line.split()[:2] for line in done.stdout.decode().splitlines() if "%" not in line]
    assert rows == [["size", "batch"], ["8", "1"], ["8", "4"], ["16", "1"], ["16", "4"]]
    assert b"GFLOP/s in convolutions" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "0"],
        ["--seconds", "0"],
        ["--method", "blur", "--steps", "2"],
        ["--method", "blur", "--peers"],
    ],
)
def test_wrong_settings_are_refused_before_anything_is_measured(here: Path, words: list[str]) -> None:
    result = invoke("bench", *words)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_ctrl_c_leaves_nothing_behind(here: Path) -> None:
    scratch = here / "tmp"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "zipcli", "bench", "--size", "32", "--seconds", "600"],
        env={**ENVIRONMENT, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    while not any(scratch.glob("zipcli-bench-*/out/*.png")):
        assert process.poll() is None, process.stderr.read()
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert not list(scratch.glob("zipcli-*"))  # PyTorch leaves an empty folder of its own


def test_pictures_are_smooth_and_differ() -> None:
    a, b = picture(64, 0), picture(64, 1)
    assert (a.shape, a.dtype) == ((64, 64, 3), np.uint8)
    assert not np.array_equal(a, b)
    assert np.array_equal(a, picture(64, 0))
    neighbours = np.abs(np.diff(a.astype(float), axis=1)).mean()
    assert neighbours < 0.5 * a.std()
    assert not math.isnan(neighbours)
