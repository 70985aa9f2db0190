"""Lists, reads and writes what lies below a URL: fsspec, with one policy for everything that goes wrong.

What fails for now (no answer, a cut connection, 429, 5xx) is tried again, each time after a longer pause;
what is refused or missing is not. Whatever a library raises comes out as an `OSError` whose `strerror` may
be shown: FileNotFoundError, FileExistsError, PermissionError, or another.
"""

import contextlib
import errno
import inspect
import os
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from zipcli.errors import ConfigError, InputError, OutputError, Reason, shown
from zipcli.pipeline.url import Url

T = TypeVar("T")

TRIES = 7
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0

WHOLE_PUTS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
"""Where an object appears whole or not at all; elsewhere, as with sftp, half of one could be seen."""

ONE_PUT = 2**31
"""Half of the bytes below which s3fs puts an object at once; a crash between several puts would leave
parts that nobody sees and that cost money."""

MARK = "zipcli-mark"
"""Name of the mark of an object, in its metadata."""

_S3_OPTIONS = {
    # One policy for all protocols: botocore shall not try again below ours.
    "config_kwargs": {"max_pool_connections": 256, "retries": {"total_max_attempts": 1, "mode": "standard"}},
}
_REFUSED = (
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
    *("DefaultCredentialsError", "RefreshError", "ClientAuthenticationError"),
)
"""Names of errors that mean no or wrong credentials; their libraries may not be here to be imported."""

_BUGS = (TypeError, AttributeError, NameError, AssertionError, ImportError)


@cache
def _connect(url: Url) -> tuple[Any, str]:
    """The file system of a URL, and the path of the URL in it."""
    name = shown(str(url))
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]  # it ships no types
    except ImportError as e:
        raise ConfigError(f"{name}: URLs need fsspec; pip install 'zipcli[remote]'") from e
    options = _S3_OPTIONS if url.protocol in ("s3", "s3a") else {}
    try:
        fs, root = url_to_fs(str(url), use_listings_cache=False, **options)
    except ImportError as e:
        remedy = "pip install 'zipcli[remote]' (s3), or the package of that protocol"
        raise ConfigError(f"{name}: {url.protocol} needs a package that is not here ({e}): {remedy}") from e
    except ValueError as e:
        raise ConfigError(f"{name}: {_words(e)}") from e
    if hasattr(fs, "retries"):
        fs.retries = 1  # of s3fs, for the same reason
    return fs, str(root).rstrip("/")


def attempt(call: Callable[[], T], tries: int = TRIES) -> T:
    """Call a library until it answers or refuses, or patience ends.

    Raises:
        OSError: It has refused or failed; `strerror` is fit to be shown.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            return call()
        except _BUGS:
            raise
        except Exception as e:  # each library has errors of its own
            tries -= 1
            error, may_pass = _as_os_error(e)
            if not (may_pass and tries > 0):
                raise error from e
        time.sleep(pause * random.uniform(0.5, 1))  # apart, or all threads would come back at once
        pause = min(2 * pause, LONGEST_PAUSE)


def _as_os_error(error: Exception) -> tuple[OSError, bool]:
    """What an error of a library means, and whether it may pass."""
    words, status = _words(error), _status(error)
    if status in (401, 403) or isinstance(error, PermissionError) or type(error).__name__ in _REFUSED:
        return PermissionError(errno.EACCES, f"access refused: {words}"), False
    if status == 404 or isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, words), False
    if status == 412 or isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, words), False
    if status == 501:
        return OSError(errno.ENOTSUP, words), False
    number = getattr(error, "errno", None)
    if number == errno.ENAMETOOLONG:
        return OSError(number, words), False
    # 409: two conditional puts of one name at the same moment.
    may_pass = status is None or status in (408, 409, 425, 429) or status >= 500
    return OSError(errno.EIO, words), may_pass


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error stands for, where it says so."""
    for e in (error, error.__cause__):
        response = getattr(e, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp, azure, gcsfs
            status = next((getattr(e, name, None) for name in ("status", "status_code", "code")), None)
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return None


def _words(error: BaseException) -> str:
    """What a library says, in short and without what might be a secret."""
    text = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    text = re.sub(r"//\S*@", "//", re.sub(r"\?\S*", "", text))
    return shown(text[:200])


@dataclass(frozen=True, kw_only=True)
class Item:
    """What a listing shows.

    Attributes:
        name: The last part of its path.
        size: Bytes of an object; None where the store does not say.
        is_folder: Whether it is a folder, or what other names have in common.
    """

    name: str
    size: int | None
    is_folder: bool


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is at a path.

    Attributes:
        size: Bytes; None where the store does not say.
        tag: Another one after each write; None where the store has none.
        mark: What it was marked with when it was written.
    """

    size: int | None
    tag: str | None = None
    mark: str | None = None


@dataclass(frozen=True)
class Store:
    """What lies below a URL; safe in threads, and it may be sent to another process.

    Paths are relative to the URL. Every method raises `OSError` as `attempt` does.
    """

    url: Url

    @property
    def _fs(self) -> Any:
        return _connect(self.url)[0]

    def _path(self, path: str) -> str:
        root = _connect(self.url)[1]
        return f"{root}/{path}" if path else root

    @property
    def has_marks(self) -> bool:
        """Whether an object can be marked, so that it is known again whatever its bytes are."""
        return hasattr(self._fs, "call_s3")

    def contains(self, other: "Store") -> str | None:
        """Where the folder of another store lies below this one: "" for the same; None elsewhere."""
        if self._fs.protocol != other._fs.protocol:
            return None
        here, there = self._path("") + "/", other._path("") + "/"
        return there[len(here) :].rstrip("/") if there.startswith(here) else None

    def list(self, folder: str = "") -> Iterator[Item]:
        """What a folder holds, objects in the order of their names; of S3, page by page.

        Raises:
            FileNotFoundError: There is no such bucket; a folder that is not there is empty.
        """
        if self.has_marks:
            yield from self._list_s3(folder)
            return
        path = self._path(folder)
        try:
            found = attempt(lambda: self._fs.ls(path, detail=True))
        except FileNotFoundError:
            return
        for info in sorted(found, key=lambda info: str(info["name"]).encode("utf-8", "surrogatepass")):
            parent, _, name = str(info["name"]).rstrip("/").rpartition("/")
            if parent.strip("/") == path.strip("/"):  # some list the folder in itself, http what it links to
                size = info.get("size")
                is_folder = info.get("type") == "directory"
                yield Item(name=name, size=size if isinstance(size, int) else None, is_folder=is_folder)

    def _list_s3(self, folder: str) -> Iterator[Item]:
        """The same without a list of all: s3fs has no public call that does not collect them."""
        bucket, prefix, _ = self._fs.split_path(self._path(folder))
        prefix = f"{prefix}/" if prefix else ""
        more: dict[str, str] = {}
        while True:
            words = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/", **more}
            page = attempt(lambda words=words: self._fs.call_s3("list_objects_v2", **words))  # type: ignore[misc]  # mypy cannot infer a default
            for found in page.get("CommonPrefixes", ()):
                yield Item(name=found["Prefix"][len(prefix) : -1], size=None, is_folder=True)
            for found in page.get("Contents", ()):
                if name := found["Key"][len(prefix) :]:  # else it stands for the folder
                    yield Item(name=name, size=found["Size"], is_folder=False)
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def size(self, path: str) -> int | None:
        """Bytes of an object; None where the store does not say."""
        info = attempt(lambda: self._fs.info(self._path(path)))
        if info.get("type") == "directory":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        size = info.get("size")
        return size if isinstance(size, int) else None

    def look(self, path: str, tries: int = TRIES) -> Seen:
        """What is at a path.

        Raises:
            FileNotFoundError: Nothing.
        """
        if self.has_marks:
            head = self._call_s3("head_object", path, tries)
            mark = head.get("Metadata", {}).get(MARK)
            return Seen(size=head["ContentLength"], tag=head.get("ETag"), mark=mark)
        info = attempt(lambda: self._fs.info(self._path(path)), tries)
        size = info.get("size")
        return Seen(size=size if isinstance(size, int) else None)

    def _call_s3(self, method: str, path: str, tries: int = TRIES, **words: str) -> Any:
        bucket, key, _ = self._fs.split_path(self._path(path))
        return attempt(lambda: self._fs.call_s3(method, Bucket=bucket, Key=key, **words), tries)

    def read(self, path: str, at_most: int | None = None, tries: int = TRIES) -> bytes:
        """The bytes of an object, or the first of them."""
        range_ = {} if at_most is None else {"start": 0, "end": at_most}
        data: bytes = attempt(lambda: self._fs.cat_file(self._path(path), **range_), tries)
        return data

    def put(self, path: str, data: bytes, mark: str | None = None) -> None:
        """Write an object, whole, also over another."""
        attempt(lambda: self._pipe(path, data, mark))

    def _pipe(self, path: str, data: bytes, mark: str | None, **words: Any) -> None:
        if self.has_marks:
            words["chunksize"] = ONE_PUT
        if self.has_marks and mark:
            words["Metadata"] = {MARK: mark}
        self._fs.pipe_file(self._path(path), data, **words)

    def create(self, path: str, data: bytes, mark: str | None = None) -> None:
        """Write an object that is not there yet.

        One that has our mark is ours, and gives way where its bytes are others. Without a mark, or where
        the store has none, one with these very bytes counts as ours.

        Raises:
            FileExistsError: There is another one.
        """
        if not self._creates and attempt(lambda: self._fs.exists(self._path(path))):
            there = self._unless_ours(path, data, mark)
        else:
            there = self._put_if(path, data, mark, mode="create")
        if there and mark and there.mark == mark:
            self.replace(path, data, there, mark)
        elif there:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def replace(self, path: str, data: bytes, seen: Seen, mark: str | None = None) -> None:
        """Write over the object that was `seen` and, where the store can tell, over no other.

        Raises:
            FileExistsError: There is another one by now.
            FileNotFoundError: There is none any more.
        """
        condition = {"IfMatch": seen.tag} if seen.tag else {}
        try:
            there = self._put_if(path, data, mark, **condition)
        except OSError as e:
            if not condition or e.errno != errno.ENOTSUP:
                raise
            there = self._put_if(path, data, mark)
        if there:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _put_if(self, path: str, data: bytes, mark: str | None, **condition: str) -> Seen | None:
        """Put under a condition; what is in the way, or None.

        An answer that gets lost is why we must look: the put has succeeded, and the next try, by us or by
        a library below us, finds it in its way.
        """
        try:
            attempt(lambda: self._pipe(path, data, mark, **condition))
        except PermissionError:
            raise
        except FileExistsError as e:
            try:
                return self._unless_ours(path, data, mark)
            except OSError as unseen:  # nobody knows
                raise OSError(errno.EIO, f"what is there cannot be read ({unseen.strerror})") from e
        except OSError:
            with contextlib.suppress(OSError):
                if self._unless_ours(path, data, mark, tries=1) is None:
                    return None
            raise
        return None

    def _unless_ours(self, path: str, data: bytes, mark: str | None, tries: int = TRIES) -> Seen | None:
        """What is at a path, or None where that is what we wanted to put there."""
        seen = self.look(path, tries)
        if seen.size not in (None, len(data)) or (mark and self.has_marks and seen.mark != mark):
            return seen
        return None if self.read(path, len(data) + 1, tries) == data else seen

    @property
    def _creates(self) -> bool:
        """Whether the file system puts under a condition, and does not just take the word."""
        put = getattr(self._fs, "_pipe_file", self._fs.pipe_file)
        return "mode" in inspect.signature(put).parameters

    def remove(self, path: str, seen: Seen | None = None) -> None:
        """Remove an object; that it is gone already is as good.

        Args:
            path: Where it is.
            seen: What it must be, where the store can tell; another one, which may have come when the
                answer to our first try got lost, stays.
        """
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            if seen and seen.tag:
                try:
                    self._call_s3("delete_object", path, IfMatch=seen.tag)
                    return
                except OSError as e:
                    if e.errno != errno.ENOTSUP:
                        raise
            attempt(lambda: self._fs.rm_file(self._path(path)))


class Sizes:
    """Sizes of objects by path, from listings of whole folders: a request for each image would be slow."""

    FOLDERS = 8

    def __init__(self, store: Store) -> None:
        """List nothing yet."""
        self._store = store
        self._folders: OrderedDict[str, dict[str, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, path: str) -> int | None:
        """Size of an object as it was when its folder was listed; None where there is none.

        Raises:
            OutputError: The store does not tell.
        """
        folder, _, name = path.rpartition("/")
        with self._lock:
            if folder not in self._folders:
                with telling(self._store.url):
                    items = (item for item in self._store.list(folder) if not item.is_folder)
                    self._folders[folder] = {item.name: item.size or 0 for item in items}
            self._folders.move_to_end(folder)
            if len(self._folders) > self.FOLDERS:
                self._folders.popitem(last=False)
            return self._folders[folder].get(name)


@contextlib.contextmanager
def telling(url: Url, what: str = "cannot look there") -> Iterator[None]:
    """Turn what goes wrong with the output folder into an error that ends the run.

    Raises:
        OutputError: The store has refused or failed.
    """
    try:
        yield
    except OSError as e:
        raise OutputError(f"{shown(str(url))}: {what}: {e.strerror}") from e


@dataclass(frozen=True)
class RemoteOutlet:
    """Where outputs go; plain data, so that another process can put them there, too."""

    url: Url

    def publish(self, target: str, data: bytes, *, replace: bool, mark: str | None = None) -> None:
        """Put one output under its name, whole or not at all.

        Args:
            target: Its path below the URL.
            data: The bytes, checked.
            replace: Whether what is there may be replaced.
            mark: What tells this output from all that others put there; see `Store.create`.

        Raises:
            InputError: Something else is there and may not be replaced, the name is impossible, or the
                store has failed again and again.
            OutputError: The store refuses to be written.
        """
        store, name = Store(self.url), shown(target)
        no_name = InputError(
            Reason.NAME_UNSUPPORTED, f"{name}: the output folder cannot hold this name; rename the file"
        )
        if any("\ud800" <= c <= "\udfff" for c in target):  # bytes that are no text
            raise no_name
        try:
            if replace:
                store.put(target, data, mark)
            else:
                store.create(target, data, mark)
        except FileExistsError as e:
            message = f"{name}: something that this run did not write is in the way"
            advice = "move it or choose another folder"
            raise InputError(Reason.FOREIGN_OUTPUT, f"{message}; {advice}") from e
        except (FileNotFoundError, PermissionError) as e:
            raise OutputError(f"{shown(str(self.url))}: cannot write there: {e.strerror}") from e
        except OSError as e:
            if e.errno == errno.ENAMETOOLONG:
                raise no_name from e
            message = f"{name}: the store did not take it ({e.strerror}); run the same command again"
            raise InputError(Reason.NOT_STORED, message) from e


def refuse_halves(url: Url) -> None:
    """Refuse to write where a reader could see half an object.

    Raises:
        ConfigError: The protocol is not known to put objects whole.
    """
    if url.protocol not in WHOLE_PUTS:
        raise ConfigError(
            f"{shown(str(url))}: {url.protocol} could show half an image to who reads; write to a folder of "
            f"this machine, or to one of {', '.join(WHOLE_PUTS[:-1])}"
        )
    Store(url).contains(Store(url))  # connects, so that a missing package is told before any work
