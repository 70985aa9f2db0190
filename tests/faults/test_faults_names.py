"""Faults of names and trees (F44-F55): names are bytes, and no two files become one."""

import base64
import csv
import io
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cli import conftest as cli_fixtures
from cli.shell import BLUR, images, invoke, json_lines, originals, picture, redone, run, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from zipcli.images.write import encode

here = cli_fixtures.here
_signals_and_environment = cli_fixtures._signals_and_environment

AS_IS = ("--method", "none", "--json")
"""What is decoded is what is written."""

needs_bytes = pytest.mark.skipif(sys.platform != "linux", reason="names are not bytes on this system")


# T4: any bytes

AWKWARD = [
    b" ", b"\t", b"\n", b"\r", b"\x1b[31m", b"\x1b]0;x\a", b"\x07", b"\x08", b"\x7f", b"\xc2\x9b31m",
    b"'", b'"', b"-", b"--help", b"[/x]", b"[bold]", b":smile:", b"%o", b"%s", b"*", b"?", b"~", b"$HOME",
    b"$(reboot)", b"`id`", b"\\", b"|", b";", b"&", b"<b>", b"=1+1", b",", b"#", b"!", b"..", b"CON",
    b"\xff", b"\xe9", b"\xed\xa0\x80", b"Z" * 60,
    *(text.encode() for text in ("\u202e", "\u2028", "\ufeff", "e\u0301", "\u00e9", "\U0001f600")),
]  # fmt: skip
PARTS = st.one_of(st.sampled_from(AWKWARD), st.binary(min_size=1, max_size=12))
WORDS = (
    st.lists(PARTS, min_size=1, max_size=4)
    .map(b"".join)
    .map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
    .map(lambda name: b"x" + name if name.startswith(b".") else name)
)
PATHS = st.builds(
    lambda folders, name: b"/".join([*folders, name + b".png"]), st.lists(WORDS, max_size=2), WORDS
)
PER_RUN = 25


def write_all(folder: bytes, paths: list[bytes]) -> dict[bytes, bytes]:
    """Write a different picture to each path, but where a file and a folder would share a name."""
    written = {}
    for n, path in enumerate(paths):
        data = encode(np.random.default_rng(n).integers(0, 256, (4, 4, 3), dtype=np.uint8), "PNG")
        target = folder + b"/" + path
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120  # bytes
            with open(target, "xb") as file:  # noqa: PTH123  # bytes
                file.write(data)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
        written[path] = data
    return written


def bytes_tree(folder: bytes) -> dict[bytes, bytes]:
    """The visible files below a folder, by their names as they are on the disk."""
    found = {}
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != b".zipcli"]
        for name in files:
            path = os.path.join(at, name)  # noqa: PTH118  # bytes
            with open(path, "rb") as file:  # noqa: PTH123  # bytes
                found[os.path.relpath(path, folder)] = file.read()
    return found


def exact(line: dict[str, str], name: str) -> bytes:
    return base64.b64decode(line[f"{name}_b64"]) if f"{name}_b64" in line else line[name].encode()


def assert_no_raw_control(text: bytes) -> None:
    """Fail on what could move the cursor, recolour, reorder or forge a line."""
    lines = text.decode().splitlines()
    assert lines == text.decode().split("\n")[:-1]  # no other line separator
    assert all(line.isprintable() for line in lines)


@needs_bytes
@pytest.mark.fault("F44", "F45", "F47", "F49")
def test_any_bytes_in_names_come_through_and_harm_nothing(
    full: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runs = 200 if full else 6
    seen = 0

    @settings(max_examples=runs, deadline=None, database=None)
    @given(st.lists(PATHS, min_size=PER_RUN, max_size=PER_RUN, unique=True), st.booleans())
    def check(paths: list[bytes], one_is_bad: bool) -> None:
        nonlocal seen
        base = tmp_path_factory.mktemp("names")
        expected = write_all(os.fsencode(base / "in"), paths)
        seen += len(expected)
        bad = next(iter(expected)) if one_is_bad else None
        if bad is not None:
            (base / "in" / os.fsdecode(bad)).write_bytes(b"")
            del expected[bad]
        result = invoke("purify", base / "in", base / "out", "-v", *AS_IS)
        assert result.exit_code == (3 if one_is_bad else 0), result.stderr
        assert bytes_tree(os.fsencode(base / "out")) == expected
        lines = [json.loads(line) for line in result.stdout_bytes.decode().split("\n")[:-1]]
        done = [line for line in lines if line["type"] == "image" and line["state"] == "passed"]
        assert {exact(line, "path") for line in done} == {exact(line, "out_path") for line in done}
        assert {exact(line, "path") for line in done} == expected.keys()
        failed = [line for line in lines if line["type"] == "image" and line["state"] == "failed"]
        assert [exact(line, "path") for line in failed] == ([] if bad is None else [bad])
        assert_no_raw_control(result.stderr_bytes)
        assert_no_raw_control(result.stdout_bytes)

    check()
    assert seen >= runs * PER_RUN * 0.9


# Each name of its own


@pytest.mark.fault("F46")
@pytest.mark.parametrize(
    "name",
    ["x" * 251 + ".png", "\u4e2d" * 83 + "ab.png", "\U0001f600" * 62 + "abc.png"],
    ids=["ascii", "3", "4"],
)
def test_a_name_of_255_bytes_is_written(here: Path, name: str) -> None:
    assert len(os.fsencode(name)) == 255
    source = picture(here / "short.png")
    for folder in (here / "in", here / "in" / name.removesuffix(".png")):
        folder.mkdir()
        (folder / name).write_bytes(source.read_bytes())
    result = invoke("purify", "in", "out", *AS_IS)
    assert result.exit_code == 0, result.stderr
    assert tree(here / "out").keys() == tree(here / "in").keys()


TWINS = {
    "case": ("A.png", "a.png"),
    "case of an extension": ("a.PNG", "a.png"),
    "accents": ("caf\u00e9.png", "cafe\u0301.png"),
    "case of a folder": ("X/a.png", "x/a.png"),
}


@pytest.fixture
def twins(request: pytest.FixtureRequest, here: Path) -> tuple[str, str]:
    names: tuple[str, str] = request.param
    for n, name in enumerate(names):
        picture(here / "in" / name, seed=n)
    if len(tree(here / "in")) == 1:
        pytest.skip("this file system cannot tell the names apart")
    return names


@pytest.mark.fault("F47", "F48")
@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS, indirect=True)
def test_twins_are_both_kept_where_the_disk_can(here: Path, twins: tuple[str, str]) -> None:
    result = invoke("purify", "in", "out", *AS_IS)
    assert result.exit_code == 0, result.stderr
    out = tree(here / "out")
    assert out.keys() == set(twins)
    assert out[twins[0]] != out[twins[1]]


@pytest.mark.fault("F47", "F54")
@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--format", "same"]], ids=["run", "dry run", "same"])
@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS, indirect=True)
def test_twins_are_no_portable_names(here: Path, twins: tuple[str, str], words: list[str]) -> None:
    before = originals(here)
    result = invoke("purify", "in", "out", "--portable-names", *BLUR, *words)
    assert result.exit_code == 2
    assert result.stdout == ""
    first, second = (name.partition("/a.png")[0] for name in sorted(twins, key=os.fsencode))
    assert f"  {second}: differs from {first} only in case" in result.stderr
    assert originals(here) == before


@pytest.mark.fault("F54")
def test_names_that_windows_cannot_hold_are_all_listed_before_anything_is_written(here: Path) -> None:
    bad = ["aux.png", "a:b.png", "dir./a.png", "dir /a.png", 'quo"te.png', "line\nbreak.png", "good.png"]
    for name in bad:
        picture(here / "in" / name)
    result = invoke("purify", "in", "out", "--portable-names", *AS_IS)
    assert result.exit_code == 2
    (line,) = json_lines(result.stderr)
    for shown in ("aux.png", "a:b.png", "dir.", "dir ", 'quo"te.png', r"line\nbreak.png"):
        assert f"\n  {shown}: " in line["message"]
    assert "good" not in line["message"]
    assert result.stdout == ""
    assert not (here / "out").exists()
    assert invoke("purify", "in", "out", *AS_IS).exit_code == 0


@pytest.mark.fault("F54")
def test_portable_names_pass(here: Path) -> None:
    for name in ("a.png", "sub/\u00e9\u4e2d.png", "A b.c.jpg"):
        picture(here / "in" / name)
    assert invoke("purify", "in", "out", "--portable-names", *AS_IS).exit_code == 0
    assert len(tree(here / "out")) == 3


def test_many_bad_names_are_counted(here: Path) -> None:
    for n in range(25):
        picture(here / "in" / f"{n}?.png")
    result = invoke("purify", "in", "out", "--portable-names", *BLUR)
    assert result.stderr.count("?.png: ") == 20
    assert "... and 5 more" in result.stderr


# Collisions


@pytest.mark.fault("F48")
def test_inputs_that_would_collide_are_appended_to_and_the_next_run_does_nothing(here: Path) -> None:
    for n, name in enumerate(("a.png", "a.jpg", "a.bmp", "b.jpg")):
        picture(here / "in" / name, seed=n)
    words = ("--on-collision", "append", *AS_IS)
    result = invoke("purify", "in", "out", *words)
    assert result.exit_code == 0, result.stderr
    outputs = {line["path"]: line["out_path"] for line in images(result.stdout).values()}
    assert outputs == {"a.png": "a.png", "a.jpg": "a.jpg.png", "a.bmp": "a.bmp.png", "b.jpg": "b.png"}
    assert sorted(tree(here / "out")) == sorted(outputs.values())
    assert tree(here / "out")["a.png"] != tree(here / "out")["a.bmp.png"]
    again = invoke("purify", "in", "out", *words)
    assert again.exit_code == 0, again.stderr
    assert redone(again.stdout) == []


@pytest.mark.fault("F48")
def test_the_order_of_a_list_changes_no_appended_name(here: Path) -> None:
    names = ["a.png", "a.jpg", "a.bmp"]
    for n, name in enumerate(names):
        picture(here / "in" / name, seed=n)
    for out, order in (("forward", names), ("backward", names[::-1])):
        words = ("--files-from", "-", "--base", "in", "--on-collision", "append", *AS_IS)
        result = invoke("purify", out, *words, input="\n".join(order).encode())
        assert result.exit_code == 0, result.stderr
    assert tree(here / "forward") == tree(here / "backward")
    assert len(tree(here / "forward")) == 3


@pytest.mark.fault("F48")
def test_a_failure_that_is_tried_again_keeps_its_appended_name(here: Path) -> None:
    picture(here / "in" / "a.png")
    (here / "in" / "a.jpg").write_bytes(b"")
    words = ("--on-collision", "append", *AS_IS)
    assert invoke("purify", "in", "out", *words).exit_code == 3
    picture(here / "in" / "a.jpg", seed=1)
    result = invoke("purify", "in", "out", "--retry-failed", *words)
    assert result.exit_code == 0, result.stderr
    assert images(result.stdout)["a.jpg"]["out_path"] == "a.jpg.png"
    assert sorted(tree(here / "out")) == ["a.jpg.png", "a.png"]


@pytest.mark.fault("F48")
def test_an_input_that_makes_an_old_output_collide_is_refused_and_nothing_is_lost(here: Path) -> None:
    picture(here / "in" / "a.jpg")
    words = ("--on-collision", "append", *AS_IS)
    assert invoke("purify", "in", "out", *words).exit_code == 0
    before = tree(here / "out")
    picture(here / "in" / "a.png", seed=1)  # now a.jpg should become a.jpg.png
    assert invoke("purify", "in", "out", *words).exit_code == 2
    assert tree(here / "out") == before == {"a.png": before["a.png"]}


@pytest.mark.fault("F48")
def test_what_collides_even_when_appended_to_is_refused(here: Path) -> None:
    for name in ("a.png", "a.jpg", "a.jpg.png"):
        picture(here / "in" / name)
    advice = "--on-collision append"
    assert advice in invoke("purify", "in", "out", *BLUR).stderr
    result = invoke("purify", "in", "out", "--on-collision", "append", *BLUR)
    assert result.exit_code == 2
    assert "a.jpg and a.jpg.png would both become a.jpg.png" in result.stderr
    assert advice not in result.stderr
    assert not (here / "out").exists()


@pytest.mark.fault("F48")
def test_a_pipe_has_no_collisions_and_no_names() -> None:
    for words in (["--on-collision", "append"], ["--portable-names"]):
        result = invoke("purify", "-", "-", *BLUR, *words, input=b"x")
        assert result.exit_code == 2
        assert words[0] in result.stderr


@pytest.mark.fault("F49")
def test_one_name_in_many_folders_is_many_files(here: Path) -> None:
    names = ["a.png", "x/a.png", "x/y/a.png", "y/a.png"]
    for n, name in enumerate(names):
        picture(here / "in" / name, seed=n)
    assert invoke("purify", "in", "out", *AS_IS).exit_code == 0
    assert sorted(tree(here / "out")) == names
    assert len(set(tree(here / "out").values())) == len(names)


# What is no picture


@contextmanager
def device(path: Path) -> Iterator[None]:
    """A file that never ends: /dev/zero under another name, which only root may make."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except OSError as e:
        pytest.skip(f"devices cannot be made here: {e.strerror}")
    yield


@pytest.mark.fault("F52")
def test_a_device_named_like_a_picture_is_never_read(here: Path) -> None:
    picture(here / "in" / "a.png")
    with device(here / "in" / "zero.png"):
        done = run("purify", "in", "out", *AS_IS, cwd=here)
    assert done.returncode == 0, done.stderr
    line = images(done.stdout)["zero.png"]
    assert (line["state"], line["reason"]) == ("skipped", "not_a_file")
    assert list(tree(here / "out")) == ["a.png"]


@pytest.mark.fault("F53")
def test_files_that_are_no_images_are_counted_and_never_fail(here: Path) -> None:
    picture(here / "in" / "a.png")
    for name in ("Thumbs.db", "a.xmp", "sub/notes.txt", ".DS_Store", ".hidden/b.png", ".zipcli/run.json"):
        (here / "in" / name).parent.mkdir(exist_ok=True)
        (here / "in" / name).write_bytes(b"x")
    result = invoke("purify", "in", "out", *AS_IS)
    assert result.exit_code == 0
    end = json_lines(result.stdout)[-1]
    assert (end["found"], end["passed"], end["ignored"], end["reasons"]) == (1, 1, 3, {})
    assert "; ignored 3 other files" in result.stderr
    assert sorted(tree(here / "out")) == ["a.png"]


@pytest.mark.fault("F53")
def test_a_dry_run_and_a_list_count_what_no_pattern_takes(here: Path) -> None:
    for name in ("a.png", "b.png", "c.txt"):
        picture(here / "in" / "p.png").rename(here / "in" / name)
    plan = json_lines(invoke("purify", "in", "out", "--dry-run", "--exclude", "b.*", *AS_IS).stdout)[-1]
    assert (plan["found"], plan["ignored"]) == (1, 2)
    words = ("--files-from", "-", "--base", "in", "--include", "*.png", *AS_IS)
    end = json_lines(invoke("purify", "out", *words, input=b"a.png\nc.txt\n").stdout)[-1]
    assert (end["found"], end["ignored"]) == (1, 1)


@pytest.mark.fault("F53")
def test_a_folder_of_pictures_ignores_nothing_and_says_nothing_of_it(here: Path) -> None:
    picture(here / "in" / "a.png")
    result = invoke("purify", "in", "out", *AS_IS)
    assert json_lines(result.stdout)[-1]["ignored"] == 0
    assert "ignored" not in result.stderr


# Tables


FORMULAS = ["=1+1", "+1", "-1", "@SUM(1)", "a,b", 'quo"te', "line\nbreak"]


@pytest.mark.fault("F55")
@pytest.mark.parametrize("layout", ["plain", "zip", "target", "backdoorbench"])
def test_a_table_of_labels_is_quoted_and_holds_no_formula(here: Path, layout: str) -> None:
    for name in FORMULAS:
        picture(here / "in" / name / f"{name}.png", (16, 16))
    words = ("--attack", "badnets", "--target", "0", "--layout", layout)
    result = invoke("attack", "in", "out", *words)
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO((here / "out" / "labels.csv").read_text(), newline="")))
    assert len(rows) >= len(FORMULAS) - 1
    for row in rows:
        assert (here / "out" / row["path"]).is_file()
        cells = [cell for cell in row.values() if not cell.lstrip("-").isdecimal()]
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
