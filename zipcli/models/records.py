"""What we keep of models beside the Hub's cache, and where. No torch here.

A record says which files of a commit are a model, and what their digests were when they came.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from zipcli.errors import ModelError
from zipcli.models.catalog import CATALOG, HubName
from zipcli.models.hub import hub_constants, is_writable, private_folder


def own_folders(kind: str) -> list[Path]:
    """Our folders of one kind, the preferred one first: beside the Hub's cache, or private."""
    return [Path(hub_constants().HF_ASSETS_CACHE).expanduser() / "zipcli" / kind, private_folder() / kind]


def own_folder(kind: str) -> Path:
    """The first of our folders of one kind that can be written."""
    folders = own_folders(kind)
    for folder in folders:
        if is_writable(folder):
            return folder
    raise ModelError(
        f"{' and '.join(map(str, folders))} cannot be written; "
        "set HF_HOME or ZIPCLI_CACHE to a folder that can"
    )


def _name(snapshot: Path, place: HubName) -> str:
    wanted = hashlib.sha256(place.file.encode()).hexdigest()[:12] if place.file else "default"
    return f"{place.repository.replace('/', '--')}-{snapshot.name}-{wanted}.json"


def read_record(snapshot: Path, place: HubName) -> dict[str, dict[str, str]] | None:
    """Files and digests by role, of a model that was pulled; None without a record."""
    for folder in reversed(own_folders("pulled")):
        with suppress(OSError, ValueError, TypeError, KeyError):
            record = json.loads((folder / _name(snapshot, place)).read_text())
            return {"files": dict(record["files"]), "sha256": dict(record["sha256"])}
    return None


def write_record(snapshot: Path, place: HubName, files: dict[str, str], digests: dict[str, str]) -> None:
    """Keep a record where that is possible; without it the cache is still found, but not compared."""
    with suppress(OSError, ModelError):
        folder = own_folder("pulled")
        folder.mkdir(parents=True, exist_ok=True)
        record = {"name": str(place), "commit": snapshot.name, "files": files, "sha256": digests}
        write_atomically(folder / _name(snapshot, place), json.dumps(record, indent=1).encode())


def pulled_names() -> list[str]:
    """Names of the models that were pulled by name and are not in the catalog."""
    names = set()
    for folder in own_folders("pulled"):
        for path in folder.glob("*.json") if folder.is_dir() else ():
            with suppress(OSError, ValueError, TypeError, KeyError):
                names.add(str(json.loads(path.read_text())["name"]))
    pinned = {str(place) for known in CATALOG.values() for place in known.places}
    return sorted(names - pinned)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.{hashlib.sha256(data).hexdigest()[:8]}.part")
    temporary.write_bytes(data)
    temporary.replace(path)


def converted_file(folder: Path, digest: str) -> Path:
    """The safetensors copy of a pickle with a digest."""
    return folder / f"{digest}.safetensors"


def write_converted(copy: Path, sha256: str) -> None:
    """Record the digest of a safetensors copy; from then on it counts as whole."""
    write_atomically(copy.with_suffix(".json"), json.dumps({"sha256": sha256}).encode())


def find_converted(digest: str) -> tuple[Path, str] | None:
    """The safetensors copy of a pickle with a digest, and its own digest; None where there is none."""
    for folder in reversed(own_folders("converted")):
        copy = converted_file(folder, digest)
        with suppress(OSError, ValueError, KeyError, TypeError):
            sha256 = str(json.loads(copy.with_suffix(".json").read_text())["sha256"])
            if copy.is_file():
                return copy, sha256
    return None
