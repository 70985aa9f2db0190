"""Finds the files of a model: on this disk, in the cache, and only then on the Hub. No torch here."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

from zipcli.errors import ModelError, shown
from zipcli.models.catalog import CATALOG, Architecture, HubName, KnownModel, parse_name
from zipcli.models.hub import Hub, Listener, NotThereError, file_sha256, git_blob_sha1, what_it_is
from zipcli.models.records import find_converted, read_record, write_record

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
JSON_LIMIT = 1_000_000
"""Bytes of a configuration file; honest ones have a thousand."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of one model on this disk.

    Attributes:
        name: The model as the user named it.
        paths: The files by role: weights, and of diffusers' and transformers' config (config.json), scheduler
            (scheduler_config.json) and index (model_index.json), where they are.
        sha256: The digest that each file must have, by role (or, 40 digits, what git calls it); a
            role that is missing is not checked.
        architecture: What the catalog says of the network.
        from_hub: Whether they are in a cache, not in a place of the user's.
    """

    name: str
    paths: dict[str, Path]
    sha256: dict[str, str]
    architecture: Architecture | None = None
    from_hub: bool = False

    def verify(self) -> dict[str, str]:
        """Hash every file and compare; returns the digests by role.

        Raises:
            ModelError: A file cannot be read, or has other bytes than it should.
        """
        return {role: self._verify(role, path) for role, path in self.paths.items()}

    @property
    def weights(self) -> Path:
        """The weights."""
        return self.paths["weights"]

    @property
    def config(self) -> Path | None:
        """The config.json of diffusers."""
        return self.paths.get("config")

    def _verify(self, role: str, path: Path) -> str:
        expected = self.sha256.get(role)
        try:
            digest = file_sha256(path)
            if expected is not None and len(expected) == 40 and git_blob_sha1(path) == expected:
                return digest
        except OSError as e:
            raise ModelError(
                f"{shown(str(path))}: cannot read the model: {e.strerror}; see who may read it"
            ) from e
        if expected not in (None, digest):
            repair = (
                f"run `zipcli models pull --force {self.name}`" if self.from_hub else "install zipcli again"
            )
            raise ModelError(
                f"{shown(str(path))}: wrong bytes: SHA-256 is {digest}, expected {expected}"
                f"{what_it_is(path)}; {repair}"
            )
        return digest


def choose_files(names: Iterable[str], wanted: str, where: str) -> dict[str, str]:
    """Choose the files of a model from what is there.

    Args:
        names: All files, with their paths inside the repository or folder.
        wanted: The weights that the user named, or empty.
        where: What to call the place in an error.

    Returns:
        The files by role, the weights last: a broken download leaves no weights without the rest.

    Raises:
        ModelError: There are no weights that we read, or too many.
    """
    there = set(names)
    if wanted and wanted not in there:
        raise ModelError(f"{where}: there is no {shown(wanted)}; there are: {_listed(there)}")
    if wanted:
        folder = str(PurePosixPath(wanted).parent)
    else:
        # A pipeline keeps its network in a folder of its own; a model saved alone is at the top.
        folder = "unet" if "config.json" not in there and "unet/config.json" in there else "."

    def beside(name: str, *folders: str) -> str | None:
        places = [str(PurePosixPath(folder) / name) for folder in folders]
        return next((place for place in places if place in there), None)

    above = str(PurePosixPath(folder).parent)
    roles = {
        "index": beside("model_index.json", folder, above),
        "config": beside("config.json", folder),
        "scheduler": beside("scheduler_config.json", folder, above, f"{above}/scheduler"),
        "weights": wanted or _weights(there, folder, where),
    }
    return {role: name for role, name in roles.items() if name is not None}


def _weights(there: set[str], folder: str, where: str) -> str:
    """The weights of a folder: safetensors before a pickle, the usual name before others."""
    inside = sorted(name for name in there if str(PurePosixPath(name).parent) == folder)
    for suffixes in ((".safetensors",), PICKLES):
        found = [name for name in inside if PurePosixPath(name).suffix in suffixes]
        usual = [name for name in found if PurePosixPath(name).stem == "diffusion_pytorch_model"]
        if usual or len(found) == 1:
            return (usual or found)[0]
        if found:
            raise ModelError(f"{where}: which weights? Add one of them to the name: {_listed(found)}")
    raise ModelError(f"{where}: no weights that we can read (.safetensors); there are: {_listed(there)}")


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(map(shown, names[:10])) + (", ..." if len(names) > 10 else "") or "no files"


def find_model(
    name: str, listener: Listener | None = None, *, offline: bool = False, again: bool = False
) -> ModelFiles:
    """Find the files of a model, fetching them once where that is needed.

    Args:
        name: A name of the catalog, `owner/name[@revision][/file]` on the Hub, a file or a folder.
        listener: Who is told of it.
        offline: Never connect.
        again: Fetch them even if they are here.

    Raises:
        ModelError: There is no such model, or it cannot be had.
    """
    meaning = parse_name(name)
    if isinstance(meaning, Path):
        return local_files(meaning)
    if isinstance(meaning, str):
        known = CATALOG[meaning]
        if known.file:
            path = Path(str(files("zipcli.models").joinpath(known.file)))
            return ModelFiles(name=meaning, paths={"weights": path}, sha256={"weights": known.sha256})
        return _known(meaning, known, Hub(meaning, listener or Listener(), offline=offline), again=again)
    hub = Hub(str(meaning), listener or Listener(), offline=offline)
    return (None if again else _cached(hub, meaning, str(meaning))) or _pull(
        hub, meaning, str(meaning), again=again
    )


def find_cached(name: str) -> ModelFiles | None:
    """Find a model without any network, or say that it is not here; of a pickle, its copy."""
    files = _find_here(name)
    return files and (converted_copy(files) or files)


def _find_here(name: str) -> ModelFiles | None:
    meaning = parse_name(name)
    if isinstance(meaning, Path) or (isinstance(meaning, str) and CATALOG[meaning].file):
        return find_model(name)
    hub = Hub(name, Listener(), offline=True)
    if isinstance(meaning, HubName):
        return _cached(hub, meaning, str(meaning))
    return _known_here(meaning, CATALOG[meaning], hub)


def _known_here(name: str, known: KnownModel, hub: Hub) -> ModelFiles | None:
    """A model of the catalog that is in the cache. Once a pickle is converted, it is not needed any more."""
    copy = find_converted(known.sha256) if known.architecture else None
    if copy is not None:
        return _from_hub(name, {"weights": copy[0]}, {"weights": copy[1]}, known)
    return next((found for place in known.places if (found := _cached(hub, place, name, known))), None)


def _known(name: str, known: KnownModel, hub: Hub, *, again: bool) -> ModelFiles:
    """A model of the catalog, from the first place that has it."""
    here = None if again else _known_here(name, known, hub)
    if here is not None:
        return here
    errors = []
    for place in known.places:
        try:
            return _pull(hub, place, name, known, again=again)
        except NotThereError as e:
            errors.append(e)
    raise ModelError("; ".join(map(str, errors))) from errors[0]


def converted_copy(files: ModelFiles) -> ModelFiles | None:
    """The copy of weights that are a pickle, if there is one; other weights are returned as they are."""
    if files.weights.suffix not in PICKLES:
        return files
    found = find_converted(files.sha256.get("weights", ""))
    return with_copy(files, *found) if found else None


def with_copy(files: ModelFiles, target: Path, sha256: str) -> ModelFiles:
    """Use a safetensors copy for the weights."""
    return replace(files, paths=files.paths | {"weights": target}, sha256=files.sha256 | {"weights": sha256})


def local_files(path: Path, *, pickles: bool = False) -> ModelFiles:
    """The model in a file or folder of the user's; `pickles` allows one, for conversion only."""
    try:
        if not (path.is_dir() or path.is_file()):
            path.stat()
            raise ModelError(f"{shown(str(path))}: neither a file nor a folder")
        base, wanted = (path, "") if path.is_dir() else (path.parent, path.name)
        above = base.absolute().parent
        if base.absolute().name == "unet" and (above / "model_index.json").is_file():
            # A part of a pipeline: what noise it was trained with is said beside it.
            base, wanted = above, f"unet/{wanted}" if wanted else ""
        depths = ("*",) if wanted == path.name else ("*", "*/*")
        found = [p for depth in depths for p in base.glob(depth) if p.is_file()]
        there = [p.relative_to(base).as_posix() for p in found]
        choice = choose_files(there, wanted, shown(str(path)))
    except OSError as e:
        raise ModelError(f"{shown(str(path))}: cannot read the model: {e.strerror}") from e
    if PurePosixPath(choice["weights"]).suffix in PICKLES and not pickles:
        raise ModelError(
            f"{shown(str(base / choice['weights']))}: not a safetensors file but a pickle, which can run "
            "code and is not opened here; turn it into safetensors once with `zipcli models convert`"
        )
    paths = {role: base / name for role, name in choice.items()}
    return ModelFiles(name=str(path), paths=paths, sha256={})


def _cached(hub: Hub, place: HubName, name: str, known: KnownModel | None = None) -> ModelFiles | None:
    """A model that is complete in the cache, or None."""
    snapshot = hub.snapshot(place.repository, place.revision)
    if snapshot is None:
        return None
    record = read_record(snapshot, place)
    if known is not None and known.architecture is not None:
        choice = {"weights": place.file}
    elif record is not None:
        choice = record["files"]
    else:
        # Another program has put it there.
        try:
            there = [
                p.relative_to(snapshot).as_posix()
                for p in snapshot.rglob("*")
                if p.exists() and not p.is_dir()
            ]
            choice = choose_files(there, place.file, str(place))
        except ModelError:
            return None
        asked = "scheduler" in choice or hub.is_known_missing(snapshot, "scheduler_config.json")
        if "config" in choice and not asked and not hub.offline:
            return None  # nobody has looked for the noise schedule yet
    paths = {role: snapshot / file for role, file in choice.items()}
    blobs = snapshot.parents[1] / "blobs"
    if not all(path.exists() for path in paths.values()):
        return None
    if record is None and not all(path.resolve().parent == blobs.resolve() for path in paths.values()):
        return None  # nothing says what these files should be
    digests = dict(record["sha256"]) if record else {}
    for role, path in paths.items():
        blob = path.resolve().name  # the Hub's name of a large file is its SHA-256, of a small one git's
        if role not in digests and re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", blob):
            digests[role] = blob
    if known is not None:
        digests["weights"] = known.sha256
    return _from_hub(name, paths, digests, known)


def _pull(
    hub: Hub, place: HubName, name: str, known: KnownModel | None = None, *, again: bool = False
) -> ModelFiles:
    """Fetch a model and record what it was."""
    pinned = known.sha256 if known else None
    if known is not None and known.architecture is not None:
        commit, choice = place.revision, {"weights": place.file}
    else:
        commit, there = hub.list_files(place)
        choice = choose_files(there, place.file, str(place))
    if re.fullmatch("[0-9a-f]{40}", place.revision) and commit != place.revision:
        raise ModelError(f"{place}: the Hub answered with another revision, {commit}")
    at = replace(place, revision=commit)  # a branch may move while we fetch
    paths = {
        role: hub.fetch(at, file, pinned if role == "weights" else None, again=again)
        for role, file in choice.items()
    }
    snapshot = paths["weights"].parents[len(PurePosixPath(choice["weights"]).parts) - 1]
    hub.remember(place, snapshot)
    digests = {role: file_sha256(path) for role, path in paths.items()}
    write_record(snapshot, place, choice, digests)
    return _from_hub(name, paths, digests, known)


def _from_hub(
    name: str, paths: dict[str, Path], digests: dict[str, str], known: KnownModel | None
) -> ModelFiles:
    architecture = known.architecture if known else None
    return ModelFiles(name=name, paths=paths, sha256=digests, architecture=architecture, from_hub=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        ModelError: It is not a JSON object of a sane size.
    """
    try:
        with path.open("rb") as f:
            data = f.read(JSON_LIMIT + 1)
        content = json.loads(data) if len(data) <= JSON_LIMIT else None
    except OSError as e:
        raise ModelError(f"{shown(str(path))}: cannot read the configuration: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{shown(str(path))}: not a configuration in JSON{what_it_is(path)}: {e}") from e
    if not isinstance(content, dict):
        raise ModelError(f"{shown(str(path))}: not a configuration (a JSON object of at most a megabyte)")
    return content
