"""Encodes purified pixels, checks that they survive, and publishes files without halves or overwrites."""

import errno
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageChops

from zipcli.config import Limits
from zipcli.errors import InputError, OutputError, Reason, shown
from zipcli.images.load import SUFFIXES as SUFFIXES
from zipcli.images.load import Metadata, Pixels, decode

Fill = Callable[[Callable[[bytes], object]], None]
"""Makes the content of a file that is too large for the memory: calls what it is given with one part after
the other. It may be asked more than once, and gives the same bytes each time."""

_IMAGE_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes} | {".gif"}
_WANTED = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
_MAX_SIDE = {"WEBP": 16_383, "JPEG": 65_500}
_PSNR_FLOOR = 20.0  # decibels; a lossy file below it no longer shows the same picture


def output_format(format: str, source_format: str) -> str:
    """Format to write: what the user asked for, or for `same` that of the source.

    A format that we cannot write without reducing colours, such as GIF, becomes PNG.

    Args:
        format: png, same, jpg or webp.
        source_format: Format of the source by its content, such as "GIF".
    """
    if format != "same":
        return _WANTED[format]
    source_format = "JPEG" if source_format == "MPO" else source_format
    return source_format if source_format in SUFFIXES else "PNG"


def output_name(name: str, format: str, source_format: str) -> str:
    """Name of the output of the file `name`, which may contain folders.

    The name stays as it is where the format does, even if its suffix is wrong, and where the
    suffix already fits. Otherwise an image suffix is replaced, and any other ending is kept and
    extended. Only `same` looks at the source's format, so for the others the names of a whole
    folder are known before a file is opened.
    """
    written = output_format(format, source_format)
    if format == "same" and source_format in (*SUFFIXES, "MPO"):
        return name
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 (pathlib would normalise the folders)
    if suffix.lower() in SUFFIXES[written]:
        return name
    return (stem if suffix.lower() in _IMAGE_SUFFIXES else name) + SUFFIXES[written][0]


def is_lossy(format: str) -> bool:
    """Whether writing the format ("JPEG", ...) changes pixels; WebP is written without loss."""
    return format == "JPEG"


def encode(
    pixels: Pixels,
    format: str,
    *,
    quality: int = 95,
    metadata: Metadata | None = None,
    name: str = "image",
) -> bytes:
    """Encode pixels, decode the result again, and return it if it shows the same picture.

    The same arguments give the same bytes. Nothing but the metadata travels with the pixels: the
    file is built from the bare array.

    Args:
        pixels: uint8, (H, W) grey or (H, W, 3) sRGB. WebP has no grey and stores three equal channels.
        format: A key of `SUFFIXES`.
        quality: Quality of JPEG, 1 to 100; chroma is not subsampled.
        metadata: What to write beside the pixels, or None for nothing.
        name: What messages call the image.

    Raises:
        InputError: The format cannot hold the image, or the encoded image is not the one given.
    """
    longest, limit = max(pixels.shape[:2]), _MAX_SIDE.get(format, math.inf)
    if longest > limit:
        message = f"{name}: {format} holds at most {limit:,} pixels per side, not {longest:,}"
        raise InputError(Reason.ENCODE_FAILED, f"{message}; choose png")
    buffer = BytesIO()
    settings = _settings(format, quality) | _metadata_settings(format, metadata or Metadata())
    try:
        Image.fromarray(pixels).save(buffer, format, **settings)
    except (OSError, ValueError, MemoryError) as error:
        message = f"{name}: cannot be encoded as {format} ({error})"
        raise InputError(Reason.ENCODE_FAILED, f"{message}; choose another format") from error
    data = buffer.getvalue()
    _check_encoded(data, pixels, format, name)
    return data


def _settings(format: str, quality: int) -> dict[str, Any]:
    """Pillow's options for one format; all but JPEG keep every pixel."""
    if format == "JPEG":
        return {"quality": quality, "subsampling": 0}
    if format == "WEBP":
        return {"lossless": True}
    return {"compression": "tiff_deflate"} if format == "TIFF" else {}


def _metadata_settings(format: str, metadata: Metadata) -> dict[str, Any]:
    """Resolution, and an EXIF block made from scratch: a copied one could hold a thumbnail."""
    tags: dict[int, Any] = {
        ExifTags.Base.Make: metadata.make,
        ExifTags.Base.Model: metadata.model,
        ExifTags.Base.DateTime: metadata.date,
    }
    if metadata.dpi and format == "WEBP":  # has no other place for it
        tags[ExifTags.Base.XResolution], tags[ExifTags.Base.YResolution] = metadata.dpi
    exif = Image.Exif()
    exif.update({tag: value for tag, value in tags.items() if value is not None})
    settings: dict[str, Any] = {"exif": exif.tobytes()} if len(exif) and format not in ("BMP", "PPM") else {}
    return settings | ({"dpi": metadata.dpi} if metadata.dpi else {})


def _check_encoded(data: bytes, pixels: Pixels, format: str, name: str) -> None:
    """Raise unless the encoded bytes decode to the same pixels, or for a lossy format nearly so."""
    height, width = pixels.shape[:2]
    limits = Limits(max_bytes=len(data), max_pixels=height * width, max_side=max(height, width))
    try:
        decoded = decode(data, name, limits).pixels
    except InputError as error:
        raise InputError(Reason.ENCODE_FAILED, f"{error} (this is the {format} just encoded)") from error
    if format == "WEBP" and pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if is_lossy(format):
        is_same = decoded.shape == pixels.shape and psnr(decoded, pixels) >= _PSNR_FLOOR
    else:
        is_same = np.array_equal(decoded, pixels)
    if not is_same:
        message = f"{name}: encoded as {format}, it is not the same picture any more"
        raise InputError(Reason.ENCODE_FAILED, f"{message}; choose png, or a higher quality")


_SQUARES = np.arange(256, dtype=np.int64) ** 2


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of two images of equal shape in decibels; infinite when equal."""
    # A histogram of differences needs no wide copy of the pixels.
    counts = ImageChops.difference(Image.fromarray(a), Image.fromarray(b)).histogram()
    squares = int(np.reshape(counts, (-1, 256)).sum(axis=0) @ _SQUARES)
    return 10 * math.log10(255**2 * a.size / squares) if squares else math.inf


def publish(
    data: bytes | Fill, root: Path, relative: str | PurePath, scratch: Path, *, replace: bool
) -> None:
    """Make `data` appear as `root / relative`, whole or not at all, and durable on return.

    The bytes go to a new file in `scratch`, to the disk, and only then to their name. Folders are
    created as needed, and symbolic links below `root` are not followed.

    Args:
        data: Content of the file, or what makes it.
        root: The output folder; it exists.
        relative: Path of the file below `root`.
        scratch: Folder for unfinished files, created if missing. It should be on the same device.
        replace: Whether a file that is already there gives way.

    Raises:
        InputError: Something that is not ours is in the way, or the name is not possible there.
        OutputError: The folder cannot be written; the next file would not fare better.
    """
    *folders, base = PurePath(relative).parts or ("",)
    if PurePath(relative).is_absolute() or base in ("", "..") or ".." in folders:
        message = f"{shown(str(relative))}: this name leads out of the output folder"
        raise InputError(Reason.NAME_UNSUPPORTED, f"{message}; rename the file")
    with _write_errors(relative), _folder(root, folders) as target, _scratch(scratch) as temporary:
        try:
            _publish(data, temporary, target, base, replace=replace)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # The target is on a device of its own: the unfinished file has to be beside it.
            _publish(data, target, target, base, replace=replace)


def _publish(data: bytes | Fill, scratch: int, target: int, base: str, *, replace: bool) -> None:
    """The same with open folders in place of paths, so that nobody can swap them meanwhile."""
    # Short, and independent of the target, whose name may already be as long as names can be.
    part = f".zipcli-{secrets.token_hex(8)}.part"
    try:
        _write(data, part, scratch)
        if replace:
            os.replace(part, base, src_dir_fd=scratch, dst_dir_fd=target)
        else:
            _rename_to_free_name(part, scratch, base, target)
        _sync_folder(target)
    finally:
        with suppress(OSError):  # gone after a rename; and the first error is the one to report
            os.unlink(part, dir_fd=scratch)


def _write(data: bytes | Fill, part: str, scratch: int) -> None:
    """Write a new file with the permissions that the umask leaves, down to the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o666, dir_fd=scratch)
    try:
        if isinstance(data, bytes):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        else:
            with open(descriptor, "wb", closefd=False) as file:  # it has no path
                data(file.write)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def _rename_to_free_name(part: str, scratch: int, base: str, target: int) -> None:
    """Rename, but raise `FileExistsError` where a plain rename would overwrite."""
    try:
        os.link(part, base, src_dir_fd=scratch, dst_dir_fd=target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without links there is no atomic way in the standard library; the check comes close.
        with suppress(FileNotFoundError):
            os.stat(base, dir_fd=target, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), base) from error
        os.replace(part, base, src_dir_fd=scratch, dst_dir_fd=target)


_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def _folder(root: Path, folders: list[str]) -> Iterator[int]:
    """Open `root/a/b/...`, creating what is missing and following no symbolic link below `root`."""
    descriptor = _open_folder(root)
    try:
        for folder in folders:
            try:
                os.mkdir(folder, dir_fd=descriptor)
            except FileExistsError:
                pass
            else:
                _sync_folder(descriptor)
            inner = os.open(folder, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _scratch(path: Path) -> Iterator[int]:
    with suppress(FileExistsError):
        path.mkdir(parents=True)
    descriptor = _open_folder(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_folder(path: Path) -> int:
    """Open a folder that every file needs, so that its absence concerns the whole run."""
    try:
        return os.open(path, _FOLDER_FLAGS)
    except NotADirectoryError as error:
        raise _cannot_write(path, error) from error


def withdraw(root: Path, relative: str | PurePath) -> None:
    """Remove `root / relative`, if it is there, without following symbolic links below `root`.

    Raises:
        OSError: That is not possible, or there are links on the way.
    """
    *folders, base = PurePath(relative).parts
    with suppress(FileNotFoundError), _folder(root, folders) as folder:
        os.unlink(base, dir_fd=folder)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable where the file system can.

    Raises:
        OSError: It cannot be opened, or the disk fails.
    """
    descriptor = os.open(folder, _FOLDER_FLAGS)
    try:
        _sync_folder(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(descriptor: int) -> None:
    """Make names durable where the file system can; some say EINVAL to the very question."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


_IN_THE_WAY = {errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
_BAD_NAME = {errno.ENAMETOOLONG, errno.EILSEQ}
_ADVICE = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some of your quota and run the same command again",
    errno.EFBIG: "raise the limit on file sizes and run the same command again",
    errno.EROFS: "choose an output folder on a disk that can be written",
    errno.EACCES: "check the permissions of the output folder",
    errno.EPERM: "check the permissions of the output folder",
    errno.EIO: "check the disk before you run the same command again",
}


@contextmanager
def _write_errors(relative: str | PurePath) -> Iterator[None]:
    """Tell what concerns one file from what will stop every file."""
    try:
        yield
    except OSError as error:
        if error.errno in _IN_THE_WAY:
            message = f"{shown(str(relative))}: something that this run did not write is in the way"
            raise InputError(Reason.FOREIGN_OUTPUT, f"{message}; move it or choose another folder") from error
        if error.errno in _BAD_NAME:
            message = f"{shown(str(relative))}: the output folder cannot hold this name"
            raise InputError(Reason.NAME_UNSUPPORTED, f"{message}; rename the file") from error
        raise _cannot_write(relative, error) from error


def _cannot_write(path: str | PurePath, error: OSError) -> OutputError:
    advice = _ADVICE.get(error.errno or 0, "check the output folder and run the same command again")
    return OutputError(f"{shown(str(path))}: cannot be written ({error.strerror}); {advice}")
