"""Which files are taken and where they go."""

import os
from itertools import permutations
from pathlib import Path

import pytest

from zipcli.config import FolderConfig
from zipcli.errors import ConfigError, Reason
from zipcli.pipeline.outcome import Outcome
from zipcli.pipeline.plan import (
    Entry,
    Plan,
    check_folders,
    collisions,
    relative_paths,
    without_collisions,
)
from zipcli.pipeline.portable import unportable


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def taken(folder: Path, **settings: object) -> dict[str, str]:
    entries = Plan(base=folder, config=FolderConfig(**settings)).entries()  # type: ignore[arg-type]
    return {e.path: e.target for e in entries if isinstance(e, Entry)}


def lost(folder: Path) -> dict[str, tuple[str, Reason | None]]:
    entries = Plan(base=folder, config=FolderConfig()).entries()
    return {e.path: (e.state, e.reason) for e in entries if isinstance(e, Outcome)}


def test_the_tree_is_walked_in_order_and_mirrored(tmp_path: Path) -> None:
    touch(tmp_path, "b/y.jpg", "b/x.JPEG", "a.png", "b/c/z.tif")
    assert list(taken(tmp_path).items()) == [
        ("a.png", "a.png"),
        ("b/x.JPEG", "b/x.png"),
        ("b/y.jpg", "b/y.png"),
        ("b/c/z.tif", "b/c/z.png"),
    ]


@pytest.mark.fault("F53")
def test_what_is_no_image_is_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", ".hidden.png", ".git/x.png", "Thumbs.db", "a.png", "noextension")
    assert list(taken(tmp_path)) == ["a.png"]
    assert lost(tmp_path) == {}


def test_patterns_match_the_name_or_the_path_without_case(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.png", "test/a.PNG", "test/b.jpg", "raw")
    assert list(taken(tmp_path, include=("*.png",))) == ["test/a.PNG", "train/a.png"]
    assert list(taken(tmp_path, include=("test/*",))) == ["test/a.PNG", "test/b.jpg"]
    assert list(taken(tmp_path, exclude=("test/*",))) == ["train/a.png"]
    assert list(taken(tmp_path, include=("raw",))) == ["raw"]


@pytest.mark.parametrize(
    ("format", "targets"),
    [
        ("png", ["a.png", "b.PNG", "c.png", "d.e.png"]),
        ("same", ["a.jpg", "b.PNG", "c.png", "d.e.tif"]),
        ("jpg", ["a.jpg", "b.jpg", "c.jpg", "d.e.jpg"]),
        ("webp", ["a.webp", "b.webp", "c.webp", "d.e.webp"]),
    ],
)
def test_the_suffix_follows_the_format(tmp_path: Path, format: str, targets: list[str]) -> None:
    touch(tmp_path, "a.jpg", "b.PNG", "c.gif", "d.e.tif")
    assert list(taken(tmp_path, format=format).values()) == targets


@pytest.mark.fault("F48")
def test_inputs_that_would_share_an_output_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "b/a.jpg", "a.webp")
    plan = Plan(base=tmp_path, config=FolderConfig())
    assert collisions(plan.entries()) == [("a.jpg", "a.png", "a.png"), ("a.jpg", "a.webp", "a.png")]
    same = Plan(base=tmp_path, config=FolderConfig(format="same"))
    assert collisions(same.entries()) == []


@pytest.mark.fault("F50")
def test_links_are_followed_only_to_files_inside(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out.png"
    touch(tmp_path, "in/a.png", "out.png")
    (inside / "link.png").symlink_to("a.png")
    (inside / "outside.png").symlink_to(outside)
    (inside / "nowhere.png").symlink_to("gone.png")
    (inside / "self").symlink_to(".")
    (inside / "loop").symlink_to("loop")
    (inside / "loop.png").symlink_to("loop.png")
    assert list(taken(inside)) == ["a.png", "link.png"]
    skipped = ("skipped", Reason.SYMLINK)
    assert lost(inside) == dict.fromkeys(["loop.png", "nowhere.png", "outside.png", "self"], skipped)


@pytest.mark.fault("F52")
def test_pipes_and_folders_with_image_names_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    touch(tmp_path, "folder.png/a.png")
    assert list(taken(tmp_path)) == ["folder.png/a.png"]
    assert lost(tmp_path) == {"pipe.png": ("skipped", Reason.NOT_A_FILE)}


def test_a_very_deep_tree_and_a_hopeless_link_do_not_end_the_walk(tmp_path: Path) -> None:
    (tmp_path / "long.png").symlink_to("a" * 300)
    folders = [tmp_path.joinpath(*["d"] * depth) for depth in range(1, 1200)]
    for folder in folders:
        folder.mkdir()
    try:
        assert taken(tmp_path) == {}
        assert lost(tmp_path) == {"long.png": ("skipped", Reason.SYMLINK)}
    finally:  # what clears temporary folders recurses, and would give up on this one
        for folder in reversed(folders):
            folder.rmdir()


@pytest.mark.fault("F45")
def test_names_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    ((path, target),) = taken(tmp_path).items()
    assert os.fsencode(path) == b"caf\xe9.jpg"
    assert os.fsencode(target) == b"caf\xe9.png"


def test_folders_within_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "in")
    for base, out in (("in", "in/out"), ("in", "in"), ("in", "."), ("in", "alias"), ("alias", "in/x/y")):
        with pytest.raises(ConfigError, match=r"lies inside|is the input"):
            check_folders(tmp_path / base, tmp_path / out)
    check_folders(tmp_path / "in", tmp_path / "in" / "out", inside=True)
    check_folders(tmp_path / "in", tmp_path / "in2")
    check_folders(tmp_path / "in", tmp_path / "new" / "out")


def test_a_missing_input_or_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "file.png")
    with pytest.raises(ConfigError, match="no such folder"):
        check_folders(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(ConfigError, match="not a folder"):
        check_folders(tmp_path / "file.png", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match="not a folder"):
        check_folders(tmp_path / "in", tmp_path / "file.png")


def test_listed_files_are_taken_relative_to_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "photos/a/x.jpg", "photos/y.jpg", "photos/-z.png", "photos/out/x.png")
    monkeypatch.chdir(tmp_path)
    base = Path("photos")
    absolute = str(tmp_path / "photos" / "y.jpg")
    listed = ["photos/a/x.jpg", absolute, "y.jpg", "-z.png", "photos/a/../y.jpg"]
    assert relative_paths(listed, base, Path("out")) == ("a/x.jpg", "y.jpg", "-z.png")
    for outside in ("../x.jpg", "/etc/passwd", "photos/../../x.jpg"):
        with pytest.raises(ConfigError, match="--base"):
            relative_paths([outside], base, Path("out"))
    with pytest.raises(ConfigError, match="output folder"):
        relative_paths(["photos/out/x.png"], base, Path("photos/out"))


def test_a_listed_file_needs_no_known_extension_and_a_missing_one_fails(tmp_path: Path) -> None:
    touch(tmp_path, "raw")
    plan = Plan(base=tmp_path, config=FolderConfig(), listed=("raw", "gone.png"))
    outcome, entry = plan.entries()
    assert isinstance(entry, Entry)
    assert isinstance(outcome, Outcome)
    assert (entry.target, outcome.state, outcome.reason) == ("raw.png", "failed", Reason.VANISHED)


def appended(folder: Path, **settings: object) -> dict[str, str]:
    plan = Plan(base=folder, config=FolderConfig(on_collision="append", **settings))  # type: ignore[arg-type]
    plan = without_collisions(plan, plan.entries())
    assert collisions(plan.entries()) == []
    return {e.path: e.target for e in plan.entries() if isinstance(e, Entry)}


@pytest.mark.fault("F48")
def test_only_names_that_collide_are_appended_to(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "a.webp", "b.jpg", "c/a.jpg")
    assert appended(tmp_path) == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png",
        "a.webp": "a.webp.png",
        "b.jpg": "b.png",
        "c/a.jpg": "c/a.png",
    }
    assert appended(tmp_path, format="jpg") == {
        "a.jpg": "a.jpg",
        "a.png": "a.png.jpg",
        "a.webp": "a.webp.jpg",
        "b.jpg": "b.jpg",
        "c/a.jpg": "c/a.jpg",
    }


@pytest.mark.fault("F48")
def test_a_gif_that_becomes_png_makes_room_for_the_png(tmp_path: Path) -> None:
    touch(tmp_path, "a.gif", "a.png", "a.jpg")
    assert appended(tmp_path, format="same") == {"a.gif": "a.gif.png", "a.png": "a.png", "a.jpg": "a.jpg"}


@pytest.mark.fault("F48")
def test_an_output_makes_room_for_a_folder_of_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png/b.png")
    assert appended(tmp_path) == {"a.jpg": "a.jpg.png", "a.png/b.png": "a.png/b.png"}


@pytest.mark.fault("F48")
def test_names_do_not_depend_on_the_order_of_a_list(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "a.webp")
    config = FolderConfig(on_collision="append")
    found = set()
    for listed in permutations(["a.jpg", "a.png", "a.webp"]):
        plan = Plan(base=tmp_path, config=config, listed=listed)
        entries = without_collisions(plan, plan.entries()).entries()
        found.add(frozenset((e.path, e.target) for e in entries if isinstance(e, Entry)))
    assert found == {frozenset({("a.jpg", "a.jpg.png"), ("a.png", "a.png"), ("a.webp", "a.webp.png")})}


@pytest.mark.fault("F48")
def test_a_name_that_is_taken_even_when_appended_to_stays_a_collision(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "a.jpg.png")
    plan = Plan(base=tmp_path, config=FolderConfig(on_collision="append"))
    plan = without_collisions(plan, plan.entries())
    assert collisions(plan.entries()) == [("a.jpg", "a.jpg.png", "a.jpg.png")]


@pytest.mark.fault("F53")
def test_files_that_no_pattern_takes_are_told_and_hidden_ones_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "Thumbs.db", "b/a.xmp", ".DS_Store", ".zipcli/run.json", "b/left.png")
    ignored: list[str] = []
    plan = Plan(base=tmp_path, config=FolderConfig(exclude=("left.*",)))
    assert len(list(plan.of_all_shards(ignored.append))) == 1
    assert ignored == ["Thumbs.db", "b/a.xmp", "b/left.png"]


@pytest.mark.fault("F47", "F54")
@pytest.mark.parametrize(
    ("names", "faults"),
    [
        (["A.png", "a.png"], {"a.png": "differs from A.png"}),
        (["caf\u00e9.png", "cafe\u0301.png"], {"caf\u00e9.png": "differs from cafe\u0301.png"}),
        (["X/a.png", "x/b.png", "x/c.png"], {"x": "differs from X"}),
        (["X/a.png", "x/A.png"], {"x": "differs from X", "x/A.png": "differs from X/a.png"}),
        (
            ["con.png", "con/aux.x.png", "Lpt1 .png"],
            dict.fromkeys(["con.png", "con", "con/aux.x.png", "Lpt1 .png"], "device"),
        ),
        (["com\u00b9.png", "CONIN$.png"], dict.fromkeys(["com\u00b9.png", "CONIN$.png"], "device")),
        (["x./a.png", "y /a.png"], dict.fromkeys(["x.", "y "], "dot or a space")),
        *(([f"a{c}b.png"], {f"a{c}b.png": f"holds {c}"}) for c in '<>:"|?*\\'),
        *(([f"a{c}b.png"], {f"a{c}b.png": "control character"}) for c in "\n\t\x1b\x7f\x85"),
        ([os.fsdecode(b"caf\xe9.png")], {os.fsdecode(b"caf\xe9.png"): "no text"}),
        (
            ["/".join(["x" * 60] * 4 + ["a" * 20 + ".png"])],
            {"/".join(["x" * 60] * 4 + ["a" * 20 + ".png"]): "longer"},
        ),
        (["/".join(["x" * 60] * 4 + ["a" * 8 + ".png"])], {}),
        (
            ["console.png", "com.png", "com10.png", "a b.c.png", "\u00e9\u4e2d\U0001f600.png", "-x~$%#'.png"],
            {},
        ),
    ],
)
def test_names_that_another_system_cannot_hold_are_found(
    tmp_path: Path, names: list[str], faults: dict[str, str]
) -> None:
    touch(tmp_path, *names)
    found = unportable(Plan(base=tmp_path, config=FolderConfig()).entries())
    assert sorted(name for name, _ in found) == sorted(faults)
    for name, why in found:
        assert faults[name] in why


@pytest.mark.fault("F54")
def test_it_is_the_name_of_the_output_that_must_be_portable(tmp_path: Path) -> None:
    touch(tmp_path, "A.jpg", "a.png")
    assert [name for name, _ in unportable(Plan(base=tmp_path, config=FolderConfig()).entries())] == ["a.png"]
    same = Plan(base=tmp_path, config=FolderConfig(format="same"))
    assert unportable(same.entries()) == []
