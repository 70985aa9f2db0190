"""Fetches files from the Hugging Face Hub into its own cache. No torch here.

`huggingface_hub` speaks to the Hub and defines the cache: blobs named after their ETag, links to
them in snapshots, and refs. What it does not do is done here: it restarts a download that was
killed (2 GB again), waits on a dripping line for ever, and compares the size of a file but not its
digest.
"""

import errno
import fcntl
import hashlib
import hmac
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from zipcli.errors import ModelError, shown
from zipcli.models.catalog import HubName
from zipcli.system import started

T = TypeVar("T")

PATIENCE_BYTES = 1_000_000
"""What must arrive within the patience: 17 kB/s, or the Hub counts as down."""

ABANDONED_SECONDS = 600
"""Age at which another machine's partial file counts as left behind."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def patience() -> float:
    """Seconds without progress after which a transfer is given up: ZIPCLI_HUB_PATIENCE, or 60."""
    try:
        return max(1.0, float(os.environ.get("ZIPCLI_HUB_PATIENCE", "60")))
    except ValueError as e:
        raise ModelError("ZIPCLI_HUB_PATIENCE is not a number of seconds") from e


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told what happens while a model is fetched.

    Attributes:
        progress: Called with a file, the bytes that are here and all of them.
        ended: Called when a transfer has ended, well or not.
        note: Called with a sentence that the user should read.
        check_stop: Called often; it may raise to stop the work.
    """

    progress: Callable[[str, int, int], None] = lambda file, done, total: None
    ended: Callable[[], None] = lambda: None
    note: Callable[[str], None] = lambda text: None
    check_stop: Callable[[], None] = lambda: None


def hub_constants() -> Any:
    """The library's settings, which it reads from the environment when it is first imported."""
    try:
        from huggingface_hub import constants

        _ = urlsplit(constants.ENDPOINT).port  # what the library trips over later
    except ValueError as e:
        raise ModelError(f"HF_ENDPOINT is not an address: {shown(str(e))}") from e
    return constants


def private_folder() -> Path:
    """Where we keep models when the Hub's cache cannot be written: ZIPCLI_CACHE, or below ~/.cache."""
    own = os.environ.get("ZIPCLI_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "zipcli"
    except RuntimeError as e:
        raise ModelError(f"no home folder to keep models in: {e}; set ZIPCLI_CACHE") from e


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself where it does not exist yet."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def file_sha256(path: Path, advance: Callable[[int], None] = lambda n: None) -> str:
    """SHA-256 of a file, read in parts; `advance` hears how long each was."""
    return _digest(path, hashlib.sha256(), advance)


def git_blob_sha1(path: Path) -> str:
    """What git, and so the Hub, calls a small file."""
    return _digest(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))


def _digest(path: Path, digest: Any, advance: Callable[[int], None] = lambda n: None) -> str:
    with path.open("rb") as f:
        while part := f.read(2**23):
            digest.update(part)
            advance(len(part))
    return str(digest.hexdigest())


def what_it_is(path: Path) -> str:
    """Say what a file that should hold weights really is, or nothing if that is not plain."""
    try:
        with path.open("rb") as f:
            start = f.read(64).lstrip()
    except OSError:
        return ""
    if start.startswith(b"<"):
        return "; it looks like a web page, such as the login page of a proxy"
    if start.startswith(b"version https://git-lfs"):
        return "; it is a Git LFS pointer, not the file itself"
    return "" if start else "; it is empty"


class _TooMuchError(Exception):
    """More bytes come than were announced."""


class NotThereError(ModelError):
    """A place of the Hub does not have what we look for, or not for us; another place may."""


class Hub:
    """The Hub and its cache on this machine."""

    def __init__(self, model: str, listener: Listener, *, offline: bool = False) -> None:
        """Look into the cache that HF_HOME and HF_HUB_CACHE name; never connect when `offline`.

        `model` is what the user calls the model that is looked for.
        """
        constants = hub_constants()
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # what it would say is in our errors
        self.model = model
        self.listener = listener
        self.offline = offline or bool(constants.HF_HUB_OFFLINE)
        self.caches = [Path(constants.HF_HUB_CACHE).expanduser(), private_folder() / "hub"]
        self._moved = 0
        self._given_up = False
        self._noted = False

    # What is here already.

    def snapshot(self, repository: str, revision: str) -> Path | None:
        """The folder of the cache that holds a revision, complete or not."""
        for cache in reversed(self.caches):  # what is private came because the other could not be mended
            folder = _repository_folder(cache, repository)
            commit = revision
            if not _COMMIT.fullmatch(revision):
                try:
                    commit = (folder / "refs" / revision).read_text().strip()
                except (OSError, ValueError):
                    continue
            if _COMMIT.fullmatch(commit) and (folder / "snapshots" / commit).is_dir():
                return folder / "snapshots" / commit
        return None

    def is_known_missing(self, snapshot: Path, file: str) -> bool:
        """Whether the Hub has said that a revision has no such file."""
        return (snapshot.parents[1] / ".no_exist" / snapshot.name / file).is_file()

    # What is on the Hub.

    def list_files(self, name: HubName) -> tuple[str, list[str]]:
        """The commit of a revision, and the files in it."""

        def ask() -> tuple[str, list[str]]:
            from huggingface_hub import HfApi

            info = HfApi().model_info(name.repository, revision=name.revision, timeout=10)
            names = [sibling.rfilename for sibling in info.siblings or ()]
            if not _COMMIT.fullmatch(str(info.sha)) or not all(isinstance(name, str) for name in names):
                raise ValueError("a list of files that makes no sense")
            return str(info.sha), names

        return self._online(ask, name, "")

    def fetch(self, name: HubName, file: str, sha256: str | None = None, *, again: bool = False) -> Path:
        """Bring one file into the cache and return its path there.

        Args:
            name: Repository and revision.
            file: The file within it.
            sha256: The digest that it must have; without it, the one that the Hub announces.
            again: Fetch it even if it is here, such as a damaged one.

        Raises:
            ModelError: It cannot be had, or has other bytes than it should.
        """
        return self._online(lambda: self._fetch(name, file, sha256, again=again), name, file)

    def remember(self, name: HubName, snapshot: Path) -> None:
        """Note in the cache which commit a branch or tag is, so that it is found without asking."""
        if name.revision != snapshot.name:
            refs = snapshot.parents[1] / "refs"
            with suppress(OSError):  # then it is asked for again
                refs.mkdir(exist_ok=True)
                (refs / name.revision).write_text(snapshot.name)

    def _fetch(self, name: HubName, file: str, sha256: str | None, *, again: bool) -> Path:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(name.repository, file, revision=name.revision)
        remote = get_hf_file_metadata(url, timeout=10)
        etag, commit, size = str(remote.etag), str(remote.commit_hash), remote.size
        if not re.fullmatch("[A-Za-z0-9_-]{8,128}", etag) or not _COMMIT.fullmatch(commit) or size is None:
            raise ValueError(f"no digest, revision or size of {shown(file)}")
        if _COMMIT.fullmatch(name.revision) and commit != name.revision:
            raise ValueError(f"{shown(file)} comes from another revision, {commit}")
        cache = self._writable_cache(name.repository)
        folder = _repository_folder(cache, name.repository)
        blob, pointer = folder / "blobs" / etag, folder / "snapshots" / commit / file
        if sha256 is None and len(etag) == 64:
            sha256 = etag
        if sha256 is None and not _COMMIT.fullmatch(etag):
            self.listener.note(f"no digest of {shown(file)} is announced here: only its size can be checked")
        if again or not blob.is_file() or _wrong_bytes(blob, size, etag, sha256, self._advance):
            blob.parent.mkdir(parents=True, exist_ok=True)
            self._transfer(url, name, file, blob, size, sha256)
        # The library would link it now, but asks again and fails where locks do not work.
        pointer.parent.mkdir(parents=True, exist_ok=True)
        link = pointer.with_name(f"{pointer.name}.{os.getpid()}.part")
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(blob, pointer.parent))
        link.replace(pointer)  # what was there may be a damaged copy, or point elsewhere
        return pointer

    def _transfer(
        self, url: str, name: HubName, file: str, blob: Path, size: int, sha256: str | None
    ) -> None:
        """Download a file to a place beside its blob, check it there, and give it its name."""
        before = blob.stat().st_mtime_ns if blob.exists() else None
        with self._turn(blob):
            if blob.exists() and blob.stat().st_mtime_ns != before:
                return  # another process has brought it while we waited
            part = _claim_partial(blob)
            for attempt in ("resumed", "fresh"):
                have = _size(part)
                with part.open("ab") as f:
                    if have > size or attempt == "fresh":
                        f.truncate(have := 0)
                    _check_room(part, size - have)
                    self._receive(url, f, have, size, file)
                wrong = _wrong_bytes(part, size, blob.name, sha256, self._advance)
                if wrong is None:
                    part.replace(blob)
                    return
                if have == 0:  # else what an earlier run left may be to blame
                    break
            reason = what_it_is(part)
            part.unlink()
            raise NotThereError(
                f"{self.model}: {shown(file)} of {name.repository} has wrong bytes: {wrong}{reason}; nothing "
                "of it is kept"
            )

    def _receive(self, url: str, f: BinaryIO, have: int, size: int, file: str) -> None:
        """Append to a file what it still misses; it may end up with another size."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # not in its __all__

        bar = self._bar(file, have, size)
        # The library hands over 10 MB at a time: a line that breaks sooner would never get on, and one that
        # is slow would seem to stand still.
        usual, constants.DOWNLOAD_CHUNK_SIZE = constants.DOWNLOAD_CHUNK_SIZE, 2**16
        try:
            headers = build_hf_headers()
            http_get(url, f, resume_size=have, headers=headers, expected_size=size, tqdm_class=bar)
        except _TooMuchError:
            pass
        except OSError as e:
            if e.errno is not None or not _is_wrong_size(e):
                raise
        finally:
            constants.DOWNLOAD_CHUNK_SIZE = usual
        f.flush()
        os.fsync(f.fileno())

    @contextmanager
    def _turn(self, blob: Path) -> Iterator[None]:
        """Wait while another process fetches the same file and gets on with it.

        This only saves the transfer: where locks do not work, as on some network file systems, each
        process has a partial file of its own, and the last one to finish puts the same bytes there.
        """
        lock = blob.parents[2] / ".locks" / blob.parents[1].name / f"{blob.name}.zipcli.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("ab") as f:
            seen = 0
            while True:
                try:
                    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    here = sum(map(_size, _partials(blob)))
                    self._advance(max(0, here - seen) if seen else 0)
                    seen = here
                    time.sleep(0.2)
                    if self._given_up:
                        raise ModelError("given up") from None
                    continue
                except OSError:
                    pass
                yield
                return

    def _bar(self, file: str, have: int, total: int) -> Any:
        """What the library takes for a progress bar: it counts for us, and can stop the transfer."""
        hub = self

        class Bar:
            def __init__(self, *_: Any, initial: int = have, **__: Any) -> None:
                self.done = initial

            def __enter__(self) -> "Bar":
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def update(self, n: float | None = 1) -> None:
                if hub._given_up:
                    raise ModelError("given up")
                self.done += int(n or 0)
                if self.done > total:
                    raise _TooMuchError
                hub._advance(max(0, int(n or 0)))
                hub.listener.progress(file, self.done, total)

        return Bar

    def _advance(self, n: int) -> None:
        self._moved += n

    def _writable_cache(self, repository: str) -> Path:
        for cache in self.caches:
            folder = _repository_folder(cache, repository)
            needed = (cache / ".locks", *(folder / name for name in ("blobs", "snapshots", "refs")))
            if all(map(is_writable, needed)):
                if cache != self.caches[0] and not self._noted:
                    self.listener.note(f"{self.caches[0]} cannot be written; the model is kept in {cache}")
                    self._noted = True
                return cache
        raise ModelError(
            f"no folder to keep the model in: {' and '.join(map(str, self.caches))} cannot be written; "
            "set HF_HOME or ZIPCLI_CACHE to a folder that can"
        )

    def _online(self, work: Callable[[], T], name: HubName, file: str) -> T:
        """Do what needs the network, in bounded time, and say in our words what went wrong.

        It runs in a thread of its own, because a read that gets no answer cannot be interrupted.
        """
        if self.offline:
            raise ModelError(
                f"{self.model}: not in the cache ({self.caches[0]}), and offline; fetch it once with "
                f"`zipcli models pull {self.model}` while online, or give a local file or folder"
            )
        result: list[T] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                result.append(work())
            except Exception as e:  # raised again where it can be explained
                errors.append(e)

        worker = threading.Thread(target=run, daemon=True)
        worker.start()
        try:
            self._wait(worker)
        finally:
            self.listener.ended()
        if errors:
            raise _explained(errors[0], self.model, name, file) from errors[0]
        return result[0]

    def _wait(self, worker: threading.Thread) -> None:
        """Wait for a thread as long as it gets on, hearing signals all the while."""
        limit = patience()
        began, mark = time.monotonic(), self._moved
        while worker.is_alive():
            worker.join(0.1)
            self.listener.check_stop()
            if time.monotonic() - began > limit:
                if self._moved - mark < PATIENCE_BYTES and worker.is_alive():
                    self._given_up = True
                    raise ModelError(
                        f"{self.model}: gave up after {limit:.0f} seconds without progress; check the "
                        "connection and run the same command again: what has arrived is kept"
                    )
                began, mark = time.monotonic(), self._moved


def _repository_folder(cache: Path, repository: str) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return cache / repo_folder_name(repo_id=repository, repo_type="model")


def _partials(blob: Path) -> list[Path]:
    """Partial files of a blob, of any process."""
    return [p for p in blob.parent.glob(f"{blob.name}.*") if p.name.endswith(".zipcli.incomplete")]


def _size(path: Path) -> int:
    """Size of a file that may go away at any time, 0 when it has."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _claim_partial(blob: Path) -> Path:
    """A partial file of our own: what a process that is gone has left, or a new one."""
    host = re.sub("[^A-Za-z0-9]", "", socket.gethostname())
    mine = blob.with_name(f"{blob.name}.{host}-{os.getpid()}.zipcli.incomplete")
    for part in _partials(blob):
        if part != mine and _is_abandoned(part, host):
            with suppress(OSError):  # somebody else was faster
                part.rename(mine)
                break
    return mine


def _is_abandoned(part: Path, host: str) -> bool:
    """Whether nobody writes to a partial file any more. Of another machine's we know its age only."""
    owner = re.fullmatch(r".*\.([A-Za-z0-9]*)-(\d+)\.zipcli\.incomplete", part.name)
    if owner is None or owner[1] != host:
        with suppress(FileNotFoundError):
            return owner is None or time.time() - part.stat().st_mtime > ABANDONED_SECONDS
        return False
    return started(int(owner[2])) is None


def _is_wrong_size(error: OSError) -> bool:
    """Whether the library complains of the size of what it got, and not of the transport."""
    return type(error) is OSError and "Consistency check" in str(error)


def _wrong_bytes(
    path: Path, size: int, etag: str, sha256: str | None, advance: Callable[[int], None]
) -> str | None:
    """Say how a file differs from what it should be, or None. A mirror may announce no digest at all."""
    if path.stat().st_size != size:
        return f"{path.stat().st_size:,} bytes came instead of {size:,}"
    if sha256 is not None:
        digest = file_sha256(path, advance)
        return None if hmac.compare_digest(digest, sha256) else f"SHA-256 is {digest}, expected {sha256}"
    if _COMMIT.fullmatch(etag):
        name = git_blob_sha1(path)
        return None if hmac.compare_digest(name, etag) else f"git SHA-1 is {name}, expected {etag}"
    return None


def _check_room(part: Path, missing: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < missing * 1.05:
        raise ModelError(
            f"{part.parent}: the disk has {free / 1e6:,.0f} MB left and {missing / 1e6:,.0f} MB are still to "
            "come; free some space, or set HF_HOME to a folder on another disk"
        )


def _explained(error: Exception, model: str, name: HubName, file: str) -> ModelError:
    """Turn what the library raised into one sentence that says what to do."""
    from huggingface_hub import errors, get_token

    if isinstance(error, ModelError):
        return error
    endpoint = _endpoint()
    at = "" if model.startswith(name.repository) else f" in {name.repository}"
    what = f"{model}: " + (f"cannot fetch {shown(file)}" if file else "cannot look it up") + at
    kept = "run the same command again" + (": what has arrived is kept" if file else "")
    causes = [error, error.__cause__, error.__context__]
    status = next((e.response.status_code for e in causes if isinstance(e, errors.HfHubHTTPError)), None)
    has_token = status in (401, 403) and get_token() is not None
    if isinstance(error, errors.GatedRepoError):
        then = "with the account of your token" if has_token else "and set HF_TOKEN to a token of yours"
        page = f"{endpoint}/{name.repository}"
        return NotThereError(f"{what}: the model is gated; accept its terms at {page} {then}")
    if status == 401 and has_token:
        return NotThereError(f"{what}: your token was not accepted; check HF_TOKEN, or `hf auth login` again")
    if status == 401:
        private = "or it is private: then set HF_TOKEN to a token of yours"
        return NotThereError(f"{what}: there is no such model, {private}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotThereError(f"{what}: there is no such model on {endpoint}; check the name")
    if isinstance(error, errors.RevisionNotFoundError):
        return NotThereError(f"{what}: it has no revision {name.revision}; check what is after the @")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return NotThereError(f"{what}: the model has no such file")
    if status == 404:
        return NotThereError(f"{what}: nothing there (404); check the name, and HF_ENDPOINT ({endpoint})")
    if status == 403:
        return NotThereError(f"{what}: access is denied (403); check your token, and the terms of the model")
    if status == 407:
        return ModelError(f"{what}: the proxy wants a name and a password (407); give them in HTTPS_PROXY")
    if status is not None:
        return ModelError(f"{what}: {endpoint} answered with error {status}; try again later")
    if isinstance(error, UnicodeError):
        return ModelError(f"{what}: the token has a character that no token has; check HF_TOKEN")
    if isinstance(error, errors.FileMetadataError | ValueError):
        return ModelError(
            f"{what}: {endpoint} did not answer like the Hub; it looks like a web page or a proxy in between "
            f"(check HF_ENDPOINT and HTTPS_PROXY): {_first_line(error)}"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ModelError(
            f"{what}: the disk is full; free some space, or set HF_HOME to a folder on another disk, "
            f"and {kept}"
        )
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        return ModelError(
            f"{what}: {shown(where)}; set HF_HOME or ZIPCLI_CACHE to a folder that can be written"
        )
    # What is left are errors of the transport, whose classes change with the library's version.
    text = _first_line(error)
    trust = "; SSL_CERT_FILE names the certificates to trust" if "CERTIFICATE" in text else ""
    return ModelError(
        f"{what}: {endpoint} cannot be reached ({type(error).__name__}: {text}){trust}; check the connection "
        f"and the proxy, and {kept}"
    )


def _endpoint() -> str:
    """The address of the Hub, without a name and password in it."""
    address = str(hub_constants().ENDPOINT)
    scheme, mark, rest = address.partition("://")
    return scheme + mark + rest.rpartition("@")[2]


def _first_line(error: Exception) -> str:
    text = str(error).replace(str(hub_constants().ENDPOINT), _endpoint())
    return shown((text.strip().splitlines() or [""])[0][:200])
