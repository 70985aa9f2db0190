"""A folder read for training: which images, which crops, and what is held out."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from zipcli.config import TrainConfig
from zipcli.errors import ConfigError, ExitCode, Reason, StoppedError
from zipcli.pipeline import picture_set
from zipcli.pipeline.picture_set import (
    PIECE,
    PictureFiles,
    TrainingSet,
    memory_for,
    middle,
    piece,
    read_training_set,
    spread,
    usual_crop,
    with_channels,
)

CPU = torch.device("cpu")


class Notebook:
    """A watcher that writes everything down."""

    def __init__(self) -> None:
        self.lost: dict[str, Reason] = {}
        self.messages: dict[str, str] = {}
        self.notes: list[str] = []

    def skipped(self, path: str, reason: Reason, message: str) -> None:
        assert path not in self.lost
        self.lost[path] = reason
        self.messages[path] = message

    def note(self, text: str) -> None:
        self.notes.append(text)


def read(folder: Path, notebook: Notebook | None = None, **given: Any) -> TrainingSet:
    channels, native_side = given.pop("channels", 3), given.pop("native_side", None)
    check_stop = given.pop("check_stop", lambda: None)
    config = TrainConfig(**{"steps": 1, **given})
    files = PictureFiles(folder, config, notebook or Notebook(), check_stop)
    return read_training_set(files, config, CPU, channels=channels, native_side=native_side)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def plain(folder: Path, count: int, side: int = 16) -> Path:
    """Images of one level each, 5 n, every one in a subfolder of its own but the first."""
    for n in range(count):
        save(
            folder / "/".join(["d"] * (n % 3)) / f"{n:02}.png",
            Image.new("RGB", (side + n, side), (5 * n,) * 3),
        )
    return folder


def levels(images: Tensor) -> list[int]:
    """The level of each of some plain images."""
    assert torch.equal(images.amin((1, 2, 3)), images.amax((1, 2, 3)))
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def trained_on(lessons: TrainingSet) -> set[int]:
    """The levels of all images that training can ever meet."""
    g = torch.Generator().manual_seed(0)
    return set(levels(lessons.source.images.crops(4000, lessons.source.crop, g)))


# The split


@pytest.mark.parametrize(
    ("count", "holdout", "held_out"), [(2, 0.1, 1), (3, 0.5, 2), (10, 0.1, 1), (40, 0.1, 4), (40, 0.5, 20)]
)
def test_every_image_is_learned_from_or_held_out_and_never_both(
    tmp_path: Path, count: int, holdout: float, held_out: int
) -> None:
    lessons = read(plain(tmp_path, count), holdout=holdout, crop=8)
    kept = levels(lessons.validation)
    learned = trained_on(lessons)
    assert len(kept) == len(set(kept)) == held_out == lessons.facts["held_out"]
    assert len(learned) == count - held_out == lessons.facts["images"] == len(lessons.source.images)
    assert learned.isdisjoint(kept)
    assert learned | set(kept) == {5 * n for n in range(count)}
    assert lessons.facts["files"] == count


def test_the_split_is_a_function_of_the_seed(tmp_path: Path) -> None:
    folder = plain(tmp_path, 30)
    first, again, other = (read(folder, seed=seed, crop=8) for seed in (1, 1, 2))
    assert torch.equal(first.validation, again.validation)
    assert trained_on(first) == trained_on(again)
    assert set(levels(first.validation)) != set(levels(other.validation))
    g = [torch.Generator().manual_seed(3) for _ in range(2)]
    crops = [lessons.source.images.crops(20, 8, g[n]) for n, lessons in enumerate((first, again))]
    assert torch.equal(*crops)


def test_the_order_of_files_on_the_disk_means_nothing(tmp_path: Path) -> None:
    for n in range(12):
        save(tmp_path / "a" / f"{n:02}.png", Image.new("RGB", (16, 16), (n,) * 3))
    for n in reversed(range(12)):
        save(tmp_path / "b" / f"{n:02}.png", Image.new("RGB", (16, 16), (n,) * 3))
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    assert torch.equal(a.validation, b.validation)
    assert a.digest == b.digest


def test_the_middle_of_an_image_held_out_is_measured_with(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 21, 30, 3), dtype=np.uint8)
    for n in range(2):
        save(tmp_path / f"{n}.png", Image.fromarray(pixels[n]))
    lessons = read(tmp_path, crop=8)
    kept = ((lessons.validation[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert any(np.array_equal(kept, image[6:14, 11:19]) for image in pixels)


def test_at_most_half_a_million_pixels_are_measured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_set, "VALIDATION_PIXELS", 10 * 8 * 8)
    lessons = read(plain(tmp_path, 40), holdout=0.5, crop=8)
    assert len(lessons.validation) == 10
    assert (lessons.facts["held_out"], lessons.facts["images"]) == (20, 20)


def test_the_digest_is_of_the_images_and_their_order(tmp_path: Path) -> None:
    folder = plain(tmp_path / "in", 3)
    digests = [read(folder, crop=8).digest]
    assert read(folder, crop=8, holdout=0.5).digest == digests[0]
    digests.append(read(folder, crop=8, seed=4).digest)
    save(folder / "new.bmp", Image.new("RGB", (9, 9)))
    digests.append(read(folder, crop=8).digest)
    save(folder / "new.bmp", Image.new("RGB", (9, 9), "red"))  # as many bytes
    digests.append(read(folder, crop=8).digest)
    assert len(set(digests)) == 4


# Crops


@pytest.mark.parametrize(
    ("sides", "crop"),
    [
        ([32] * 20, 32),
        ([28] * 20, 24),
        ([64] * 5, 64),
        ([300] * 20, 64),
        ([32, *[200] * 19], 64),  # one small image does not shrink the crops of the others
        ([32, 32, 32, *[200] * 17], 32),
        ([32] * 10 + [200] * 10, 32),
        ([8] * 3, 8),
        ([5] * 3, 8),
        ([1], 8),
        ([], 64),
    ],
)
def test_the_usual_crop_suits_nine_tenths_of_the_images(sides: list[int], crop: int) -> None:
    images = [
        torch.zeros((side, 2 * side, 3) if n % 2 else (3 * side, side, 3)) for n, side in enumerate(sides)
    ]
    assert usual_crop(images) == crop


def test_small_images_are_counted_and_left_out(tmp_path: Path) -> None:
    plain(tmp_path, 30, side=24)
    save(tmp_path / "small.png", Image.new("RGB", (100, 9)))
    save(tmp_path / "one.png", Image.new("RGB", (1, 1)))
    notebook = Notebook()
    lessons = read(tmp_path, notebook)
    assert lessons.source.crop == 24
    assert lessons.facts["too_small"] == 2
    assert lessons.facts["images"] + lessons.facts["held_out"] == 30
    assert notebook.lost == {}
    assert any("2 images have less than 24 pixels" in note for note in notebook.notes)


def test_a_model_that_sees_one_side_gets_it(tmp_path: Path) -> None:
    lessons = read(plain(tmp_path, 4, side=40), native_side=32)
    assert lessons.source.crop == 32
    assert lessons.validation.shape[2:] == (32, 32)


@pytest.mark.parametrize(("crop", "batch"), [(8, 1536), (32, 96), (64, 24)])
def test_a_batch_has_the_same_number_of_pixels_at_any_crop(tmp_path: Path, crop: int, batch: int) -> None:
    assert read(plain(tmp_path, 2, side=64), crop=crop).source.batch == batch


def test_a_batch_size_that_was_given_is_taken(tmp_path: Path) -> None:
    assert read(plain(tmp_path, 2), batch_size=7).source.batch == 7


# Pixels


def as_saved(folder: Path, name: str, image: Image.Image, channels: int = 3, **options: Any) -> np.ndarray:
    """An image as training meets it: the only one held out of two copies."""
    for n in range(2):
        save(folder / name.replace(".", f"{n}."), image, **options)
    validation = read(folder, crop=16, channels=channels).validation
    assert validation.dtype == torch.float32
    return ((validation[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


RGB = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
GREY = np.random.default_rng(2).integers(0, 256, (16, 16), dtype=np.uint8)


def test_colours_stay_exact(tmp_path: Path) -> None:
    assert np.array_equal(as_saved(tmp_path, "a.png", Image.fromarray(RGB)), RGB)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    seen = as_saved(tmp_path, "a.png", Image.fromarray(GREY))
    assert np.array_equal(seen, np.stack([GREY] * 3, axis=2))


def test_grey_stays_grey_for_a_model_of_one_channel(tmp_path: Path) -> None:
    assert np.array_equal(as_saved(tmp_path, "a.png", Image.fromarray(GREY), channels=1)[..., 0], GREY)


def test_colours_become_grey_for_a_model_of_one_channel(tmp_path: Path) -> None:
    image = Image.fromarray(RGB)
    expected = np.asarray(image.convert("L"))
    assert np.array_equal(as_saved(tmp_path, "a.png", image, channels=1)[..., 0], expected)


def test_palettes_and_transparency_and_cmyk_become_colours(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB // 128 * 255).quantize(8)
    assert np.array_equal(as_saved(tmp_path / "p", "a.png", palette), RGB // 128 * 255)
    opaque = Image.fromarray(RGB)
    opaque.putalpha(255)
    assert np.array_equal(as_saved(tmp_path / "a", "a.png", opaque), RGB)
    clear = Image.fromarray(RGB)
    clear.putalpha(Image.fromarray(GREY))
    assert as_saved(tmp_path / "t", "a.png", clear).shape == (16, 16, 3)
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    seen = as_saved(tmp_path / "c", "a.tif", cmyk)
    assert (seen[..., 0] < 60).all()
    assert (seen[..., 1:] > 100).all()
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert np.array_equal(as_saved(tmp_path / "d", "a.png", deep)[..., 1], GREY)


def test_a_folder_of_both_is_read(tmp_path: Path) -> None:
    for n in range(4):
        save(tmp_path / f"g{n}.png", Image.new("L", (16, 16), 10 * n))
        save(tmp_path / f"c{n}.jpg", Image.new("RGB", (16, 16), (10 * n + 5,) * 3))
    assert len(trained_on(read(tmp_path))) == 7


def test_the_spread_is_the_standard_deviation_of_the_pixels() -> None:
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(300)]
    assert spread(images) == pytest.approx(2 / np.sqrt(12), abs=0.011)
    assert spread([torch.full((8, 8, 3), 7, dtype=torch.uint8)]) == 0.1
    black_and_white = [torch.zeros(8, 8, 3, dtype=torch.uint8), torch.full((8, 8, 3), 255, dtype=torch.uint8)]
    assert spread(black_and_white) == 1.0


def test_the_spread_is_of_the_images_that_are_learned_from(tmp_path: Path) -> None:
    folder = plain(tmp_path, 12)
    lessons = read(folder, crop=8)
    values = [level / 127.5 - 1 for level in trained_on(lessons)]
    assert lessons.spread == pytest.approx(np.std(values), abs=0.03)


# Large images


def test_a_large_image_is_cut_to_a_piece_whose_place_depends_on_its_name_and_the_seed(tmp_path: Path) -> None:
    height, width = PIECE + 40, PIECE + 300
    pixels = np.arange(height * width, dtype=np.uint32).reshape(height, width)
    places = set()
    for key in range(200):
        part = piece(pixels, PIECE, f"0 {key}.png")
        assert part.shape == (PIECE, PIECE)
        assert np.array_equal(part, piece(pixels, PIECE, f"0 {key}.png"))
        top, left = divmod(int(part[0, 0]), width)
        assert np.array_equal(part, pixels[top : top + PIECE, left : left + PIECE])
        places.add((top, left))
    assert min(p[0] for p in places) < 5
    assert max(p[0] for p in places) > 35
    assert min(p[1] for p in places) < 15
    assert max(p[1] for p in places) > 285


def test_an_image_as_large_as_a_piece_stays_whole() -> None:
    for shape in ((PIECE, PIECE, 3), (PIECE, 5), (1, PIECE, 3)):
        pixels = np.zeros(shape, np.uint8)
        assert piece(pixels, PIECE, "x").shape == shape
    assert piece(np.zeros((3, PIECE + 7), np.uint8), PIECE, "x").shape == (3, PIECE)


def test_large_images_are_learned_from(tmp_path: Path) -> None:
    for n in range(3):
        save(tmp_path / f"{n}.png", Image.new("RGB", (700, 520), (60 * n,) * 3))
    lessons = read(tmp_path)
    assert lessons.source.crop == 64
    assert lessons.source.images.smallest == PIECE


def test_with_channels_gives_memory_of_its_own() -> None:
    pixels = np.zeros((5, 6, 3), np.uint8)[1:4, 2:5]
    taken = with_channels(pixels, 3)
    assert taken.flags.c_contiguous
    assert not np.shares_memory(taken, pixels)
    assert with_channels(np.zeros((4, 5), np.uint8), 1).shape == (4, 5, 1)


def test_the_middle_is_in_the_middle() -> None:
    image = torch.arange(7 * 9).view(7, 9, 1)
    assert torch.equal(middle(image, 3), image[2:5, 3:6])
    assert torch.equal(middle(image, 7), image[:, 1:8])


def test_what_does_not_fit_into_memory_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(10):
        save(tmp_path / f"{n}.png", Image.new("RGB", (16, 16), (n,) * 3))
    monkeypatch.setattr(picture_set, "memory_for", lambda device: 6 * 16 * 16 * 3 + 5)
    notebook = Notebook()
    lessons = read(tmp_path, notebook)
    assert lessons.facts["left_out"] == 4
    assert lessons.facts["images"] + lessons.facts["held_out"] == 6
    assert any("4 images are left out" in note for note in notebook.notes)


def test_memory_is_a_share_of_what_the_machine_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0.1 * total < memory_for(CPU) < 0.5 * total


# Files that are no images


def bad_files(folder: Path) -> dict[str, Reason]:
    """Four good images and everything that can be wrong with others."""
    plain(folder, 4)
    rng = np.random.default_rng(0)
    photo = save(folder / "cut.jpg", Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    photo.write_bytes(photo.read_bytes()[:-700])
    (folder / "text.png").write_text("this is no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "zeros.bmp").write_bytes(bytes(100))
    frames = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])
    (folder / "loop").symlink_to(folder)
    (folder / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "vector.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.png").write_bytes(b"not looked at")
    return {
        "cut.jpg": Reason.TRUNCATED,
        "text.png": Reason.UNIDENTIFIED,
        "empty.png": Reason.EMPTY,
        "zeros.bmp": Reason.UNIDENTIFIED,
        "moves.gif": Reason.MULTIFRAME,
        "loop": Reason.SYMLINK,
        "gone.png": Reason.SYMLINK,
        "pipe.png": Reason.NOT_A_FILE,
        "vector.png": Reason.FORMAT_NOT_ALLOWED,
    }


def test_bad_files_are_named_and_counted_and_the_others_used(tmp_path: Path) -> None:
    expected = bad_files(tmp_path / "in")
    notebook = Notebook()
    lessons = read(tmp_path / "in", notebook)
    assert notebook.lost == expected
    for path, message in notebook.messages.items():
        assert message
        assert str(tmp_path) not in message, path
    assert sum(lessons.facts["skipped"].values()) == len(expected)
    assert lessons.facts["skipped"]["symlink"] == 2
    assert lessons.facts["files"] == 4 + len(expected)
    assert lessons.facts["images"] + lessons.facts["held_out"] == 4
    assert trained_on(lessons) | set(levels(lessons.validation)) == {0, 5, 10, 15}


def test_patterns_choose(tmp_path: Path) -> None:
    folder = plain(tmp_path, 9)
    assert read(folder, include=("d/*",), crop=8).facts["files"] == 6
    assert read(folder, exclude=("0[0-4].png",), crop=8).facts["files"] == 4
    with pytest.raises(ConfigError, match=r"no file matches --include \*\.gif"):
        read(folder, include=("*.gif",))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_refused(tmp_path: Path, count: int) -> None:
    (tmp_path / "in").mkdir()
    plain(tmp_path / "in", count)
    with pytest.raises(ConfigError, match=str(tmp_path / "in")):
        read(tmp_path / "in")


def test_few_images_are_said_to_be_few(tmp_path: Path) -> None:
    notebook = Notebook()
    read(plain(tmp_path / "few", 3), notebook)
    assert notebook.notes == ["3 images are few: the model may learn them by heart"]
    for n in range(100):
        save(tmp_path / "many" / f"{n}.png", Image.new("RGB", (8, 8)))
    notebook = Notebook()
    read(tmp_path / "many", notebook)
    assert notebook.notes == []


def stop_at(count: int) -> Callable[[], None]:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == count:
            raise StoppedError(ExitCode.INTERRUPTED)

    return check


@pytest.mark.parametrize("count", [1, 10, 25])
def test_reading_stops_when_it_is_asked_to(tmp_path: Path, count: int) -> None:
    with pytest.raises(StoppedError):
        read(plain(tmp_path, 20), check_stop=stop_at(count))
