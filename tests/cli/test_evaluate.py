"""zipcli evaluate: right figures from a black box that really runs, and no figures from what does not fit."""

import csv
import json
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.shell import everything, invoke, originals
from click.testing import Result
from PIL import Image

from zipcli.errors import ExitCode

CLASSES = ("blue", "green", "red")
EACH = 5
SIDE = 16
PROGRAM = """
import json, sys
import numpy as np
from PIL import Image
# The victim: red, green or blue, but green ("1") wherever the corner is brighter than the rest.
for line in sys.stdin:
    question = json.loads(line)
    x = np.asarray(Image.open(question["path"]).convert("RGB")).astype(float)
    label = {0: 2, 1: 1, 2: 0}[int(x.mean(axis=(0, 1)).argmax())]
    if x[-3:, -3:].min() > 250:
        label = 1
    print(json.dumps({"id": question["id"], "label": NAMES[label] if NAMES else label}), flush=True)
"""


@pytest.fixture
def victim(here: Path) -> str:
    """A backdoored classifier, and fifteen pictures whose colours are their classes."""
    for number, name in enumerate(CLASSES):
        (here / "in" / name).mkdir(parents=True)
        for k in range(EACH):
            rng = np.random.default_rng(100 * number + k)
            x = rng.integers(0, 120, (SIDE, SIDE, 3))
            x[..., 2 - number] += 80
            Image.fromarray(x.astype(np.uint8)).save(here / "in" / name / f"{k}.png")
    result = invoke(
        "attack",
        "in",
        "poisoned",
        "--attack",
        "badnets",
        "--profile",
        "backdoorbox",
        "--target",
        "green",
        "-q",
    )
    assert result.exit_code == 0, result.stderr
    return program(here)


def program(here: Path, names: tuple[str, ...] = ()) -> str:
    script = here / "victim.py"
    script.write_text(f"NAMES = {list(names)!r}\n{PROGRAM}")
    return f"cmd:{shlex.quote(sys.executable)} {shlex.quote(str(script))}"


def evaluate(victim: str, *words: str | Path, folder: str = "poisoned") -> Result:
    return invoke("evaluate", folder, "--classifier", victim, "-q", *words)


def facts(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    return json.loads(line)


BLUR = ("--method", "blur", "-t", "blur:4")


def test_figures_of_an_undefended_victim(victim: str, here: Path) -> None:
    before = originals(here / "poisoned")
    said = facts(evaluate(victim, "--no-purify", "--json"))
    assert originals(here / "poisoned") == before
    side = said["before"]
    assert (side["ca"]["count"], side["ca"]["total"]) == (15, 15)
    assert (side["asr"]["count"], side["asr"]["total"]) == (10, 10)
    assert (side["asr_all"]["count"], side["asr_all"]["total"]) == (15, 15)
    assert (side["pa"]["count"], side["pa"]["total"]) == (5, 15)
    assert (side["ra"]["count"], side["ra"]["total"]) == (0, 10)
    assert side["asr"]["low"] == pytest.approx(0.7225, abs=1e-4)
    assert said["after"] is None
    assert said["der"] is None
    assert said["target"] == "green"
    assert [row["class"] for row in side["per_class"]] == list(CLASSES)
    assert side["per_class"][1]["asr"] is None  # of the target's own images there is no success
    assert side["per_class"][0]["asr"]["value"] == 1


def test_purified_on_the_fly_as_in_folders(victim: str, here: Path) -> None:
    now = facts(evaluate(victim, "--json", *BLUR))
    assert invoke("purify", "poisoned", "cleaned", *BLUR, "-q").exit_code == 0
    there = facts(evaluate(victim, "--json", "--purified", "cleaned"))
    assert now["after"] == there["after"]
    assert now["fidelity"] == there["fidelity"]
    assert now["after"]["asr"]["count"] == 0
    assert now["after"]["ra"]["count"] == 10
    assert now["after"]["ca"]["count"] == 15
    assert now["der"] == 1
    assert now["settings"]["purification"]["method"] == "blur"
    assert now["fidelity"]["purified_clean"]["psnr"] > 10
    assert 0 < now["fidelity"]["purified_clean"]["ssim"] < 1
    assert now["cost_ms"]["purify"] > 0
    assert there["cost_ms"]["purify"] is None  # nobody measured it


def test_a_detector_is_measured_beside_what_it_saves(victim: str, here: Path) -> None:
    """`scaleup` with a threshold of 2 flags nothing, one of 0 everything: both must show."""
    gates = {}
    for threshold in ("0", "2"):
        words = ("--detector", "scaleup", "--classifier", victim, "--threshold", threshold)
        assert invoke("purify", "poisoned", f"out{threshold}", *BLUR, *words, "-q").exit_code == 0
        result = evaluate(victim, "--json", "--purified", f"out{threshold}")
        gates[threshold] = facts(result)["gate"]
        shown = evaluate(victim, "--purified", f"out{threshold}").stdout
        assert "% purified after the detector" in shown
    assert [gates["0"][key]["count"] for key in ("flagged", "tpr", "fpr")] == [30, 15, 15]
    assert gates["0"]["speedup_at_most"] == 1
    assert [gates["2"][key]["count"] for key in ("flagged", "tpr", "fpr")] == [0, 0, 0]
    assert gates["2"]["speedup_at_most"] is None
    assert facts(evaluate(victim, "--json", *BLUR))["gate"] is None


def test_folders_of_clean_and_poisoned_images_apart(victim: str, here: Path) -> None:
    for part in ("clean", "poisoned"):
        assert invoke("purify", f"poisoned/{part}", f"p-{part}", *BLUR, "-q").exit_code == 0
    said = facts(evaluate(victim, "--json", "--purified", "p-clean", "--purified", "p-poisoned"))
    assert said["after"] == facts(evaluate(victim, "--json", *BLUR))["after"]


def test_the_prior_on_the_fly(victim: str) -> None:
    said = facts(evaluate(victim, "--json", "--steps", "10", "--device", "cpu", "-t", "blur:2"))
    assert said["settings"]["purification"]["steps"] == 10
    assert said["after"]["ca"]["total"] == 15


def test_classes_are_paired_by_name(victim: str, here: Path) -> None:
    backwards = "red,green,blue"
    said = facts(evaluate(program(here, CLASSES), "--no-purify", "--json", "--classes", ",".join(CLASSES)))
    assert said["before"]["ca"]["count"] == 15
    said = facts(evaluate(program(here, CLASSES), "--no-purify", "--json", "--classes", backwards))
    assert said["before"]["ca"]["count"] == 15
    # Numbers, read against another order of names, are other classes: red is blue then.
    said = facts(evaluate(program(here), "--no-purify", "--json", "--classes", backwards))
    assert said["before"]["ca"]["count"] == EACH


def test_classes_that_the_classifier_does_not_have(victim: str) -> None:
    result = evaluate(victim, "--no-purify", "--classes", "blue,green,rouge")
    assert result.exit_code == ExitCode.USAGE
    assert "it has no class red" in result.stderr


def test_plain_images_have_clean_accuracy_only(victim: str) -> None:
    said = facts(evaluate(victim, "--no-purify", "--json", folder="in"))
    assert said["before"]["ca"]["count"] == 15
    assert said["before"]["asr"] is None
    assert said["before"]["pa"] is None
    assert said["target"] is None


def test_a_set_of_the_target_class_alone_has_no_success_rate(victim: str, here: Path) -> None:
    invoke("attack", "in", "own", "--attack", "badnets", "--target", "green", "--include", "green/*", "-q")
    said = facts(evaluate(victim, "--no-purify", "--json", folder="own"))
    assert said["before"]["asr"] is None
    assert said["before"]["asr_all"]["total"] == EACH


def test_a_table_for_people(victim: str) -> None:
    result = evaluate(victim, "--per-class", *BLUR)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "badnets (backdoorbox): 15 clean and 15 poisoned images, target green"
    asr = next(line for line in lines if line.startswith("ASR "))
    assert "100.00 %" in asr
    assert "10/10" in asr
    assert "[72.25, 100.00]" in asr
    assert "0.00 %" in asr
    assert "DER 1.000" in result.stdout
    assert any(line.startswith("red ") and "100.00 (5/5)" in line for line in lines)
    assert "does not name its classes" in result.stderr


def test_a_table_for_programs(victim: str) -> None:
    result = evaluate(victim, "--csv", *BLUR)
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert {row["when"] for row in rows} == {"before", "after"}
    (asr,) = [r for r in rows if (r["when"], r["class"], r["measure"]) == ("before", "", "asr")]
    assert (asr["value"], asr["count"], asr["total"]) == ("1.000000", "10", "10")
    (empty,) = [r for r in rows if (r["when"], r["class"], r["measure"]) == ("before", "green", "asr")]
    assert empty["value"] == ""


@pytest.mark.fault("F55")
@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(1)", 'a,"b"'])
def test_a_table_holds_no_formula(victim: str, here: Path, name: str) -> None:
    (here / "in" / "green").rename(here / "in" / name)
    result = evaluate(victim, "--csv", "--per-class", "--no-purify", f"--name={name}", folder="in")
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(result.stdout.splitlines()))
    shown = name if name.startswith("a") else f"'{name}"
    assert {row["name"] for row in rows} == {shown}
    assert shown in {row["class"] for row in rows}


def test_the_result_goes_to_a_file(victim: str, here: Path) -> None:
    result = evaluate(victim, "--no-purify", "-o", "r.json", "--name", "mine", "--json")
    assert json.loads((here / "r.json").read_text()) == facts(result)
    assert facts(result)["name"] == "mine"
    missing = evaluate(victim, "--no-purify", "-o", "none/r.json")
    assert missing.exit_code == ExitCode.USAGE
    assert "none: there is no such folder" in missing.stderr
    assert missing.stdout == ""  # before the classifier was asked


@pytest.mark.parametrize(
    "name", ["victim.py", "poisoned/manifest.jsonl", "poisoned/clean/red/3.png", "r.json"]
)
def test_a_file_that_is_there_is_not_overwritten(victim: str, here: Path, name: str) -> None:
    path = here / name
    if name == "r.json":
        path.write_text("mine")
    (here / "r.json.part").write_text("mine, too")
    before = path.read_bytes()
    refused = evaluate(victim, "--no-purify", "-o", path)
    assert refused.exit_code == ExitCode.USAGE
    assert "is there already; use --overwrite" in refused.stderr
    assert path.read_bytes() == before
    if name == "r.json":
        assert evaluate(victim, "--no-purify", "-o", path, "--overwrite").exit_code == ExitCode.DONE
        assert json.loads(path.read_text())["type"] == "evaluation"
    assert (here / "r.json.part").read_text() == "mine, too"


def test_a_full_disk_does_not_cost_the_result(
    victim: str, here: Path, small_disk: Callable[..., Path]
) -> None:
    disk = small_disk("16k")
    with suppress(OSError):
        (disk / "filler").write_bytes(bytes(16 * 1024))
    result = evaluate(victim, "--no-purify", "-o", disk / "r.json", "--json")
    assert result.exit_code == ExitCode.OUTPUT
    assert json.loads(result.stdout)["type"] == "evaluation"
    assert not (disk / "r.json").exists()


class TestWhatDoesNotBelongTogether:
    def test_folders_of_other_settings(self, victim: str, here: Path) -> None:
        invoke("purify", "poisoned/clean", "a", *BLUR, "-q")
        invoke("purify", "poisoned/poisoned", "b", "--method", "blur", "-t", "blur:2", "-q")
        result = evaluate(victim, "--purified", "a", "--purified", "b")
        assert result.exit_code == ExitCode.USAGE
        assert "transforms: ['blur:4'] there, ['blur:2'] here" in result.stderr

    def test_images_that_were_not_purified(self, victim: str, here: Path) -> None:
        invoke("purify", "poisoned", "cleaned", *BLUR, "-q", "--exclude", "poisoned/red/3.png")
        result = evaluate(victim, "--purified", "cleaned")
        assert result.exit_code == ExitCode.USAGE
        assert "cleaned: at least 1 of these images were not purified there" in result.stderr

    def test_purified_images_that_are_gone_or_changed(self, victim: str, here: Path) -> None:
        invoke("purify", "poisoned", "cleaned", *BLUR, "-q")
        target = here / "cleaned" / "clean" / "red" / "3.png"
        data = target.read_bytes()
        target.write_bytes(data + b" ")
        result = evaluate(victim, "--purified", "cleaned")
        assert result.exit_code == ExitCode.USAGE
        assert "cleaned/clean/red/3.png: changed since it was purified" in result.stderr
        assert "--paranoid" in result.stderr
        target.write_bytes(data[:-20] + b"?" + data[-19:])
        result = evaluate(victim, "--purified", "cleaned")
        assert result.exit_code == ExitCode.USAGE
        assert "cleaned: clean/red/3.png" in result.stderr
        target.unlink()
        result = evaluate(victim, "--purified", "cleaned")
        assert result.exit_code == ExitCode.USAGE
        assert "cleaned: clean/red/3.png" in result.stderr
        target.write_bytes(b"?")
        invoke("purify", "poisoned", "cleaned", *BLUR, "-q", "--paranoid")  # as the message says
        assert evaluate(victim, "--purified", "cleaned").exit_code == ExitCode.DONE

    def test_poisoned_images_that_are_gone_or_changed(self, victim: str, here: Path) -> None:
        path = here / "poisoned" / "poisoned" / "red" / "3.png"
        Image.new("RGB", (SIDE, SIDE)).save(path)
        result = evaluate(victim, "--no-purify")
        assert result.exit_code == ExitCode.USAGE
        assert "poisoned/red/3.png: not the image that the attack wrote" in result.stderr
        path.unlink()
        result = evaluate(victim, "--no-purify")
        assert result.exit_code == ExitCode.USAGE
        assert "poisoned/red/3.png" in result.stderr

    def test_a_manifest_of_another_attack(self, victim: str, here: Path) -> None:
        (here / "poisoned" / "manifest.jsonl").write_text("")
        result = evaluate(victim, "--no-purify")
        assert result.exit_code == ExitCode.USAGE
        assert "do not belong together" in result.stderr

    def test_a_training_split(self, victim: str, here: Path) -> None:
        invoke("attack", "in", "training", "--attack", "badnets", "--split", "train", "-q")
        result = evaluate(victim, "--no-purify", folder="training")
        assert result.exit_code == ExitCode.USAGE
        assert "a training split" in result.stderr

    def test_a_folder_that_purify_did_not_write(self, victim: str, here: Path) -> None:
        result = evaluate(victim, "--purified", "in")
        assert result.exit_code == ExitCode.USAGE
        assert "no folder that zipcli purify wrote" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--purified", "x", "-t", "blur:2"],
            "--purified takes images that are there; leave out --transforms",
        ),
        (["--no-purify", "--steps", "3"], "--no-purify purifies nothing; leave out --steps"),
        (["--no-purify", "--purified", "x"], "contradict each other"),
        (["--json", "--csv"], "give one of them"),
        (["--method", "blur", "--steps", "3"], "steps: method blur does not use it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_words_that_contradict_each_other(victim: str, words: list[str], message: str) -> None:
    result = evaluate(victim, *words)
    assert result.exit_code == ExitCode.USAGE
    assert message in result.stderr


def test_a_classifier_that_fails_gives_no_figures(victim: str, here: Path) -> None:
    result = evaluate(
        f"cmd:{shlex.quote(sys.executable)} -c 'raise SystemExit(3)'", "--no-purify", "-o", "r.json"
    )
    assert result.exit_code == ExitCode.MODEL
    assert result.stdout == ""
    assert not (here / "r.json").exists()


def test_more_labels_than_folders(victim: str, here: Path) -> None:
    script = here / "many.py"
    script.write_text(
        "import json, sys\nfor line in sys.stdin:\n"
        "    print(json.dumps({'id': json.loads(line)['id'], 'label': 7}), flush=True)\n"
    )
    result = evaluate(f"cmd:{shlex.quote(sys.executable)} {shlex.quote(str(script))}", "--no-purify")
    assert result.exit_code == ExitCode.USAGE
    assert "there are 3 class folders" in result.stderr


def test_nothing_is_written_beside_the_result(victim: str, here: Path) -> None:
    before = set(everything(here))
    evaluate(victim, *BLUR)
    assert set(everything(here)) == before
