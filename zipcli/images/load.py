"""Reads image files that may be damaged or hostile into upright 8-bit grey or sRGB pixels.

Whatever is wrong with one file becomes an `InputError` with a reason; nothing else leaves this
module because of what a file contains. A file may still crash a decoder, stall it or fill the
memory: `guard` decodes in another process, with the same functions.
"""

import errno
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, UnidentifiedImageError

from zipcli.config import LIMITS, Limits
from zipcli.errors import InputError, Reason, shown

Pixels = NDArray[np.uint8]

# Every other decoder is off: the costliest measured input was a 284-byte file of a format that
# nobody needs. MPO comes in through the JPEG decoder.
ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")


# Formats that are written too, and the suffixes under which people expect to find them.
SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
_PROMISES = {".gif": "GIF"} | {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}

BAND_PIXELS = 2**20
MESSAGE_LENGTH = 300
"""Characters of a decoder's own words that a message shows."""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """All that the `safe` policy keeps of what surrounds the pixels; each value is checked.

    Attributes:
        dpi: Horizontal and vertical resolution.
        date: When the picture was taken, as EXIF writes it: `2024:05:17 12:30:00`.
        make: Maker of the camera.
        model: Name of the camera.
    """

    dpi: tuple[float, float] | None = None
    date: str | None = None
    make: str | None = None
    model: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One decoded image.

    Attributes:
        pixels: uint8, (H, W) grey or (H, W, 3) sRGB, upright, contiguous.
        format: Format of the file by its content, such as "JPEG".
        mode: Mode of the pixels in the file, such as "RGBA" or "I;16".
        metadata: What may be kept beside the pixels.
        notes: What was changed on the way, in short sentences.
    """

    pixels: Pixels
    format: str
    mode: str
    metadata: Metadata
    notes: tuple[str, ...] = ()


def read_file(path: Path, limits: Limits = LIMITS, *, name: str | None = None) -> bytes:
    """Read a regular file once, without ever waiting on a pipe or a device.

    What a network file system has lost sight of, or a disk could not read, is asked for once more.

    Args:
        path: The file.
        limits: `max_bytes` is checked before anything is read.
        name: What messages call the file; its path when left out.

    Raises:
        InputError: The file is gone, unreadable, empty, too large or not a regular file.
    """
    name = str(path) if name is None else name
    try:
        return _read_once(path, limits, name)
    except InputError as e:
        if getattr(e.__cause__, "errno", None) not in (errno.EIO, errno.ESTALE):
            raise
    return _read_once(path, limits, name)


def _read_once(path: Path, limits: Limits, name: str) -> bytes:
    try:
        # A FIFO without a writer would block a plain open for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            size = _checked_size(os.fstat(descriptor), name, limits)
            data = _read_at_most(descriptor, size + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise read_error(error, name) from error
    if len(data) != size:
        raise InputError(Reason.CHANGED_DURING_READ, f"{name}: it changed while it was read; run again")
    return data


def _checked_size(status: os.stat_result, name: str, limits: Limits) -> int:
    """Size of an open file, once it is known to be one that we read."""
    if not stat.S_ISREG(status.st_mode):
        raise InputError(Reason.NOT_A_FILE, f"{name}: not a regular file; give the path of an image file")
    check_size(status.st_size, name, limits)
    return status.st_size


def check_size(size: int, name: str, limits: Limits) -> None:
    """Refuse a file by its size, before anything of it is read.

    Raises:
        InputError: It is empty or too large.
    """
    if size == 0:
        raise InputError(Reason.EMPTY, f"{name}: the file is empty; copy it again from its source")
    _check_bytes(size, name, limits)


def _check_bytes(size: int, name: str, limits: Limits) -> None:
    if size > limits.max_bytes:
        message = f"{name}: {size:,} bytes are more than the limit of {limits.max_bytes:,}"
        raise InputError(Reason.BOMB_BYTES, f"{message}; save it smaller first, or raise --max-bytes")


def _read_at_most(descriptor: int, count: int) -> bytes:
    """Read until the end of the file or `count` bytes; one read may return less than it was asked."""
    parts = []
    while count > 0 and (part := os.read(descriptor, count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_error(error: OSError, name: str) -> InputError:
    """Translate what the operating system says about a file."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return InputError(Reason.VANISHED, f"{name}: there is no such file; check the path")
    if error.errno == errno.ENXIO:  # a socket
        return InputError(Reason.NOT_A_FILE, f"{name}: not a regular file; give the path of an image file")
    return InputError(Reason.UNREADABLE, f"{name}: {error.strerror}; check the permissions and the disk")


def decode(data: bytes, name: str, limits: Limits = LIMITS) -> Picture:
    """Decode the bytes of an image file completely, in this process: for files that we made ourselves.

    Args:
        data: The whole file, as `read_file` returned it, so that what was hashed is what is decoded.
        name: What messages call the file; its extension counts for `strict_ext` alone.
        limits: Checked against the header, before pixels are decoded. `seconds` and `memory` are the
            business of `guard`.

    Raises:
        InputError: The bytes are not one whole still image of an allowed format and size.
    """
    check_data(data, name, limits)
    try:
        return _decode(data, name, limits, allow_truncated=False)
    except InputError as error:
        if not limits.allow_truncated or error.reason is not Reason.TRUNCATED:
            raise
    # Only now, so that no other file is decoded with fewer checks, and so that we know what to note.
    picture = _decode(data, name, limits, allow_truncated=True)
    return replace(picture, notes=("degraded: the image data ends early", *picture.notes))


def declared_size(data: bytes, name: str, limits: Limits = LIMITS) -> tuple[int, int]:
    """Width and height that a file declares, without decoding it, in this process.

    Raises:
        InputError: As `decode`, as far as the header tells.
    """
    check_data(data, name, limits)
    with _pillow_switches(), _decoder_errors(name, data), _open(data, name, limits) as image:
        _check_header(image, name, limits)
        return image.size


def check_data(data: bytes, name: str, limits: Limits) -> None:
    """Refuse what needs no look inside.

    Raises:
        InputError: There are no bytes, or too many.
    """
    if not data:
        raise InputError(Reason.EMPTY, f"{name}: the file is empty; copy it again from its source")
    _check_bytes(len(data), name, limits)


def _decode(data: bytes, name: str, limits: Limits, *, allow_truncated: bool) -> Picture:
    with _pillow_switches(allow_truncated), _decoder_errors(name, data), _open(data, name, limits) as image:
        _check_header(image, name, limits)
        return _picture(image, name, is_ours=True)


def from_pil(image: Image.Image) -> Picture:
    """Convert a PIL image the way `decode` converts a file; its owner has already opened it.

    Raises:
        InputError: The image has several frames, a mode we do not know, or its file is damaged.
    """
    name = str(getattr(image, "filename", "") or "image")
    with _pillow_switches(), _decoder_errors(name):
        if _has_frames(image):
            raise _several_frames(name)
        return _picture(image, name)


# How many threads are inside the switches below, what they were set to, and how to set them back.
_switches = threading.Condition()
_threads_inside = 0
_truncated_allowed = False
_switch_back = ExitStack()


@contextmanager
def _pillow_switches(allow_truncated: bool = False) -> Iterator[None]:
    """Silence Pillow's warnings and refuse truncated data (or allow it) while any thread decodes.

    The switches belong to the whole process. The first thread in sets them and the last one out
    restores them: threads that each restored what they found would restore each other's settings.
    A thread that needs them otherwise waits.
    """
    global _threads_inside, _truncated_allowed
    with _switches:
        _switches.wait_for(lambda: not _threads_inside or _truncated_allowed == allow_truncated)
        if not _threads_inside:
            _truncated_allowed = allow_truncated
            _switch_back.enter_context(warnings.catch_warnings())
            # Damaged tags are dropped anyway.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _switch(ImageFile, "LOAD_TRUNCATED_IMAGES", allow_truncated)
            # Size is checked against our own limit, which may be higher.
            _switch(Image, "MAX_IMAGE_PIXELS", None)
        _threads_inside += 1
    try:
        yield
    finally:
        with _switches:
            _threads_inside -= 1
            if not _threads_inside:
                _switch_back.close()
                _switches.notify_all()


def _switch(module: Any, name: str, value: Any) -> None:
    _switch_back.callback(setattr, module, name, getattr(module, name))
    setattr(module, name, value)


_TRUNCATED = re.compile(r"truncat|broken data stream|unexpected end|not enough (image )?data", re.IGNORECASE)


@contextmanager
def _decoder_errors(name: str, data: bytes = b"") -> Iterator[None]:
    """Turn whatever a decoder raises into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise out_of_memory(name) from error
    # Damaged files make Pillow raise OSError, ValueError, IndexError, TypeError, SyntaxError,
    # NotImplementedError, struct.error and more, so no list is complete at this boundary.
    except Exception as error:
        said = shown(" ".join(str(error).split()))[:MESSAGE_LENGTH] or type(error).__name__
        if "out of memory" in said:
            raise out_of_memory(name) from error
        if isinstance(error, EOFError) or _TRUNCATED.search(said) or _is_short(data):
            reason, what = Reason.TRUNCATED, "the image data ends early"
        # Compressed text or a profile, or all text together, that unpacks beyond Pillow's limit.
        elif "too large" in said or "Too much memory" in said:
            reason, what = Reason.BOMB_BYTES, "it unpacks to too many bytes"
        else:
            reason, what = Reason.CORRUPT, "cannot be decoded"
        raise InputError(reason, f"{name}: {what} ({said}); restore it from its source") from error


def out_of_memory(name: str) -> InputError:
    """Say that a file cannot be decoded in the memory that there is."""
    message = f"{name}: there is not enough memory to decode it; make it smaller first"
    return InputError(Reason.OUT_OF_MEMORY, f"{message}, or raise --decode-memory")


def _is_short(data: bytes) -> bool:
    """Whether the bytes are fewer than their own header says; not every decoder tells why it fails."""
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"\x89PNG"):
        return len(data) < 33  # up to the end of IHDR
    if data.startswith(b"GIF8"):
        has_palette = len(data) > 10 and data[10] & 0x80
        return len(data) < 13 + (3 * 2 ** ((data[10] & 7) + 1) if has_palette else 0)
    return _is_short_tiff(data)


def _is_short_tiff(data: bytes) -> bool:
    """Whether a TIFF ends before its first directory does; writers that compress put that last."""
    order: Literal["little", "big"] = "big" if data.startswith(b"MM") else "little"
    layouts = {42: (4, 4, 2, 12), 43: (8, 8, 8, 20)}  # place and size of the offset; size of count and entry
    layout = layouts.get(int.from_bytes(data[2:4], order)) if data[:2] in (b"II", b"MM") else None
    if layout is None:
        return False
    place, width, of_count, of_entry = layout
    start = int.from_bytes(data[place : place + width], order)
    count = int.from_bytes(data[start : start + of_count], order)
    return start >= 8 and len(data) < start + of_count + count * of_entry


def _open(data: bytes, name: str, limits: Limits) -> Image.Image:
    """Read the header with the allowed decoders only; the extension plays no part."""
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X":
        # Its decoder takes the memory of the whole canvas as soon as it is opened.
        width, height = (1 + int.from_bytes(data[start : start + 3], "little") for start in (24, 27))
        _check_size(width, height, name, limits)
    try:
        return Image.open(BytesIO(data), formats=ALLOWED_FORMATS)
    except UnidentifiedImageError as error:
        raise _not_identified(data, name) from error


# First bytes. Recognised by hand, so that no decoder outside the allow-list ever sees the data.
_ALLOWED_MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n",
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF....WEBP",
    "TIFF": rb"II[\x2a\x2b]\x00|MM\x00[\x2a\x2b]",
}
_OTHER_MAGIC = {
    "PSD": rb"8BPS",
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF",
    "SVG": rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg",
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(hei[cfmsx]|hev[cmx]|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "JPEG 2000": rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  ",
    "ICO": rb"\x00\x00[\x01\x02]\x00[^\x00]\x00",
    "ICNS": rb"icns",
    "DDS": rb"DDS ",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Radiance HDR": rb"#\?R(ADIANC|GB)E",
    "QOI": rb"qoif",
    "FITS": rb"SIMPLE  =",
    "BLP": rb"BLP[12]",
    "SGI": rb"\x01\xda[\x00\x01][\x01\x02]",
    "PCX": rb"\x0a[\x00-\x05][\x00\x01][\x01\x02\x04\x08]",
    "FLI": rb"....[\x11\x12]\xaf",
    "XBM": rb"\s*#define\s+\w+_width",
    "XPM": rb"/\* XPM \*/",
    "WMF": rb"\xd7\xcd\xc6\x9a|\x01\x00\x09\x00\x00\x03",
    "EMF": rb"\x01\x00\x00\x00.{36} EMF",
    "Sun raster": rb"\x59\xa6\x6a\x95",
}


def _kind(data: bytes, magic: dict[str, bytes]) -> str | None:
    """Name of the format whose first bytes these are."""
    return next((kind for kind, start in magic.items() if re.match(start, data[:512], re.DOTALL)), None)


_PICTURE_MAGIC = {
    **_ALLOWED_MAGIC,
    "BMP": rb"BM.{4}\x00{4}.{4}[\x0c\x28\x40\x6c\x7c]\x00{3}",
    "PNM": rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s",
    **{name: _OTHER_MAGIC[name] for name in ("AVIF", "HEIC", "JPEG XL", "JPEG 2000", "PSD", "SVG", "QOI")},
}


def picture_kind(data: bytes) -> str | None:
    """Name of the picture format whose first bytes these are, read by us or not; None for other data.

    For those who must not hand a picture on unseen: a text or an array hardly ever begins like one.
    """
    return _kind(data, _PICTURE_MAGIC)


_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".lz4")
_NO_PICTURES = (".pdf", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr")
"""Names that Pillow knows and nobody who asks for pictures reads."""


def is_called_a_picture(name: str) -> bool:
    """Whether a reader could take a file for a picture by its name, packed or not, whatever it holds."""
    lowered = name.lower()
    for suffix in _COMPRESSIONS:
        lowered = lowered.removesuffix(suffix)
    suffix = "." + lowered.rpartition(".")[2]
    return suffix in Image.registered_extensions() and suffix not in _NO_PICTURES


def _not_identified(data: bytes, name: str) -> InputError:
    """Say what a file is that no allowed decoder takes."""
    if _is_short(data):
        message = f"{name}: the image data ends early; restore it from its source"
        return InputError(Reason.TRUNCATED, message)
    if kind := _kind(data, _ALLOWED_MAGIC):
        message = f"{name}: the header of this {kind} file is damaged; restore it from its source"
        return InputError(Reason.CORRUPT, message)
    if kind := _kind(data, _OTHER_MAGIC):
        message = f"{name}: {kind} files are not read; convert it to PNG first"
        return InputError(Reason.FORMAT_NOT_ALLOWED, message)
    message = f"{name}: not an image that we know; convert it to PNG or leave it out"
    return InputError(Reason.UNIDENTIFIED, message)


def _check_size(width: int, height: int, name: str, limits: Limits) -> None:
    """Refuse a size, before anything of it is allocated."""
    if width * height > limits.max_pixels:
        message = f"{name}: {width:,} x {height:,} is more than the limit of {limits.max_pixels:,} pixels"
        raise InputError(Reason.BOMB_PIXELS, f"{message}; make it smaller first, or raise --max-pixels")
    if max(width, height) > limits.max_side:
        message = f"{name}: {width:,} x {height:,} is more than the limit of {limits.max_side:,} a side"
        raise InputError(Reason.BOMB_PIXELS, f"{message}; make it smaller first")


def _check_header(image: Image.Image, name: str, limits: Limits) -> None:
    """Refuse what is too large, moves or has the wrong name, before pixels are decoded."""
    _check_size(*image.size, name, limits)
    if limits.frames == "one" and _has_frames(image):
        raise _several_frames(name)
    if limits.strict_ext and (broken := broken_promise(name, image.format or "")):
        message = f"{name}: the extension promises {broken[0]}, but the content is {broken[1]}"
        raise InputError(Reason.EXTENSION_MISMATCH, f"{message}; rename it, or leave out --strict-ext")


def broken_promise(name: str, format: str) -> tuple[str, str] | None:
    """The format that an extension promises and the one of the content, where they are not the same."""
    promised = _PROMISES.get(PurePath(name).suffix.lower())
    actual = "JPEG" if format == "MPO" else format
    return None if promised in (None, actual) else (str(promised), actual)


def _has_frames(image: Image.Image) -> bool:
    # An APNG of one frame plus a default image counts as two pictures but is not "animated";
    # asking every format for n_frames instead would walk through a whole GIF.
    several = getattr(image, "is_animated", False)
    return bool(several or (image.format == "PNG" and getattr(image, "n_frames", 1) > 1))


def _several_frames(name: str) -> InputError:
    message = f"{name}: animated and multi-page images are not supported"
    return InputError(Reason.MULTIFRAME, f"{message}; extract one frame first, or use --frames first")


def _picture(image: Image.Image, name: str, *, is_ours: bool = False) -> Picture:
    """Decode the pixels and bring them, and what may be kept beside them, to our form.

    An image that is ours gives its memory back as soon as it can: a WebP holds four copies of it.
    """
    if 0 in image.size:
        raise InputError(Reason.EMPTY, f"{name}: the image has no pixels; leave it out")
    notes = ["the first of several frames"] if _has_frames(image) else []
    format_, mode, has_16_bits = image.format or "PNG", image.mode, _stores_16_bits(image)
    image.load()
    # Only now: a PNG may carry EXIF after its pixels, and Pillow turns a TIFF while it loads.
    exif = _exif(image, notes)
    colour, alpha = _separate(image, name, has_16_bits, notes)
    if is_ours and colour is not image:
        image.close()
    colour = _to_srgb(colour, image.info.get("icc_profile"), notes)
    if alpha is not None and alpha.getextrema() != (255, 255):
        colour = _on_white(colour, alpha)
        notes.append("alpha flattened on white")
    pixels = _upright(np.array(colour), exif.get(ExifTags.Base.Orientation), notes)
    metadata = _metadata(image.info.get("dpi"), exif)
    return Picture(pixels=pixels, format=format_, mode=mode, metadata=metadata, notes=tuple(notes))


def _stores_16_bits(image: Image.Image) -> bool:
    """Whether a colour file has 16 bits per channel, of which Pillow only gives us the upper 8."""
    # "BGR;16" without a byte order is a BMP with 16 bits per pixel.
    return any(re.search(r";16[BLN]", str(tile[3])) for tile in getattr(image, "tile", ()))


# Colour modes, and the mode that has the same pixels and fits what follows.
_COLOUR_MODES = {
    "L": "L",
    "RGB": "RGB",
    "RGBX": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
    "CMYK": "CMYK",
    "LAB": "LAB",
    "1": "L",
    "P": "RGB",
}
_ALPHA_MODES = {"LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}


def _separate(
    image: Image.Image, name: str, has_16_bits: bool, notes: list[str]
) -> tuple[Image.Image, Image.Image | None]:
    """Split a loaded image of any mode into colour (L, RGB, CMYK or LAB) and alpha (L) if it has any."""
    mode = image.mode
    alpha: Image.Image | None
    if mode in _ALPHA_MODES or (mode == "P" and image.has_transparency_data):
        straight = _ALPHA_MODES.get(mode, "RGBA")
        image = image if mode == straight else image.convert(straight)  # which would be a copy
        colour, alpha = image.convert("L" if image.mode == "LA" else "RGB"), image.getchannel("A")
    elif mode in _COLOUR_MODES:
        colour = image if mode == _COLOUR_MODES[mode] else image.convert(_COLOUR_MODES[mode])
        alpha = _keyed_alpha(colour, image.info.get("transparency"), has_16_bits)
    elif mode in _DEEP_MODES:
        colour = Image.fromarray(_DEEP_MODES[mode](image, name))
        alpha = _keyed_alpha(image, image.info.get("transparency"), False)
        has_16_bits = mode != "F"
    else:
        raise InputError(
            Reason.MODE_UNSUPPORTED, f"{name}: pixels of mode {mode}; convert it to 8-bit RGB first"
        )
    if mode == "F":
        notes.append("floating point scaled to 8-bit")
    elif has_16_bits:
        notes.append("16-bit scaled to 8-bit")
    return colour, alpha


def _keyed_alpha(image: Image.Image, key: Any, has_16_bits: bool) -> Image.Image | None:
    """Alpha of an image in which one grey level or one colour is declared transparent."""
    if key is None or isinstance(key, bytes):
        return None
    levels = np.asarray(image)
    if np.shape(key) != levels.shape[2:]:
        return None
    if has_16_bits and levels.ndim == 3:
        key = tuple(level >> 8 for level in key)
    is_transparent = levels == np.array(key)
    if levels.ndim == 3:
        is_transparent = is_transparent.all(axis=2)
    return Image.fromarray(np.where(is_transparent, 0, 255).astype(np.uint8))


def _from_16_bits(image: Image.Image, name: str) -> Pixels:
    """Scale I;16; `convert` would clip all but the darkest 256 levels to white."""
    tags = getattr(image, "tag_v2", {})
    # Pillow hands out 12-bit TIFF as it is, and does not turn 16-bit TIFF whose white is 0.
    white = 4095 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 65_535
    pixels = _scaled(np.asarray(image), white)
    return 255 - pixels if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else pixels


def _from_32_bits(image: Image.Image, name: str) -> Pixels:
    """Scale I, which holds 16-bit levels in every file that is an ordinary picture."""
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65_535:
        message = f"{name}: levels from {levels.min()} to {levels.max()} are not 16-bit"
        raise InputError(Reason.MODE_UNSUPPORTED, f"{message}; convert it to 8-bit first")
    return _scaled(levels, 65_535)


def _from_float(image: Image.Image, name: str) -> Pixels:
    """Scale F, whose range no header tells: 0 to 1, else 0 to 255, else 0 to 65535."""
    levels = np.asarray(image)
    low, high = float(levels.min()), float(levels.max())  # NaN if any level is
    if not (low >= 0 and high <= 65_535):
        message = f"{name}: floating-point levels from {low:g} to {high:g}"
        raise InputError(Reason.MODE_UNSUPPORTED, f"{message}; convert it to 8-bit first")
    scale = 255.0 if high <= 1 else 1.0 if high <= 255 else 1 / 257
    return _in_bands(levels, lambda band: np.floor(band * np.float32(scale) + np.float32(0.5)))


def _scaled(levels: NDArray[Any], white: int) -> Pixels:
    """Map 0 to `white` onto 0 to 255, rounding half up."""
    return _in_bands(levels, lambda band: (band.astype(np.uint32) * 510 + white) // (2 * white))


def _in_bands(levels: NDArray[Any], change: Callable[[NDArray[Any]], NDArray[Any]]) -> Pixels:
    """Apply a function to some rows at a time: its intermediate results are many times as large."""
    changed = np.empty(levels.shape, np.uint8)
    rows = max(1, BAND_PIXELS // levels.shape[1])
    for top in range(0, len(levels), rows):
        changed[top : top + rows] = change(levels[top : top + rows])
    return changed


_DEEP_MODES: dict[str, Callable[[Image.Image, str], Pixels]] = {
    "I;16": _from_16_bits,
    "I;16L": _from_16_bits,
    "I;16B": _from_16_bits,
    "I;16N": _from_16_bits,
    "I": _from_32_bits,
    "F": _from_float,
}
MODES = frozenset({*_COLOUR_MODES, *_ALPHA_MODES, *_DEEP_MODES})
"""Modes of the files that we decode."""


def _to_srgb(colour: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Bring L, RGB, CMYK or LAB to L or RGB in sRGB; a profile that does not work is ignored."""
    if colour.mode == "LAB":
        notes.append("LAB converted to sRGB")
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return _applied(_transform(lab, "LAB"), colour)
    if profile:
        try:
            transform = _transform(ImageCms.ImageCmsProfile(BytesIO(profile)), colour.mode)
            if _changes_nothing(transform, colour.mode):
                return colour
            converted = _applied(transform, colour)
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            notes.append("invalid ICC profile ignored")
        else:
            notes.append("ICC profile converted to sRGB")
            return converted
    if colour.mode == "CMYK":
        notes.append("CMYK without a profile converted to RGB")
        return colour.convert("RGB")
    return colour


def _transform(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    """A transform from `profile` to sRGB: white stays white, and black stays black."""
    return ImageCms.buildTransform(
        profile,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _applied(transform: ImageCms.ImageCmsTransform, colour: Image.Image) -> Image.Image:
    """The image in sRGB; grey in, grey out."""
    converted = ImageCms.applyTransform(colour, transform)
    assert converted is not None  # only an in-place transform returns nothing
    return converted.convert("L") if colour.mode == "L" else converted


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform is sRGB to sRGB but for rounding, tried on colours from all over the cube.

    Most cameras embed sRGB; converting it would only add a rounding error to every pixel.
    """
    if mode == "CMYK":
        return False
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(len(levels), -1, 3)
    probe = cube if mode == "RGB" else np.arange(256, dtype=np.uint8)[None]
    converted = np.asarray(_applied(transform, Image.fromarray(probe)))
    return bool(np.abs(converted.astype(int) - probe).max() <= 2)


def _on_white(colour: Image.Image, alpha: Image.Image) -> Image.Image:
    """Blend with white, so that what alpha hid is gone from the pixels."""
    white = Image.new(colour.mode, colour.size, "white")
    white.paste(colour, mask=alpha)
    return white


_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.swapaxes(np.rot90(pixels, 2), 0, 1),
    8: np.rot90,
}


def _upright(pixels: Pixels, orientation: Any, notes: list[str]) -> Pixels:
    """Bake the EXIF orientation into the pixels; any value that is not one of the eight counts as 1."""
    if isinstance(orientation, int) and orientation in _TURNS:
        notes.append("turned upright")
        pixels = _TURNS[orientation](pixels)
    return np.ascontiguousarray(pixels)


_EXIF_TAGS = (
    ExifTags.Base.Orientation,  # first, since it must not be lost to a damaged neighbour
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.DateTime,
    ExifTags.Base.XResolution,
    ExifTags.Base.YResolution,
)
_TAKEN = ExifTags.Base.DateTimeOriginal


def _exif(image: Image.Image, notes: list[str]) -> dict[int, Any]:
    """The few EXIF tags that we use, as far as they can be read."""
    found: dict[int, Any] = {}
    try:
        exif = image.getexif()
        for tag in _EXIF_TAGS:
            if tag in exif:
                found[tag] = exif[tag]
        found[_TAKEN] = exif.get_ifd(ExifTags.IFD.Exif).get(_TAKEN, "")
    except MemoryError:  # the same file must not come out upright or not, as the memory will have it
        raise
    # Damaged EXIF raises as many types as damaged pixels, and must never cost the pixels.
    except Exception:
        notes.append("damaged EXIF ignored")
    return found


_DATE = re.compile(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d")


def _metadata(dpi: Any, exif: dict[int, Any]) -> Metadata:
    """Keep what has the form it should have: free text could carry anything."""
    dates = (str(exif.get(tag, "")).strip("\0 ") for tag in (_TAKEN, ExifTags.Base.DateTime))
    if dpi is None:
        dpi = (exif.get(ExifTags.Base.XResolution), exif.get(ExifTags.Base.YResolution))
    return Metadata(
        dpi=_dpi(dpi),
        date=next((date for date in dates if _DATE.fullmatch(date)), None),
        make=_plain_text(exif.get(ExifTags.Base.Make)),
        model=_plain_text(exif.get(ExifTags.Base.Model)),
    )


def checked_metadata(metadata: Metadata) -> Metadata:
    """What may be kept of metadata of unknown origin."""
    date = str(metadata.date or "")
    return Metadata(
        dpi=_dpi(metadata.dpi),
        date=date if _DATE.fullmatch(date) else None,
        make=_plain_text(metadata.make),
        model=_plain_text(metadata.model),
    )


def _dpi(value: Any) -> tuple[float, float] | None:
    """Two resolutions that a file can state, or None. Rounded, since formats store metres or inches."""
    try:
        x, y = (round(float(side), 2) for side in value)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None
    # 1 is what Pillow reports when a file gives an aspect ratio without a unit.
    return (x, y) if 1 < x <= 65_535 and 1 < y <= 65_535 else None


def _plain_text(value: Any) -> str | None:
    """At most 64 printable ASCII characters, or None."""
    text = "".join(char for char in str(value or "") if char.isascii() and char.isprintable())
    return text.strip()[:64].strip() or None
