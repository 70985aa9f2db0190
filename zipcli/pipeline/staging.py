"""A folder that appears whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from zipcli.errors import ConfigError, OutputError, shown
from zipcli.pipeline.lock import locked

LOCK = ".lock"


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a folder to write to, which becomes `out` when the block ends well.

    When the block fails nothing stays; what a kill left is removed by the next run.

    Raises:
        ConfigError: `out` exists and is no empty folder.
        LockedError: Another run is making `out`.
        OutputError: The folder that holds `out` cannot be written.
    """
    check_free(out)
    folder = out.absolute().with_name(f".{out.absolute().name}.unfinished")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{shown(str(out))}: cannot write there: {e.strerror}") from e
    with locked(folder / LOCK, out):
        try:
            _empty(folder)
            yield folder
            check_free(out)
            (folder / LOCK).unlink()
            folder.replace(out)  # takes the place of an empty folder
        except BaseException as e:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(e, OSError):
                raise OutputError(
                    f"{shown(str(out))}: cannot write there: {e.strerror}; check space and permissions"
                ) from e
            raise


def check_free(out: Path) -> None:
    """Refuse a folder that holds something: nothing of anybody's is overwritten or mixed.

    Raises:
        ConfigError: There is something.
    """
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise ConfigError(f"{shown(str(out))}: the output exists and is not a folder; choose another")
    if any(out.iterdir()):
        raise ConfigError(f"{shown(str(out))}: the output folder is not empty; choose another or remove it")


def _empty(folder: Path) -> None:
    for inner in folder.iterdir():
        if inner.name == LOCK:
            continue
        if inner.is_dir() and not inner.is_symlink():
            shutil.rmtree(inner)
        else:
            inner.unlink()
