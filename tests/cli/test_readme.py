"""What the README and the examples say is run, line by line."""

import json
import os
import re
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DATA = Path(os.environ.get("ZIPCLI_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "cifar10-test.zip").is_file(), reason=f"no real images in {DATA}; set ZIPCLI_DATA"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


(RECIPES,) = (block.splitlines() for block in blocks("sh") if "parallel" in block and "xargs" in block)
"""These have their tests in test_recipes.py."""

USES = [
    line
    for block in blocks("sh")
    for line in block.splitlines()
    if line.startswith("zipcli ") and line not in RECIPES
]


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HOME": str(cwd / "hf"),
        "ZIPCLI_TRAIN_STEPS": "2",
        "ZIPCLI_BENCH_SECONDS": "0.5",
    }
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def looks(file: Path) -> tuple[tuple[int, int], str]:
    with PIL.Image.open(file) as image:
        image.load()
        return image.size, image.mode


def pixels(file: Path) -> np.ndarray:
    with PIL.Image.open(file) as image:
        return np.asarray(image).astype(int)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("photos/a.png", "photos/sub/b.png", "photo.png"):
        PIL.Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def test_the_readme_shows_commands() -> None:
    assert len(USES) >= 8
    assert README.count("<!-- command: try -->") == README.count("<!-- command: test -->") == 1


LOOP = [line for block in blocks("sh") if "zipcli attack" in block for line in block.splitlines()]
"""These go on from each other."""

NEEDS_THE_HUB = ("openai-256", "google/", "models pull")


@pytest.mark.parametrize("line", [line for line in USES if any(name in line for name in NEEDS_THE_HUB)])
def test_every_command_for_the_hub_says_without_it_what_is_missing(line: str, photos: Path) -> None:
    offline = f"HF_HUB_OFFLINE=1 HF_HOME={photos} {line}"
    done = run(["sh", "-c", offline.split("  #")[0]], photos)
    assert done.returncode == 4, done.stderr
    assert "zipcli models pull" in done.stderr or "bedroom.pt" in done.stderr


ALONE = [line for line in USES if line not in LOOP and not any(name in line for name in NEEDS_THE_HUB)]


@pytest.mark.parametrize("line", ALONE)
def test_every_command_of_the_readme_works(line: str, photos: Path) -> None:
    if "--tar-shards" in line:
        (photos / "shards").mkdir()
        with tarfile.open(photos / "shards" / "0.tar", "w") as tar:
            tar.add(photos / "photo.png", "a.png")
    if " status " in line or " verify clean" in line:  # they look at what another command has written
        assert run(["zipcli", "purify", "photos", "clean", "--method", "blur"], photos).returncode == 0
    done = run(["sh", "-c", line.split("  #")[0]], photos)
    assert done.returncode == 0, done.stderr
    if " train " in line:
        model = line.split()[3]
        assert done.stdout == f"{model}\n"
        assert (photos / model).is_file()
        assert looks(photos / model.replace("safetensors", "png"))[1] == "RGB"
    elif " detect " in line:
        assert {row.split("\t")[-1] for row in done.stdout.splitlines()} >= {"a.png", "sub/b.png"}
    elif " doctor " in line:
        assert "No problem found." in done.stdout
    elif " bench " in line:
        assert "images/s" in done.stdout
    elif "--tar-shards" in line:
        with tarfile.open(photos / "clean" / "0.tar") as tar:
            assert tar.getnames() == ["a.png"]
    elif "--dry-run" in line or " models " in line:
        assert not (photos / "clean").exists()
    elif "clean.png" in line:
        assert looks(photos / "clean.png") == ((8, 9), "RGB")
    else:
        assert {p.relative_to(photos / "clean").as_posix() for p in (photos / "clean").rglob("*.png")} == {
            "a.png",
            "sub/b.png",
        }


def test_the_loop_of_the_readme_works(photos: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        (photos / "test" / name).mkdir(parents=True)
        for k in range(3):
            levels = np.random.default_rng(10 * number + k).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            PIL.Image.fromarray(levels).save(photos / "test" / name / f"{k}.png")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # for torch it is old; people have such files
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 32, 32)), photos / "model.pt")
    (photos / "model.pt.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    assert [line.split()[1] for line in LOOP] == ["attack", "purify", "evaluate", "detect", "report"]
    for line in LOOP:
        done = run(["sh", "-c", line.split("  #")[0]], photos)
        assert done.returncode == 0, (line, done.stderr)
    assert json.loads((photos / "result.json").read_text())["after"]["ca"]["total"] == 6
    assert "badnets" in (photos / "report.html").read_text()


def test_the_environment_sets_options_by_their_names(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TRANSFORM": "blur:2 gray", "LAMBDA": "2", "STEPS": "10", "JSON": "1"}.items():
        monkeypatch.setenv(f"ZIPCLI_PURIFY_{name}", value)
    done = run(["zipcli", "purify", "photos", "clean", "--steps", "20"], photos)
    settings = json.loads(done.stdout.splitlines()[0])["settings"]
    assert settings["transforms"] == ["blur:2", "gray"]
    assert (settings["lambda_"], settings["steps"]) == (2, 20)
    monkeypatch.setenv("ZIPCLI_PURIFY_STEPS", "none")
    wrong = run(["zipcli", "purify", "photos", "other"], photos)
    assert wrong.returncode == 2
    assert "ZIPCLI_PURIFY_STEPS" in wrong.stderr or "--steps" in wrong.stderr


def test_the_python_lines_of_the_readme_work(photos: Path) -> None:
    (block,) = blocks("python")
    done = run([sys.executable, "-c", block + "\nprint(clean.size, clean.mode)"], photos)
    assert done.stdout == "(8, 9) RGB\n", done.stderr


def test_the_python_example_works(photos: Path) -> None:
    done = run([sys.executable, str(ROOT / "examples/three_lines.py"), "photo.png", "out.png"], photos)
    assert done.returncode == 0, done.stderr
    assert looks(photos / "out.png") == ((8, 9), "RGB")


def test_the_shell_pipeline_tells_success_from_failure(photos: Path) -> None:
    script = str(ROOT / "examples/pipeline.sh")
    done = run([script, "photos", "clean"], photos)
    assert (done.returncode, done.stdout) == (0, "2 purified now, 0 before, 0 failed\n"), done.stderr
    (photos / "photos" / "bad.png").write_bytes(b"no image")
    again = run([script, "photos", "clean"], photos)
    assert again.returncode == 3
    assert "not purified: bad.png unidentified" in again.stdout
    assert "0 purified now, 2 before, 1 failed" in again.stdout


def test_the_example_pictures_are_the_ones_we_draw(tmp_path: Path) -> None:
    done = run([sys.executable, str(ROOT / "examples/draw_pictures.py"), str(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stderr
    ours = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.png"))
    assert ours == sorted(
        p.relative_to(ROOT / "examples/pictures") for p in ROOT.glob("examples/pictures/**/*.png")
    )
    for name in ours:
        drawn = pixels(tmp_path / name)
        committed = pixels(ROOT / "examples/pictures" / name)
        # Another version of a library may round an edge differently.
        assert np.abs(drawn - committed).mean() < 0.5


@needs_data
def test_the_prior_earns_its_keep_on_real_images(tmp_path: Path) -> None:
    script = str(ROOT / "examples/measure_prior.py")
    done = run([sys.executable, script, "--images", "48", "--photos", "0", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {tuple(r["transforms"]): r for r in map(json.loads, done.stdout.splitlines())}
    assert rows[("blur:2",)]["gain"] > 0.3
    assert rows[("blur:2", "gray")]["gain"] > 1


@needs_data
def test_the_prior_denoises_real_images(tmp_path: Path) -> None:
    script = str(ROOT / "examples/measure_denoising.py")
    without = ["--baseline-images", "0", "--baseline-photos", "0"]
    done = run([sys.executable, script, "--images", "40", "--photos", "1", *without, "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    small, large = map(json.loads, done.stdout.splitlines())
    assert small["eps_mse"] < 0.033
    assert [row["prior"] - row["noisy"] > 4 for row in small["rows"]] == [True] * 5
    assert [row["prior"] > row["noisy"] for row in large["rows"]] == [True] * 5


@needs_data
def test_a_classifier_judges_purified_images(tmp_path: Path) -> None:
    train, measure = str(ROOT / "examples/train_classifier.py"), str(ROOT / "examples/measure_prior.py")
    done = run([sys.executable, train, "judge.safetensors", "--epochs", "1", "--limit", "500"], tmp_path)
    assert done.returncode == 0, done.stderr
    few = ["--images", "16", "--photos", "0", "--transforms", "blur:2", "--posterior-mean", "4"]
    asked = run([sys.executable, measure, *few, "--classifier", "judge.safetensors", "--json"], tmp_path)
    assert asked.returncode == 0, asked.stderr
    row = json.loads(asked.stdout)
    assert (row["images"], row["evaluations"], len(row["accuracy"])) == (16, 4, 3)
    assert row["gain"] > 1
    assert all(0 <= share <= 1 for share in row["accuracy"])


@needs_data
def test_the_training_recipe_runs_and_its_model_loads(tmp_path: Path) -> None:
    script = str(ROOT / "examples/train_builtin.py")
    command = [
        sys.executable,
        script,
        "state",
        "--steps",
        "2",
        "--band-steps",
        "2",
        "--blind-steps",
        "2",
        "--limit",
        "12",
    ]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    PIL.Image.effect_noise((8, 8), 50).save(tmp_path / "a.png")
    used = run(["sh", "-c", "zipcli purify - - -m state/prior.safetensors < a.png > b.png"], tmp_path)
    assert used.returncode == 0, used.stderr
    assert looks(tmp_path / "b.png") == ((8, 8), "L")
