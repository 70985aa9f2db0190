"""What bad input gets: an exit code, a reason, and a message that says what to do."""

import io
import json
import math
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli.shell import BLUR, everything, images, invoke, noise, originals, picture, pixels, run, size_of, tree
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from zipcli.errors import Reason
from zipcli.models.store import find_model


def encoded(format: str, size: tuple[int, int] = (16, 16), **options: Any) -> bytes:
    buffer = io.BytesIO()
    noise(size).save(buffer, format, **options)
    return buffer.getvalue()


def frames(format: str) -> bytes:
    return encoded(format, save_all=True, append_images=[noise((16, 16), seed=1)])


def declares(width: int, height: int) -> bytes:
    """A BMP that promises more pixels than it has."""
    data = bytearray(encoded("BMP"))
    data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(data)


# One bad picture

BAD = {
    "empty.png": (b"", Reason.EMPTY, "copy it again"),
    "text.jpg": (b"Dear reader, this is a letter.", Reason.UNIDENTIFIED, "convert it to PNG or leave it out"),
    "page.png": (b"<!DOCTYPE html><html></html>", Reason.UNIDENTIFIED, "leave it out"),
    "half.jpg": (encoded("JPEG", (64, 64))[:1500], Reason.TRUNCATED, "from its source"),
    "half.png": (encoded("PNG", (64, 64))[:3000], Reason.TRUNCATED, "from its source"),
    "half.webp": (encoded("WEBP", (64, 64))[:500], Reason.TRUNCATED, "from its source"),
    "crc.png": (encoded("PNG").replace(b"IDAT", b"IDAU"), Reason.CORRUPT, "restore it"),
    "animated.gif": (frames("GIF"), Reason.MULTIFRAME, "extract one frame"),
    "animated.png": (frames("PNG"), Reason.MULTIFRAME, "extract one frame"),
    "animated.webp": (frames("WEBP"), Reason.MULTIFRAME, "extract one frame"),
    "pages.tif": (frames("TIFF"), Reason.MULTIFRAME, "extract one frame"),
    "document.png": (b"%PDF-1.7\n" + bytes(99), Reason.FORMAT_NOT_ALLOWED, "convert it to PNG"),
    "icon.png": (encoded("ICO"), Reason.FORMAT_NOT_ALLOWED, "convert it to PNG"),
    "bomb.bmp": (declares(30_000, 30_000), Reason.BOMB_PIXELS, "make it smaller"),
}


@pytest.mark.fault("F56", "F57", "F59", "F60", "F61", "F62", "F65")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_gets_a_reason_and_advice_and_its_neighbours_are_purified(
    here: Path, name: str
) -> None:
    data, reason, advice = BAD[name]
    picture(here / "in" / "a.png")
    (here / "in" / "m").mkdir()
    (here / "in" / "m" / name).write_bytes(data)
    picture(here / "in" / "z.png")
    result = invoke("purify", "in", "out", "--json", *BLUR)
    assert result.exit_code == 3
    line = images(result.stdout)[f"m/{name}"]
    assert (line["status"], line["state"], line["reason"]) == ("failed", "failed", reason)
    assert line["message"].startswith(f"m/{name}: ")
    assert advice in line["message"]
    assert line["message"] in result.stderr
    assert "failed 1 of 3" in result.stderr
    assert sorted(tree(here / "out")) == ["a.png", "z.png"]


@pytest.mark.fault("F56", "F57", "F59", "F60", "F61", "F62", "F65")
def test_the_prior_does_not_suffer_from_a_bad_neighbour(here: Path) -> None:
    for folder in ("in", "alone"):
        picture(here / folder / "a.png", seed=1)
        picture(here / folder / "z.png", seed=2)
    for n, (name, (data, _, _)) in enumerate(BAD.items()):
        (here / "in" / f"m{n}-{name}").write_bytes(data)
    assert invoke("purify", "in", "out").exit_code == 3
    assert invoke("purify", "alone", "expected").exit_code == 0
    assert tree(here / "out") == tree(here / "expected")


@pytest.mark.fault("F56", "F57", "F59", "F60", "F61", "F62", "F65")
def test_only_bad_pictures_exit_3_and_leave_no_output(here: Path) -> None:
    (here / "in").mkdir()
    for n, (name, (data, _, _)) in enumerate(BAD.items()):
        (here / "in" / f"m{n}-{name}").write_bytes(data)
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code == 3
    assert "purified 0" in result.stderr
    assert tree(here / "out") == {}


@pytest.mark.fault("F64")
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 5), (400, 4)])
@pytest.mark.parametrize("words", [(), BLUR], ids=["prior", "blur"])
def test_a_small_or_narrow_picture_keeps_its_size(
    here: Path, words: tuple[str, ...], size: tuple[int, int]
) -> None:
    picture(here / "in" / "a.png", size)
    result = invoke("purify", "in", "out", *words)
    assert result.exit_code == 0, result.stderr
    assert size_of(here / "out" / "a.png") == size


@pytest.mark.fault("F64")
@pytest.mark.parametrize("format", ["png", "jpg", "same"])
def test_a_very_long_strip_keeps_its_size(here: Path, format: str) -> None:
    picture(here / "in" / "a.png", (20_000, 10))
    result = invoke("purify", "in", "out", *BLUR, "--format", format)
    assert result.exit_code == 0, result.stderr
    assert size_of(here / "out" / ("a.jpg" if format == "jpg" else "a.png")) == (20_000, 10)


def test_a_strip_too_long_for_webp_fails_and_names_png(here: Path) -> None:
    picture(here / "in" / "a.png", (20_000, 10))
    picture(here / "in" / "b.png")
    result = invoke("purify", "in", "out", *BLUR, "--format", "webp", "--json")
    assert result.exit_code == 3
    line = images(result.stdout)["a.png"]
    assert line["reason"] == Reason.ENCODE_FAILED
    assert "choose png" in line["message"]
    assert "a.png" in line["message"]
    assert list(tree(here / "out")) == ["b.webp"]


def test_a_mask_of_another_size_fails_that_picture_alone(here: Path) -> None:
    picture(here / "in" / "fits.png")
    picture(here / "in" / "other.png", (9, 9))
    Image.fromarray(np.pad(np.full((7, 8), 255, dtype=np.uint8), ((0, 1), (0, 0)))).save(here / "mask.png")
    result = invoke("purify", "in", "out", "-t", "mask:mask.png", "--json")
    assert result.exit_code == 3
    assert images(result.stdout)["other.png"]["reason"] == Reason.MASK_SIZE
    assert list(tree(here / "out")) == ["fits.png"]


# Folders


def refused(here: Path, *words: str | Path) -> str:
    """Run what must be refused without a trace, and return what it said."""
    before = originals(here)
    result = invoke("purify", *words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert originals(here) == before
    return result.stderr


def test_a_missing_input_is_refused(here: Path) -> None:
    assert "nowhere: there is no such folder" in refused(here, "nowhere", "out", *BLUR)


def test_a_file_as_input_is_refused_and_the_pipe_named(here: Path) -> None:
    picture(here / "a.png")
    message = refused(here, "a.png", "out", *BLUR)
    assert "a.png: not a folder" in message
    assert "zipcli purify - -" in message


@pytest.mark.parametrize("name", ["notes.txt", ".hidden.png"])
def test_a_folder_without_pictures_is_refused_and_the_extensions_named(here: Path, name: str) -> None:
    (here / "in").mkdir()
    assert "in: no images found" in refused(here, "in", "out", *BLUR)
    (here / "in" / name).write_text("text")
    message = refused(here, "in", "out", *BLUR)
    assert "*.png" in message
    assert "--include" in message


@pytest.mark.parametrize(
    ("source", "out", "words"),
    [
        ("in", "in", "is the input"),
        ("in", "./sub/../in", "is the input"),
        ("in/sub", "in", "inside the output"),
        ("in", ".", "inside the output"),
        ("in", "link", "is the input"),
        ("link", "in", "is the input"),
    ],
)
@pytest.mark.fault("F33")
def test_folders_inside_each_other_are_refused(here: Path, source: str, out: str, words: str) -> None:
    picture(here / "in" / "sub" / "a.png")
    (here / "sub").mkdir()
    (here / "link").symlink_to("in")
    message = refused(here, source, out, *BLUR)
    assert words in message
    assert "choose a folder outside it" in message


@pytest.mark.fault("F32")
@pytest.mark.parametrize("out", ["in/out", "in/sub/deep/out", "link/new"])
def test_an_output_inside_the_input_is_never_an_input(here: Path, out: str) -> None:
    picture(here / "in" / "sub" / "a.png")
    (here / "link").symlink_to("in")
    for _ in range(2):
        assert run("purify", "in", out, *BLUR).returncode == 0
        assert list(tree(here / out)) == ["sub/a.png"]


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, lambda path: path.symlink_to(path.name)])
def test_an_output_that_is_no_folder_is_refused(here: Path, make: Callable[[Path], None]) -> None:
    picture(here / "in" / "a.png")
    make(here / "out")
    assert "out" in refused(here, "in", "out", *BLUR)


def test_an_output_below_a_file_exits_5_and_is_named(here: Path) -> None:
    picture(here / "in" / "a.png")
    (here / "file").write_text("text")
    result = invoke("purify", "in", "file/out", *BLUR)
    assert result.exit_code == 5
    assert "file/out" in result.stderr
    assert (here / "file").read_text() == "text"


# Settings


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["-t", "blurry"], ["transform 'blurry'", "blur", "identity"]),
        (["-t", "identity"], ["transform identity: keeps the whole image", "--method none"]),
        (["-t", "blur:1", "-t", "identity+identity"], ["transform blur:1 identity+identity: keeps"]),
        (["-t", "blur:1", "--method", "blur"], ["transform blur:1: keeps the whole image"]),
        (["-t", "blur:0"], ["blur:0", "blur:4"]),
        (["-t", "blur:-1"], ["blur:-1", "blur:4"]),
        (["-t", "blur:x"], ["blur:x", "blur:4"]),
        (["-t", "blur:"], ["blur:", "blur:4"]),
        (["-t", ""], ["transform ''", "blur"]),
        (["-t", "blur+"], ["transform ''", "blur"]),
        (["-t", "gray:2"], ["gray", "no argument"]),
        (["-t", "mask"], ["mask", "mask:"]),
        (["-t", "mask:nowhere.png"], ["mask", "nowhere.png"]),
        (["-t", "mask:in"], ["mask", "in: "]),
        (["--lambda", "-1"], ["lambda"]),
        (["--lambda", "nan"], ["lambda"]),
        (["--lambda", "x"], ["--lambda"]),
        (["--eta", "nan"], ["eta"]),
        (["--eta", "1.1"], ["eta"]),
        (["--seed", str(2**63)], ["seed"]),
        (["--device", "cuda:99"], ["cuda:99", "--device cpu"]),
        (["--device", "banana"], ["banana", "cpu"]),
        (["--device", "cpu:1"], ["cpu:1", "--device cpu"]),
        (["--device", "meta"], ["meta", "--device cpu"]),
        (["--detector", "nonsense"], ["detector", "none"]),
        (["--steps", "5", "--sampler", "ddim"], ["steps", "--grid paper"]),
        (["--steps", "5000"], ["steps"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_setting_is_refused_and_named(here: Path, words: list[str], named: list[str]) -> None:
    picture(here / "in" / "a.png")
    message = refused(here, "in", "out", *words)
    for word in named:
        assert word in message


def test_a_blur_of_any_size_means_at_most_the_whole_picture(here: Path) -> None:
    x = pixels(picture(here / "in" / "a.png"))
    result = invoke("purify", "in", "out", *BLUR, "-t", f"blur:{10**15}")
    assert result.exit_code == 0, result.stderr[-500:]
    assert np.abs(pixels(here / "out" / "a.png") - x.mean(axis=(0, 1))).max() <= 0.51


# Models


def model_refused(here: Path, file: str) -> str:
    picture(here / "in" / "a.png")
    before = originals(here)
    result = invoke("purify", "in", "out", "--model", file, "--json")
    assert result.exit_code == 4, result.output
    (line,) = result.stderr.splitlines()
    assert json.loads(line)["exit_code"] == 4
    assert originals(here) == before
    return str(json.loads(line)["message"])


def builtin() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The weights and the header of the built-in model."""
    with safe_open(find_model("builtin").weights, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118  # no mapping


def test_an_unknown_model_exits_4_and_names_what_there_is(here: Path) -> None:
    message = model_refused(here, "nonsense")
    assert "builtin" in message
    assert ".safetensors" in message


def test_a_missing_model_file_exits_4_and_is_named(here: Path) -> None:
    assert "nowhere.safetensors" in model_refused(here, "nowhere.safetensors")


class Canary:
    """Says so when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("writer", ["pickle", "torch", "old torch"])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_pickle_exits_4_and_is_never_run(here: Path, name: str, writer: str) -> None:
    fired = here / "fired"
    if writer == "pickle":
        (here / name).write_bytes(pickle.dumps(Canary(fired)))
    else:
        torch.save({"weights": Canary(fired)}, here / name, _use_new_zipfile_serialization=writer == "torch")
    assert "not a safetensors file" in model_refused(here, name)
    assert not fired.exists()
    if writer == "pickle":
        pickle.loads((here / name).read_bytes())
    else:
        (here / name).rename(here / "control.pt")  # torch looks at the name
        torch.load(here / "control.pt", weights_only=False)
    assert fired.exists(), "the canary is dead, so the test says nothing"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data + b"junk",
        lambda data: b"<html>404</html>" * 20,
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64,
        lambda data: b"\xff" * 8 + data[8:],
    ],
    ids=["empty", "seven bytes", "half", "one byte short", "one word long", "html", "lfs", "length"],
)
def test_a_damaged_model_exits_4_and_is_named(here: Path, damage: Callable[[bytes], bytes]) -> None:
    (here / "model.safetensors").write_bytes(damage(find_model("builtin").weights.read_bytes()))
    assert "model.safetensors: not a safetensors file, or a damaged one" in model_refused(
        here, "model.safetensors"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_with_one_weight_that_is_not_finite_exits_4(here: Path, value: float) -> None:
    tensors, metadata = builtin()
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = value
    save_file(tensors, here / "model.safetensors", metadata)
    message = model_refused(here, "model.safetensors")
    assert name in message
    assert "not finite" in message


def test_a_model_without_a_weight_exits_4(here: Path) -> None:
    tensors, metadata = builtin()
    tensors.popitem()
    save_file(tensors, here / "model.safetensors", metadata)
    assert "model.safetensors" in model_refused(here, "model.safetensors")


def test_a_model_of_somebody_else_exits_4(here: Path) -> None:
    save_file({"weight": torch.zeros(3)}, here / "model.safetensors")
    assert "the file has no description of its network" in model_refused(here, "model.safetensors")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("schedule", "timesteps", 10**9),
        ("schedule", "beta_start", 2.0),
        ("schedule", "nonsense", 1),
        ("network", "nonsense", 1),
        ("network", "channels", "three"),
        ("network", "channels", 10**9),
        (None, "sigma_data", "x"),
        (None, "sigma_data", math.nan),
        (None, "network", None),
        (None, "format", 2),
    ],
)
def test_a_model_that_describes_itself_wrongly_exits_4(
    here: Path, part: str | None, key: str, value: object
) -> None:
    tensors, metadata = builtin()
    description = json.loads(metadata["zipcli"])
    (description if part is None else description[part])[key] = value
    save_file(tensors, here / "model.safetensors", {"zipcli": json.dumps(description)})
    assert "model.safetensors" in model_refused(here, "model.safetensors")


def test_a_folder_as_model_exits_4(here: Path) -> None:
    (here / "model.safetensors").mkdir()
    assert "model.safetensors" in model_refused(here, "model.safetensors")


def test_a_copy_of_the_builtin_model_gives_the_same_pixels(here: Path) -> None:
    """So the tests above fail for the damage and not for the copy."""
    picture(here / "in" / "a.png")
    tensors, metadata = builtin()
    save_file(tensors, here / "model.safetensors", metadata)
    assert invoke("purify", "in", "copy", "--model", "model.safetensors").exit_code == 0
    assert invoke("purify", "in", "out", "--method", "nullspace").exit_code == 0
    assert tree(here / "copy") == tree(here / "out")


# Links and special files


def skipped(here: Path) -> dict[str, str]:
    """Purify in a process that may not hang, and return what was skipped and why."""
    done = run("purify", "in", "out", "--json", *BLUR, cwd=here)
    assert done.returncode == 0, done.stderr
    lines = images(done.stdout)
    wrong = {path: line["reason"] for path, line in lines.items() if line["status"] != "ok"}
    assert f"skipped {len(wrong)} links and special files".encode() in done.stderr
    assert {path for path in lines if path not in wrong} == tree(here / "out").keys()
    return wrong


@pytest.mark.fault("F50")
def test_links_that_loop_leave_or_lead_nowhere_are_skipped(here: Path) -> None:
    secret = picture(here / "secret" / "s.png")
    file = picture(here / "in" / "sub" / "a.png")
    (here / "in" / "self.png").symlink_to("self.png")
    (here / "in" / "parent").symlink_to(".")
    (here / "in" / "sub" / "up.png").symlink_to("..")
    (here / "in" / "outside.png").symlink_to(secret)
    (here / "in" / "folder").symlink_to(secret.parent)
    (here / "in" / "nowhere.png").symlink_to("gone.png")
    (here / "in" / "null.png").symlink_to(os.devnull)
    (here / "in" / "inside.png").symlink_to(Path("sub", "a.png"))
    expected = ("self.png", "parent", "sub/up.png", "outside.png", "folder", "nowhere.png", "null.png")
    assert skipped(here) == dict.fromkeys(expected, Reason.SYMLINK)
    assert tree(here / "out")["inside.png"] == tree(here / "out")["sub/a.png"]
    assert file.exists()


@pytest.mark.fault("F52")
def test_pipes_and_sockets_are_skipped_without_waiting_for_them(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(here / "in" / "a.png")
    os.mkfifo(here / "in" / "pipe.png")
    os.mkfifo(here / "in" / "piped.png")
    (here / "in" / "link.png").symlink_to("pipe.png")
    monkeypatch.chdir(here / "in")  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        expected = ("pipe.png", "piped.png", "link.png", "socket.png")
        assert skipped(here) == dict.fromkeys(expected, Reason.NOT_A_FILE)


def test_a_folder_named_like_a_picture_is_a_folder(here: Path) -> None:
    picture(here / "in" / "x.png" / "a.png")
    (here / "in" / "empty.png").mkdir()
    assert invoke("purify", "in", "out", *BLUR).exit_code == 0
    assert list(tree(here / "out")) == ["x.png/a.png"]


@pytest.mark.fault("F51")
def test_hard_links_get_an_output_each(here: Path) -> None:
    file = picture(here / "in" / "a.png")
    (here / "in" / "b.png").hardlink_to(file)
    assert invoke("purify", "in", "out", *BLUR).exit_code == 0
    assert len(tree(here / "out")) == 2
    assert (here / "out" / "a.png").stat().st_nlink == 1


def test_a_link_inside_the_output_is_not_followed(here: Path) -> None:
    picture(here / "in" / "sub" / "a.png")
    (here / "elsewhere").mkdir()
    (here / "out").mkdir()
    (here / "out" / "sub").symlink_to(here / "elsewhere")
    result = invoke("purify", "in", "out", *BLUR)
    assert result.exit_code in (2, 3)
    assert everything(here / "elsewhere") == {}


def test_what_may_not_be_read_fails_and_the_rest_goes_on(here: Path, as_user: tuple[str, ...]) -> None:
    picture(here / "in" / "a.png")
    picture(here / "in" / "locked.png").chmod(0)
    picture(here / "in" / "closed" / "b.png")
    (here / "in" / "closed").chmod(0)
    done = run("purify", "in", "out", "--json", *BLUR, cwd=here, before=as_user)
    (here / "in" / "closed").chmod(0o700)
    assert done.returncode == 3, done.stderr
    lines = images(done.stdout)
    assert lines["locked.png"]["reason"] == lines["closed"]["reason"] == Reason.UNREADABLE
    assert "Permission denied" in lines["locked.png"]["message"]
    assert list(tree(here / "out")) == ["a.png"]


@pytest.mark.fault("F46")
def test_a_name_as_long_as_names_can_be_is_purified(here: Path) -> None:
    picture(here / "in" / ("x" * 251 + ".png"))
    assert invoke("purify", "in", "out", *BLUR).exit_code == 0
    assert tree(here / "out").keys() == tree(here / "in").keys()


@pytest.mark.fault("F46")
def test_a_name_that_grows_too_long_fails_and_the_rest_goes_on(here: Path) -> None:
    picture(here / "in" / "a.png").rename(here / "in" / ("x" * 255))
    picture(here / "in" / "b.png")
    result = invoke("purify", "in", "out", *BLUR, "--include", "*", "--json")
    assert result.exit_code == 3
    assert images(result.stdout)["x" * 255]["reason"] == Reason.NAME_UNSUPPORTED
    assert list(tree(here / "out")) == ["b.png"]


@pytest.mark.parametrize(
    "words", [("models", "list"), ("models", "list", "--json"), ("purify", "-", "-", *BLUR)], ids=" ".join
)
def test_a_full_disk_under_standard_output_exits_5(here: Path, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(*words, input=encoded("PNG"), cwd=here, stdout=full)
    assert done.returncode == 5
    assert b"standard output: no space left" in done.stderr
    assert len(done.stderr.splitlines()) == 1
