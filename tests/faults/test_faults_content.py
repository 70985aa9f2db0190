"""Faults of what is in a file (F56-F75): each bad file alone in a run, its state, reason and exit code."""

import io
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import conftest as cli_fixtures
from cli.shell import ENVIRONMENT, ROOT, images, invoke, json_lines, picture, tree
from faults.bad_files import (
    OTHER,
    PICTURE,
    bmp_that_declares,
    drawn_in_alpha,
    exif_block,
    gif_with_canvas,
    gif_with_frame,
    hidden_under_alpha,
    jpeg_with_thumbnail,
    many_scans,
    number,
    png,
    png_header,
    png_of,
    saved,
    shows,
    tiff_header,
    turned_twice,
    webp_with_canvas,
    write_sparse_tiff,
)
from PIL import Image

from zipcli.errors import InputError, Reason
from zipcli.images.load import decode

here = cli_fixtures.here
_signals_and_environment = cli_fixtures._signals_and_environment

AS_IS = ("--method", "none", "--json")
"""What is decoded is what is written, so that outputs tell how inputs were read."""

GREY = PICTURE[..., 0]
DEEP = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
FRAMES: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(PICTURE[::-1].copy())]}
LOSSLESS = {"PNG": {}, "TIFF": {}, "BMP": {}, "PPM": {}, "WEBP": {"lossless": True}}


def half(format: str, **options: Any) -> bytes:
    data = saved(PICTURE, format, **options)
    return data[: len(data) // 2]


def row(fault: str, name: str, *values: Any, id: str) -> Any:
    return pytest.param(name, *values, id=f"{fault} {id}", marks=pytest.mark.fault(fault))


def text_bomb(count: int, size: int) -> bytes:
    chunk = b"zTXt", b"a\0\0" + zlib.compress(bytes(size))
    return png(png_header(1, 1), *[chunk] * count, (b"IDAT", zlib.compress(bytes(4))))


BOMBS = [
    row("F62", "a.png", png(png_header(60_000, 60_000)), Reason.BOMB_PIXELS, id="png of 3.6 gigapixels"),
    row("F62", "a.gif", gif_with_canvas(65_535, 65_535), Reason.BOMB_PIXELS, id="gif canvas"),
    row("F62", "a.gif", gif_with_frame(60_000, 60_000), Reason.BOMB_PIXELS, id="gif frame beyond its canvas"),
    row("F62", "a.webp", webp_with_canvas(), Reason.BOMB_PIXELS, id="webp canvas"),
    row("F62", "a.bmp", bmp_that_declares(2**31 - 1, 1), Reason.BOMB_PIXELS, id="bmp width"),
    row("F62", "a.bmp", bmp_that_declares(1, -(2**31) + 1), Reason.BOMB_PIXELS, id="bmp negative height"),
    row("F62", "a.tif", tiff_header(60_000, 60_000, b"x"), Reason.BOMB_PIXELS, id="tiff of 3.6 gigapixels"),
    row("F62", "a.ppm", b"P6 60000 60000 255\n", Reason.BOMB_PIXELS, id="ppm of 3.6 gigapixels"),
    row("F62", "a.png", text_bomb(1, 2**22), Reason.BOMB_BYTES, id="png text chunk"),
    row("F62", "a.png", text_bomb(80, 2**20 - 9), Reason.BOMB_BYTES, id="png text chunks together"),
    row(
        "F62",
        "a.png",
        png_of(PICTURE, (b"iCCP", b"a\0\0" + zlib.compress(bytes(2**24)))),
        Reason.BOMB_BYTES,
        id="png profile",
    ),
    row(
        "F63",
        "a.png",
        saved(Image.new("1", (7_200, 7_000)), "PNG"),
        Reason.BOMB_PIXELS,
        id="genuine png of 50.4 megapixels",
    ),
]

REFUSED = [
    *BOMBS,
    row("F56", "a.png", b"", Reason.EMPTY, id="empty"),
    row("F57", "a.jpg", b"Dear reader, this is a letter.\n" * 99, Reason.UNIDENTIFIED, id="text"),
    row("F57", "a.jpg", b"<!doctype html><title>404</title>", Reason.UNIDENTIFIED, id="html"),
    row("F57", "a.jpg", b"PK\3\4" + bytes(60), Reason.UNIDENTIFIED, id="zip"),
    row("F57", "a.jpg", bytes(5_000), Reason.UNIDENTIFIED, id="zeros"),
    row("F59", "a.png", b"8BPS\0\1" + bytes(60), Reason.FORMAT_NOT_ALLOWED, id="psd"),
    row("F59", "a.png", saved(PICTURE, "EPS"), Reason.FORMAT_NOT_ALLOWED, id="eps"),
    row("F59", "a.png", saved(PICTURE, "ICO"), Reason.FORMAT_NOT_ALLOWED, id="ico"),
    row("F59", "a.png", saved(PICTURE, "JPEG2000"), Reason.FORMAT_NOT_ALLOWED, id="jpeg 2000"),
    row("F59", "a.jpg", b"<svg xmlns='x'><image href='/etc/passwd'/></svg>", Reason.FORMAT_NOT_ALLOWED,
        id="svg"),
    *(row("F60", "a.png", half(format), Reason.TRUNCATED, id=f"half a {format}")
      for format in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM", "WEBP")),
    row("F60", "a.webp", half("WEBP", lossless=True), Reason.TRUNCATED, id="half a lossless WEBP"),
    row("F60", "a.tif", half("TIFF", compression="tiff_lzw"), Reason.TRUNCATED, id="half an LZW TIFF"),
    row("F60", "a.tif", half("TIFF", compression="tiff_deflate"), Reason.TRUNCATED,
        id="half a deflated TIFF"),
    row("F60", "a.tif", half("TIFF", big_tiff=True), Reason.TRUNCATED, id="half a BigTIFF"),
    row("F60", "a.png", saved(PICTURE, "PNG")[:20], Reason.TRUNCATED, id="PNG without a header"),
    row("F60", "a.gif", saved(PICTURE, "GIF")[:100], Reason.TRUNCATED, id="GIF without its palette"),
    row("F60", "a.tif", saved(PICTURE, "TIFF")[:40], Reason.TRUNCATED, id="TIFF without its directory"),
    row("F61", "a.png", saved(PICTURE, "PNG").replace(b"IHDR", b"IHDS"), Reason.CORRUPT, id="bad chunk"),
    *(row("F65", f"a.{format.lower()}", saved(PICTURE, format, **FRAMES), Reason.MULTIFRAME,
        id=f"two {format}")
      for format in ("GIF", "PNG", "WEBP", "TIFF")),
    row("F65", "a.jpg", saved(PICTURE, "MPO", **FRAMES), Reason.MULTIFRAME, id="two MPO"),
    row("F73", "a.jpg", saved(PICTURE, "MPO", **FRAMES), Reason.MULTIFRAME, id="gain map as second picture"),
    row("F73", "a.jpg", saved(PICTURE, "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        Reason.CORRUPT, id="12-bit jpeg"),
    row("F68", "a.tif", saved(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF"),
        Reason.MODE_UNSUPPORTED, id="float with NaN"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "reason"), REFUSED)
def test_a_bad_file_fails_with_its_reason_and_costs_nothing_else(
    here: Path, name: str, data: bytes, reason: Reason
) -> None:
    (here / "in").mkdir()
    (here / "in" / name).write_bytes(data)
    result = invoke("purify", "in", "alone", *AS_IS)
    assert result.exit_code == 3, result.stderr
    (line,) = images(result.stdout).values()
    assert (line["path"], line["state"], line["reason"]) == (name, "failed", reason)
    assert line["message"].startswith(f"{name}: ")
    assert "; " in line["message"]  # and then what to do
    assert json_lines(result.stdout)[-1]["reasons"] == {reason: 1}
    assert tree(here / "alone") == {}
    picture(here / "in" / "good.png")
    result = invoke("purify", "in", "out", *AS_IS)
    assert result.exit_code == 3
    assert list(tree(here / "out")) == ["good.png"]


def on_white(pixels: np.ndarray) -> np.ndarray:
    alpha = pixels[..., 3:].astype(int)
    return (pixels[..., :3].astype(int) * alpha + 255 * (255 - alpha) + 127) // 255


def palette_image(**options: Any) -> tuple[bytes, np.ndarray]:
    image = Image.fromarray(PICTURE).quantize(16)
    return saved(image, "PNG", **options), np.asarray(image.convert("RGBA" if options else "RGB"))


def jpeg(**options: Any) -> tuple[bytes, np.ndarray]:
    data = saved(PICTURE, "JPEG", quality=95, **options)
    return data, shows(data)


PALETTE, PALETTE_PIXELS = palette_image()
JPEG, JPEG_PIXELS = jpeg()
CMYK = Image.new("CMYK", (20, 24), (255, 0, 0, 0))
HUGE_NOTE = exif_block((0x927C, 7, 60_000, number(26)), after=bytes(60_000))
LOOP = exif_block((0x8769, 4, 1, number(8)), next_ifd=8)
BAD_GPS = exif_block((0x8825, 2, 4, b"abc\0"), (0x0112, 2, 2, b"6\0"))

ACCEPTED = [
    row("F58", "a.png", JPEG, JPEG_PIXELS, "the content is JPEG", id="jpeg named png"),
    row("F58", "a.jpg", saved(PICTURE, "PNG"), PICTURE, "the content is PNG", id="png named jpg"),
    row("F61", "a.png", saved(PICTURE, "PNG") + b"PK\3\4" + bytes(999), PICTURE, None, id="junk after a png"),
    row("F61", "a.jpg", JPEG + saved(OTHER, "JPEG"), JPEG_PIXELS, None,
        id="a second jpeg after the end marker"),
    row("F62", "a.png", png(png_header(1, 1), (b"IDAT", zlib.compress(bytes(2**26)))), np.zeros((1, 1, 3)),
        None,
        id="pixels that unpack to more than there are"),
    row("F64", "a.png", saved(PICTURE[:1, :1], "PNG"), PICTURE[:1, :1], None, id="1 x 1"),
    row("F64", "a.png", saved(PICTURE[:1], "PNG"), PICTURE[:1], None, id="N x 1"),
    row("F64", "a.png", saved(PICTURE[:, :1], "PNG"), PICTURE[:, :1], None, id="1 x N"),
    row("F64", "a.png", saved(PICTURE[:5, :7], "PNG"), PICTURE[:5, :7], None, id="7 x 5"),
    row("F66", "a.png", saved(GREY, "PNG"), GREY, None, id="grey"),
    row("F66", "a.png", saved(GREY > 99, "PNG"), (GREY > 99) * 255, None, id="bilevel"),
    row("F66", "a.png", saved(np.dstack([GREY, GREY * 0]), "PNG"), GREY * 0 + 255, "alpha flattened on white",
        id="grey under alpha 0"),
    row("F66", "a.png", PALETTE, PALETTE_PIXELS, None, id="palette"),
    row("F66", "a.png", palette_image(transparency=bytes([51] * 16))[0],
        on_white(np.dstack([PALETTE_PIXELS, np.full(GREY.shape, 51)])), "alpha flattened on white",
        id="palette with alpha"),
    row("F67", "a.png", hidden_under_alpha(), PICTURE * 0 + 255, "alpha flattened on white",
        id="colour hidden under alpha 0"),
    row("F67", "a.png", drawn_in_alpha(), on_white(np.asarray(Image.open(io.BytesIO(drawn_in_alpha())))),
        "alpha flattened on white", id="trigger only in alpha"),
    row("F67", "a.webp", saved(np.dstack([PICTURE, GREY * 0]), "WEBP", lossless=True, exact=True),
        PICTURE * 0 + 255, "alpha flattened on white", id="webp with all alpha 0"),
    row("F68", "a.png", saved(Image.fromarray(DEEP), "PNG"), np.floor(DEEP / 257 + 0.5),
        "16-bit scaled to 8-bit",
        id="16-bit png"),
    row("F68", "a.tif", saved(Image.frombytes("I;16B", (256, 256), DEEP.astype(">u2").tobytes()), "TIFF"),
        np.floor(DEEP / 257 + 0.5), "16-bit scaled to 8-bit", id="big-endian tiff"),
    row("F68", "a.tif", saved(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF"),
        np.array([[0, 128, 255]]), "floating point scaled to 8-bit", id="float tiff"),
    row("F69", "a.tif", saved(CMYK, "TIFF"), np.full((24, 20, 3), (0, 255, 255)),
        "CMYK without a profile converted to RGB", id="cmyk tiff"),
    row("F69", "a.jpg", saved(CMYK, "JPEG", quality=100), np.full((24, 20, 3), (0, 255, 255)),
        "CMYK without a profile converted to RGB", id="inverted cmyk jpeg"),
    row("F69", "a.tif", saved(Image.new("LAB", (20, 24), (128, 128, 128)), "TIFF"), np.full((24, 20, 3), 119),
        "LAB converted to sRGB", id="lab tiff"),
    row("F70", "a.png", saved(PICTURE, "PNG", icc_profile=b"not a profile"), PICTURE,
        "invalid ICC profile ignored",
        id="invalid profile"),
    row("F70", "a.tif", saved(PICTURE, "TIFF", icc_profile=bytes(500_000)), PICTURE,
        "invalid ICC profile ignored",
        id="profile of 500 kB"),
    *(row("F71", f"a.{format.lower()}", turned_twice(format, 3, 6), PICTURE[::-1, ::-1], note,
          id=f"exif says 3 and xmp says 6 in {format}")
      for format, note in (("PNG", "turned upright"), ("WEBP", "turned upright"), ("TIFF", None))),
    row("F71", "a.jpg", turned_twice("JPEG", 3, 6), shows(turned_twice("JPEG", 3, 6))[::-1, ::-1],
        "turned upright",
        id="exif says 3 and xmp says 6 in JPEG"),
    *(row("F71", "a.png", saved(PICTURE, "PNG", exif=exif_block((0x0112, 3, 1, number(value)))), PICTURE,
        None,
          id=f"orientation {value}")
      for value in (0, 9, 65_535)),
    *(row("F72", "a.jpg", saved(PICTURE, "JPEG", quality=95, exif=block), JPEG_PIXELS, None, id=id)
      for id, block in (("huge maker note", HUGE_NOTE), ("directories that loop", LOOP), ("gps as text",
      BAD_GPS),
                        ("no tiff header", b"Exif\0\0garbage"))),
    row("F73", "a.jpg", saved(PICTURE, "JPEG", quality=95, progressive=True), JPEG_PIXELS, None,
        id="progressive"),
    row("F73", "a.jpg", many_scans(2_000), shows(many_scans(2_000)), None, id="progressive with 2,000 scans"),
    row("F74", "a.jpg", jpeg_with_thumbnail(PICTURE, OTHER), JPEG_PIXELS, None,
        id="thumbnail of another picture"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "expected", "note"), ACCEPTED)
def test_an_odd_file_is_read_as_it_looks(
    here: Path, name: str, data: bytes, expected: np.ndarray, note: str | None
) -> None:
    (here / "in").mkdir()
    (here / "in" / name).write_bytes(data)
    result = invoke("purify", "in", "out", *AS_IS)
    assert result.exit_code == 0, result.stderr
    (line,) = images(result.stdout).values()
    assert line["state"] == "passed"
    assert set(line.get("notes", ())) >= ({note} if note else set())
    with Image.open(here / "out" / "a.png") as image:
        assert image.mode == ("L" if np.ndim(expected) == 2 else "RGB")
        assert image.info.keys() <= {"dpi"}
        tolerance = (
            2
            if any(word in (note or "") for word in ("CMYK", "LAB"))
            else 1
            if "alpha" in (note or "")
            else 0
        )
        np.testing.assert_allclose(np.asarray(image).astype(int), expected, rtol=0, atol=tolerance)


VERDICTS = {
    "bad checksum of the pixels": saved(PICTURE, "PNG")[:-20] + b"\1\2\3\4" + saved(PICTURE, "PNG")[-16:],
    "bad Adler sum": png(png_header(1, 1), (b"IDAT", zlib.compress(bytes(4))[:-4] + b"\1\2\3\4")),
    "palette index without a colour": png(
        png_header(2, 1, 8, 3), (b"PLTE", b"\1\2\3"), (b"IDAT", zlib.compress(b"\0\0\xc8"))
    ),
    "no end chunk": saved(PICTURE, "PNG")[:-12],
}


@pytest.mark.fault("F61")
@pytest.mark.parametrize("data", VERDICTS.values(), ids=VERDICTS)
def test_a_damaged_png_is_read_or_refused_and_never_in_between(here: Path, data: bytes) -> None:
    (here / "in").mkdir()
    (here / "in" / "a.png").write_bytes(data)
    result = invoke("purify", "in", "out", *AS_IS)
    (line,) = images(result.stdout).values()
    if result.exit_code == 0:
        assert line["state"] == "passed"
        assert list(tree(here / "out")) == ["a.png"]
    else:
        assert result.exit_code == 3
        assert line["reason"] in (Reason.TRUNCATED, Reason.CORRUPT)
        assert tree(here / "out") == {}


@pytest.mark.fault("F60")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM", "WEBP"])
def test_a_file_cut_within_its_pixels_is_truncated_or_whole(format: str) -> None:
    """The last bytes of some formats say nothing about the picture."""
    options: dict[str, Any] = LOSSLESS.get(format, {})
    whole = saved(PICTURE, format, **options)
    clean = decode(whole, "a").pixels
    for end in range(max(800, len(whole) // 2), len(whole), max(1, len(whole) // 100)):
        found = read(whole[:end])
        if found is not Reason.TRUNCATED:
            np.testing.assert_array_equal(found, clean, err_msg=f"cut at {end}")


def read(data: bytes) -> np.ndarray | Reason:
    """The pixels, or why there are none."""
    try:
        return decode(data, "a").pixels
    except InputError as error:
        return error.reason


@pytest.mark.fault("F62", "F63")
def test_a_picture_of_gigapixels_in_a_hole_of_the_disk_is_refused_unread(here: Path) -> None:
    (here / "in").mkdir()
    write_sparse_tiff(here / "in" / "a.tif", 60_000)
    status = (here / "in" / "a.tif").stat()
    if status.st_blocks * 512 > 2**20:
        pytest.skip("this file system keeps no holes")
    assert status.st_size > 3.6e9
    began = time.monotonic()
    result = invoke("purify", "in", "out", *AS_IS)
    assert time.monotonic() - began < 20  # reading it would take longer
    assert result.exit_code == 3
    assert images(result.stdout)["a.tif"]["reason"] == Reason.BOMB_BYTES
    with pytest.raises(Image.DecompressionBombError, match="3600000000 pixels"):  # so it is one
        Image.open(here / "in" / "a.tif")


def bombs(folder: Path) -> Iterator[Path]:
    for n, bomb in enumerate(BOMBS):
        path = folder / f"{n}-{bomb.values[0]}"
        path.write_bytes(bomb.values[1])
        yield path


@pytest.mark.fault("F62")
def test_bombs_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from zipcli.errors import InputError\n"
        "from zipcli.images.load import decode\n"
        "files = [Path(name).read_bytes() for name in sys.argv[1:]]\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for data in files:\n"
        "    try:\n"
        "        decode(data, 'a')\n"
        "    except InputError:\n"
        "        continue\n"
        "    raise SystemExit('decoded')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    words = [sys.executable, "-c", program, *map(str, bombs(tmp_path))]
    done = subprocess.run(words, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kilobytes = int(done.stdout) // (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 100 * 1024  # 64 MiB of it is the text that Pillow allows


@pytest.mark.fault("F67")
def test_what_alpha_hid_cannot_be_told_from_an_image_without_it(here: Path) -> None:
    (here / "in").mkdir()
    (here / "in" / "hidden.png").write_bytes(hidden_under_alpha())
    (here / "in" / "drawn.png").write_bytes(drawn_in_alpha())
    (here / "flat").mkdir()
    for name in ("hidden", "drawn"):
        with Image.open(here / "in" / f"{name}.png") as image:
            white = Image.new("RGB", image.size, "white")
            white.paste(image.convert("RGB"), mask=image.getchannel("A"))
            white.save(here / "flat" / f"{name}.png")
    words = ("--seed", "5", "--device", "cpu")
    assert invoke("purify", "in", "out", *words).exit_code == 0
    assert invoke("purify", "flat", "expected", *words).exit_code == 0
    assert tree(here / "out") == tree(here / "expected")


@pytest.mark.fault("F74")
@pytest.mark.parametrize("format", ["png", "jpg", "webp", "same"])
def test_nothing_that_rides_along_reaches_an_output(here: Path, format: str) -> None:
    thumbnail = saved(OTHER, "JPEG", quality=95)
    extra = b"STEGANOGRAPHIC PAYLOAD"
    text = b"tEXt", b"Comment\0" + extra
    sources = {
        "thumbnail.jpg": jpeg_with_thumbnail(PICTURE, OTHER),
        "comment.jpg": saved(PICTURE, "JPEG", comment=extra),
        "xmp.jpg": saved(PICTURE, "JPEG", xmp=b"<x>" + extra + b"</x>"),
        "second.jpg": saved(PICTURE, "JPEG") + thumbnail,
        "text.png": png_of(PICTURE, text),
        "private.png": png_of(PICTURE, (b"prVt", extra)),
        "trailing.png": saved(PICTURE, "PNG") + extra,
        "comment.gif": saved(Image.fromarray(PICTURE).quantize(16), "GIF", comment=extra),
        "maker.webp": saved(
            PICTURE, "WEBP", exif=exif_block((0x927C, 7, len(extra), number(26)), after=extra)
        ),
    }
    (here / "in").mkdir()
    for name, data in sources.items():
        assert extra in data or thumbnail in data, name
        (here / "in" / name).write_bytes(data)
    result = invoke("purify", "in", "out", *AS_IS, "--format", format, "--on-collision", "append")
    assert result.exit_code == 0, result.stderr
    assert len(tree(here / "out")) == len(sources)
    for data in tree(here / "out").values():
        assert extra not in data
        assert thumbnail[-60:] not in data
        assert data.count(b"\xff\xd8\xff") <= (1 if data.startswith(b"\xff\xd8\xff") else 0)


@pytest.mark.fault("F75")
def test_identical_files_are_each_purified(here: Path) -> None:
    data = picture(here / "in" / "a.png").read_bytes()
    for name in ("b.jpg", "c.tif", "sub/a.png"):
        (here / "in" / name).parent.mkdir(exist_ok=True)
        (here / "in" / name).write_bytes(data)
    result = invoke("purify", "in", "out", *AS_IS)
    assert result.exit_code == 0, result.stderr
    lines = images(result.stdout)
    assert {line["in_sha256"] for line in lines.values()} == {lines["a.png"]["in_sha256"]}
    assert sorted(tree(here / "out")) == ["a.png", "b.png", "c.png", "sub/a.png"]
    assert len(set(tree(here / "out").values())) == 1
    for name in ("b.jpg", "c.tif"):  # the same bytes under two extensions
        assert lines[name]["notes"] == ["the content is PNG"]
    assert "notes" not in lines["a.png"]
