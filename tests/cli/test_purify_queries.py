"""zipcli purify --method bdmae and sancdifi: real programs as classifiers, and a Hub on loopback.

The classifier tells the colour of the first pixel, so a blue patch there is its backdoor.
"""

import io
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autoencoders import CONFIG, red_weights, write_autoencoder
from cli.shell import ROOT, images, invoke, json_lines, pixels, run, tree
from hub_server import Hub
from PIL import Image

PROGRAM = ROOT / "tests" / "classifier_program.py"
RED, BLUE = 0, 2
BDMAE_QUERIES = 46
QUICK = ("--method", "sancdifi", "--masks", "60", "--t-star", "10", "--device", "cpu")


def asking(mode: str = "plain") -> tuple[str, str]:
    return "--classifier", f"cmd:{shlex.join([sys.executable, str(PROGRAM), mode])}"


def patched(path: Path, size: int = 32, seed: int = 0) -> Path:
    """A reddish picture with a blue patch in the corner that decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(-8, 8, (size, size, 3)) + np.array([204, 51, 51])
    levels[: size // 8, : size // 8] = (0, 0, 255)
    Image.fromarray(levels.astype(np.uint8)).save(path)
    return path


def colour(path: Path) -> int:
    """What the classifier sees: its answer to a picture."""
    return int(pixels(path)[0, 0].argmax())


@pytest.fixture
def mae(here: Path) -> tuple[str, ...]:
    """Three patched pictures in `in`, and the words for a small masked autoencoder."""
    for n in range(3):
        patched(here / "in" / f"{n}.png", seed=n)
    write_autoencoder(here / "mae")
    return "--method", "bdmae", "--model", "./mae", "--device", "cpu"


def test_bdmae_takes_a_patch_out_and_tells_its_queries(here: Path, mae: tuple[str, ...]) -> None:
    result = invoke("purify", "in", "out", *mae, *asking(), "--json")
    assert result.exit_code == 0, result.stderr
    lines = images(result.stdout)
    assert {line["queries"] for line in lines.values()} == {BDMAE_QUERIES}
    end = json_lines(result.stdout)[-1]
    assert (end["done"], end["queries"]) == (3, 3 * BDMAE_QUERIES)
    assert f"; {3 * BDMAE_QUERIES} queries to the classifier" in result.stderr
    for n in range(3):
        before, after = here / "in" / f"{n}.png", here / "out" / f"{n}.png"
        assert (colour(before), colour(after)) == (BLUE, RED)
        assert np.abs(pixels(after) - pixels(before))[8:, 8:].max() <= 16  # its noise at most


def test_sancdifi_refills_what_the_answer_depends_on(here: Path) -> None:
    before = patched(here / "in" / "a.png")
    words = ("--method", "sancdifi", "--masks", "800", "--t-star", "400", "--device", "cpu")
    result = invoke("purify", "in", "out", *words, *asking(), "--json")
    assert result.exit_code == 0, result.stderr
    assert images(result.stdout)["a.png"]["queries"] == 801
    changed = (pixels(here / "out" / "a.png") != pixels(before)).any(axis=2)
    assert changed[:4, :4].all()
    assert changed.sum() <= 52  # pixels above the quantile 0.95 of 1024
    assert (colour(before), colour(here / "out" / "a.png")) == (BLUE, RED)


def test_an_image_is_the_same_whatever_comes_with_it(here: Path, mae: tuple[str, ...]) -> None:
    for method in (mae, QUICK):
        for name, words in (("all", ()), ("one", ("--include", "1.png")), ("ones", ("--batch-size", "1"))):
            result = invoke("purify", "in", name, *method, *asking(), *words)
            assert result.exit_code == 0, result.stderr
        piped = invoke("purify", "-", "-", *method, *asking(), input=(here / "in" / "1.png").read_bytes())
        assert piped.exit_code == 0, piped.stderr
        everything = tree(here / "all")
        assert tree(here / "ones") == everything
        assert tree(here / "one")["1.png"] == everything["1.png"]
        clean = np.asarray(Image.open(io.BytesIO(piped.stdout_bytes))).astype(int)
        assert np.array_equal(clean, pixels(here / "all" / "1.png"))
        for name in ("all", "one", "ones"):
            shutil.rmtree(here / name)


def test_several_processes_ask_as_one_does(here: Path, mae: tuple[str, ...]) -> None:
    alone = run("purify", "in", "alone", *mae, *asking(), "--json", cwd=here)
    words = [word for word in mae if word not in ("--device", "cpu")]
    crew = run("purify", "in", "crew", *words, *asking(), "--devices", "cpu,cpu", "--json", cwd=here)
    assert (alone.returncode, crew.returncode) == (0, 0), crew.stderr.decode()
    assert tree(here / "crew") == tree(here / "alone")
    assert json_lines(crew.stdout)[-1]["queries"] == json_lines(alone.stdout)[-1]["queries"]
    assert json_lines(crew.stdout)[0]["fingerprint"] == json_lines(alone.stdout)[0]["fingerprint"]


def test_a_detector_and_a_method_share_one_classifier(here: Path, mae: tuple[str, ...]) -> None:
    script = here / "counted.py"
    script.write_text(
        f"import runpy, sys\nopen({str(here / 'starts')!r}, 'a').write('started\\n')\n"
        f"sys.argv = ['program', 'plain']\nrunpy.run_path({str(PROGRAM)!r}, run_name='__main__')\n"
    )
    command = f"cmd:{shlex.join([sys.executable, str(script)])}"
    words = ("--detector", "scaleup", "--threshold", "-1", "--classifier", command)
    result = invoke("purify", "in", "out", *mae, *words, "--json")
    assert result.exit_code == 0, result.stderr
    assert json_lines(result.stdout)[-1]["done"] == 3
    assert (here / "starts").read_text() == "started\n"
    settings = json_lines(result.stdout)[0]["settings"]
    assert settings["classifier"] == settings["detector_classifier"] == {"classifier": command}


@pytest.mark.parametrize("mode", ["crash", "unknown"])
def test_a_classifier_that_fails_ends_the_run_and_nothing_half_written_is_left(
    here: Path, mae: tuple[str, ...], mode: str
) -> None:
    result = invoke("purify", "in", "out", *mae, *asking(mode))
    assert result.exit_code == 4, result.stderr
    assert tree(here / "out") == {}
    again = invoke("purify", "in", "out", *mae, *asking(mode), "--dry-run")
    assert "would purify 3 of 3" in again.stderr


def test_another_classifier_is_another_setting(here: Path, mae: tuple[str, ...]) -> None:
    assert invoke("purify", "in", "out", *mae, *asking()).exit_code == 0
    assert (
        "already done 3" in invoke("purify", "in", "out", *mae, *asking(), "--classifier-batch", "7").stderr
    )
    refused = invoke("purify", "in", "out", *mae, *asking(), "--input-size", "16")
    assert refused.exit_code == 2
    assert "holds images purified with other settings (classifier: " in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "bdmae"], "classifier: method bdmae asks it; give --classifier WHAT"),
        (["--method", "sancdifi"], "classifier: method sancdifi asks it; give --classifier WHAT"),
        (["--method", "bdmae", *asking(), "-t", "gray"], "transforms: method bdmae does not use it"),
        (["--method", "bdmae", *asking(), "--model", "builtin"], "builtin is a diffusion model, and method"),
        (
            ["--method", "bdmae", *asking(), "--model", "openai-256"],
            "openai-256: it is a diffusion model, and",
        ),
        (["--method", "bdmae", *asking(), "--masks", "9"], "masks: method bdmae does not use it"),
        (["--method", "zip", "--t-star", "9"], "t_star: method zip does not use it"),
        (["--method", "zip", *asking()], "classifier: detector none does not use it"),
        (["--method", "sancdifi", *asking(), "--t-star", "1001"], "1001 is not in the range 1<=x<=1000"),
        (["--method", "sancdifi", *asking(), "--saliency-threshold", "1"], "1.0 is not in the range"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_happens(
    here: Path, words: list[str], message: str
) -> None:
    patched(here / "in" / "a.png")
    result = invoke("purify", "in", "out", *words, "--device", "cpu")
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert tree(here / "out") == {}


def test_a_model_of_the_other_kind_is_refused(here: Path, mae: tuple[str, ...]) -> None:
    result = invoke("purify", "in", "out", "--method", "zip", "--model", "./mae", "--device", "cpu")
    assert result.exit_code == 4
    assert "it is a masked autoencoder, of use to --method bdmae alone" in result.stderr
    shutil.copy(ROOT / "zipcli" / "models" / "builtin" / "prior.safetensors", here / "prior.safetensors")
    result = invoke("purify", "in", "out", *mae[:2], "--model", "prior.safetensors", *asking())
    assert result.exit_code == 4
    assert "it is a diffusion model, and a masked autoencoder is needed" in result.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm_pix_loss": True}, "normalised patches"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "run code of its own"),
        ({"hidden_act": "relu\x1b[31m"}, "hidden_act is 'relu\\x1b[31m'; only gelu can be used"),
        ({"num_attention_heads": 3}, "width 8 cannot be split into 3"),
        ({"image_size": 10**9}, "side 1000000000 beyond"),
        ({"patch_size": 5}, "cannot be cut into tokens of 5 pixels"),
        ({"num_hidden_layers": 2}, "vit.encoder.layer.1"),
        ({"hidden_size": "8"}, "is not what belongs there"),
    ],
)
def test_an_autoencoder_that_we_cannot_build_is_refused(
    here: Path, mae: tuple[str, ...], changed: dict[str, Any], message: str
) -> None:
    (here / "mae" / "config.json").write_text(json.dumps(CONFIG | changed))
    result = invoke("purify", "in", "out", *mae, *asking())
    assert result.exit_code == 4, result.stderr
    assert message in result.stderr
    assert tree(here / "out") == {}


# From the Hub


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save(red_weights(), buffer)
    return buffer.getvalue()


def test_bdmae_fetches_its_autoencoder_once_and_opens_no_pickle_again(here: Path) -> None:
    patched(here / "in" / "a.png")
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "preprocessor_config.json": b"{}",
        "pytorch_model.bin": pickled(),
        "tf_model.h5": b"nobody asks for it",
    }
    with Hub({"facebook/vit-mae-base": files}) as hub:
        env = {
            **{"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(here / "hf"), "HOME": str(here), "HF_TOKEN": ""},
            **{"HF_HUB_OFFLINE": "0", "HTTP_PROXY": "", "HTTPS_PROXY": "", "ALL_PROXY": ""},
        }
        words = ("--method", "bdmae", "--device", "cpu", *asking())
        first = run("purify", "in", "out", *words, "--json", cwd=here, env=env)
        assert first.returncode == 0, first.stderr.decode()
        assert b"facebook/vit-mae-base is published as a pickle" in first.stderr
        assert colour(here / "out" / "a.png") == RED
        assert not hub.asked("tf_model") + hub.asked("preprocessor")
        asked = len(hub.requests)
        second = run("purify", "in", "again", *words, "--json", cwd=here, env=env)
        assert second.returncode == 0, second.stderr.decode()
        assert len(hub.requests) == asked
        verified = run("models", "verify", "facebook/vit-mae-base", cwd=here, env=env)
        assert verified.returncode == 0, verified.stderr.decode()
        told = json_lines(run("models", "info", "facebook/vit-mae-base", "--json", cwd=here, env=env).stdout)
        assert (told[0]["layout"], told[0]["network"]["side"]) == ("transformers", 32)
    assert tree(here / "again") == tree(here / "out")


def test_a_pickle_of_ones_own_is_converted_first(here: Path, mae: tuple[str, ...]) -> None:
    assert invoke("purify", "in", "expected", *mae, *asking()).exit_code == 0
    (here / "mae" / "model.safetensors").unlink()
    (here / "mae" / "pytorch_model.bin").write_bytes(pickled())
    refused = invoke("purify", "in", "out", *mae, *asking())
    assert refused.exit_code == 4
    assert "zipcli models convert" in refused.stderr
    done = invoke("models", "convert", "./mae", "mae.safetensors")
    assert done.exit_code == 0, done.stderr
    words = ("--method", "bdmae", "--model", "mae.safetensors", "--device", "cpu")
    result = invoke("purify", "in", "out", *words, *asking())
    assert result.exit_code == 0, result.stderr
    assert tree(here / "out") == tree(here / "expected")


# Beside purify


def test_evaluate_lets_the_method_ask_the_classifier_that_it_measures(
    here: Path, mae: tuple[str, ...]
) -> None:
    for n in range(2):
        patched(here / "set" / "red" / f"{n}.png", seed=n)
        Image.new("RGB", (32, 32), (20, 20, 240)).save(here / "set" / f"{n}.png")
        (here / "set" / "blue").mkdir(exist_ok=True)
        (here / "set" / f"{n}.png").rename(here / "set" / "blue" / f"{n}.png")
    words = ("--classes", "red,green,blue", "--json")
    result = invoke("evaluate", "set", *mae, *asking(), *words)
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    of_red = {when: facts[when]["per_class"][1]["ca"]["count"] for when in ("before", "after")}
    assert facts["before"]["per_class"][1]["class"] == "red"
    assert of_red == {"before": 0, "after": 2}
    assert facts["settings"]["purification"]["method"] == "bdmae"
    assert f"the method asked the classifier {4 * BDMAE_QUERIES} times" in facts["notes"]


def test_bench_measures_no_method_that_waits_for_a_classifier(here: Path) -> None:
    result = invoke("bench", "--method", "bdmae")
    assert result.exit_code == 2
    assert "waits for a classifier" in result.stderr
