"""Image files that nobody's camera writes, made byte by byte."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PICTURE = np.random.default_rng(7).integers(0, 256, (24, 20, 3), dtype=np.uint8)
"""What the good ones show: taller than wide, so that a turn is seen."""

OTHER = np.full((16, 16, 3), (200, 0, 0), dtype=np.uint8)
"""What hides in them."""


def saved(pixels: np.ndarray | Image.Image, format: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def shows(data: bytes) -> np.ndarray:
    """The pixels as Pillow has them, unturned."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in (*chunks, (b"IEND", b"")):
        parts += [struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(kind + body))]
    return b"".join(parts)


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def png_of(pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """An 8-bit RGB PNG with more chunks before its pixels."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return png(png_header(pixels.shape[1], pixels.shape[0]), *chunks, (b"IDAT", zlib.compress(rows)))


def tiff_header(width: int, height: int, strip: bytes, **tags: tuple[int, int]) -> bytes:
    """A little-endian grey TIFF that says that all its pixels are in one strip."""
    values = {
        256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, 1), 262: (3, 1), 277: (3, 1), 278: (4,
            height),
        273: (4, 8 + 2 + 12 * 9 + 4), 279: (4, len(strip)),
    }  # fmt: skip
    values |= {int(tag.removeprefix("tag")): value for tag, value in tags.items()}
    entries = [struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(values.items())]
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + b"".join(entries) + b"\0\0\0\0" + strip


def write_sparse_tiff(path: Path, side: int) -> None:
    """A whole TIFF of side x side pixels of which the disk holds the header only."""
    size = side * side
    assert size < 2**32
    header = tiff_header(side, side, b"", tag279=(4, size))
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)


def gif_with_canvas(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.new("P", (1, 1)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def gif_with_frame(width: int, height: int) -> bytes:
    """A GIF of one pixel whose one frame is larger than that."""
    data = bytearray(saved(Image.new("P", (1, 1)), "GIF"))
    place = data.index(b",")
    data[place + 5 : place + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_with_canvas() -> bytes:
    """An extended WebP of 16,384 x 16,384 around a picture of one pixel."""
    inner = saved(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_383).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", 4 + len(extended) + len(inner)) + b"WEBP" + extended + inner


def bmp_that_declares(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.new("RGB", (1, 1)), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def exif_block(*entries: tuple[int, int, int, bytes], after: bytes = b"", next_ifd: int = 0) -> bytes:
    """EXIF with one directory; `after` follows it, at offset 14 + 12 * len(entries)."""
    body = b"".join(
        struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0") for tag, kind, count, value in entries
    )
    return (
        b"Exif\0\0II*\0\x08\0\0\0"
        + struct.pack("<H", len(entries))
        + body
        + struct.pack("<I", next_ifd)
        + after
    )


def number(value: int) -> bytes:
    return struct.pack("<I", value)


def jpeg_with_thumbnail(pixels: np.ndarray, thumbnail: np.ndarray) -> bytes:
    """A JPEG whose EXIF thumbnail shows another picture."""
    small = saved(thumbnail, "JPEG", quality=95)
    first = 8 + 2 + 12 + 4  # where the second directory begins
    second = struct.pack("<H", 2) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in ((0x0201, first + 2 + 24 + 4), (0x0202, len(small)))
    )
    block = exif_block((0x0112, 3, 1, number(1)), after=second + bytes(4) + small, next_ifd=first)
    return saved(pixels, "JPEG", quality=95, exif=block)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def turned_twice(format: str, exif: int, xmp: int) -> bytes:
    """PICTURE with one orientation in EXIF and another in XMP."""
    block, text = exif_block((0x0112, 3, 1, number(exif))), XMP % xmp
    if format == "PNG":
        chunk = b"XML:com.adobe.xmp\0\0\0\0\0" + text
        return png_of(PICTURE, (b"iTXt", chunk), (b"eXIf", block[6:]))
    if format == "TIFF":
        return saved(PICTURE, "TIFF", tiffinfo={274: exif, 700: text})
    options = {"lossless": True} if format == "WEBP" else {"quality": 95}
    return saved(PICTURE, format, exif=block, xmp=text, **options)


def hidden_under_alpha() -> bytes:
    """An image that shows nothing: the picture has alpha 0 everywhere."""
    return saved(np.dstack([PICTURE, np.zeros(PICTURE.shape[:2], np.uint8)]), "PNG")


def drawn_in_alpha() -> bytes:
    """A flat image with a patch that is in its alpha channel only."""
    pixels = np.full((24, 20, 4), (90, 90, 90, 255), np.uint8)
    pixels[16:, 12:, 3] = 51
    return saved(pixels, "PNG")


def many_scans(count: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = saved(PICTURE, "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * count + data[-2:]
