"""With which settings an output folder was made: the file OUT/.zipcli/run.json.

Settings are never mixed in one folder. The first run writes the file, and it alone: runs that start at
the same moment (shards) cannot each write another.
"""

import contextlib
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zipcli import __version__
from zipcli.errors import ConfigError, shown
from zipcli.pipeline.outcome import json_path, path_from_json
from zipcli.pipeline.url import Url

STATE_FOLDER = ".zipcli"

FORMAT = 1
"""Version of the files in the state folder; a newer one is refused."""

ALGORITHM = 1
"""Rises when the same settings give other pixels; part of the fingerprint."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What run.json says.

    Attributes:
        settings: Of the outputs.
        fingerprint: Of the settings.
        version: Of the zipcli that wrote there last.
        input: Where the images were, or None where that was not recorded.
        input_url: The same where they were remote.
    """

    settings: dict[str, Any]
    fingerprint: str
    version: str
    input: Path | None
    input_url: str | None = None

    @property
    def has_tars(self) -> bool:
        """Whether the outputs are tar shards."""
        return self.settings.get("tar_shards") is True


def read_state(out: Path) -> State:
    """Read run.json of an output folder; a run may be writing there meanwhile.

    Raises:
        ConfigError: There is none, or it is damaged or of a newer version.
    """
    file = out / STATE_FOLDER / "run.json"
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise no_ledger(shown(str(out))) from e
    except OSError as e:
        raise ConfigError(f"{shown(str(file))}: cannot be read: {e.strerror}") from e
    return parse_state(data, shown(str(file)))


def no_ledger(name: str) -> ConfigError:
    """What to say of a folder that zipcli has not written to."""
    return ConfigError(f"{name}: holds no ledger; give the output folder of zipcli purify")


def parse_state(data: bytes, name: str) -> State:
    """Understand run.json, which messages call `name`.

    Raises:
        ConfigError: It is damaged or of a newer version.
    """
    try:
        run = json.loads(data)
        is_newer = int(run["format"]) > FORMAT
        state = State(
            settings=dict(run["settings"]),
            fingerprint=str(run["fingerprint"]),
            version=str(run.get("version")),
            input=Path(path_from_json(run, "input")) if "input" in run else None,
            input_url=str(run["input_url"]) if "input_url" in run else None,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ConfigError(f"{name}: damaged ({e}); purify again, with --overwrite") from e
    if is_newer:
        raise ConfigError(f"{name}: written by a newer zipcli; install that version to go on")
    return state


def complete(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as run.json holds them."""
    completed: dict[str, Any] = json.loads(json.dumps({"algorithm": ALGORITHM, **settings}, allow_nan=False))
    return completed


def fingerprint(settings: dict[str, Any]) -> str:
    """Digest of everything that can change the bytes of an output, 32 hex digits."""
    text = json.dumps(settings, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def has_settings(out: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder has these settings, or none yet."""
    if not os.path.lexists(out / STATE_FOLDER / "run.json"):
        return True
    try:
        return read_state(out).settings == settings
    except ConfigError:
        return False


def refuse_other_settings(out: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on in a folder of other settings.

    Raises:
        ConfigError: It has them, or run.json is damaged or of a newer version.
    """
    if not os.path.lexists(out / STATE_FOLDER / "run.json"):
        return
    refuse_difference(read_state(out).settings, settings, shown(str(out)))


def refuse_difference(known: dict[str, Any], settings: dict[str, Any], name: str) -> None:
    """Refuse to mix the settings of a folder, which messages call `name`, with others.

    Raises:
        ConfigError: They differ.
    """
    if known != settings:
        names = sorted(known.keys() | settings.keys(), key=lambda name: (name != "method", name))
        differing = [name for name in names if known.get(name) != settings.get(name)]
        changed = [
            f"{name.rstrip('_')}: {known.get(name)!r} there, {settings.get(name)!r} now" for name in differing
        ]
        # Which one auto means is a matter of the processor, so nobody may have chosen either.
        is_that = differing == ["dtype"] and "dtype" in known
        go_on = f"go on with --dtype {shown(str(known['dtype']))}, " if is_that else ""
        raise ConfigError(
            f"{name}: holds images purified with other settings ({'; '.join(changed)}); {go_on}choose "
            "another output folder, or use --overwrite to purify all of them again"
        )


def run_json(settings: dict[str, Any], source: Path | Url | None) -> bytes:
    """The bytes of run.json."""
    run = {
        "format": FORMAT,
        "version": __version__,
        "fingerprint": fingerprint(settings),
        "settings": settings,
    }
    if isinstance(source, Url):
        run["input_url"] = str(source)
    elif source is not None:
        run |= json_path("input", os.path.abspath(source))  # noqa: PTH100  # links stay as given
    return json.dumps(run, indent=2, sort_keys=True).encode()


def write_settings(
    out: Path, settings: dict[str, Any], source: Path | Url | None, scratch: Path, *, overwrite: bool
) -> None:
    """Record the settings of a folder, durably, whole or not at all.

    Args:
        out: The output folder; its state folder exists.
        settings: Of this run, as `complete` returns them.
        source: The input folder.
        scratch: Where unfinished files may lie.
        overwrite: Whether other settings give way.

    Raises:
        ConfigError: Another run has recorded others meanwhile, and `overwrite` is False.
        OSError: The folder cannot be written.
    """
    file = out / STATE_FOLDER / "run.json"
    data = run_json(settings, source)
    with contextlib.suppress(OSError):
        if file.read_bytes() == data:
            return
    temporary = scratch / f"run-{secrets.token_hex(8)}.part"
    try:
        with temporary.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        if not overwrite:
            # Settings that were there are ours by now; so whoever writes first decides.
            with contextlib.suppress(OSError):
                file.hardlink_to(temporary)
            refuse_other_settings(out, settings)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
