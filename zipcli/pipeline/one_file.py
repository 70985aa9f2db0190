"""The one file that a command was asked to write: looked at before the work, whole or not there after it."""

import os
from pathlib import Path

from zipcli.errors import ConfigError, InputError, shown
from zipcli.images.write import publish
from zipcli.pipeline.plan import check_folder


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written before minutes are spent on it.

    Raises:
        ConfigError: Something is in the way, or its folder is missing.
    """
    check_name(target, overwrite=overwrite)
    check_folder(target.parent)


def check_name(target: Path, *, overwrite: bool) -> None:
    """Refuse the name of a folder, and of a file that is there unless it may give way.

    Raises:
        ConfigError: It is one of these.
    """
    name = shown(str(target))
    if target.is_dir():
        raise ConfigError(f"{name}: a folder is in the way; give the name of a file")
    if not overwrite and os.path.lexists(target):
        raise ConfigError(f"{name}: is there already; use --overwrite or choose another name")


def write_target(data: bytes, target: Path, *, overwrite: bool) -> None:
    """Write it; `overwrite` says whether what is there by now may give way.

    Raises:
        ConfigError: Something is in the way, or the name is not possible there.
        OutputError: The folder cannot be written.
    """
    try:
        publish(data, target.parent, target.name, target.parent, replace=overwrite)
    except InputError as e:
        raise ConfigError(str(e)) from e
