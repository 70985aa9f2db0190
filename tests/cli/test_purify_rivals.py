"""zipcli purify with the methods of other papers: records, refusals, and the commands around it."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli.shell import invoke, json_lines, picture, pixels, run
from PIL import Image

from zipcli.config import VARIANTS

OURS = ("official", "paper-alg1", "paper-alg2")


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in OURS])
def test_a_variant_alone_names_the_method_and_is_recorded_by_its_values(here: Path, variant: str) -> None:
    before = picture(here / "in" / "a.png", (12, 11))
    result = invoke("purify", "in", "out", "--variant", variant, "--json")
    assert result.exit_code == 0, result.stderr
    settings = json_lines(result.stdout)[0]["settings"]
    assert {name: settings[name] for name in VARIANTS[variant]} == VARIANTS[variant]
    assert ("transforms" in settings) == (settings["method"] == "ddnm")
    assert np.abs(pixels(here / "out" / "a.png") - pixels(before)).mean() > 5
    again = invoke("purify", "in", "out", "--variant", variant, "--json")
    assert json_lines(again.stdout)[-1]["already"] == 1


def test_none_is_recorded_as_passed_and_not_as_purified(here: Path) -> None:
    for name, mode in (("a.png", "RGB"), ("grey.png", "L")):
        picture(here / "in" / name, (7, 9), mode)
    result = invoke("purify", "in", "out", "--method", "none", "--json")
    assert result.exit_code == 0, result.stderr
    start, *rows, end = json_lines(result.stdout)
    assert start["settings"]["method"] == "none"
    assert "transforms" not in start["settings"]
    assert [row["state"] for row in rows] == ["passed", "passed"]
    assert (end["done"], end["passed"]) == (0, 2)
    for name in ("a.png", "grey.png"):
        with Image.open(here / "in" / name) as before, Image.open(here / "out" / name) as after:
            assert (before.mode, before.tobytes()) == (after.mode, after.tobytes())
    assert json_lines(invoke("purify", "in", "out", "--method", "none", "--json").stdout)[-1]["already"] == 2
    assert invoke("verify", "out").exit_code == 0
    words = invoke("purify", "in", "words", "--method", "none").stderr
    assert "purified 0, passed 2" in words


@pytest.mark.parametrize("method", ["none", "gray", "shrinkpad", "diffpure", "sampdetox"])
def test_a_method_without_transforms_refuses_one(here: Path, method: str) -> None:
    picture(here / "in" / "a.png")
    result = invoke("purify", "in", "out", "--method", method, "--transform", "blur")
    assert result.exit_code == 2
    assert f"transforms: method {method} does not use it" in result.stderr
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "sampdetox"], "at least 11 pixels, and the image is 8x10"),
        (["--method", "shrinkpad", "--pad", "8"], "pad: 8 leaves nothing of an image of 8x10"),
    ],
)
def test_an_image_that_is_too_small_fails_alone(here: Path, words: list[str], message: str) -> None:
    picture(here / "in" / "large.png", (16, 16))
    picture(here / "in" / "small.png", (8, 10))
    result = invoke("purify", "in", "out", *words, "--json")
    assert result.exit_code == 3, result.stderr
    rows = {row["path"]: row for row in json_lines(result.stdout) if row["type"] == "image"}
    assert rows["large.png"]["state"] == "done"
    assert (rows["small.png"]["state"], rows["small.png"]["reason"]) == ("failed", "method_unfit")
    assert message in rows["small.png"]["message"]
    assert not (here / "out" / "small.png").exists()


@pytest.mark.parametrize("method", ["diffpure", "sampdetox", "ddnm"])
def test_an_image_larger_than_the_window_is_purified_in_windows(here: Path, method: str) -> None:
    picture(here / "in" / "a.png", (28, 20))
    few = {"diffpure": ["--t-star", "5"], "sampdetox": ["--stride", "60"], "ddnm": ["--grid", "paper"]}
    words = [*few[method], *(["--steps", "4"] if method == "ddnm" else []), "--tile", "16", "--overlap", "4"]
    result = invoke("purify", "in", "out", "--method", method, *words)
    assert result.exit_code == 0, result.stderr
    with Image.open(here / "out" / "a.png") as clean:
        assert clean.size == (28, 20)


@pytest.mark.parametrize("method", ["shrinkpad", "diffpure", "sampdetox"])
def test_an_image_is_the_same_to_the_last_byte_in_any_batch_and_by_two_workers(
    here: Path, method: str
) -> None:
    for n in range(5):
        picture(here / "in" / f"{n}.png", (16, 16), seed=n)
    few = {"shrinkpad": [], "diffpure": ["--t-star", "5"], "sampdetox": ["--sampler", "ddim"]}[method]
    ways = {"one": ["--batch-size", "1"], "all": [], "two": ["--devices", "cpu", "--workers", "2"]}
    for out, words in ways.items():
        done = run("purify", "in", out, "--method", method, *few, *words, cwd=here)
        assert done.returncode == 0, done.stderr
    for n in range(5):
        alone, together, elsewhere = ((here / out / f"{n}.png").read_bytes() for out in ways)
        assert alone == together == elsewhere


@pytest.mark.parametrize(
    ("words", "evaluations"),
    [
        (["--method", "diffpure", "--t-star", "9"], 9),
        (["--method", "sampdetox", "--sampler", "ddim"], 7),
        (["--method", "ddnm", "--steps", "4", "--grid", "paper"], 5),
        (["--method", "none"], 0),
    ],
)
def test_bench_counts_the_evaluations_of_a_method(here: Path, words: list[str], evaluations: int) -> None:
    done = run("bench", "--size", "16", "--batch-size", "1", "--seconds", "0.1", "--json", *words, cwd=here)
    assert done.returncode == 0, done.stderr
    _, row = [json.loads(line) for line in done.stdout.splitlines()]
    assert row["evaluations"] == evaluations
    assert row["images_per_s"] > 0


def test_a_pipe_takes_every_method(here: Path) -> None:
    data = picture(here / "a.png", (16, 16)).read_bytes()
    for method in ("none", "shrinkpad"):
        result = run("purify", "-", "-", "--method", method, cwd=here, input=data)
        assert result.returncode == 0, result.stderr
        (here / f"{method}.png").write_bytes(result.stdout)
        same = np.array_equal(pixels(here / f"{method}.png"), pixels(here / "a.png"))
        assert same == (method == "none")
