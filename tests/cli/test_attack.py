"""zipcli attack: the files that it leaves, what they say, and how it refuses."""

import csv
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.shell import PATIENCE, everything, invoke, json_lines, originals, picture, pixels, run, start
from click.testing import Result

from zipcli.attacks import ATTACKS
from zipcli.attacks.trigger import load_trigger
from zipcli.errors import ExitCode
from zipcli.pipeline.poison import pixel_sha256

SIDE = 16
CLASSES = ("cat", "dog", "owl")
EACH = 4


@pytest.fixture
def animals(here: Path) -> Path:
    """Twelve pictures of three classes."""
    for number, name in enumerate(CLASSES):
        for k in range(EACH):
            picture(here / "in" / name / f"{k}.png", (SIDE, SIDE), seed=10 * number + k)
    return here


def attack(*words: str | Path, name: str = "badnets") -> Result:
    return invoke("attack", "in", "out", "--attack", name, "-q", *words)


def facts(folder: Path = Path("out")) -> dict[str, Any]:
    return json.loads((folder / "attack.json").read_text())


def manifest(folder: Path = Path("out")) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_a_test_split_is_poisoned_whole_and_told_apart(animals: Path) -> None:
    before = originals(animals / "in")
    result = attack()
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "out\n"
    assert originals(animals / "in") == before
    records = manifest()
    assert [r["id"] for r in records] == [f"{name}/{k}.png" for name in CLASSES for k in range(EACH)]
    assert {r["role"] for r in records} == {"poison"}
    assert [r["in_asr"] for r in records] == [r["orig_class"] != "dog" for r in records]
    assert {(r["target_label"], r["bd_label"]) for r in records} == {(1, 1)}
    for r in records:
        shown = pixels(animals / "out" / r["out_path"])
        assert (pixels(animals / "out" / r["clean_path"]) == pixels(animals / "in" / r["id"])).all()
        changed = (shown != pixels(animals / "in" / r["id"])).any(axis=2)
        assert changed[-6:-3, -6:-3].all()
        assert changed.sum() == 9
        assert r["out_sha256"] == hashlib.sha256((animals / "out" / r["out_path"]).read_bytes()).hexdigest()
        assert r["out_px_sha256"] == pixel_sha256(shown.astype(np.uint8))
        assert r["src_sha256"] == hashlib.sha256((animals / "in" / r["id"]).read_bytes()).hexdigest()
        assert r["psnr"] > 5
        assert r["linf"] > 0


def test_the_record_of_the_run(animals: Path) -> None:
    attack()
    said = facts()
    assert said["counts"] == {
        "images": 12, "poison": 12, "cover": 0, "clean": 0, "of_target_class": 4, "in_asr": 8, "failed": 0
    }  # fmt: skip
    assert said["classes"] == list(CLASSES)
    assert said["settings"]["profile"] == "zip-code"
    assert said["settings"]["seed"] == 1234
    assert said["size"] == [SIDE, SIDE]
    for name, key in (("manifest.jsonl", "manifest_sha256"), ("trigger.safetensors", "trigger_sha256")):
        assert hashlib.sha256((animals / "out" / name).read_bytes()).hexdigest() == said[key]
    rows = list(csv.DictReader((animals / "out" / "labels.csv").read_text().splitlines()))
    assert len(rows) == 12
    assert rows[0]["path"] == "poisoned/cat/0.png"
    assert (rows[0]["original_label"], rows[0]["target_label"], rows[0]["trigger"]) == ("0", "1", "badnets")
    assert pixels(animals / "out" / "trigger.png").shape == (SIDE, 3 * SIDE, 3)


def test_the_same_command_gives_the_same_bytes(animals: Path) -> None:
    attack()
    first = everything(animals / "out")
    assert invoke("attack", "in", "again", "--attack", "badnets", "-q").exit_code == 0
    assert everything(animals / "again") == first


def test_a_training_split_has_labels_to_learn(animals: Path) -> None:
    assert attack("--split", "train", "--rate", "0.25", "--cover", "0.5", name="wanet").exit_code == 0
    records = manifest()
    roles = [r["role"] for r in records]
    assert (roles.count("poison"), roles.count("cover"), roles.count("clean")) == (3, 6, 3)
    for r in records:
        assert r["bd_label"] == (0 if r["role"] == "poison" else r["orig_label"])
        assert (animals / "out" / r["out_path"]).is_file()
    assert {r["out_path"].split("/")[0] for r in records} == {"poisoned", "cover", "clean"}


def test_clean_labels_are_kept(animals: Path) -> None:
    words = ("--split", "train", "--rate", "0.25", "--target", "owl")
    assert attack(*words, name="sig").exit_code == 0
    poisoned = [r for r in manifest() if r["role"] == "poison"]
    assert {r["orig_class"] for r in poisoned} == {"owl"}
    assert all(r["bd_label"] == r["orig_label"] for r in poisoned)
    assert facts()["share_of_target_class"] == 0.75
    assert facts()["label_policy"].startswith("clean")


def test_a_trigger_is_used_again(animals: Path) -> None:
    invoke("attack", "in", "training", "--attack", "wanet", "--split", "train", "--seed", "7", "-q")
    trigger = animals / "training" / "trigger.safetensors"
    assert attack("--trigger", trigger, name="wanet").exit_code == 0
    assert facts()["trigger_sha256"] == load_trigger(trigger).sha256
    assert attack_bytes(animals / "out") != attack_bytes_of_seed(animals, 0)
    assert attack_bytes(animals / "out") == attack_bytes_of_seed(animals, 7)


def attack_bytes(folder: Path) -> dict[str, bytes]:
    return everything(folder / "poisoned")


def attack_bytes_of_seed(here: Path, seed: int) -> dict[str, bytes]:
    out = f"seed-{seed}"
    invoke("attack", "in", out, "--attack", "wanet", "--seed", str(seed), "-q")
    return attack_bytes(here / out)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("zip", "val_pois/cat/dog/0.png"),
        ("target", "poisoned/dog/cat/0.png"),
        ("backdoorbench", "bd_test_dataset/0/0.png"),
    ],
)
def test_layouts_of_published_programs(animals: Path, layout: str, expected: str) -> None:
    assert attack("--layout", layout).exit_code == 0
    records = manifest()
    assert records[0]["out_path"] == expected
    of_target = [r["out_path"] for r in records if r["orig_class"] == "dog"]
    assert all(path is None for path in of_target) == (layout != "zip")
    assert {r["out_path"] for r in records if r["out_path"]} == set(everything(animals / "out")) - {
        *(f"clean/{r['id']}" for r in records),
        *("attack.json", "manifest.jsonl", "labels.csv", "trigger.safetensors", "trigger.png"),
    }


def test_without_clean_copies(animals: Path) -> None:
    assert attack("--no-clean-copy").exit_code == 0
    assert not (animals / "out" / "clean").exists()
    assert {r["clean_path"] for r in manifest()} == {None}


def test_images_are_resized_first(animals: Path) -> None:
    assert attack("--size", "32").exit_code == 0
    assert pixels(animals / "out" / "poisoned/cat/0.png").shape == (32, 32, 3)
    assert facts()["size"] == [32, 32]


def test_the_enhanced_attack_purifies_what_it_poisons(animals: Path) -> None:
    words = ("--split", "train", "--rate", "0.25", "--then-purify", "blur:2", "--then-purify", "gray")
    assert attack(*words).exit_code == 0
    said = facts()
    assert said["then_purified"]["transforms"] == ["blur:2", "gray"]
    for r in manifest():
        assert (r["params"].get("purified") is True) == (r["role"] == "poison")
        changed = (pixels(animals / "out" / r["out_path"]) != pixels(animals / "in" / r["id"])).mean()
        assert (changed > 0.5) == (r["role"] == "poison")


def test_bad_images_are_left_out_and_named(animals: Path) -> None:
    (animals / "in" / "cat" / "broken.png").write_bytes(b"no picture")
    picture(animals / "in" / "dog" / "wide.png", (20, SIDE))
    picture(animals / "in" / "stray.png")
    result = invoke("attack", "in", "out", "--attack", "badnets", "--json")
    assert result.exit_code == ExitCode.SOME_FAILED
    lines = json_lines(result.stdout)
    failed = {line["path"]: line["reason"] for line in lines if line["type"] == "image"}
    assert failed == {
        "cat/broken.png": "unidentified",
        "dog/wide.png": "transform_unfit",
        "stray.png": "name_unsupported",
    }
    assert lines[-1]["counts"]["images"] == 12
    assert lines[-1]["counts"]["failed"] == 3
    assert "give all one size with --size" in result.stderr
    assert [f["path"] for f in facts()["failed"]] == ["stray.png", "cat/broken.png", "dog/wide.png"]


def test_numbered_classes_count_as_numbers(here: Path) -> None:
    for name in ("0", "2", "10"):
        picture(here / "in" / name / "a.png", (SIDE, SIDE), seed=int(name))
    assert attack("--target", "2").exit_code == 0
    assert facts()["classes"] == ["0", "2", "10"]
    assert facts()["target_class"] == "2"


def test_an_empty_class_counts_and_is_told(animals: Path) -> None:
    (animals / "in" / "ant").mkdir()
    result = attack("--target", "cat")
    assert result.exit_code == 0
    assert facts()["classes"] == ["ant", *CLASSES]
    assert "no images, but count: ant" in result.stderr


def test_rate_0_poisons_nothing_and_rate_1_everything(animals: Path) -> None:
    assert invoke("attack", "in", "none", "--attack", "badnets", "--rate", "0").exit_code == 0
    assert {r["role"] for r in manifest(animals / "none")} == {"clean"}
    assert attack("--rate", "1", "--split", "train").exit_code == 0
    assert {r["role"] for r in manifest()} == {"poison"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rate", "1.5"], "rate: 1.5 is not between 0 and 1"),
        (["--target", "horse"], "--target: unknown class 'horse'"),
        (["--target", "3"], "3 is not among the 3 classes, which count from 0"),
        (["--patch-size", "15"], "does not fit into images of 16x16"),
        (["--levels", "4"], "levels: attack badnets does not use it"),
        (["--profile", "zip-cod"], "Did you mean 'zip-code'?"),
        (["--trigger", "none.safetensors"], "cannot read the trigger"),
        (["--attack", "wanet", "--size", "0"], "size: 0 is not from 4"),
        (["--attack", "blended", "--alpha", "0"], "changes no pixel"),
        (["--attack", "refool"], "--reflections DIR"),
        (["--attack", "cba", "--sources", "cat"], "is not two classes"),
        (["--attack", "cba", "--sources", "cat,elk"], "unknown class 'elk'"),
        (["--attack", "blended", "--picture", "nothing.png"], "picture: nothing.png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    animals: Path, words: list[str], message: str
) -> None:
    result = invoke("attack", "in", "out", "--attack", "badnets", *words)
    assert result.exit_code == ExitCode.USAGE, result.stderr
    assert message in result.stderr
    assert sorted(p.name for p in animals.iterdir()) == ["in"]


def test_wanet_needs_squares(here: Path) -> None:
    picture(here / "in" / "cat" / "a.png", (20, 16))
    result = invoke("attack", "in", "out", "--attack", "wanet", "--target", "cat")
    assert result.exit_code == ExitCode.USAGE
    assert "20x16 pixels are not square; use --size" in result.stderr


def test_a_folder_without_classes_is_refused(here: Path) -> None:
    picture(here / "in" / "a.png")
    result = attack()
    assert result.exit_code == ExitCode.USAGE
    assert "put the images of each class into a folder of its own" in result.stderr


def test_nothing_is_overwritten(animals: Path) -> None:
    (animals / "out").mkdir()
    (animals / "out" / "mine.txt").write_text("mine")
    result = attack()
    assert result.exit_code == ExitCode.USAGE
    assert "not empty" in result.stderr
    assert everything(animals / "out") == {"mine.txt": b"mine"}


def test_nothing_is_learnt_for_a_folder_that_is_taken(animals: Path) -> None:
    (animals / "out").mkdir()
    (animals / "out" / "mine.txt").write_text("mine")
    result = invoke("attack", "in", "out", "--attack", "lf", "--target", "0")
    assert result.exit_code == ExitCode.USAGE
    assert "not empty" in result.stderr
    assert "making the trigger" not in result.stderr


def test_an_empty_folder_is_filled(animals: Path) -> None:
    (animals / "out").mkdir()
    assert attack().exit_code == 0


def test_a_foreign_trigger_is_refused(animals: Path) -> None:
    invoke("attack", "in", "other", "--attack", "sig", "-q")
    result = attack("--trigger", animals / "other" / "trigger.safetensors")
    assert result.exit_code == ExitCode.USAGE
    assert "a trigger of attack sig, not of badnets" in result.stderr
    invoke("attack", "in", "large", "--attack", "badnets", "--size", "32", "-q")
    result = attack("--trigger", animals / "large" / "trigger.safetensors")
    assert "made for images of 32x32 pixels, and these have 16x16; use --size 32" in result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing(here: Path, number: int, code: int) -> None:
    many(here)
    process = start("attack", "in", "out", "--attack", "bpp", "--dither", cwd=here, loitering=True)
    wait_for(here / ".out.unfinished" / "poisoned", process)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert sorted(p.name for p in here.iterdir()) == ["in"]


def test_a_kill_leaves_no_output_and_the_next_run_cleans_up(here: Path) -> None:
    many(here)
    process = start("attack", "in", "out", "--attack", "bpp", "--dither", cwd=here)
    wait_for(here / ".out.unfinished" / "poisoned", process)
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert not (here / "out").exists()
    assert run("attack", "in", "out", "--attack", "bpp", cwd=here).returncode == 0
    assert sorted(p.name for p in here.iterdir()) == ["in", "out"]
    assert len(manifest(here / "out")) == 60


def test_a_full_disk_leaves_nothing(animals: Path, small_disk: Callable[..., Path]) -> None:
    disk = small_disk("100k")
    result = invoke("attack", "in", disk / "out", "--attack", "badnets", "--size", "256")
    assert result.exit_code == ExitCode.OUTPUT
    assert "No space left" in result.stderr
    assert [p.name for p in disk.iterdir() if p.name != "lost+found"] == []


@pytest.mark.fault("F44", "F45", "F55")
def test_hostile_names_are_only_names(here: Path) -> None:
    name = "\x1b[31m<script>'\n"
    picture(here / "in" / name / "\u202e.png", (SIDE, SIDE))
    os.makedirs(os.fsencode(here) + b"/in/\xff\xfe")  # noqa: PTH103
    with open(os.fsencode(here) + b"/in/\xff\xfe/\xfd.png", "wb") as f:  # noqa: PTH123
        f.write((here / "in" / name / "\u202e.png").read_bytes())
    result = invoke("attack", "in", "out", "--attack", "badnets", "--target", "0")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stderr
    assert len(manifest()) == 2
    assert sum(path.endswith(".png") for path in everything(here / "out")) == 5


def many(here: Path) -> None:
    for k in range(60):
        picture(here / "in" / "cat" / f"{k}.png", (96, 96), seed=k)


def wait_for(path: Path, process: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_every_attack_is_an_option() -> None:
    text = invoke("attack", "--help").stdout
    assert all(name in text for name in ATTACKS)
