import errno
import io
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from zipcli.errors import InputError, OutputError, Reason
from zipcli.images import write
from zipcli.images.load import Metadata, decode
from zipcli.images.write import encode, is_lossy, output_format, output_name, psnr, publish

GREY = np.random.default_rng(0).integers(0, 256, (21, 34), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (21, 34, 3), dtype=np.uint8)
METADATA = Metadata(dpi=(300.0, 150.0), date="2024:05:17 12:30:00", make="Acme", model="Box 3000")
LOSSLESS = ("PNG", "WEBP", "TIFF", "BMP", "PPM")


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# Names


@pytest.mark.parametrize(
    ("format", "source", "written"),
    [
        ("png", "JPEG", "PNG"),
        ("jpg", "PNG", "JPEG"),
        ("webp", "PNG", "WEBP"),
        ("same", "PNG", "PNG"),
        ("same", "JPEG", "JPEG"),
        ("same", "MPO", "JPEG"),
        ("same", "WEBP", "WEBP"),
        ("same", "TIFF", "TIFF"),
        ("same", "BMP", "BMP"),
        ("same", "PPM", "PPM"),
        ("same", "GIF", "PNG"),
    ],
)
def test_output_format(format, source, written):
    assert output_format(format, source) == written


@pytest.mark.parametrize(
    ("name", "format", "source", "expected"),
    [
        ("a.jpg", "png", "JPEG", "a.png"),
        ("dir.jpg/a.jpg", "png", "JPEG", "dir.jpg/a.png"),
        ("a.b.JPEG", "png", "JPEG", "a.b.png"),
        ("a.PNG", "png", "PNG", "a.PNG"),
        ("a.jpg", "png", "PNG", "a.png"),  # a PNG under a wrong name: only the name counts
        ("a.png", "jpg", "PNG", "a.jpg"),
        ("a.JPEG", "jpg", "JPEG", "a.JPEG"),
        ("a.png", "same", "JPEG", "a.png"),  # a JPEG under a wrong name keeps it
        ("a.weird", "same", "PNG", "a.weird"),
        ("a.tif", "same", "TIFF", "a.tif"),
        ("a.gif", "same", "GIF", "a.png"),
        ("photo", "png", "JPEG", "photo.png"),
        ("photo.2024", "png", "JPEG", "photo.2024.png"),
        (".jpg", "png", "JPEG", ".jpg.png"),
        ("./x//a b\n.png", "png", "PNG", "./x//a b\n.png"),
    ],
)
def test_output_name(name, format, source, expected):
    assert output_name(name, format, source) == expected


def test_only_jpeg_is_lossy():
    assert is_lossy("JPEG")
    assert not any(is_lossy(format) for format in LOSSLESS)


# Encoding


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_keep_every_pixel(format, pixels):
    decoded = decode(encode(pixels, format, metadata=METADATA), "a")
    expected = np.dstack([pixels] * 3) if format == "WEBP" and pixels.ndim == 2 else pixels
    assert decoded.format == format
    np.testing.assert_array_equal(decoded.pixels, expected)


def test_jpeg_is_written_without_chroma_subsampling():
    with Image.open(io.BytesIO(encode(COLOUR, "JPEG", quality=90))) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3


def test_jpeg_quality_is_what_was_asked_for():
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    good, poor = (encode(smooth, "JPEG", quality=quality) for quality in (95, 30))
    assert psnr(decode(good, "a").pixels, smooth) > psnr(decode(poor, "a").pixels, smooth)
    assert len(good) > len(poor)


@pytest.mark.parametrize("format", [*LOSSLESS, "JPEG"])
def test_the_same_arguments_give_the_same_bytes(format):
    assert encode(COLOUR, format, metadata=METADATA) == encode(COLOUR, format, metadata=METADATA)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_metadata_survives(format):
    metadata = decode(encode(COLOUR, format, metadata=METADATA), "a").metadata
    assert metadata.dpi == pytest.approx(METADATA.dpi, abs=0.02)
    assert (metadata.date, metadata.make, metadata.model) == (METADATA.date, METADATA.make, METADATA.model)


def test_bmp_keeps_the_resolution_only():
    metadata = decode(encode(COLOUR, "BMP", metadata=METADATA), "a").metadata
    assert metadata == Metadata(dpi=pytest.approx(METADATA.dpi, abs=0.02))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_without_metadata_there_is_none(format):
    with Image.open(io.BytesIO(encode(COLOUR, format))) as image:
        assert not {"exif", "comment", "xmp", "icc_profile", "Software"} & set(image.info)
        assert not set(image.getexif()) & {0x010E, 0x010F, 0x0110, 0x0131, 0x0132}


def exif_with_thumbnail(thumbnail: bytes) -> bytes:
    """An EXIF block with a maker in its first directory and a thumbnail in its second."""

    def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
        return (
            b"".join([int.to_bytes(n, size, "little") for n, size in ((tag, 2), (kind, 2), (count, 4))])
            + value
        )

    def number(value: int) -> bytes:
        return value.to_bytes(4, "little")

    first = b"\1\0" + entry(0x010F, 2, 4, b"Acm\0") + number(26)
    second = (
        b"\2\0" + entry(0x0201, 4, 1, number(56)) + entry(0x0202, 4, 1, number(len(thumbnail))) + number(0)
    )
    return b"Exif\0\0II*\0\x08\0\0\0" + first + second + thumbnail


@pytest.mark.fault("F74")
@pytest.mark.parametrize("format", [*LOSSLESS, "JPEG"])
def test_nothing_hidden_in_the_source_reaches_the_output(format):
    thumbnail = saved(Image.new("RGB", (8, 8), "red"), "JPEG", comment=b"THUMBNAIL")
    source = saved(
        Image.fromarray(COLOUR),
        "JPEG",
        exif=exif_with_thumbnail(thumbnail),
        comment=b"COMMENT",
        xmp=b"<XMP/>",
    )
    source += b"TRAILER"
    with Image.open(io.BytesIO(source)) as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)[0x0202] == len(
            thumbnail
        )  # the thumbnail is really there
    picture = decode(source, "a")
    output = encode(picture.pixels, format, metadata=picture.metadata)
    for hidden in (b"THUMBNAIL", b"COMMENT", b"<XMP/>", b"TRAILER", thumbnail[:20]):
        assert hidden in source
        assert hidden not in output
    if format not in ("BMP", "PPM"):
        assert b"Acm" in output


@pytest.mark.fault("F74")
def test_text_of_a_png_does_not_reach_the_output():
    text = PngInfo()
    text.add_text("Comment", "HIDDEN")
    source = saved(Image.fromarray(COLOUR), "PNG", pnginfo=text)
    assert b"HIDDEN" in source
    assert b"HIDDEN" not in encode(decode(source, "a").pixels, "PNG")


@pytest.mark.parametrize(("format", "side"), [("WEBP", 16_384), ("JPEG", 65_501)])
def test_an_image_that_the_format_cannot_hold_is_refused(format, side):
    with pytest.raises(InputError, match=r"^a\.png: .*choose png") as caught:
        encode(np.zeros((1, side), np.uint8), format, name="a.png")
    assert caught.value.reason == Reason.ENCODE_FAILED


def test_one_changed_pixel_in_the_encoded_bytes_is_noticed(monkeypatch):
    other = COLOUR.copy()
    other[3, 4, 1] ^= 1
    wrong = saved(Image.fromarray(other), "PNG")
    monkeypatch.setattr(Image.Image, "save", lambda self, file, *_, **__: file.write(wrong))
    with pytest.raises(InputError, match="not the same picture") as caught:
        encode(COLOUR, "PNG")
    assert caught.value.reason == Reason.ENCODE_FAILED


def test_a_lossy_file_that_shows_another_picture_is_noticed():
    with pytest.raises(InputError, match="higher quality") as caught:
        encode(COLOUR, "JPEG", quality=1)  # noise does not survive this
    assert caught.value.reason == Reason.ENCODE_FAILED


def test_an_encoder_that_fails_costs_one_image(monkeypatch):
    def fail(*_, **__):
        raise OSError("encoder error -2")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(InputError, match="encoder error -2") as caught:
        encode(COLOUR, "PNG")
    assert caught.value.reason == Reason.ENCODE_FAILED


def test_psnr_follows_its_definition():
    a, b = COLOUR, COLOUR[::-1]
    expected = 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))
    assert psnr(a, b) == pytest.approx(expected)
    assert psnr(a, a) == np.inf


# Publishing


@pytest.fixture
def root(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def scratch(root):
    return root / ".zipcli" / "tmp"


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize(
    "name", ["a.png", "x/y/a.png", "x" * 251 + ".png", "-rf \n[/x].png", b"\xff\xfe.png"]
)
def test_a_published_file_is_whole_and_alone(root, scratch, name, replace):
    name = os.fsdecode(name)
    publish(b"data" * 1000, root, name, scratch, replace=replace)
    assert files_below(root) == {name: b"data" * 1000}
    assert (root / name).stat().st_nlink == 1


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0, 0o666)])
def test_permissions_follow_the_umask(root, scratch, umask, mode):
    before = os.umask(umask)
    try:
        publish(b"data", root, "a.png", scratch, replace=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "a.png").stat().st_mode) == mode


def test_replace_replaces(root, scratch):
    (root / "a.png").write_bytes(b"old")
    publish(b"new", root, "a.png", scratch, replace=True)
    assert files_below(root) == {"a.png": b"new"}


def refused(root, scratch, name, *, replace):
    with pytest.raises(InputError, match="; ") as caught:
        publish(b"new", root, name, scratch, replace=replace)
    assert str(caught.value).startswith(f"{name}: ")
    return caught.value.reason


NO_LINKS = OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("has_links", [True, False])
def test_a_foreign_file_is_never_overwritten(root, scratch, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(write.os, "link", fail_with(NO_LINKS))
    (root / "a.png").write_bytes(b"foreign")
    assert refused(root, scratch, "a.png", replace=False) == Reason.FOREIGN_OUTPUT
    assert files_below(root) == {"a.png": b"foreign"}


@pytest.mark.parametrize("has_links", [True, False])
def test_a_dangling_link_at_the_target_is_not_followed(root, scratch, monkeypatch, tmp_path, has_links):
    if not has_links:
        monkeypatch.setattr(write.os, "link", fail_with(NO_LINKS))
    (root / "a.png").symlink_to(tmp_path / "elsewhere.png")
    assert refused(root, scratch, "a.png", replace=False) == Reason.FOREIGN_OUTPUT
    assert not (tmp_path / "elsewhere.png").exists()


def test_a_disk_without_links_gets_its_files_too(root, scratch, monkeypatch):
    monkeypatch.setattr(write.os, "link", fail_with(NO_LINKS))
    publish(b"data", root, "a.png", scratch, replace=False)
    assert files_below(root) == {"a.png": b"data"}


def test_replacing_a_link_leaves_what_it_points_to(root, scratch, tmp_path):
    (tmp_path / "precious.png").write_bytes(b"precious")
    (root / "a.png").symlink_to(tmp_path / "precious.png")
    publish(b"new", root, "a.png", scratch, replace=True)
    assert (tmp_path / "precious.png").read_bytes() == b"precious"
    assert files_below(root) == {"a.png": b"new"}


@pytest.mark.parametrize("replace", [True, False])
def test_a_folder_that_is_a_link_is_not_followed(root, scratch, tmp_path, replace):
    (tmp_path / "elsewhere").mkdir()
    (root / "x").symlink_to(tmp_path / "elsewhere")
    assert refused(root, scratch, "x/a.png", replace=replace) == Reason.FOREIGN_OUTPUT
    assert files_below(tmp_path / "elsewhere") == {}


def test_the_output_folder_itself_may_be_a_link(root, scratch, tmp_path):
    (tmp_path / "link").symlink_to(root)
    publish(b"data", tmp_path / "link", "a.png", scratch, replace=False)
    assert files_below(root) == {"a.png": b"data"}


@pytest.mark.parametrize("replace", [True, False])
def test_a_folder_at_the_target_or_a_file_above_it_is_in_the_way(root, scratch, replace):
    (root / "a.png").mkdir()
    (root / "file").write_bytes(b"")
    assert refused(root, scratch, "a.png", replace=replace) == Reason.FOREIGN_OUTPUT
    assert refused(root, scratch, "file/a.png", replace=replace) == Reason.FOREIGN_OUTPUT
    assert files_below(root) == {"file": b""}


def test_a_file_in_place_of_the_scratch_or_output_folder_stops_the_run(root, scratch):
    (root / ".zipcli").mkdir()
    scratch.write_bytes(b"")
    with pytest.raises(OutputError, match="Not a directory"):
        publish(b"new", root, "a.png", scratch, replace=True)
    with pytest.raises(OutputError, match="Not a directory"):
        publish(b"new", scratch, "a.png", root / "tmp", replace=True)
    assert files_below(root) == {".zipcli/tmp": b""}


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/tmp/a.png", "", "."])
def test_a_name_that_leads_out_of_the_folder_is_refused(root, scratch, name):
    assert refused(root, scratch, name, replace=True) == Reason.NAME_UNSUPPORTED
    assert files_below(root) == {}


def test_a_name_that_is_too_long_costs_one_image(root, scratch):
    assert refused(root, scratch, "x" * 300 + ".png", replace=False) == Reason.NAME_UNSUPPORTED
    assert files_below(root) == {}


def fail_with(error: OSError):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "mkdir", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_written_stops_the_run(root, scratch, monkeypatch, call, number):
    scratch.mkdir(parents=True)
    (root / "x").mkdir()
    (root / "x" / "a.png").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(write.os, call, fail_with(OSError(number, os.strerror(number))))
        with pytest.raises(OutputError, match=rf"^x/a\.png: .*{os.strerror(number)}.*; .+"):
            publish(b"new", root, "x/a.png", scratch, replace=True)
    assert files_below(root) == {"x/a.png": b"old"}


def test_an_interrupted_write_leaves_nothing_behind(root, scratch, monkeypatch):
    monkeypatch.setattr(write.os, "fsync", fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        publish(b"data", root, "a.png", scratch, replace=False)
    assert files_below(root) == {}


def test_short_writes_are_continued(root, scratch, monkeypatch):
    monkeypatch.setattr(write.os, "write", lambda fd, data, real=os.write: real(fd, data[:3]))
    publish(b"0123456789", root, "a.png", scratch, replace=False)
    assert files_below(root) == {"a.png": b"0123456789"}


def test_a_folder_that_cannot_be_synced_is_no_failure(root, scratch, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(write.os, "fsync", fsync)
    publish(b"data", root, "a.png", scratch, replace=False)
    assert files_below(root) == {"a.png": b"data"}


def test_content_reaches_the_disk_before_its_name_and_the_name_before_return(root, scratch, monkeypatch):
    calls = []

    def recorded(name, real):
        def call(*arguments, **options):
            calls.append(name)
            return real(*arguments, **options)

        return call

    for name in ("write", "fsync", "replace"):
        monkeypatch.setattr(write.os, name, recorded(name, getattr(os, name)))
    publish(b"data", root, "a.png", scratch, replace=True)
    assert calls == ["write", "fsync", "replace", "fsync"]


@pytest.mark.parametrize("replace", [True, False])
def test_on_another_device_the_unfinished_file_lies_beside_the_target(root, scratch, monkeypatch, replace):
    name = "replace" if replace else "link"
    real = getattr(os, name)

    def cross_device(source, target, *, src_dir_fd, dst_dir_fd, **options):
        if not os.path.sameopenfile(src_dir_fd, dst_dir_fd):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **options)

    monkeypatch.setattr(write.os, name, cross_device)
    publish(b"data", root, "x/a.png", scratch, replace=replace)
    assert files_below(root) == {"x/a.png": b"data"}


def test_descriptors_do_not_leak(root, scratch):
    (root / "a.png").write_bytes(b"foreign")
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else None
    for number in range(20):
        publish(b"data", root, f"x/y/{number}.png", scratch, replace=False)
        refused(root, scratch, "a.png", replace=False)
    if before is None:
        pytest.skip("no /proc to count descriptors in")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


PUBLISH = """
import sys
from pathlib import Path
from zipcli.errors import OutputError
from zipcli.images.write import publish

root = Path(sys.argv[1])
publish(b"small", root, "small.png", root / ".zipcli", replace=False)
try:
    publish(bytes(2**21), root, "big.png", root / ".zipcli", replace=False)
except OutputError as error:
    print(error)
"""


def run_python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    folder = Path(__file__).parents[1]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout


def test_a_limit_on_file_sizes_leaves_no_half_file(root):
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
    said = run_python(limit + PUBLISH, root)
    assert said.startswith("big.png: cannot be written (File too large); ")
    assert files_below(root) == {"small.png": b"small"}


def test_a_full_disk_leaves_no_half_file(root):
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("needs the right to mount a small disk")
    try:
        said = run_python(PUBLISH, root)
        left = files_below(root)
    finally:
        subprocess.run(["umount", str(root)], check=True, timeout=10)
    assert said.startswith("big.png: cannot be written (No space left on device); free some space")
    assert left == {"small.png": b"small"}


def test_reading_and_writing_need_no_torch():
    modules = run_python("import sys, zipcli.images.load, zipcli.images.write; print(*sys.modules)")
    assert "PIL.Image" in modules.split()
    assert "torch" not in modules.split()
