"""Reads what `zipcli attack` wrote, or plain class folders: images with the truth about each."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zipcli.config import FolderConfig, check
from zipcli.errors import ConfigError, InputError, shown
from zipcli.images.load import Pixels
from zipcli.pipeline.dataset import read_dataset, read_rgb
from zipcli.pipeline.outcome import path_from_json
from zipcli.pipeline.plan import Entry
from zipcli.pipeline.poison import ATTACK_FILE, FORMAT, MANIFEST_FILE


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One file of the set.

    Attributes:
        id: What identifies the original, relative to the folder that was attacked.
        label: Index of the true class.
        path: The file, relative to the set.
        sha256: Digest that the file must have; None where nobody noted it.
    """

    id: str
    label: int
    path: str
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class PoisonedSet:
    """A folder to evaluate.

    Attributes:
        base: The folder.
        name: What was done to it, in a few words.
        classes: Names in the order of their indices.
        target: Index of the class that the attacker wants; None without an attack.
        clean: Images without the trigger.
        poisoned: Images with it.
        facts: What attack.json says; empty without an attack.
    """

    base: Path
    name: str
    classes: tuple[str, ...]
    target: int | None
    clean: tuple[Picture, ...]
    poisoned: tuple[Picture, ...]
    facts: dict[str, Any]


def read_poisoned_set(base: Path, folder_config: FolderConfig, check_stop: Callable[[], None]) -> PoisonedSet:
    """Read the manifest of an attack, or walk class folders where there is none.

    Raises:
        ConfigError: The folder is no set of images, its manifest is damaged or does not belong to it.
    """
    if (base / ATTACK_FILE).is_file():
        return _attacked(base)
    dataset = read_dataset(base, folder_config, check_stop)
    for outcome in dataset.lost:
        check(
            outcome.state != "failed",
            f"{shown(outcome.path)}: {outcome.message}; an evaluation leaves nothing out",
        )
    pictures = tuple(
        Picture(id=s.entry.path, label=s.label, path=s.entry.path, sha256=None) for s in dataset.samples
    )
    return PoisonedSet(
        base=base, name="clean", classes=dataset.classes, target=None, clean=pictures, poisoned=(), facts={}
    )


def _attacked(base: Path) -> PoisonedSet:
    name = shown(str(base))
    try:
        facts = json.loads((base / ATTACK_FILE).read_bytes())
        manifest = (base / MANIFEST_FILE).read_bytes()
        check(facts["format"] == FORMAT, f"{name}: written by another version of zipcli; attack again")
        check(
            hashlib.sha256(manifest).hexdigest() == facts["manifest_sha256"],
            f"{name}: {MANIFEST_FILE} and {ATTACK_FILE} do not belong together; attack again",
        )
        records = [json.loads(line) for line in manifest.splitlines()]
        settings = facts["settings"]
        check(
            settings["split"] == "test",
            f"{name}: a training split; evaluate a test split (zipcli attack without --split train)",
        )
        clean = tuple(
            _picture(record, "clean_path", record["out_sha256"] if record["role"] == "clean" else None)
            for record in records
            if record["clean_path"] is not None
        )
        poisoned = tuple(
            _picture(record, "out_path", record["out_sha256"])
            for record in records
            if record["role"] == "poison" and record["out_path"] is not None
        )
        return PoisonedSet(
            base=base,
            name=f"{settings['attack']} ({settings['profile']})",
            classes=tuple(facts["classes"]),
            target=int(settings["target"]),
            clean=clean,
            poisoned=poisoned,
            facts=facts,
        )
    except ConfigError:
        raise
    except OSError as e:
        raise ConfigError(f"{name}: cannot be read: {e.strerror}; attack again") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(f"{name}: {MANIFEST_FILE} or {ATTACK_FILE} is damaged ({e}); attack again") from e


def _picture(record: dict[str, Any], key: str, sha256: str | None) -> Picture:
    return Picture(
        id=path_from_json(record, "id"),
        label=int(record["orig_label"]),
        path=path_from_json(record, key),
        sha256=sha256,
    )


def read_picture(base: Path, picture: Picture) -> tuple[Pixels, str]:
    """Read an image of the set, (H, W, 3), and the digest of its file.

    Raises:
        ConfigError: It is missing, damaged or not the one that was written.
    """
    entry = Entry(path=picture.path, source=base / picture.path, target=picture.path, size=0)
    try:
        pixels, data = read_rgb(entry, None)
    except InputError as e:
        raise ConfigError(f"{e}; an evaluation leaves nothing out: mend or remove it and attack again") from e
    digest = hashlib.sha256(data).hexdigest()
    check(
        picture.sha256 in (None, digest),
        f"{shown(picture.path)}: not the image that the attack wrote; attack again into a new folder",
    )
    return pixels, digest
