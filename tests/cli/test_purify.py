"""zipcli purify: what its options do and refuse."""

import io
import json
import os
import pty
from dataclasses import fields
from pathlib import Path

import click
import numpy as np
import pytest
from cli.shell import (
    BLUR,
    everything,
    images,
    invoke,
    json_lines,
    noise,
    originals,
    picture,
    pictures,
    pixels,
    read_terminal,
    redone,
    run,
    size_of,
    start,
    tree,
)
from PIL import Image

from zipcli.cli.main import cli
from zipcli.cli.purify import purify
from zipcli.config import FITS, METHOD_ASKS, METHOD_SETTINGS, FolderConfig, PurifyConfig
from zipcli.errors import ExitCode
from zipcli.models.loading import multiplies_bfloat16
from zipcli.models.store import find_model

LATIN_1 = os.fsdecode(b"caf\xe9.png")
"""A name that is not UTF-8."""

DDIM = ("--method", "zip", "--sampler", "ddim")


def names(folder: Path) -> list[str]:
    return sorted(tree(folder))


# Defaults


@pytest.mark.parametrize(
    ("config", "name"),
    [(config, field.name) for config in (PurifyConfig, FolderConfig) for field in fields(config)],
)
def test_a_default_is_written_once_in_the_config_class(config: type, name: str) -> None:
    assert purify.make_context("purify", [], parent=click.Context(cli)).params[name] == getattr(config, name)


@pytest.mark.parametrize("config", [PurifyConfig, FolderConfig])
def test_the_help_shows_the_defaults(config: type) -> None:
    shown = {
        option.name: option.get_help_record(click.Context(purify, show_default=True))[1]
        for option in purify.params
        if isinstance(option, click.Option)
    }
    for field in fields(config):
        default = getattr(config, field.name)
        if isinstance(default, bool) or default in (None, ()):
            continue  # a flag that is off; or a default that the help has in words
        if field.name == "include":
            assert "[default: image extensions]" in shown["include"]
            continue
        if field.name == "lambda_":
            assert "[default: (10; inf for a mask)" in shown["lambda_"]
            continue
        if field.name == "eta":
            assert "[default: (1; 0.85 for ddnm)" in shown["eta"]
            continue
        word = default[0] if isinstance(default, tuple) else str(default)
        assert f"[default: {word}" in shown[field.name]


def test_a_run_without_options_records_the_defaults(here: Path) -> None:
    picture(here / "in" / "a.png")
    result = invoke("purify", "in", "out", "--json")
    settings = json_lines(result.stdout)[0]["settings"]
    expected = {**PurifyConfig().pixel_settings(), **FolderConfig().file_settings()}
    assert (settings["tile"], settings["overlap"]) == (512, 64)
    assert settings["dtype"] == ("bfloat16" if multiplies_bfloat16() else "float32")
    del expected["tile"], expected["overlap"], expected["dtype"]  # left to the model
    assert {name: settings[name] for name in expected} == json.loads(json.dumps(expected))


# The tree and its pictures


@pytest.mark.fault("F49")
def test_the_tree_is_mirrored(here: Path) -> None:
    for name in ("a.png", "b/a.png", "b/c/d.PNG", "e.jpg", "two words/x y.png"):
        picture(here / "in" / name)
    (here / "in" / "b" / "notes.txt").write_text("not a picture")
    (here / "in" / "empty").mkdir()
    picture(here / "in" / ".hidden.png")
    picture(here / "in" / ".cache" / "x.png")
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code == 0
    assert names(here / "out") == ["a.png", "b/a.png", "b/c/d.PNG", "e.png", "two words/x y.png"]


@pytest.mark.parametrize("fit", FITS)
def test_a_picture_larger_than_the_window_keeps_its_size_unless_cropped(here: Path, fit: str) -> None:
    picture(here / "in" / "wide.png", (28, 20))
    picture(here / "in" / "tall.png", (17, 31))
    result = invoke("purify", "in", "out", "--fit", fit, "--tile", "16", "--overlap", "4")
    assert result.exit_code == 0, result.stderr
    cropped = fit == "center-crop"
    assert size_of(here / "out" / "wide.png") == ((16, 16) if cropped else (28, 20))
    assert size_of(here / "out" / "tall.png") == ((16, 16) if cropped else (17, 31))


@pytest.mark.fault("F66")
@pytest.mark.parametrize("method", sorted(METHOD_SETTINGS.keys() - METHOD_ASKS))
@pytest.mark.parametrize(("mode", "name"), [("L", "a.png"), ("RGB", "a.png"), ("L", "a.jpg")])
def test_grey_stays_grey_and_colour_colour(here: Path, method: str, mode: str, name: str) -> None:
    picture(here / "in" / name, (11, 12), mode)
    result = invoke("purify", "in", "out", "--method", method, "--format", "same")
    assert result.exit_code == 0, result.stderr
    with Image.open(here / "out" / name) as clean:
        assert clean.mode == mode
        assert clean.size == (11, 12)


def test_the_prior_changes_every_picture(here: Path) -> None:
    before = picture(here / "in" / "a.png", (16, 16))
    assert invoke("purify", "in", "out").exit_code == 0
    assert np.abs(pixels(here / "out" / "a.png") - pixels(before)).mean() > 5


# Transforms


def block_means(x: np.ndarray) -> np.ndarray:
    means = x.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    return means.repeat(2, axis=0).repeat(2, axis=1)


def test_two_transforms_are_averaged(here: Path) -> None:
    x = pixels(picture(here / "in" / "a.png"))
    assert invoke("purify", "in", "out", *BLUR, "-t", "blur:2", "-t", "gray").exit_code == 0
    expected = (block_means(x) + x.mean(axis=2, keepdims=True)) / 2
    assert np.abs(pixels(here / "out" / "a.png") - expected).max() <= 0.51


def test_a_plus_applies_both_transforms(here: Path) -> None:
    x = pixels(picture(here / "in" / "a.png"))
    assert invoke("purify", "in", "out", *BLUR, "-t", "blur:2+gray").exit_code == 0
    expected = block_means(x).mean(axis=2, keepdims=True)
    assert np.abs(pixels(here / "out" / "a.png") - expected).max() <= 0.51


def test_a_mask_keeps_white_and_refills_black(here: Path) -> None:
    x = pixels(picture(here / "in" / "a.png"))
    mask = np.full((8, 8), 255, dtype=np.uint8)
    mask[2:5, 2:5] = 0
    Image.fromarray(mask).save(here / "mask.png")
    assert invoke("purify", "in", "out", "-t", "mask:mask.png").exit_code == 0
    difference = np.abs(pixels(here / "out" / "a.png") - x).max(axis=2)
    assert difference[mask == 255].max() <= 1
    assert difference[mask == 0].max() > 1


def test_without_a_number_the_blur_is_that_of_the_size(here: Path) -> None:
    picture(here / "in" / "a.png", (10, 10))
    invoke("purify", "in", "out", *BLUR)
    invoke("purify", "in", "out2", *BLUR, "-t", "blur:2")
    assert tree(here / "out") == tree(here / "out2")


def test_lambda_0_ignores_the_picture_and_lambda_inf_keeps_its_blur(here: Path) -> None:
    x = pixels(picture(here / "in" / "a.png"))
    assert invoke("purify", "in", "kept", "--lambda", "inf", "-t", "blur:2", *DDIM).exit_code == 0
    assert invoke("purify", "in", "ignored", "--lambda", "0", "-t", "blur:2", *DDIM).exit_code == 0
    kept, ignored = (block_means(pixels(here / folder / "a.png")) for folder in ("kept", "ignored"))
    # Levels above 255 and below 0 are clipped after the blur is right, so some blocks may be off.
    assert np.median(np.abs(kept - block_means(x))) <= 1
    assert np.median(np.abs(ignored - block_means(x))) > 5


def test_the_seed_changes_the_picture_and_speed_settings_do_not(here: Path) -> None:
    for n in range(3):
        picture(here / "in" / f"{n}.png", seed=n)
    invoke("purify", "in", "out")
    invoke("purify", "in", "slow", "--batch-size", "1", "--jobs", "1")
    invoke("purify", "in", "seed", "--seed", "1")
    for name in names(here / "in"):
        clean = pixels(here / "out" / name)
        assert np.abs(clean - pixels(here / "slow" / name)).max() <= 1  # sums in another order
        assert np.abs(clean - pixels(here / "seed" / name)).max() > 1


def test_a_folder_of_another_precision_alone_says_how_to_go_on(here: Path) -> None:
    picture(here / "in" / "a.png")
    assert invoke("purify", "in", "out", "--dtype", "float32").exit_code == 0
    other = invoke("purify", "in", "out", "--dtype", "bfloat16")
    assert other.exit_code == 2
    assert "go on with --dtype float32" in other.stderr
    both = invoke("purify", "in", "out", "--dtype", "bfloat16", "--seed", "7")
    assert both.exit_code == 2
    assert "go on with" not in both.stderr


# Options that contradict


UNUSED = {
    "--sampler": "warm",
    "--steps": "30",
    "--lambda": "1",
    "--eta": "0.5",
    "--grid": "paper",
    "--variant": "official",
    "--clip-x0": None,
    "--travel-length": "2",
    "--travel-repeat": "2",
    "--model": "builtin",
    "--offline": None,
    "--fit": "tile",
    "--tile": "32",
    "--overlap": "3",
    "--dtype": "float32",
    "--compile": None,
    "--seed": "1",
}


@pytest.mark.parametrize("option", UNUSED)
def test_an_option_that_the_method_does_not_use_exits_2_and_is_named(here: Path, option: str) -> None:
    picture(here / "in" / "a.png")
    value = UNUSED[option]
    result = invoke("purify", "in", "out", *BLUR, option, *([value] if value else []))
    assert result.exit_code == 2
    assert option.strip("-") in result.stderr.replace("_", "-")
    assert "method blur" in result.stderr
    assert not (here / "out").exists()


def test_the_list_of_unused_options_is_complete() -> None:
    unused = {o.strip("-").replace("-", "_") for o in UNUSED}
    assert unused == {name.rstrip("_") for name in METHOD_SETTINGS["zip"] - METHOD_SETTINGS["blur"]}


def test_an_unused_option_from_the_environment_is_refused_too(here: Path) -> None:
    picture(here / "in" / "a.png")
    result = invoke("purify", "in", "out", *BLUR, env={"ZIPCLI_PURIFY_STEPS": "30"})
    assert result.exit_code == 2
    assert "steps" in result.stderr


def test_the_environment_gives_options_and_flags_win(here: Path) -> None:
    picture(here / "in" / "a.png")
    env = {"ZIPCLI_PURIFY_METHOD": "zip", "ZIPCLI_PURIFY_FORMAT": "webp"}
    result = invoke("purify", "in", "out", "--method", "blur", "--json", env=env)
    settings = json_lines(result.stdout)[0]["settings"]
    assert (settings["method"], settings["format"]) == ("blur", "webp")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["in", "out", "-q", "-v"], "--quiet"),
        (["in", "out", "--quality", "90"], "quality"),
        (["in", "out", "--quality", "90", "--format", "webp"], "quality"),
        (["in", "out", "--null"], "--files-from"),
        (["in", "out", "--base", "in"], "--files-from"),
        (["in", "out", "--files-from", "list", "--base", "in"], "--base"),
        (["in", "out", "--variant", "official", "--steps", "30"], "steps"),
        (["in", "out", "--grid", "full", "--steps", "30"], "steps"),
        (["in", "out", "--steps", "-1"], "--steps"),
        (["in", "out", "--jobs", "0"], "--jobs"),
        (["in", "out", "--quality", "101", "--format", "jpg"], "--quality"),
        (["in"], "OUT"),
        ([], "IN"),
        (["in", "out", "more"], "OUT"),
        (["-", "out"], "zipcli purify - -"),
        (["in", "-"], "zipcli purify - -"),
        (["-", "-", "--json"], "--json"),
        (["-", "-", "--dry-run"], "--dry-run"),
        (["in", "out", "--dry-ru"], "--dry-run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_contradiction_exits_2_and_writes_nothing(here: Path, words: list[str], named: str) -> None:
    picture(here / "in" / "a.png")
    (here / "list").write_text("a.png\n")
    before = everything(here)
    result = invoke("purify", *words)
    assert result.exit_code == 2
    assert named in result.stderr
    assert result.stdout == ""
    assert everything(here) == before


@pytest.mark.parametrize(
    "words", [["--include", "*.png"], ["--exclude", "*.png"], ["--overwrite"], ["--jobs", "2"]], ids=" ".join
)
def test_an_option_that_a_pipe_does_not_use_exits_2(words: list[str]) -> None:
    result = invoke("purify", "-", "-", *BLUR, *words, input=png_bytes())
    assert result.exit_code == 2
    assert words[0] in result.stderr


# Which files


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ([], ["a.png", "b.png", "train/c.png", "train/deep/d.png"]),
        (["--include", "*.jpg"], ["b.png"]),
        (["--include", "*.PNG"], ["a.png", "train/c.png", "train/deep/d.png"]),
        (["--include", "train/*"], ["train/c.png", "train/deep/d.png"]),
        (["--include", "a.*", "--include", "b.*"], ["a.png", "b.png"]),
        (["--exclude", "train/*"], ["a.png", "b.png"]),
        (["--exclude", "d.png", "--exclude", "b.jpg"], ["a.png", "train/c.png"]),
        (["--include", "*.png", "--exclude", "a*"], ["train/c.png", "train/deep/d.png"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_patterns_take_and_leave_out(here: Path, words: list[str], taken: list[str]) -> None:
    for name in ("a.png", "b.jpg", "train/c.png", "train/deep/d.png"):
        picture(here / "in" / name)
    (here / "in" / "notes.txt").write_text("not a picture")
    assert invoke("purify", "in", "out", *BLUR, *words).exit_code == 0
    assert names(here / "out") == taken


def test_a_pattern_takes_a_file_without_an_image_extension(here: Path) -> None:
    picture(here / "in" / "a.png").rename(here / "in" / "a.dat")
    assert invoke("purify", "in", "out", *BLUR, "--include", "*.dat").exit_code == 0
    assert names(here / "out") == ["a.dat.png"]
    assert size_of(here / "out" / "a.dat.png") == (8, 8)


@pytest.mark.parametrize("words", [["--include", "*.tif"], ["--exclude", "*"]], ids=" ".join)
def test_patterns_that_leave_nothing_exit_2(here: Path, words: list[str]) -> None:
    picture(here / "in" / "a.png")
    result = invoke("purify", "in", "out", *BLUR, *words)
    assert result.exit_code == 2
    assert "in: no" in result.stderr
    assert not (here / "out").exists()


# Formats


@pytest.mark.parametrize(
    ("format", "name", "written"),
    [
        ("png", "a.jpg", ("a.png", "PNG")),
        ("jpg", "a.png", ("a.jpg", "JPEG")),
        ("webp", "a.png", ("a.webp", "WEBP")),
        ("same", "a.png", ("a.png", "PNG")),
        ("same", "a.jpeg", ("a.jpeg", "JPEG")),
        ("same", "a.webp", ("a.webp", "WEBP")),
        ("same", "a.tif", ("a.tif", "TIFF")),
        ("same", "a.bmp", ("a.bmp", "BMP")),
        ("same", "a.gif", ("a.png", "PNG")),
    ],
)
def test_the_output_has_the_format_that_its_name_says(
    here: Path, format: str, name: str, written: tuple[str, str]
) -> None:
    picture(here / "in" / name)
    result = invoke("purify", "in", "out", *BLUR, "--format", format, "--json")
    assert result.exit_code == 0, result.stderr
    line = images(result.stdout)[name]
    with Image.open(here / "out" / written[0]) as image:
        assert image.format == written[1]
    assert line["out_path"] == written[0]
    assert line["lossy"] is (written[1] == "JPEG")


def test_webp_holds_the_pixels_of_png(here: Path) -> None:
    picture(here / "in" / "a.png")
    invoke("purify", "in", "png", *BLUR)
    invoke("purify", "in", "webp", *BLUR, "--format", "webp")
    assert np.array_equal(pixels(here / "png" / "a.png"), pixels(here / "webp" / "a.webp"))


@pytest.mark.fault("F58")
def test_a_jpeg_named_png_is_written_as_what_it_is(here: Path) -> None:
    picture(here / "in" / "a.jpg").rename(here / "in" / "a.png")
    assert invoke("purify", "in", "out", *BLUR, "--format", "same").exit_code == 0
    with Image.open(here / "out" / "a.png") as image:
        assert image.format == "JPEG"


@pytest.mark.parametrize("format", ["jpg", "same"])
def test_quality_makes_jpegs_smaller(here: Path, format: str) -> None:
    picture(here / "in" / "a.jpg", (32, 32))
    for folder, quality in (("low", "80"), ("high", "100")):
        words = ("--format", format, "--quality", quality)
        result = invoke("purify", "in", folder, *BLUR, *words)
        assert result.exit_code == 0, result.stderr
    assert len(tree(here / "low")["a.jpg"]) < len(tree(here / "high")["a.jpg"])


@pytest.mark.fault("F74")
def test_safe_metadata_keeps_the_camera_and_none_nothing(here: Path) -> None:
    exif = Image.Exif()
    exif[271], exif[37510] = "Acme", b"a comment"
    picture(here / "in" / "a.jpg", exif=exif.tobytes(), dpi=(300, 300))
    for policy in ("safe", "none"):
        invoke("purify", "in", policy, *BLUR, "--metadata", policy, "--format", "same")
    with Image.open(here / "safe" / "a.jpg") as safe, Image.open(here / "none" / "a.jpg") as none:
        assert dict(safe.getexif()) == {271: "Acme"}
        assert safe.info["dpi"] == (300, 300)
        assert not none.getexif()
        assert none.info.get("dpi") != (300, 300)


# Collisions


@pytest.mark.fault("F48")
def test_inputs_that_share_an_output_exit_2_and_are_all_listed(here: Path) -> None:
    for name in ("a.png", "a.jpg", "b/c.bmp", "b/c.tif", "alone.png"):
        picture(here / "in" / name)
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code == 2
    for name in ("a.png", "a.jpg", "b/c.bmp", "b/c.tif"):
        assert name in result.stderr
    assert "alone" not in result.stderr
    assert "--format same" in result.stderr
    assert not (here / "out").exists()
    assert invoke("purify", "in", "out", *BLUR, "--format", "same").exit_code == 0
    assert len(tree(here / "out")) == 5


@pytest.mark.fault("F48")
def test_an_output_where_another_needs_a_folder_is_a_collision(here: Path) -> None:
    picture(here / "in" / "a.jpg")
    picture(here / "in" / "a.png" / "b.png")
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code == 2
    assert "a.jpg" in result.stderr
    assert "a.png/b.png" in result.stderr
    assert not (here / "out").exists()


# Dry runs


@pytest.mark.parametrize("words", [[], ["--json"], ["--quiet"], ["-v"], ["--overwrite"]], ids=" ".join)
def test_a_dry_run_writes_nothing(here: Path, words: list[str]) -> None:
    picture(here / "in" / "a.png")
    before = originals(here)
    result = invoke("purify", "in", "out", *BLUR, "--dry-run", *words)
    assert result.exit_code == 0, result.stderr
    assert originals(here) == before


def test_a_dry_run_leaves_an_earlier_run_as_it_is(finished: Path) -> None:
    picture(finished / "in" / "new.png")
    before = originals(finished)
    result = invoke("purify", "in", "out", *BLUR, "-n", "--json")
    assert originals(finished) == before
    *plans, end = json_lines(result.stdout)
    decisions = {line["path"]: line["decision"] for line in plans}
    assert decisions.pop("new.png") == "purify"
    assert set(decisions.values()) == {"skip"}
    assert (end["type"], end["found"], end["purify"]) == ("plan_end", 7, 1)
    assert end["bytes"] == (finished / "in" / "new.png").stat().st_size
    assert end["free_bytes"] > 0


def test_a_dry_run_says_what_it_would_do(here: Path) -> None:
    for n in range(3):
        picture(here / "in" / f"{n}.png")
    result = invoke("purify", "in", "out", *BLUR, "-n")
    assert "would purify 3 of 3" in result.stderr
    assert result.stdout == ""


def test_a_dry_run_refuses_what_a_run_would_refuse(here: Path) -> None:
    picture(here / "in" / "a.png")
    picture(here / "out" / "a.png")
    assert invoke("purify", "in", "out", *BLUR, "-n").exit_code == 2
    assert invoke("purify", "in", "new", "-t", "nonsense", "-n").exit_code == 2


# How much is said


def test_quiet_leaves_failures_and_the_summary(here: Path) -> None:
    picture(here / "in" / "good.png")
    (here / "in" / "bad.png").write_bytes(b"")
    result = invoke("purify", "in", "out", *BLUR, "--quiet")
    failure, summary = result.stderr.splitlines()
    assert "bad.png" in failure
    assert "failed 1 of 2" in summary


def test_verbose_says_a_line_for_each_picture(here: Path) -> None:
    picture(here / "in" / "a.png")
    picture(here / "in" / "sub" / "b.png")
    (here / "in" / "bad.png").write_bytes(b"")
    lines = invoke("purify", "in", "out", *BLUR, "-v").stderr.splitlines()
    assert len(lines) == 4
    for name in ("a.png", "sub/b.png", "bad.png"):
        assert sum(name in line.split(" in ")[0] for line in lines[:3]) == 1


def test_a_long_run_says_how_far_it_is_without_a_terminal(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zipcli.cli.console.PLAIN_SECONDS", 0)
    for n in range(4):
        picture(here / "in" / f"{n}.png", seed=n)
    lines = invoke("purify", "in", "out", *BLUR).stderr.splitlines()
    assert [line.split()[1] for line in lines[:4]] == ["1/4", "2/4", "3/4", "4/4"]
    assert "eta 00:00:" in lines[0]


def test_only_some_of_many_failures_are_listed_and_the_rest_counted(here: Path) -> None:
    (here / "in").mkdir()
    for n in range(25):
        (here / "in" / f"{n:02}.png").write_bytes(b"")
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code == 3
    assert len([line for line in result.stderr.splitlines() if line.startswith("failed (empty)")]) == 20
    assert "5 more failures" in result.stderr


# Lists of files


def test_a_list_of_names_keeps_spaces_and_leading_dashes(here: Path) -> None:
    for name in ("in/two words.png", "in/-v.png", "in/left out.png"):
        picture(here / name)
    listed = b"two words.png\n-v.png\n"
    result = invoke("purify", "out", "--files-from", "-", "--base", "in", *BLUR, input=listed)
    assert result.exit_code == 0, result.stderr
    assert names(here / "out") == ["-v.png", "two words.png"]


def test_a_list_with_nul_bytes_keeps_every_name(here: Path) -> None:
    hostile = ["two\nlines.png", " spaces .png", "-dash.png", LATIN_1, "tab\t.png", "cr\r.png"]
    for name in hostile:
        picture(here / "in" / name)
    listed = b"\0".join(os.fsencode(name) for name in hostile) + b"\0"
    result = invoke("purify", "out", "--files-from", "-", "-0", "--base", "in", *BLUR, input=listed)
    assert result.exit_code == 0, result.stderr
    assert names(here / "out") == sorted(hostile)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n"])
def test_a_list_from_a_file_may_end_its_lines_in_any_way(here: Path, end: bytes) -> None:
    picture(here / "in" / "a.png")
    picture(here / "in" / "b.png")
    (here / "list").write_bytes(b"a.png" + end + b"b.png")
    result = invoke("purify", "in", "out", "--files-from", "list", *BLUR)
    assert result.exit_code == 0, result.stderr
    assert names(here / "out") == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("words", "written"), [(["--base", "photos"], ["sub/a.png"]), ([], ["photos/sub/a.png"])]
)
def test_the_tree_is_mirrored_from_the_base(
    here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], written: list[str]
) -> None:
    picture(here / "home" / "photos" / "sub" / "a.png")
    monkeypatch.chdir(here / "home")
    listed = b"photos/sub/a.png\n"  # as find photos prints it
    result = invoke("purify", "../out", "--files-from", "-", *words, *BLUR, input=listed)
    assert result.exit_code == 0, result.stderr
    assert names(here / "out") == written


def test_an_absolute_name_below_the_base_is_taken(here: Path) -> None:
    file = picture(here / "in" / "a.png")
    result = invoke("purify", "in", "out", "--files-from", "-", *BLUR, input=os.fsencode(file))
    assert result.exit_code == 0, result.stderr
    assert names(here / "out") == ["a.png"]


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "/secret.png", "..", "."])
def test_a_listed_name_that_leaves_the_base_exits_2(here: Path, name: str) -> None:
    picture(here / "secret.png")
    picture(here / "in" / "sub" / "a.png")
    listed = f"sub/a.png\n{name}\n".encode()
    result = invoke("purify", "out", "--files-from", "-", "--base", "in", *BLUR, input=listed)
    assert result.exit_code == 2
    assert f"{name}: not below in" in result.stderr
    assert not (here / "out").exists()


def test_a_listed_name_without_a_file_fails_and_the_others_go_on(here: Path) -> None:
    picture(here / "in" / "a.png")
    words = ("purify", "in", "out", "--files-from", "-", "--json", *BLUR)
    result = invoke(*words, input=b"a.png\ngone.png\n")
    assert result.exit_code == 3
    assert images(result.stdout)["gone.png"]["reason"] == "vanished"
    assert names(here / "out") == ["a.png"]


def test_a_name_listed_twice_is_purified_once(here: Path) -> None:
    picture(here / "in" / "a.png")
    words = ("purify", "in", "out", "--files-from", "-", "--json", *BLUR)
    assert redone(invoke(*words, input=b"a.png\n./a.png\nin/a.png\n").stdout) == ["a.png"]


@pytest.mark.parametrize("listed", [b"", b"\n\n"])
def test_an_empty_list_exits_2(here: Path, listed: bytes) -> None:
    picture(here / "in" / "a.png")
    assert invoke("purify", "in", "out", "--files-from", "-", *BLUR, input=listed).exit_code == 2
    assert not (here / "out").exists()


def test_a_missing_list_exits_2_and_is_named(here: Path) -> None:
    picture(here / "in" / "a.png")
    result = invoke("purify", "in", "out", "--files-from", "nowhere.txt", *BLUR)
    assert result.exit_code == 2
    assert "nowhere.txt" in result.stderr


def test_a_folder_whose_name_looks_like_an_option_works_after_two_dashes(here: Path) -> None:
    picture(here / "-in" / "a.png")
    assert invoke("purify", *BLUR, "--", "-in", "-out").exit_code == 0
    assert names(here / "-out") == ["a.png"]


# Overwriting


@pytest.mark.fault("F36")
def test_a_foreign_file_in_the_way_exits_2_untouched(here: Path) -> None:
    picture(here / "in" / "a.png")
    picture(here / "in" / "b.png")
    picture(here / "out" / "a.png", (3, 3))
    before = originals(here)
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code == 2
    assert "a.png" in result.stderr
    assert "--overwrite" in result.stderr
    assert originals(here) == before


def test_overwrite_replaces_a_foreign_file(here: Path) -> None:
    picture(here / "in" / "a.png")
    picture(here / "out" / "a.png", (3, 3))
    picture(here / "out" / "mine.png", (3, 3))
    assert invoke("purify", "in", "out", *BLUR, "--overwrite").exit_code == 0
    assert size_of(here / "out" / "a.png") == (8, 8)
    assert size_of(here / "out" / "mine.png") == (3, 3)


def test_overwrite_replaces_a_link_and_not_what_it_leads_to(here: Path) -> None:
    picture(here / "in" / "a.png")
    precious = picture(here / "precious.png", (3, 3))
    (here / "out").mkdir()
    (here / "out" / "a.png").symlink_to(precious)
    assert invoke("purify", "in", "out", *BLUR).exit_code == 2
    assert invoke("purify", "in", "out", *BLUR, "--overwrite").exit_code == 0
    assert size_of(precious) == (3, 3)
    assert not (here / "out" / "a.png").is_symlink()


@pytest.mark.fault("F35")
def test_a_file_where_a_folder_must_be_exits_2_untouched(here: Path) -> None:
    picture(here / "in" / "a.png")
    picture(here / "in" / "sub" / "b.png")
    picture(here / "out" / "sub.png").rename(here / "out" / "sub")
    before = originals(here)
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code == 2
    assert "sub" in result.stderr
    assert originals(here) == before


def test_other_settings_are_refused_and_the_difference_named(finished: Path) -> None:
    before = originals(finished)
    result = invoke("purify", "in", "out", *BLUR, "-t", "blur:4", "--format", "webp")
    assert result.exit_code == 2
    for named in ("transforms", "blur:4", "format", "webp", "png", "--overwrite"):
        assert named in result.stderr
    assert "metadata" not in result.stderr
    assert originals(finished) == before


def test_overwrite_purifies_everything_again_with_other_settings(finished: Path) -> None:
    before = tree(finished / "out")
    words = ("purify", "in", "out", *BLUR, "-t", "blur:4")
    assert len(redone(invoke(*words, "--overwrite", "--json").stdout)) == 6
    after = tree(finished / "out")
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)
    assert redone(invoke(*words, "--json").stdout) == []


def test_settings_that_change_no_pixel_may_change_between_runs(finished: Path) -> None:
    result = invoke("purify", "in", "out", *BLUR, "--jobs", "2", "--batch-size", "3", "--json")
    assert result.exit_code == 0
    assert redone(result.stdout) == []


def test_the_same_model_under_another_name_goes_on(here: Path) -> None:
    picture(here / "in" / "a.png")
    (here / "model.safetensors").write_bytes(find_model("builtin-blind").weights.read_bytes())
    assert invoke("purify", "in", "out", "--model", "model.safetensors").exit_code == 0
    again = invoke("purify", "in", "out", "--model", here / "model.safetensors", "--json")
    assert again.exit_code == 0, again.stderr
    assert redone(again.stdout) == []


@pytest.mark.parametrize(
    "words",
    [["--sampler", "ddim", "--steps", "5"], ["-t", "nonsense"], ["--device", "cuda:99"]],
    ids=" ".join,
)
def test_a_refused_run_does_not_stand_in_the_way_of_the_next(here: Path, words: list[str]) -> None:
    picture(here / "in" / "a.png")
    assert invoke("purify", "in", "out", *words).exit_code == 2
    assert not (here / "out").exists()
    assert invoke("purify", "in", "out").exit_code == 0


# One picture through a pipe


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "words",
    [(), BLUR, (*BLUR, "--format", "jpg", "--quality", "90"), (*BLUR, "--format", "same")],
    ids=" ".join,
)
def test_a_pipe_gives_the_bytes_of_a_folder_run(here: Path, words: tuple[str, ...]) -> None:
    file = picture(here / "in" / "a.png", (12, 9))
    piped = invoke("purify", "-", "-", *words, input=file.read_bytes())
    assert piped.exit_code == 0, piped.stderr
    assert invoke("purify", "in", "out", *words).exit_code == 0
    assert [piped.stdout_bytes] == list(tree(here / "out").values())


def test_a_pipe_between_processes_holds_the_picture_alone(here: Path) -> None:
    file = picture(here / "a.png", (16, 16))
    piped = run("purify", "-", "-", input=file.read_bytes())
    assert piped.returncode == 0, piped.stderr
    assert piped.stderr == b""
    assert piped.stdout == invoke("purify", "-", "-", input=file.read_bytes()).stdout_bytes


@pytest.mark.parametrize("data", [b"", b"text", png_bytes()[:100]], ids=["nothing", "text", "half"])
def test_a_broken_picture_in_a_pipe_exits_3_with_nothing_on_stdout(data: bytes) -> None:
    result = invoke("purify", "-", "-", *BLUR, input=data)
    assert result.exit_code == 3
    assert result.stdout_bytes == b""
    assert "standard input" in result.stderr


def test_a_picture_is_never_written_to_a_terminal() -> None:
    master, slave = pty.openpty()
    with start("purify", "-", "-", *BLUR, stdin=-1, stdout=slave) as process:
        os.close(slave)
        shown = read_terminal(master)
        os.close(master)
        assert process.stderr is not None
        message = process.stderr.read()
    assert process.returncode == 2
    assert shown == b""
    assert b"zipcli purify - - > OUT" in message


@pytest.mark.parametrize(
    ("fail_on", "code"),
    [("any", 3), ("0%", 3), ("49.9%", 3), ("50%", 0), ("100%", 0), ("all", 0), ("never", 0)],
)
def test_how_many_images_may_fail_is_for_the_user_to_say(here: Path, fail_on: str, code: int) -> None:
    picture(here / "in" / "good.png")
    (here / "in" / "bad.png").write_text("no image")
    result = invoke("purify", "in", "out", *BLUR, "--json", "--fail-on", fail_on)
    end = json_lines(result.stdout)[-1]
    assert (result.exit_code, end["exit_code"], end["failed"]) == (code, code, 1)


def test_when_all_images_fail_only_never_is_content(here: Path) -> None:
    for n in range(3):
        (here / "in").mkdir(exist_ok=True)
        (here / "in" / f"{n}.png").write_text("no image")
    assert invoke("purify", "in", "out", *BLUR, "--fail-on", "all").exit_code == ExitCode.SOME_FAILED
    assert invoke("purify", "in", "out", *BLUR, "--fail-on", "99%").exit_code == ExitCode.SOME_FAILED
    assert invoke("purify", "in", "out", *BLUR, "--fail-on", "never").exit_code == 0


@pytest.mark.parametrize("fail_on", ["some", "5", "-5%", "101%", "%", "nan%", "1.2.3%", "\u0665%"])
def test_a_share_that_makes_no_sense_is_refused(here: Path, fail_on: str) -> None:
    picture(here / "in" / "good.png")
    result = invoke("purify", "in", "out", *BLUR, f"--fail-on={fail_on}")
    assert result.exit_code == ExitCode.USAGE
    assert "is not any, all, never or a share from 0% to 100%" in result.stderr
    assert not (here / "out").exists()


def test_only_what_failed_is_tried_again(here: Path) -> None:
    pictures(here / "in", 3)
    for name in ("bad.png", "sub/worse.png", "gone.png"):
        (here / "in" / name).write_text("no image")
    again = ["purify", "in", "out", *BLUR, "--json"]
    assert invoke(*again).exit_code == ExitCode.SOME_FAILED
    picture(here / "in" / "sub/worse.png")
    (here / "in" / "gone.png").unlink()
    picture(here / "in" / "new.png")
    result = invoke(*again, "--retry-failed")
    assert result.exit_code == ExitCode.SOME_FAILED
    states = {path: line["state"] for path, line in images(result.stdout).items()}
    assert states == {"bad.png": "failed", "gone.png": "skipped", "sub/worse.png": "done"}
    assert images(result.stdout)["gone.png"]["reason"] == "vanished"
    assert not (here / "out" / "new.png").exists()
    picture(here / "in" / "bad.png")
    picture(here / "in" / "gone.png")
    assert invoke(*again, "--retry-failed").exit_code == 0
    result = invoke(*again, "--retry-failed")
    assert (result.exit_code, result.stderr) == (0, "nothing has failed in out\n")
    assert json_lines(result.stdout)[-1]["found"] == 0


def test_what_failed_and_is_gone_has_failed_no_longer(here: Path) -> None:
    pictures(here / "in", 2)
    (here / "in" / "bad.png").write_bytes(b"bad")
    assert invoke("purify", "in", "out", *BLUR).exit_code == 3
    (here / "in" / "bad.png").unlink()
    result = invoke("purify", "in", "out", "--retry-failed", "--json", *BLUR)
    assert result.exit_code == 0
    assert images(result.stdout)["bad.png"]["reason"] == "vanished"
    assert '"failed": 0' in invoke("status", "out", "--json").stdout


def test_an_output_inside_the_input_is_pointed_out(here: Path) -> None:
    pictures(here / "in", 1)
    assert "lies inside the input folder" in invoke("purify", "in", "in/out", *BLUR).stderr
    assert "lies inside" not in invoke("purify", "in", "out", *BLUR).stderr


def test_what_failed_is_asked_of_a_ledger(here: Path) -> None:
    pictures(here / "in", 1)
    result = invoke("purify", "in", "out", "--retry-failed")
    assert result.exit_code == ExitCode.USAGE
    assert "holds no ledger" in result.stderr
    assert not (here / "out").exists()
    result = invoke("purify", "--files-from", "list", "out", "--retry-failed")
    assert "contradict each other; give one" in result.stderr
