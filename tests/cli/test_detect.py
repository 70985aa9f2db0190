"""zipcli detect, and purify with a detector."""

import json
import shlex
import signal
import sys
import warnings
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.shell import BLUR, PATIENCE, images, invoke, json_lines, picture, pixels, run, start, tree, until
from PIL import Image
from real_images import cifar, patched
from torch import Tensor, nn

LEDGER = ".zipcli/ledger-00001-of-00001.jsonl"
LABELS_PROGRAM = """
import json, sys
from PIL import Image
for line in sys.stdin:
    question = json.loads(line)
    grey = Image.open(question["path"]).convert("L")
    print(json.dumps({"id": question["id"], "label": int(sum(grey.tobytes()) > 127 * 64)}), flush=True)
"""


class Brightness(nn.Module):
    """Probabilities of dark and bright."""

    def forward(self, x: Tensor) -> Tensor:
        bright = torch.sigmoid(20 * (x.mean(dim=(1, 2, 3)) - 0.5))
        return torch.stack([1 - bright, bright], dim=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("model") / "brightness.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Brightness()), file)
    return file


@pytest.fixture
def folder(here: Path) -> Path:
    """Four real images in `in`, of which b and d have a patch."""
    (here / "in" / "sub").mkdir(parents=True)
    for name, image, change in zip(("a", "b", "sub/c", "sub/d"), cifar(4), (0, 1, 0, 1), strict=True):
        Image.fromarray(patched(image) if change else image).save(here / "in" / f"{name}.png")
    return here / "in"


def flat(folder: Path, **levels: int) -> Path:
    """Pictures of one level each."""
    folder.mkdir(exist_ok=True)
    for name, level in levels.items():
        Image.new("RGB", (8, 8), (level,) * 3).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("detector", ["residual", "frequency"])
def test_every_image_has_a_line_of_state_score_and_path(folder: Path, detector: str) -> None:
    result = invoke("detect", "in", "--detector", detector)
    assert result.exit_code == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [(state, path) for state, _, path in lines] == [
        ("clear", "a.png"),
        ("suspicious", "b.png"),
        ("clear", "sub/c.png"),
        ("suspicious", "sub/d.png"),
    ]
    assert all((float(score) >= 1.30103) == (state == "suspicious") for state, score, _ in lines)
    assert "suspicious 2 of 4 images" in result.stderr
    assert "Give --clean DIR" in result.stderr


def test_json_says_the_same_and_how_it_was_decided(folder: Path) -> None:
    result = invoke("detect", "in", "--json", "--fpr", "0.01")
    first, *_, last = json_lines(result.stdout)
    assert first["type"] == "detect_start"
    assert first["threshold"] == 2
    assert first["settings"]["detector"] == "residual"
    assert first["settings"]["detector_fpr"] == 0.01
    found = images(result.stdout)
    assert {path: line["state"] for path, line in found.items()} == {
        "a.png": "clear",
        "b.png": "suspicious",
        "sub/c.png": "clear",
        "sub/d.png": "suspicious",
    }
    assert all(line["threshold"] == 2 and line["size"] == [32, 32] for line in found.values())
    assert {key: last[key] for key in ("found", "clear", "suspicious", "failed", "exit_code")} == {
        "found": 4,
        "clear": 2,
        "suspicious": 2,
        "failed": 0,
        "exit_code": 0,
    }


def test_a_bad_image_is_named_on_stderr_and_the_exit_code_is_3(folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"no image")
    result = invoke("detect", "in", "--quiet")
    assert result.exit_code == 3
    assert "bad" not in result.stdout
    assert len(result.stdout.splitlines()) == 4
    assert "failed (unidentified) bad.png: not an image" in result.stderr
    line = images(invoke("detect", "in", "--json").stdout)["bad.png"]
    assert (line["state"], line["reason"]) == ("failed", "unidentified")


@pytest.mark.fault("F44")
def test_a_hostile_name_forges_no_line(here: Path) -> None:
    picture(here / "in" / "x\nclear\t0.1\tevil.png", (32, 32))
    result = invoke("detect", "in")
    (line,) = result.stdout.splitlines()
    assert line.endswith("\tx\\nclear\\t0.1\\tevil.png")


def test_maps_are_pictures_of_the_images_size_that_point_at_the_patch(folder: Path) -> None:
    picture(folder / "wide.jpg", (50, 20))
    before = tree(folder)
    result = invoke("detect", "in", "--maps", "maps")
    assert result.exit_code == 0, result.stderr
    assert sorted(tree(Path("maps"))) == [
        "a.png.png", "b.png.png", "sub/c.png.png", "sub/d.png.png", "wide.jpg.png"
    ]  # fmt: skip
    assert pixels(Path("maps/wide.jpg.png")).shape == (20, 50)
    for name in ("b.png.png", "sub/d.png.png"):
        top, left = np.unravel_index(pixels(Path("maps") / name).argmax(), (32, 32))
        assert 25 <= top <= 29
        assert 25 <= left <= 29
    assert tree(folder) == before


def test_maps_are_not_mixed_with_what_is_there_unless_asked(folder: Path) -> None:
    (Path("maps")).mkdir()
    Path("maps/mine.txt").write_text("mine")
    result = invoke("detect", "in", "--maps", "maps")
    assert result.exit_code == 2
    assert "not empty" in result.stderr
    assert result.stdout == ""
    assert invoke("detect", "in", "--maps", "maps", "--overwrite").exit_code == 0
    assert Path("maps/mine.txt").read_text() == "mine"
    assert Path("maps/a.png.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--maps", "in/maps"], "the output folder lies inside the input folder"),
        (["--maps", "maps", "--detector", "frequency"], "maps: detector frequency does not use it"),
        (["--overwrite"], "--overwrite needs --maps"),
        (["--detector", "none"], "unknown detector 'none'"),
        (["--detector", "scaleup"], "detector scaleup needs it; give --classifier"),
        (["--classifier", "x.pt"], "classifier: detector residual does not use it"),
        (["--input-size", "32"], "--input-size: describes a classifier; give --classifier too"),
        (["--superimposed", "5"], "superimposed: detector residual does not use it"),
        (["--seed", "5"], "seed: detector residual does not use it"),
        (["--detector", "frequency", "--device", "cpu"], "device: detector frequency does not use it"),
        (["--threshold", "1", "--fpr", "0.1"], "threshold, fpr: give one of the two"),
        (["--clean", "nowhere"], "nowhere: there is no such folder"),
        (["--device", "cuda:9"], "there is no cuda:9"),
        (["--include", "*.tif"], "no file matches"),
    ],
)
def test_what_does_not_fit_is_a_usage_error(folder: Path, words: list[str], message: str) -> None:
    result = invoke("detect", "in", *words)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert result.stdout == ""


def test_a_missing_folder_is_a_usage_error(here: Path) -> None:
    result = invoke("detect", "nowhere")
    assert result.exit_code == 2
    assert "nowhere: there is no such folder" in result.stderr


def test_scaleup_asks_a_program_that_gives_labels_only(here: Path) -> None:
    flat(here / "in", black=0, dim=40, bright=200)
    (here / "labels.py").write_text(LABELS_PROGRAM)
    command = f"cmd:{shlex.join([sys.executable, str(here / 'labels.py')])}"
    result = run("detect", "in", "--detector", "scaleup", "--classifier", command, cwd=here)
    assert result.returncode == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.decode().splitlines()]
    assert {path: float(score) for _, score, path in lines} == {
        "black.png": 1, "dim.png": pytest.approx(0.2), "bright.png": 1
    }  # fmt: skip
    assert {path: state for state, _, path in lines}["dim.png"] == "clear"
    refused = run(
        "detect", "in", "--detector", "strip", "--classifier", command, "--clean", "in", "--quiet", cwd=here
    )
    assert refused.returncode == 2
    assert b"clean: 3 usable images; at least 20" in refused.stderr
    flat(here / "clean", **{f"n{n}": n for n in range(20)})
    refused = run(
        "detect", "in", "--detector", "strip", "--classifier", command, "--clean", "clean", cwd=here
    )
    assert refused.returncode == 4
    assert b"needs probabilities, and the classifier gives labels only" in refused.stderr
    assert refused.stdout == b""


def test_strip_asks_a_model_file_with_probabilities(here: Path, model: Path) -> None:
    """White stays bright whatever is laid over it, and so its entropy is lowest."""
    flat(here / "in", white=255, dim=50)
    for n in range(30):
        picture(here / "clean" / f"{n}.png", seed=n)
    words = ("--detector", "strip", "--classifier", model, "--clean", "clean", "--superimposed", "10")
    result = invoke("detect", "in", *words, "--threshold", "-0.1", "--json")
    assert result.exit_code == 0, result.stderr
    assert {path: line["state"] for path, line in images(result.stdout).items()} == {
        "dim.png": "clear", "white.png": "suspicious"
    }  # fmt: skip
    again = invoke("detect", "in", *words, "--threshold", "-0.1", "--seed", "5", "--json")
    one, other = (images(r.stdout)["dim.png"]["score"] for r in (result, again))
    assert one != other


def test_clean_images_move_the_threshold(folder: Path) -> None:
    """Whoever calls patched images clean does not find them suspicious."""
    (folder.parent / "clean").mkdir()
    for n, image in enumerate(cifar(25)):
        Image.fromarray(patched(image)).save(folder.parent / "clean" / f"{n}.png")
    result = invoke("detect", "in", "--clean", "clean", "--json")
    assert result.exit_code == 0, result.stderr
    assert json_lines(result.stdout)[0]["threshold"] > 4
    assert "Give --clean DIR" not in result.stderr


def test_ctrl_c_ends_a_run_and_what_was_said_holds(here: Path) -> None:
    for n in range(400):
        picture(here / "in" / f"{n:03}.png", (64, 64), seed=n)
    with start("detect", "in", "--json", cwd=here, loitering=True) as process:
        until(process, "image", 3)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert b"stopped" in err
    last = json.loads(rest.splitlines()[-1])  # the first of these may be the end of a line read before
    assert (last["type"], last["exit_code"]) == ("detect_end", 130)


def test_purify_lets_pass_what_the_detector_clears(folder: Path) -> None:
    Image.fromarray(cifar(1)[0][..., 0]).save(folder / "grey.png")
    result = invoke("purify", "in", "out", *BLUR, "--detector", "residual", "--json")
    assert result.exit_code == 0, result.stderr
    found = images(result.stdout)
    states = {path: line["state"] for path, line in found.items() if path != "grey.png"}
    assert states == {"a.png": "passed", "b.png": "done", "sub/c.png": "passed", "sub/d.png": "done"}
    for path, line in found.items():
        assert (line["score"] < line["threshold"]) == (line["state"] == "passed")
        same = np.array_equal(pixels(folder / path), pixels(Path("out") / path))
        assert same == (line["state"] == "passed")
    assert "passed" in result.stderr
    last = {}
    for text in (Path("out") / LEDGER).read_text().splitlines():
        line = json.loads(text)
        last[line["path"]] = line
    assert {path: (line["state"], line["score"], line["threshold"]) for path, line in last.items()} == {
        path: (line["state"], line["score"], line["threshold"]) for path, line in found.items()
    }


def test_purify_goes_on_with_the_same_detector_and_refuses_another(folder: Path) -> None:
    words = ("purify", "in", "out", *BLUR)
    assert invoke(*words, "--detector", "residual").exit_code == 0
    again = invoke(*words, "--detector", "residual", "--json")
    assert {line["state"] for line in images(again.stdout).values()} == {"skipped"}
    for other in (
        ("--detector", "residual", "--threshold", "9"),
        ("--detector", "residual", "--fpr", "0.1"),
        ("--detector", "residual", "--clean", "clean"),
        ("--detector", "frequency"),
        (),
    ):
        if "--clean" in other:
            for n in range(20):
                picture(folder.parent / "clean" / f"{n}.png", seed=n)
        refused = invoke(*words, *other)
        assert refused.exit_code == 2, refused.stderr
        assert "holds images purified with other settings" in refused.stderr
        assert "detector" in refused.stderr


def test_purify_asks_a_classifier_and_writes_what_passes_in_the_wanted_format(
    here: Path, model: Path
) -> None:
    flat(here / "in", dim=40, bright=200)
    Image.new("RGB", (8, 8), (40,) * 3).save(here / "in" / "photo.jpg")
    result = invoke("purify", "in", "out", *BLUR, "--detector", "scaleup", "--classifier", model, "--json")
    assert result.exit_code == 0, result.stderr
    found = images(result.stdout)
    assert {path: (line["state"], line["out_path"]) for path, line in found.items()} == {
        "bright.png": ("done", "bright.png"),
        "dim.png": ("passed", "dim.png"),
        "photo.jpg": ("passed", "photo.png"),
    }
    assert np.array_equal(pixels(here / "in" / "photo.jpg"), pixels(here / "out" / "photo.png"))
    assert found["dim.png"]["score"] == 0.2
    digest = sha256(model.read_bytes()).hexdigest()
    assert json_lines(result.stdout)[0]["settings"]["detector_classifier"] == {"sha256": digest}


def test_another_file_under_the_name_of_the_classifier_is_another_setting(here: Path, model: Path) -> None:
    flat(here / "in", dim=40)
    words = ("purify", "in", "out", *BLUR, "--detector", "scaleup", "--classifier", model, "--json")
    assert invoke(*words).exit_code == 0
    moved = model.with_name("moved.pt")
    model.rename(moved)
    again = invoke(*words[:-2], moved, "--json")
    assert {line["state"] for line in images(again.stdout).values()} == {"skipped"}
    with zipfile.ZipFile(moved) as old, zipfile.ZipFile(model, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.comment = b"another"
    refused = invoke(*words)
    assert refused.exit_code == 2
    assert "detector_classifier" in refused.stderr


def test_a_classifier_that_fails_ends_purify_and_nothing_passes(here: Path) -> None:
    flat(here / "in", dim=40, bright=200)
    result = invoke("purify", "in", "out", *BLUR, "--detector", "scaleup", "--classifier", "cmd:false")
    assert result.exit_code == 4, result.stderr
    assert tree(here / "out") == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clean", "in"], "clean: detector none does not use it"),
        (["--threshold", "1"], "threshold: detector none does not use it"),
        (["--classifier", "x.pt"], "classifier: detector none does not use it"),
        (["--detector", "strip", "--classifier", "x.pt"], "clean: detector strip needs it; give --clean DIR"),
    ],
)
def test_purify_refuses_what_its_detector_does_not_use(folder: Path, words: list[str], message: str) -> None:
    result = invoke("purify", "in", "out", *BLUR, *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("out").exists()


def test_a_dry_run_with_a_detector_judges_nothing(folder: Path) -> None:
    result = invoke("purify", "in", "out", *BLUR, "--detector", "residual", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "would purify 4 of 4" in result.stderr
    assert not Path("out").exists()
