"""zipcli train: its words, its exit codes, and what it leaves behind whenever it ends."""

import json
import os
import pty
import shlex
import signal
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from cli.shell import (
    PATIENCE,
    everything,
    invoke,
    json_lines,
    originals,
    picture,
    pictures,
    pixels,
    read_terminal,
    run,
    start,
    tree,
    until,
)
from click.testing import Result
from hub_server import Hub
from PIL import Image
from safetensors.torch import load_file

from zipcli.cli.main import cli
from zipcli.cli.train import train
from zipcli.config import NoiseSchedule, TrainConfig
from zipcli.models.denoiser import Denoiser
from zipcli.models.local_unet import SIZES, LocalUNet, LocalUNetConfig
from zipcli.models.prior import Prior, UNetPrior
from zipcli.models.unet import UNet
from zipcli.models.unet_config import UNetConfig
from zipcli.models.weights import write_model
from zipcli.training import trainer as trainer_module
from zipcli.training.trainer import Checkpoint, Trainer

TINY = LocalUNetConfig(widths=(16, 32), blocks=(1, 1), embedding=16)
OUT = "m.safetensors"
WORK = Path("m.safetensors.training")
CHECKPOINT = WORK / "checkpoint.safetensors"
QUICK = ("--device", "cpu", "--dtype", "float32", "--crop", "8", "--batch-size", "2")
SHORT = (*QUICK, "--steps", "3")

SLOW = (
    *("--from", "start.safetensors", "--steps", "150", "--device", "cpu", "--dtype", "float32"),
    *("--crop", "16", "--batch-size", "16", "--lr", "0.01", "--json"),
)
"""Two seconds of training: time for a signal."""


@pytest.fixture(autouse=True)
def _tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "small", TINY)


def start_file(path: Path) -> Path:
    """A tiny model of ours, for processes, whose networks cannot be made small otherwise."""
    torch.manual_seed(0)
    write_model(path, Prior(Denoiser(LocalUNet(TINY)), NoiseSchedule(), 3), {"data": "none"})
    return path


def ramp(path: Path, seed: int = 0, side: int = 24) -> Path:
    """A picture with something to learn."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    weight = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1) + 1)[..., None] / 2
    levels = weight * rng.uniform(0, 255, 3) + (1 - weight) * rng.uniform(0, 255, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def photos(here: Path) -> Path:
    """A folder to stand in, with twelve ramps in `in` and its subfolders and a model to start from."""
    for n in range(12):
        ramp(here / "in" / ("sub" if n % 2 else ".") / f"{n:02}.png", n)
    start_file(here / "start.safetensors")
    return here


def well(*words: str | Path, **options: Any) -> Result:
    result = invoke(*words, **options)
    assert result.exit_code == 0, result.output
    return result


def refused(code: int, *words: str | Path) -> str:
    """Run a command that must end with one sentence, and return it."""
    result = invoke(*words)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# Words


def test_training_writes_a_model_that_purifies(photos: Path) -> None:
    result = well("train", "in", OUT, *SHORT)
    assert result.stdout == f"{OUT}\n"
    assert names(photos) == {"in", "start.safetensors", OUT, "m.png"}
    words = ("--model", OUT, "--device", "cpu", "--steps", "2", "--grid", "paper")
    well("purify", "in", "clean", *words)
    assert tree(photos / "clean").keys() == tree(photos / "in").keys()
    assert (pixels(photos / "clean" / "00.png") != pixels(photos / "in" / "00.png")).any()
    info = json.loads(well("models", "info", OUT, "--json").stdout)
    assert info["card"]["step"] == 3
    assert info["card"]["images"] == 11
    assert "zipcli" in info["card"]["made_by"]
    assert "card:" in well("models", "info", OUT).stdout
    assert info["sha256"] in result.stderr
    well("models", "verify", OUT)


def test_training_leaves_the_images_alone(photos: Path) -> None:
    before = originals(photos / "in")
    well("train", "in", OUT, *SHORT)
    assert originals(photos / "in") == before


def test_the_table_shows_before_and_after(photos: Path) -> None:
    lines = well("train", "in", OUT, *QUICK, "--steps", "3").stderr.splitlines()
    (head,) = [n for n, line in enumerate(lines) if line.startswith("noise std")]
    assert "before" not in lines[head]
    assert [line.split()[0] for line in lines[head + 1 : head + 6]] == ["0.05", "0.1", "0.2", "0.5", "1"]
    words = (
        "--from",
        "start.safetensors",
        "--steps",
        "80",
        "--lr",
        "0.01",
        "--crop",
        "16",
        "--batch-size",
        "8",
    )
    result = well("train", "in", "tuned.safetensors", "--device", "cpu", *words)
    lines = result.stderr.splitlines()
    (head,) = [n for n, line in enumerate(lines) if line.startswith("noise std")]
    assert "before" in lines[head]
    for line in lines[head + 3 : head + 6]:
        _, noisy, after, _, before = map(float, line.split())
        assert after > noisy
        assert after > before


def test_json_lines_tell_the_whole_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "REPORT_SECONDS", 0)
    (photos / "in" / "bad.png").write_text("bad")
    lines = json_lines(well("train", "in", OUT, *QUICK, "--steps", "20", "--json").stdout)
    kinds = [line["type"] for line in lines]
    assert kinds[:2] == ["skipped", "train_start"]
    assert kinds[-2:] == ["progress", "train_end"]
    assert set(kinds) == {"skipped", "train_start", "progress", "measured", "train_end"}
    assert kinds.count("measured") == 9
    by_kind = {line["type"]: line for line in lines}
    assert by_kind["skipped"]["path"] == "bad.png"
    assert by_kind["skipped"]["reason"] == "unidentified"
    begin, end = by_kind["train_start"], by_kind["train_end"]
    assert (begin["images"], begin["held_out"], begin["step"]) == (11, 1, 0)
    assert "from" not in begin
    assert begin["skipped"] == {"unidentified": 1}
    assert (by_kind["progress"]["step"], by_kind["progress"]["share"]) == (20, 1)
    assert (end["file"], end["sheet"], end["before"]) == (OUT, "m.png", None)
    assert len(end["after"]["rows"]) == 5
    assert end["card"]["step"] == 20
    assert len(end["sha256"]) == 64


def test_an_error_that_ends_a_json_run_is_one_object_on_stderr(photos: Path) -> None:
    (line,) = refused(2, "train", "nowhere", OUT, "--json").splitlines()
    error = json.loads(line)
    assert (error["type"], error["exit_code"]) == ("error", 2)


def test_quiet_shows_the_result_only(photos: Path) -> None:
    lines = well("train", "in", OUT, *SHORT, "--quiet").stderr.splitlines()
    assert not any(line.startswith(("beginning", "step ")) for line in lines)
    assert any(line.startswith("noise std") for line in lines)


def test_bad_images_are_named_and_counted_and_the_run_succeeds(photos: Path) -> None:
    folder = photos / "in"
    data = picture(folder / "cut.jpg", (64, 64)).read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("Dear reader")
    (folder / "empty.png").write_bytes(b"")
    frames = [Image.fromarray(np.full((9, 9), 80 * n, np.uint8)) for n in range(3)]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])
    (folder / "loop").symlink_to(folder)
    picture(folder / "one.png", (1, 1))
    result = well("train", "in", OUT, *SHORT)
    said = {
        line.split()[2].rstrip(":") for line in result.stderr.splitlines() if line.startswith("skipped (")
    }
    assert said == {"cut.jpg", "text.png", "empty.png", "moves.gif", "loop"}
    assert "5 skipped" in result.stderr
    assert "1 images have less than 8 pixels" in result.stderr
    assert "11 images to learn from and 1 held out" in result.stderr


def test_many_bad_images_are_named_up_to_a_limit_and_all_counted(photos: Path) -> None:
    for n in range(50):
        (photos / "in" / f"bad{n:02}.png").write_bytes(b"")
    result = well("train", "in", OUT, *SHORT)
    assert sum(line.startswith("skipped (empty)") for line in result.stderr.splitlines()) == 20
    assert "50 skipped" in result.stderr


HOSTILE = ("\x1b[31mred.png", "a\nError: all is lost.png", os.fsdecode(b"caf\xe9.png"))


def test_hostile_names_do_not_forge_lines(photos: Path) -> None:
    for name in HOSTILE:
        (photos / "in" / name).write_bytes(b"")
    result = well("train", "in", OUT, *SHORT)
    assert "\x1b" not in result.stderr
    assert not any(line.startswith("Error") for line in result.stderr.splitlines())


def test_json_is_valid_unicode_whatever_the_names(photos: Path) -> None:
    for name in HOSTILE:
        (photos / "in" / name).write_bytes(b"")
    lines = json_lines(well("train", "in", OUT, *SHORT, "--json").stdout)
    assert sum(line["type"] == "skipped" for line in lines) == 3
    for line in lines:
        for value in line.values():
            str(value).encode()  # half a surrogate pair is not text for a strict reader


def test_a_model_with_a_hostile_name_is_written(photos: Path) -> None:
    name = os.fsdecode(b"caf\xe9.safetensors")
    done = run("train", "in", name, "--from", "start.safetensors", *SHORT, cwd=photos)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"caf\xe9.safetensors\n"
    assert (photos / name).exists()


def test_few_images_come_with_a_note(here: Path) -> None:
    pictures(here / "in", 3, (16, 16))
    assert "Note: 3 images are few" in well("train", "in", OUT, *SHORT).stderr


def test_the_default_crop_is_for_the_images_that_are_there(here: Path) -> None:
    pictures(here / "small", 12, (32, 40))
    pictures(here / "mixed", 12, (90, 70))
    picture(here / "mixed" / "tiny.png", (20, 20))
    words = ("--device", "cpu", "--steps", "1", "--batch-size", "2", "--json")
    for name, crop in (("small", 32), ("mixed", 64)):
        line = json_lines(well("train", name, f"{name}.safetensors", *words).stdout)[0]
        assert line["crop"] == crop


def test_a_grey_folder_is_learned(here: Path) -> None:
    for n in range(4):
        picture(here / "in" / f"{n}.png", (16, 16), mode="L", seed=n)
    well("train", "in", OUT, *SHORT)


def test_the_same_command_gives_the_same_weights(photos: Path) -> None:
    for name in ("a", "b"):
        well("train", "in", f"{name}.safetensors", *SHORT, "--seed", "5")
    well("train", "in", "c.safetensors", *SHORT, "--seed", "6")
    assert (photos / "a.safetensors").read_bytes() == (photos / "b.safetensors").read_bytes()
    assert (photos / "a.png").read_bytes() == (photos / "b.png").read_bytes()
    a, c = load_file(photos / "a.safetensors"), load_file(photos / "c.safetensors")
    assert not torch.equal(a["stem.weight"], c["stem.weight"])


# What is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "3", "--minutes", "1"), "--steps or --minutes"),
        (("--steps", "0"), "steps"),
        (("--minutes", "0"), "minutes"),
        (("--minutes", "nan"), "minutes"),
        (("--minutes", "inf"), "minutes"),
        (("--crop", "7"), "crop"),
        (("--batch-size", "0"), "batch-size"),
        (("--lr", "0"), "lr"),
        (("--lr", "1"), "lr"),
        (("--lr", "nan"), "lr"),
        (("--holdout", "0"), "holdout"),
        (("--holdout", "0.6"), "holdout"),
        (("--seed", "-1"), "seed"),
        (("--seed", str(2**40)), "seed"),
        (("--device", "tpu"), "device"),
        (("--device", "cuda:99"), "device"),
        (("--dtype", "float16"), "dtype"),
        (("--size", "smal"), "Did you mean 'small'?"),
        (("--size", "small", "--from", "start.safetensors"), "--size"),
        (("--offline",), "--offline"),
        (("--include", "*.gif"), "*.gif"),
        (("--crop", "25"), "25 pixels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_option_is_a_usage_error_and_leaves_nothing(
    photos: Path, words: tuple[str, ...], said: str
) -> None:
    before = names(photos)
    assert said in refused(2, "train", "in", OUT, "--device", "cpu", *words)
    assert names(photos) == before


@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_without_two_images_is_refused_and_nothing_is_left(here: Path, count: int) -> None:
    (here / "in").mkdir()
    pictures(here / "in", count, (16, 16))
    refused(2, "train", "in", OUT, *SHORT)
    assert names(here) == {"in"}


@pytest.mark.parametrize("source", ["nowhere", "in/00.png"])
def test_no_folder_is_refused_and_nothing_is_left(photos: Path, source: str) -> None:
    before = names(photos)
    assert source in refused(2, "train", source, OUT, *SHORT)
    assert names(photos) == before


def test_only_small_images_are_refused_and_nothing_is_left(here: Path) -> None:
    pictures(here / "in", 5, (7, 7))
    assert "at least 8 pixels" in refused(2, "train", "in", OUT, "--device", "cpu")
    assert names(here) == {"in"}


def test_a_model_that_is_there_stays_unless_it_is_to_go(photos: Path) -> None:
    (photos / OUT).write_bytes(b"mine")
    assert "--overwrite" in refused(2, "train", "in", OUT, *SHORT)
    assert (photos / OUT).read_bytes() == b"mine"
    assert names(photos) == {"in", "start.safetensors", OUT}
    well("train", "in", OUT, *SHORT, "--overwrite")
    load_file(photos / OUT)


def test_a_picture_beside_the_model_is_not_overwritten(photos: Path) -> None:
    ramp(photos / "m.png")
    before = (photos / "m.png").read_bytes()
    assert "m.png" in refused(2, "train", "in", OUT, *SHORT)
    assert (photos / "m.png").read_bytes() == before


@pytest.mark.parametrize(
    ("out", "said"), [("model.pt", ".safetensors"), ("in/m.safetensors", "learned from")]
)
def test_a_place_that_no_model_should_have_is_refused(photos: Path, out: str, said: str) -> None:
    before = everything(photos)
    assert said in refused(2, "train", "in", out, *SHORT)
    assert everything(photos) == before


def test_a_model_to_start_from_that_is_not_there_is_a_model_error(photos: Path) -> None:
    before = names(photos)
    assert "Did you mean 'builtin'?" in refused(4, "train", "in", OUT, *SHORT, "--from", "bultin")
    assert names(photos) == before


def test_a_place_that_may_not_be_written_exits_5(photos: Path, as_user: tuple[str, ...]) -> None:
    (photos / "closed").mkdir(mode=0o500)
    done = run("train", "in", f"closed/{OUT}", *SHORT, cwd=photos, before=as_user)
    (photos / "closed").chmod(0o700)
    assert done.returncode == 5, done.stderr
    assert b"Permission denied" in done.stderr
    assert names(photos / "closed") == set()


def test_every_setting_is_an_option_and_reads_its_default() -> None:
    parsed = train.make_context("train", ["in", OUT], parent=click.Context(cli)).params
    settings = {field.name: field.default for field in fields(TrainConfig)}
    assert {name: parsed[name] for name in settings} == settings


# Going on


def interrupted(photos: Path, number: signal.Signals, *words: str) -> tuple[int, bytes, int]:
    """Begin or go on as a process, and stop it with a signal: exit code, last words, first step."""
    with start("train", "in", OUT, *SLOW, *words, cwd=photos) as process:
        assert process.stdout is not None
        begin = json.loads(process.stdout.readline())
        assert begin["type"] == "train_start"
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert b"Traceback" not in err
    assert json_lines(out)[-1] == {"type": "train_end", "exit_code": process.returncode}
    return process.returncode, err, begin["step"]


def step_of(checkpoint: Path) -> int:
    from safetensors import safe_open

    with safe_open(checkpoint, framework="pt") as f:
        return int(json.loads(f.metadata()["zipcli-training"])["step"])


def test_a_process_that_is_stopped_and_killed_goes_on_to_the_weights_of_one_that_was_not(
    photos: Path,
) -> None:
    well("train", "in", "whole.safetensors", *SLOW)
    code, err, step = interrupted(photos, signal.SIGINT)
    assert (code, step) == (130, 0)
    advice = err.decode().splitlines()[-1]
    assert "to go on" in advice
    assert shlex.split(advice.partition("go on, run: ")[2]) == ["zipcli", "train", "in", OUT, *SLOW]
    first = step_of(photos / CHECKPOINT)
    assert 0 < first < 150
    assert names(photos / WORK) == {"lock", "checkpoint.safetensors"}
    code, _, step = interrupted(photos, signal.SIGTERM)
    assert (code, step) == (143, first)
    second = step_of(photos / CHECKPOINT)
    assert first < second < 150

    with start("train", "in", OUT, *SLOW, cwd=photos) as process:
        until(process, "train_start")
        process.send_signal(signal.SIGSTOP)
        other = invoke("train", "in", OUT, *SLOW)
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert other.exit_code == 6, other.output
    assert f"process {process.pid}" in other.stderr
    assert step_of(photos / CHECKPOINT) == second
    assert not (photos / OUT).exists()
    assert not (photos / "m.png").exists()

    (photos / CHECKPOINT).with_name("checkpoint.safetensors.part").write_bytes(
        b"half"
    )  # as of a kill while saving
    lines = json_lines(well("train", "in", OUT, *SLOW).stdout)
    assert lines[0]["step"] == second
    assert lines[-1]["card"]["step"] == 150
    assert (photos / "whole.safetensors").read_bytes() == (photos / OUT).read_bytes()
    assert (photos / "whole.png").read_bytes() == (photos / "m.png").read_bytes()
    assert names(photos) == {"in", "start.safetensors", "whole.safetensors", "whole.png", OUT, "m.png"}


@pytest.fixture
def half_done(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped by Ctrl-C after two steps."""
    advance = Trainer.advance

    def interrupting(trainer: Trainer) -> Any:
        result = advance(trainer)
        if trainer.step == 2:
            signal.raise_signal(signal.SIGINT)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupting)
        result = invoke("train", "in", OUT, *SHORT)
    assert result.exit_code == 130, result.output
    assert step_of(photos / CHECKPOINT) == 2
    return photos


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--seed", "1"), "seed: 0 there, 1 now"),
        (("--crop", "16"), "crop: 8 there, 16 now"),
        (("--batch-size", "3"), "batch_size: 2 there, 3 now"),
        (("--lr", "0.5"), "lr: 0.004 there, 0.5 now"),
        (("--exclude", "00.png"), "images differ"),
        (("--from", "start.safetensors"), "start: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_run_with_other_settings_is_not_gone_on_with(
    half_done: Path, words: tuple[str, ...], named: str
) -> None:
    result = invoke("train", "in", OUT, *SHORT, *words)
    assert result.exit_code == 2
    assert named in result.stderr
    assert "--restart" in result.stderr
    assert step_of(half_done / CHECKPOINT) == 2
    again = well("train", "in", OUT, *SHORT, *words, "--restart", "--json")
    assert json_lines(again.stdout)[0]["step"] == 0
    well("train", "in", "anew.safetensors", *SHORT, *words)
    assert_same_weights(half_done / "anew.safetensors", half_done / OUT)


def test_another_length_goes_on(half_done: Path) -> None:
    lines = json_lines(well("train", "in", OUT, *QUICK, "--steps", "5", "--json").stdout)
    assert lines[0]["step"] == 2
    assert lines[-1]["card"]["step"] == 5


def test_the_same_images_elsewhere_go_on(half_done: Path) -> None:
    (half_done / "in").rename(half_done / "moved")
    assert json_lines(well("train", "moved", OUT, *SHORT, "--json").stdout)[0]["step"] == 2


@pytest.mark.parametrize("damage", [b"", b"garbage" * 100, None], ids=["empty", "garbage", "cut short"])
def test_a_damaged_checkpoint_exits_4_and_restart_cures_it(half_done: Path, damage: bytes | None) -> None:
    data = (half_done / CHECKPOINT).read_bytes()
    (half_done / CHECKPOINT).write_bytes(data[:-100] if damage is None else damage)
    result = invoke("train", "in", OUT, *SHORT)
    assert result.exit_code == 4, result.output
    assert str(CHECKPOINT) in result.stderr
    assert "--restart" in result.stderr
    well("train", "in", OUT, *SHORT, "--restart")
    well("train", "in", "anew.safetensors", *SHORT)
    assert_same_weights(half_done / "anew.safetensors", half_done / OUT)


# Disks


def test_a_disk_that_is_full_at_the_start_exits_5_and_says_so(
    photos: Path, small_disk: Callable[..., Path]
) -> None:
    disk = small_disk("64k")
    error = refused(5, "train", "in", disk / OUT, *SHORT).splitlines()[-1]
    assert "free some space" in error
    assert not (disk / OUT).exists()
    assert not (disk / "m.png").exists()


def checkpoint_size(photos: Path, *words: str) -> int:
    """Of a run that has begun, whose optimizer has a state."""
    sizes: list[int] = []
    save = Checkpoint.save

    def measuring(checkpoint: Checkpoint, trainer: Trainer) -> None:
        save(checkpoint, trainer)
        sizes.append(checkpoint.path.stat().st_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", measuring)
        well("train", "in", "size.safetensors", *SHORT, *words)
    return max(sizes)


@pytest.fixture(params=["ours", "published"])
def any_kind(request: pytest.FixtureRequest, photos: Path) -> tuple[str, ...]:
    """Words for a new network, and for one that AdamW trains, whose state is larger."""
    if request.param == "ours":
        return ()
    torch.manual_seed(0)
    config = UNetConfig(
        **{"widths": (16, 32), "blocks": 1, "time_features": 16, "time_width": 32, "norm_groups": 8},
        attention_down=(False, False),
        attention_up=(False, False),
        attention_middle=False,
    )
    write_model(photos / "published.safetensors", UNetPrior(UNet(config), NoiseSchedule()), {})
    return ("--from", "published.safetensors")


def test_a_run_that_begins_has_space_for_all_its_checkpoints(
    photos: Path, small_disk: Callable[..., Path], any_kind: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of the disk: refused before the first step, or done."""
    size = checkpoint_size(photos, *any_kind) // 1024
    monkeypatch.setattr(trainer_module, "REPORT_SECONDS", 0)
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", 0)
    monkeypatch.setattr(trainer_module, "SAVE_SHARE", 1e9)
    began, failed = [], []
    for share in (0.6, 1.0, 1.3, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1, 2.3, 4.0):
        disk = small_disk(f"{int(share * size) // 4 * 4}k")
        result = invoke("train", "in", disk / OUT, *SHORT, *any_kind, "--json")
        assert "Traceback" not in result.stderr
        began.append(any(line["type"] == "train_start" for line in json_lines(result.stdout)))
        assert result.exit_code in (0, 5)
        assert (disk / OUT).exists() == (result.exit_code == 0)
        if began[-1] and result.exit_code == 5:
            failed.append(share)
    assert began == sorted(began)
    assert began[-1]
    assert not began[0]
    assert failed == []  # disks, in sizes of a checkpoint, that became full long after the start


class FillsUp:
    """Fills a disk at a moment of a run."""

    def __init__(self, disk: Path) -> None:
        self.file = disk / "filler"

    def __call__(self) -> None:
        with self.file.open("wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(4096))
            except OSError:
                pass


def test_a_disk_that_fills_up_before_a_checkpoint_leaves_the_one_before(
    photos: Path, small_disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    well("train", "in", "whole.safetensors", *QUICK, "--steps", "6")
    disk = small_disk(f"{8 * checkpoint_size(photos) // 1024}k")
    fill, advance = FillsUp(disk), Trainer.advance
    monkeypatch.setattr(trainer_module, "REPORT_SECONDS", 0)
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", 0)
    monkeypatch.setattr(trainer_module, "SAVE_SHARE", 1e9)

    def filling(trainer: Trainer) -> Any:
        result = advance(trainer)
        if trainer.step == 4:
            fill()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "advance", filling)
        error = refused(5, "train", "in", disk / OUT, *QUICK, "--steps", "6").splitlines()[-1]
    assert "free some space" in error
    assert "same command again" in error
    assert step_of(disk / CHECKPOINT) == 3
    assert names(disk / WORK) == {"lock", "checkpoint.safetensors"}
    refused(5, "train", "in", disk / OUT, *QUICK, "--steps", "6")
    assert step_of(disk / CHECKPOINT) == 3
    fill.file.unlink()
    lines = json_lines(well("train", "in", disk / OUT, *QUICK, "--steps", "6", "--json").stdout)
    assert lines[0]["step"] == 3
    assert_same_weights(photos / "whole.safetensors", disk / OUT)


@pytest.mark.parametrize("moment", ["draw_sheet", "write_model"])
def test_a_disk_that_fills_up_before_the_model_keeps_the_run(
    photos: Path, small_disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from zipcli.pipeline import train as pipeline

    well("train", "in", "whole.safetensors", *SHORT)
    disk = small_disk(f"{8 * checkpoint_size(photos) // 1024}k")
    fill, original = FillsUp(disk), getattr(pipeline, moment)

    def filling(*args: Any, **options: Any) -> Any:
        fill()
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, moment, filling)
        error = refused(5, "train", "in", disk / OUT, *SHORT).splitlines()[-1]
    assert "free some space" in error
    assert step_of(disk / CHECKPOINT) == 3
    assert names(disk) <= {"filler", "m.png", WORK.name}
    fill.file.unlink()
    assert json_lines(well("train", "in", disk / OUT, *SHORT, "--json").stdout)[0]["step"] == 3
    assert_same_weights(photos / "whole.safetensors", disk / OUT)
    assert (photos / "whole.png").read_bytes() == (disk / "m.png").read_bytes()
    assert names(disk) == {OUT, "m.png"}


def test_a_run_that_diverges_exits_4_and_leaves_no_model(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zipcli.pipeline import train as pipeline

    loss = pipeline.denoising_loss
    monkeypatch.setattr(pipeline, "denoising_loss", lambda *a: loss(*a) * float("nan"))
    result = invoke("train", "in", OUT, *SHORT)
    assert result.exit_code == 4
    assert "--lr" in result.stderr
    assert not (photos / OUT).exists()


# Processes


def test_a_model_of_the_hub_is_fetched_tuned_and_then_used_offline(
    photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pipeline")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another library
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

        unet = UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        )
        DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    with Hub({"o/tiny": everything(folder)}) as hub:
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(photos / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
        }
        words = ("--from", "o/tiny", "--device", "cpu", "--steps", "2", "--batch-size", "2", "--json")
        done = run("train", "in", OUT, *words, cwd=photos, env=environment)
        assert done.returncode == 0, done.stderr
        assert b"\x1b" not in done.stderr
        begin, *_, end = json_lines(done.stdout)
        assert (begin["from"]["name"], begin["crop"]) == ("o/tiny", 16)
        assert len(begin["from"]["sha256"]) == 64
        assert end["before"] is not None
        hub.requests.clear()
        offline = run("train", "in", "off.safetensors", *words, "--offline", cwd=photos, env=environment)
        assert offline.returncode == 0, offline.stderr
        assert hub.requests == []
    assert_same_weights(photos / OUT, photos / "off.safetensors")
    purify = ("--model", OUT, "--device", "cpu", "--steps", "2", "--grid", "paper")
    well("purify", "in", "clean", *purify)
    assert tree(photos / "clean").keys() == tree(photos / "in").keys()


def test_a_terminal_gets_a_bar_that_is_taken_down(photos: Path) -> None:
    master, slave = pty.openpty()
    words = ("train", "in", OUT, "--from", "start.safetensors", *SHORT)
    try:
        with start(*words, cwd=photos, stderr=slave, env={"TERM": "xterm", "COLUMNS": "100"}) as process:
            os.close(slave)
            shown = read_terminal(master).decode(errors="replace")
            assert process.stdout is not None
            assert process.stdout.read() == f"{OUT}\n".encode()
    finally:
        os.close(master)
    assert process.returncode == 0, shown
    assert "training" in shown
    assert "100%" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "noise std" in shown
