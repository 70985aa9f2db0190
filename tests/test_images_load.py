import errno
import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from faults.bad_files import png, png_header
from PIL import Image, ImageCms, ImageFile, ImageOps

from zipcli.errors import InputError, Reason
from zipcli.images import load
from zipcli.images.load import Limits, Metadata, Picture, decode, from_pil, read_file

NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
WHITE = [255, 255, 255]


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise_file(format: str, **options: object) -> bytes:
    return saved(Image.fromarray(NOISE), format, **options)


def reload(image: Image.Image, format: str = "PNG", **options: object) -> Picture:
    return decode(saved(image, format, **options), "a")


def refusal(data: bytes, limits: Limits = load.LIMITS) -> Reason:
    """Reason for which bytes are refused, after checking the form of the message."""
    with pytest.raises(InputError) as caught:
        decode(data, "dir/a.png", limits)
    assert str(caught.value).startswith("dir/a.png: ")
    assert "; " in str(caught.value)
    return caught.value.reason


def tiff(tags: dict[int, tuple[int, int]], data: bytes) -> bytes:
    """A little-endian TIFF with one strip; tags are {number: (type, value)} with one value each."""
    tags = {**tags, 273: (4, 8 + 2 + 12 * (len(tags) + 2) + 4), 279: (4, len(data))}
    entries = [struct.pack("<HHII", tag, *[kind, 1, value]) for tag, (kind, value) in sorted(tags.items())]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + b"\0\0\0\0" + data


def icc_profile(space: bytes, channels: int, lightness: dict[int, int]) -> bytes:
    """A profile whose full channels give neutral colours of these L* (0-255); the rest is white.

    `lightness` maps corners of the device cube, as binary numbers with the first channel as the
    highest bit, to L*.
    """
    ramp = bytes(range(256))
    corners = b"".join(bytes([lightness.get(corner, 255), 128, 128]) for corner in range(2**channels))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([channels, 3, 2, 0]) + identity + ramp * channels + corners + ramp * 3
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(lut))
    header = struct.pack(
        ">I4sI4s4s4s12s4s4sI4sIQIiii", 144 + len(lut), b"none", 0x02400000, b"scnr", space, b"Lab ",
        bytes(12), b"acsp", b"none", 0, b"none", 0, 0, 0, 63190, 65536, 54061,
    )  # fmt: skip
    return header.ljust(128, b"\0") + tags + lut


# Files


def test_a_file_is_read_as_it_is(tmp_path):
    (tmp_path / "a.png").write_bytes(b"anything")
    assert read_file(tmp_path / "a.png") == b"anything"


@pytest.mark.fault("F50", "F52", "F56")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b""), Reason.EMPTY),
        (lambda path: None, Reason.VANISHED),
        (lambda path: path.mkdir(), Reason.NOT_A_FILE),
        (os.mkfifo, Reason.NOT_A_FILE),
        (lambda path: path.symlink_to("/dev/zero"), Reason.NOT_A_FILE),
        (lambda path: path.symlink_to(path), Reason.UNREADABLE),
    ],
    ids=["empty", "missing", "folder", "fifo", "device", "symlink-loop"],
)
def test_what_is_not_a_readable_file_is_refused(tmp_path, make, reason):
    make(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"^dir/a\.png: .+; .+") as caught:
        read_file(tmp_path / "a.png", name="dir/a.png")
    assert caught.value.reason == reason


@pytest.mark.fault("F62")
def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="limit of 268,435,456") as caught:
        read_file(tmp_path / "a.png")
    assert caught.value.reason == Reason.BOMB_BYTES


@pytest.mark.parametrize("later", [b"", b"short", b"longer than before"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, later):
    path = tmp_path / "a.png"
    path.write_bytes(b"as before")
    check = load._checked_size

    def check_then_change(*arguments):
        size = check(*arguments)
        path.write_bytes(later)
        return size

    monkeypatch.setattr(load, "_checked_size", check_then_change)
    with pytest.raises(InputError, match="changed while it was read") as caught:
        read_file(path)
    assert caught.value.reason == Reason.CHANGED_DURING_READ


def test_a_file_that_cannot_be_read_is_unreadable(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"data")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(load.os, "read", fail)
    with pytest.raises(InputError, match="Input/output error") as caught:
        read_file(tmp_path / "a.png")
    assert caught.value.reason == Reason.UNREADABLE


# What is refused


def frames(format: str) -> bytes:
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    return saved(images[0], format, save_all=True, append_images=images[1:])


def apng_with_one_frame_and_a_default() -> bytes:
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    return saved(images[0], "PNG", save_all=True, default_image=True, append_images=images[1:])


BAD = {
    "nothing": (b"", Reason.EMPTY),
    "text": (b"hello, this is no image at all", Reason.UNIDENTIFIED),
    "html": (b"<!doctype html><title>404</title>", Reason.UNIDENTIFIED),
    "zip": (b"PK\x03\x04" + bytes(60), Reason.UNIDENTIFIED),
    "zeros": (bytes(1000), Reason.UNIDENTIFIED),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Reason.FORMAT_NOT_ALLOWED),
    "psd": (b"8BPS\0\1" + bytes(60), Reason.FORMAT_NOT_ALLOWED),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', Reason.FORMAT_NOT_ALLOWED),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0", Reason.FORMAT_NOT_ALLOWED),
    "jpeg2000": (noise_file("JPEG2000"), Reason.FORMAT_NOT_ALLOWED),
    "ico": (noise_file("ICO"), Reason.FORMAT_NOT_ALLOWED),
    "pcx": (noise_file("PCX"), Reason.FORMAT_NOT_ALLOWED),
    "avif": (noise_file("AVIF"), Reason.FORMAT_NOT_ALLOWED),
    "truncated jpeg": (noise_file("JPEG")[:-500], Reason.TRUNCATED),
    "truncated png": (noise_file("PNG")[:-500], Reason.TRUNCATED),
    "truncated bmp": (noise_file("BMP")[:-500], Reason.TRUNCATED),
    "truncated ppm": (noise_file("PPM")[:-500], Reason.TRUNCATED),
    "truncated gif": (noise_file("GIF")[:-500], Reason.TRUNCATED),
    "truncated tiff": (tiff({256: (3, 9), 257: (3, 9), 258: (3, 8), 262: (3, 1)}, b"1"), Reason.TRUNCATED),
    "truncated webp": (noise_file("WEBP", lossless=True)[:-500], Reason.TRUNCATED),
    "jpeg header only": (noise_file("JPEG")[:30], Reason.TRUNCATED),
    "tiff header only": (b"II*\0" + bytes(20), Reason.CORRUPT),
    "png with a bad checksum": (
        noise_file("PNG").replace(b"\x08\x02\0\0\0", b"\x08\x02\0\0\1"),
        Reason.CORRUPT,
    ),
    "animated gif": (frames("GIF"), Reason.MULTIFRAME),
    "animated webp": (frames("WEBP"), Reason.MULTIFRAME),
    "apng": (frames("PNG"), Reason.MULTIFRAME),
    "apng, one frame and a default": (apng_with_one_frame_and_a_default(), Reason.MULTIFRAME),
    "two-page tiff": (frames("TIFF"), Reason.MULTIFRAME),
    "mpo": (frames("MPO"), Reason.MULTIFRAME),
    "3,600 megapixels declared": (png(png_header(60_000, 60_000)), Reason.BOMB_PIXELS),
    "100 megapixels declared": (png(png_header(10_000, 10_000)), Reason.BOMB_PIXELS),
    "51 megapixels declared": (png(png_header(8_500, 6_000)), Reason.BOMB_PIXELS),
    "side of 70,000": (png(png_header(70_000, 1)), Reason.BOMB_PIXELS),
    "text bomb": (
        png(png_header(1, 1), (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**22)))),
        Reason.BOMB_BYTES,
    ),
}


@pytest.mark.fault("F56", "F57", "F59", "F60", "F61", "F62", "F65")
@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
def test_bad_data_is_refused_with_its_reason(data, reason):
    assert refusal(data) == reason


@pytest.mark.fault("F62")
def test_too_many_bytes_are_refused():
    assert refusal(noise_file("PNG"), Limits(max_bytes=100)) == Reason.BOMB_BYTES


@pytest.mark.fault("F62")
def test_limits_are_inclusive():
    limits = Limits(max_bytes=len(noise_file("PNG")), max_pixels=40 * 30, max_side=40)
    assert decode(noise_file("PNG"), "a", limits).pixels.shape == (40, 30, 3)
    assert refusal(noise_file("PNG"), Limits(max_pixels=40 * 30 - 1)) == Reason.BOMB_PIXELS
    assert refusal(noise_file("PNG"), Limits(max_side=39)) == Reason.BOMB_PIXELS


def test_running_out_of_memory_costs_one_image(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    assert refusal(saved(Image.new("RGBA", (4, 4)), "PNG")) == Reason.OUT_OF_MEMORY


def test_a_decoder_that_runs_out_of_memory_in_its_own_words_is_understood(monkeypatch):
    def fail(*_):
        raise OSError("out of memory error when reading image file")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert refusal(noise_file("BMP")) == Reason.OUT_OF_MEMORY


def test_memory_that_ends_within_exif_does_not_decide_whether_an_image_is_turned(monkeypatch):
    data = noise_file("PNG", exif=orientation_exif(6))

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Exif, "get_ifd", fail)
    assert refusal(data) == Reason.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("data", "limits", "flag"),
    [
        (png(png_header(8_500, 6_000)), Limits(), "--max-pixels"),
        (noise_file("PNG"), Limits(max_bytes=100), "--max-bytes"),
        (frames("GIF"), Limits(), "--frames first"),
    ],
)
def test_a_refusal_names_the_option_that_lifts_it(data, limits, flag):
    with pytest.raises(InputError, match=flag):
        decode(data, "a", limits)


def test_more_pixels_than_pillow_allows_can_be_allowed():
    before = Image.MAX_IMAGE_PIXELS
    header = png(png_header(20_000, 10_000))  # Pillow's own error begins at 178,956,970
    assert load.declared_size(header, "a", Limits(max_pixels=2 * 10**8)) == (20_000, 10_000)
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(Image.DecompressionBombError):  # or this test would show nothing
        Image.open(io.BytesIO(header))


# Policies


@pytest.mark.fault("F65")
@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_frames_can_be_taken(format):
    picture = decode(frames(format), "a", Limits(frames="first"))
    np.testing.assert_allclose(picture.pixels[4, 4].astype(int), [255, 0, 0], atol=3)
    assert picture.notes == ("the first of several frames",)
    still = saved(Image.new("RGB", (8, 8), "red"), "JPEG" if format == "MPO" else format)
    assert decode(still, "a", Limits(frames="first")).notes == ()


@pytest.mark.fault("F60")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF"])
def test_what_is_there_of_a_truncated_file_can_be_taken(format):
    whole = noise_file(format, **({"interlace": 0} if format == "GIF" else {}))
    cut = whole[: len(whole) * 3 // 4]
    assert refusal(cut) == Reason.TRUNCATED
    picture = decode(cut, "a", Limits(allow_truncated=True))
    assert picture.notes == ("degraded: the image data ends early",)
    there, missing = (slice(32, None), slice(0, 4)) if format == "BMP" else (slice(0, 8), slice(36, None))
    expected = decode(whole, "a").pixels
    np.testing.assert_array_equal(picture.pixels[there], expected[there])
    assert not np.array_equal(picture.pixels[missing], expected[missing])


def test_allowing_truncation_changes_nothing_else():
    limits = Limits(allow_truncated=True)
    assert decode(noise_file("JPEG"), "a", limits).notes == ()
    for name in ("text", "png with a bad checksum", "animated gif", "jpeg header only", "truncated webp"):
        data, reason = BAD[name]
        assert refusal(data, limits) == reason
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_threads_that_allow_truncation_and_threads_that_do_not_keep_apart():
    cut = noise_file("JPEG")[:-500]

    def note_or_reason(limits):
        try:
            return decode(cut, "a", limits).notes[0]
        except InputError as error:
            return error.reason

    policies = [Limits(allow_truncated=n % 2 == 0) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(note_or_reason, policies))
    assert set(found[::2]) == {"degraded: the image data ends early"}
    assert set(found[1::2]) == {Reason.TRUNCATED}


@pytest.mark.fault("F58")
@pytest.mark.parametrize(
    ("name", "format", "is_right"),
    [
        ("a.png", "PNG", True),
        ("a.PNG", "PNG", True),
        ("a.jpeg", "JPEG", True),
        ("a.mpo", "JPEG", True),
        ("a.pgm", "PPM", True),
        ("a.gif", "GIF", True),
        ("a", "PNG", True),
        ("a.data", "PNG", True),
        ("jpg", "PNG", True),
        ("a.png", "JPEG", False),
        ("a.jpg", "PNG", False),
        ("b.jpg/a.gif", "PNG", False),
        ("a.png.webp", "PNG", False),
    ],
)
def test_an_extension_that_promises_another_format_can_be_refused(name, format, is_right):
    data, limits = noise_file(format), Limits(strict_ext=True)
    decode(data, name)
    if is_right:
        decode(data, name, limits)
        assert load.declared_size(data, name, limits) == (30, 40)
    else:
        for function in (decode, load.declared_size):
            with pytest.raises(InputError, match="the extension promises") as caught:
                function(data, name, limits)
            assert caught.value.reason == Reason.EXTENSION_MISMATCH


@pytest.mark.fault("F60", "F61")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_damage_anywhere_raises_only_our_error(format):
    whole = noise_file(format)
    random = np.random.default_rng(1)
    for _ in range(40):
        damaged = bytearray(whole)
        for position in random.integers(0, min(len(whole), 400), 4):
            damaged[position] = random.integers(256)
        try:
            picture = decode(bytes(damaged[: random.integers(1, len(whole) + 1)]), "a")
        except InputError:
            continue
        assert picture.pixels.dtype == np.uint8


@pytest.mark.fault("F60")
def test_truncated_files_are_refused_even_if_the_program_around_us_allows_them(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert refusal(noise_file("JPEG")[:-500]) == Reason.TRUNCATED
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_threads_leave_the_warning_filters_as_they_were():
    noisy = png((b"acTL", bytes(8)), png_header(2, 2), (b"IDAT", zlib.compress(bytes(14))))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [refusal_or_none(noisy) for _ in range(20)], range(8)))
    assert warnings.filters == before


def refusal_or_none(data: bytes) -> Reason | None:
    try:
        decode(data, "a")
    except InputError as error:
        return error.reason
    return None


def test_pillow_warnings_do_not_turn_into_failures():
    # Frames declared: none. Pillow warns and takes the still image, which is right.
    data = png(png_header(2, 2), (b"acTL", bytes(8)), (b"IDAT", zlib.compress(bytes(14))))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode(data, "a")
    assert caught == []
    with pytest.warns(UserWarning, match="Invalid APNG"):  # or this test would show nothing
        Image.open(io.BytesIO(data))


# Formats and sizes


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_lossless_formats_give_their_pixels_back(format):
    picture = reload(Image.fromarray(NOISE), format, **({"lossless": True} if format == "WEBP" else {}))
    assert picture.format == format
    assert picture.mode == "RGB"
    assert picture.notes == ()
    np.testing.assert_array_equal(picture.pixels, NOISE)


def test_jpeg_and_gif_are_read():
    flat = Image.new("RGB", (16, 16), (10, 120, 200))
    np.testing.assert_allclose(reload(flat, "JPEG").pixels.astype(int), np.asarray(flat), atol=3)
    assert reload(flat, "JPEG").format == "JPEG"
    np.testing.assert_array_equal(reload(flat, "GIF").pixels, np.asarray(flat))


@pytest.mark.fault("F58")
def test_the_extension_plays_no_part():
    assert decode(noise_file("JPEG"), "a.png").format == "JPEG"
    assert decode(noise_file("PNG"), "a.eps").format == "PNG"


@pytest.mark.fault("F64")
@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000), (7, 5)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_odd_sizes_are_read(mode, size):
    picture = reload(Image.new(mode, size, 7 if mode == "L" else (7, 7, 7)))
    assert picture.pixels.shape[:2] == size[::-1]
    assert (picture.pixels == 7).all()


def test_pixels_are_contiguous_and_our_own():
    picture = reload(Image.fromarray(NOISE), exif=orientation_exif(6))
    assert picture.pixels.flags.c_contiguous
    assert picture.pixels.flags.writeable


# Modes


@pytest.mark.fault("F66")
@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_stays_grey(mode):
    image = Image.fromarray(NOISE).convert(mode)
    picture = reload(image)
    assert picture.mode == mode
    np.testing.assert_array_equal(picture.pixels, np.asarray(image.convert("L")))


@pytest.mark.fault("F66")
def test_palette_becomes_rgb():
    image = Image.fromarray(NOISE).quantize(16)
    picture = reload(image)
    assert picture.mode == "P"
    np.testing.assert_array_equal(picture.pixels, np.asarray(image.convert("RGB")))


@pytest.mark.fault("F66")
@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_palette_entry_becomes_white(format):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    picture = reload(image, format, transparency=0)
    assert picture.pixels.tolist() == [[WHITE, [0, 200, 0]]]
    assert picture.notes == ("alpha flattened on white",)


@pytest.mark.fault("F66")
def test_partly_transparent_palette_is_blended():
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    assert reload(image, transparency=bytes([51, 255])).pixels.tolist() == [[[244, 204, 204], [0, 200, 0]]]


@pytest.mark.fault("F67")
def test_colour_under_alpha_zero_is_gone():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., :3] = NOISE[:4, :4]
    picture = reload(Image.fromarray(pixels))
    assert picture.mode == "RGBA"
    assert (picture.pixels == 255).all()
    assert picture.notes == ("alpha flattened on white",)


@pytest.mark.fault("F67")
def test_alpha_blends_with_white():
    image = Image.new("RGBA", (1, 1), (100, 0, 255, 102))  # alpha 0.4
    assert reload(image).pixels.tolist() == [[[193, 153, 255]]]


@pytest.mark.fault("F67")
def test_opaque_alpha_changes_nothing():
    picture = reload(Image.fromarray(NOISE).convert("RGBA"))
    np.testing.assert_array_equal(picture.pixels, NOISE)
    assert picture.notes == ()


@pytest.mark.fault("F66")
def test_grey_with_alpha_is_flattened_to_grey():
    image = Image.new("LA", (2, 1), (100, 102))
    image.putpixel((1, 0), (7, 255))
    picture = reload(image)
    assert picture.mode == "LA"
    assert picture.pixels.tolist() == [[193, 7]]


@pytest.mark.fault("F67")
@pytest.mark.parametrize(
    ("mode", "transparency", "expected"),
    [("L", 9, [[255, 8]]), ("RGB", (9, 9, 9), [[WHITE, [8, 8, 8]]])],
)
def test_a_colour_declared_transparent_becomes_white(mode, transparency, expected):
    image = Image.fromarray(np.array([[9, 8]], np.uint8)).convert(mode)
    assert reload(image, transparency=transparency).pixels.tolist() == expected


@pytest.mark.fault("F66")
def test_transparent_black_of_a_bilevel_image_becomes_white():
    image = Image.fromarray(np.array([[False, True]]))
    assert reload(image, transparency=0).pixels.tolist() == [[255, 255]]


@pytest.mark.fault("F67", "F68")
def test_transparent_level_of_a_sixteen_bit_image_is_compared_with_all_bits():
    levels = np.array([[0x1234, 0x1235]], np.uint16)
    assert reload(Image.fromarray(levels), transparency=0x1234).pixels.tolist() == [[255, 18]]


@pytest.mark.parametrize("premultiplied", ["RGBa", "La"])
def test_premultiplied_alpha_is_not_darkened(premultiplied):
    straight = Image.new(premultiplied.upper(), (1, 1), (200,) * (len(premultiplied) - 1) + (128,))
    expected = from_pil(straight).pixels.astype(int)
    np.testing.assert_allclose(from_pil(straight.convert(premultiplied)).pixels, expected, atol=1)


@pytest.mark.fault("F66")
def test_palette_with_alpha_channel_is_flattened():
    image = Image.new("PA", (1, 1), (3, 0))
    assert from_pil(image).pixels.tolist() == [[WHITE]]


RAMP = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
SCALED_RAMP = np.floor(RAMP / 257 + 0.5)


@pytest.mark.fault("F68")
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_ramp_is_scaled_not_clipped(format):
    picture = reload(Image.fromarray(RAMP), format)
    assert picture.mode == "I;16"
    assert picture.notes == ("16-bit scaled to 8-bit",)
    np.testing.assert_array_equal(picture.pixels, SCALED_RAMP)


@pytest.mark.fault("F68")
def test_big_endian_sixteen_bit_is_scaled():
    picture = reload(Image.frombytes("I;16B", (256, 256), RAMP.astype(">u2").tobytes()), "TIFF")
    assert picture.mode == "I;16B"
    np.testing.assert_array_equal(picture.pixels, SCALED_RAMP)


@pytest.mark.fault("F68")
def test_sixteen_bit_pgm_is_scaled():
    picture = decode(b"P5 256 256 65535\n" + RAMP.astype(">u2").tobytes(), "a")
    assert picture.mode == "I"
    np.testing.assert_array_equal(picture.pixels, SCALED_RAMP)


@pytest.mark.fault("F68")
def test_twelve_bit_tiff_is_scaled_from_its_own_white():
    tags = {256: (3, 2), 257: (3, 1), 258: (3, 12), 259: (3, 1), 262: (3, 1), 277: (3, 1)}
    assert decode(tiff(tags, b"\xff\xf8\x00"), "a").pixels.tolist() == [[255, 128]]


@pytest.mark.fault("F68")
def test_sixteen_bit_tiff_whose_white_is_zero_is_not_read_as_a_negative():
    tags = {256: (3, 2), 257: (3, 1), 258: (3, 16), 259: (3, 1), 262: (3, 0), 277: (3, 1)}
    assert decode(tiff(tags, struct.pack("<2H", 0, 65_535)), "a").pixels.tolist() == [[255, 0]]


@pytest.mark.fault("F68")
def test_sixteen_bit_colour_keeps_its_upper_bits():
    body = zlib.compress(b"\0" + struct.pack(">3H", 0xFF00, 0x80FF, 0x0012))
    picture = decode(png(png_header(1, 1, 16, 2), (b"IDAT", body)), "a")
    assert picture.pixels.tolist() == [[[255, 128, 0]]]
    assert picture.notes == ("16-bit scaled to 8-bit",)


@pytest.mark.fault("F67", "F68")
def test_transparent_colour_of_a_sixteen_bit_image_becomes_white():
    body = zlib.compress(b"\0" + struct.pack(">6H", 0, 0x11, 0xFF00, 0x4000, 0, 0))
    key = (b"tRNS", struct.pack(">3H", 0, 0x11, 0xFF00))
    assert decode(png(png_header(2, 1, 16, 2), key, (b"IDAT", body)), "a").pixels.tolist() == [
        [WHITE, [64, 0, 0]]
    ]


@pytest.mark.fault("F68")
@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 1.5, 255.0], [0, 2, 255]),
        ([0.0, 32_896.0, 65_535.0], [0, 128, 255]),
    ],
)
def test_floating_point_range_is_recognised(levels, expected):
    picture = reload(Image.fromarray(np.array([levels], np.float32)), "TIFF")
    assert picture.pixels.tolist() == [expected]
    assert picture.notes == ("floating point scaled to 8-bit",)


@pytest.mark.fault("F68")
@pytest.mark.parametrize(
    "levels",
    [
        np.array([[0, np.nan]], np.float32),
        np.array([[0, np.inf]], np.float32),
        np.array([[-0.1, 1]], np.float32),
        np.array([[0, 65_536]], np.float32),
        np.array([[0, 65_536]], np.int32),
        np.array([[-1, 9]], np.int32),
    ],
)
def test_levels_of_no_known_range_are_refused(levels):
    assert refusal(saved(Image.fromarray(levels), "TIFF")) == Reason.MODE_UNSUPPORTED


@pytest.mark.fault("F69")
def test_cmyk_without_a_profile_becomes_rgb():
    image = Image.new("CMYK", (2, 1))
    image.putpixel((1, 0), (255, 0, 0, 0))
    picture = reload(image, "TIFF")
    assert picture.mode == "CMYK"
    assert picture.pixels.tolist() == [[WHITE, [0, 255, 255]]]
    assert picture.notes == ("CMYK without a profile converted to RGB",)


@pytest.mark.fault("F69")
def test_cmyk_jpeg_is_not_inverted():
    picture = reload(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    np.testing.assert_allclose(picture.pixels[0, 0].astype(int), [255, 0, 0], atol=3)


@pytest.mark.fault("F69")
def test_cmyk_with_a_profile_is_colour_managed():
    # Cyan is a grey of L* 50 in this profile, which is 119 in sRGB; without it, it is (0, 255, 255).
    profile = icc_profile(b"CMYK", 4, {0b1000: 128, 0b0001: 0})
    image = Image.new("CMYK", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 0))
    picture = reload(image, "TIFF", icc_profile=profile)
    np.testing.assert_allclose(picture.pixels.astype(int), [[[119] * 3, WHITE]], atol=2)
    assert picture.notes == ("ICC profile converted to sRGB",)


@pytest.mark.fault("F70")
def test_rgb_with_a_profile_is_colour_managed():
    profile = icc_profile(b"RGB ", 3, {0b000: 0, 0b100: 128})
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (255, 255, 255))
    picture = reload(image, icc_profile=profile)
    np.testing.assert_allclose(picture.pixels.astype(int), [[[119] * 3, WHITE]], atol=2)
    assert picture.notes == ("ICC profile converted to sRGB",)


@pytest.mark.fault("F70")
def test_grey_with_a_profile_is_colour_managed_and_stays_grey():
    profile = icc_profile(b"GRAY", 1, {0: 0, 1: 128})
    # Half way to L* 50 is L* 25, which is 60 in sRGB.
    picture = reload(Image.new("L", (1, 1), 128), icc_profile=profile)
    np.testing.assert_allclose(picture.pixels.astype(int), [[60]], atol=2)


@pytest.mark.fault("F70")
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("profile", [b"not a profile", icc_profile(b"CMYK", 4, {})[:-900], bytes(500_000)])
def test_an_invalid_profile_is_ignored_with_a_note(mode, profile):
    image = Image.new(mode, (4, 4))
    picture = reload(image, "TIFF", icc_profile=profile)
    np.testing.assert_array_equal(picture.pixels, np.asarray(image.convert("L" if mode == "L" else "RGB")))
    assert "invalid ICC profile ignored" in picture.notes


@pytest.mark.fault("F70")
def test_a_profile_for_other_channels_is_ignored():
    picture = reload(Image.fromarray(NOISE), "TIFF", icc_profile=icc_profile(b"CMYK", 4, {}))
    np.testing.assert_array_equal(picture.pixels, NOISE)
    assert picture.notes == ("invalid ICC profile ignored",)


@pytest.mark.fault("F70")
def test_an_srgb_profile_changes_no_pixel():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = reload(Image.fromarray(NOISE), icc_profile=profile)
    np.testing.assert_array_equal(picture.pixels, NOISE)
    assert picture.notes == ()


@pytest.mark.fault("F69")
def test_lab_becomes_srgb():
    image = Image.new("LAB", (2, 1), (128, 128, 128))  # L* 50, neutral
    image.putpixel((1, 0), (128, 178, 128))  # a* +50: red
    picture = reload(image, "TIFF")
    grey, red = picture.pixels[0].astype(int)
    np.testing.assert_allclose(grey, [119] * 3, atol=2)
    np.testing.assert_allclose(red, [192, 77, 121], atol=4)
    assert picture.notes == ("LAB converted to sRGB",)


@pytest.mark.fault("F69")
def test_ycbcr_tiff_becomes_rgb():
    image = Image.new("RGB", (8, 8), (200, 30, 60)).convert("YCbCr")
    picture = reload(image, "TIFF")
    np.testing.assert_allclose(picture.pixels[0, 0].astype(int), [200, 30, 60], atol=2)


# Orientation and metadata

# What the first row and the first column of the stored pixels show (EXIF 2.3, 4.6.4).
FIRST_ROW_AND_COLUMN = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    row, column = FIRST_ROW_AND_COLUMN[orientation]
    stored = upright if row in ("top", "bottom") else np.swapaxes(upright, 0, 1)
    stored = stored[::-1] if row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if column in ("bottom", "right") else stored
    return np.ascontiguousarray(stored)


def orientation_exif(value: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.fault("F71")
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_baked_in(format, orientation):
    image = Image.fromarray(as_stored(NOISE, orientation))
    options = {"lossless": True} if format == "WEBP" else {}
    picture = reload(image, format, exif=orientation_exif(orientation), **options)
    np.testing.assert_array_equal(picture.pixels, NOISE)


@pytest.mark.fault("F71")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_orientation_agrees_with_pillow(orientation):
    data = noise_file("JPEG", exif=orientation_exif(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data, "a").pixels, np.asarray(expected))


@pytest.mark.fault("F71")
@pytest.mark.parametrize("value", [0, 9, 65_535, "6", b"\x06", (6, 6), 6.0])
def test_an_orientation_that_does_not_exist_counts_as_upright(value):
    image = Image.fromarray(NOISE)
    image.getexif()[0x0112] = value
    np.testing.assert_array_equal(from_pil(image).pixels, NOISE)


@pytest.mark.fault("F71")
@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_an_orientation_in_a_file_that_does_not_exist_counts_as_upright(value):
    np.testing.assert_array_equal(reload(Image.fromarray(NOISE), exif=orientation_exif(value)).pixels, NOISE)


@pytest.mark.fault("F71")
def test_orientation_only_in_xmp_is_honoured():
    text = 'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    stored = as_stored(NOISE, 6)
    rows = b"".join(b"\0" + row.tobytes() for row in stored)
    header = png_header(stored.shape[1], stored.shape[0])
    data = png(header, (b"iTXt", text.encode()), (b"IDAT", zlib.compress(rows)))
    np.testing.assert_array_equal(decode(data, "a").pixels, NOISE)


@pytest.mark.fault("F71")
def test_grey_is_turned_upright_too():
    grey = NOISE[..., 0]
    image = Image.fromarray(as_stored(grey, 5))
    np.testing.assert_array_equal(reload(image, exif=orientation_exif(5)).pixels, grey)


@pytest.mark.fault("F72")
@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage that is no TIFF header",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40,
        b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\0",  # its own sub-IFD
    ],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_never_costs_the_pixels(format, block):
    options = {"lossless": True} if format == "WEBP" else {}
    picture = reload(Image.fromarray(NOISE), format, exif=block, **options)
    clean = reload(Image.fromarray(NOISE), format, **options)
    np.testing.assert_array_equal(picture.pixels, clean.pixels)
    assert picture.metadata.date is None


@pytest.mark.fault("F72")
def test_orientation_survives_a_damaged_neighbour():
    # The maker claims to lie far beyond the end; the date is in a directory that does not exist.
    entries = [(0x010F, 2, 99, 0xFFFFFF), (0x0112, 3, 1, 3), (0x8769, 4, 1, 0xFFFFFF)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4)
    picture = reload(Image.fromarray(as_stored(NOISE, 3)), exif=block)
    np.testing.assert_array_equal(picture.pixels, NOISE)


def test_metadata_is_read():
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Acme", "Box 3000"
    exif[0x0132] = "2024:05:18 00:00:00"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:17 12:30:00"
    picture = reload(Image.fromarray(NOISE), "JPEG", exif=exif, dpi=(300, 300))
    assert picture.metadata == Metadata(
        dpi=(300.0, 300.0), date="2024:05:17 12:30:00", make="Acme", model="Box 3000"
    )


def test_date_falls_back_to_the_date_of_the_file():
    exif = Image.Exif()
    exif[0x0132] = "2024:05:18 00:00:00"
    assert reload(Image.fromarray(NOISE), "JPEG", exif=exif).metadata.date == "2024:05:18 00:00:00"


@pytest.mark.fault("F74")
def test_free_text_in_metadata_is_cut_and_cleaned():
    exif = Image.Exif()
    exif[0x010F] = "\x1b[31mAcme\n" + "x" * 5000
    exif[0x0110] = "\0\0"
    exif[0x0132] = "a payload of any length"
    metadata = reload(Image.fromarray(NOISE), "JPEG", exif=exif).metadata
    assert metadata.make == ("[31mAcme" + "x" * 5000)[:64]
    assert metadata.model is None
    assert metadata.date is None


@pytest.mark.parametrize("dpi", [(0, 0), (-5, 72), (float("nan"), 72), (1e9, 72), ("a", "b"), (72,), 72])
def test_impossible_resolution_is_dropped(dpi):
    image = Image.fromarray(NOISE)
    image.info["dpi"] = dpi
    assert from_pil(image).metadata.dpi is None


# PIL images


def test_a_pil_image_is_converted_and_left_as_it_was():
    image = Image.fromarray(np.dstack([NOISE, np.full((40, 30), 102, np.uint8)]))
    before = image.tobytes()
    picture = from_pil(image)
    np.testing.assert_array_equal(picture.pixels, reload(image).pixels)
    assert image.tobytes() == before
    assert image.mode == "RGBA"


def test_a_pil_image_in_memory_counts_as_png():
    assert from_pil(Image.new("RGB", (4, 4))).format == "PNG"
    assert from_pil(Image.open(io.BytesIO(noise_file("JPEG")))).format == "JPEG"


def test_a_pil_image_with_frames_or_damage_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        from_pil(Image.open(io.BytesIO(frames("GIF"))))
    assert caught.value.reason == Reason.MULTIFRAME
    (tmp_path / "cut.jpg").write_bytes(noise_file("JPEG")[:-500])
    with Image.open(tmp_path / "cut.jpg") as image, pytest.raises(InputError, match=r"cut\.jpg: ") as caught:
        from_pil(image)
    assert caught.value.reason == Reason.TRUNCATED


def test_a_pil_image_without_pixels_is_refused():
    with pytest.raises(InputError) as caught:
        from_pil(Image.new("RGB", (0, 4)))
    assert caught.value.reason == Reason.EMPTY
