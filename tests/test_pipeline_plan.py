"""Which files are taken and where they go."""

import os
from pathlib import Path

import pytest

from zipcli.config import FolderConfig
from zipcli.errors import ConfigError, Reason
from zipcli.pipeline.outcome import Outcome
from zipcli.pipeline.plan import Entry, Plan, check_folders, collisions, relative_paths


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


def test_inputs_that_would_share_an_output_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "b/a.jpg", "a.webp")
    plan = Plan(base=tmp_path, config=FolderConfig())
    assert collisions(plan.entries()) == [("a.jpg", "a.png", "a.png"), ("a.jpg", "a.webp", "a.png")]
    same = Plan(base=tmp_path, config=FolderConfig(format="same"))
    assert collisions(same.entries()) == []


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
    entry, outcome = plan.entries()
    assert isinstance(entry, Entry)
    assert isinstance(outcome, Outcome)
    assert (entry.target, outcome.state, outcome.reason) == ("raw.png", "failed", Reason.VANISHED)
