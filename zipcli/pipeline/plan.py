"""Which files a run takes and where each goes: decided from names alone, before any model loads."""

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TypeVar

from zipcli.config import TAR_PATTERNS, FolderConfig
from zipcli.errors import ConfigError, OutputError, Reason, shown
from zipcli.images.load import read_file
from zipcli.images.write import output_name
from zipcli.pipeline.looking import looking
from zipcli.pipeline.outcome import Outcome
from zipcli.pipeline.url import Url


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file to purify.

    Attributes:
        path: Its path relative to the input folder, with "/"; bytes that are not UTF-8 are kept as
            surrogates.
        source: Where to read it; of a remote file, the path once more.
        target: Where to write it, relative to the output folder.
        size: Bytes when the plan was made; 0 where nobody said.
    """

    path: str
    source: Path
    target: str
    size: int

    @property
    def target_folders(self) -> list[str]:
        """The folders that the output lies in, relative to the output folder, innermost first."""
        return folders_of(self.target)


@dataclass(frozen=True, kw_only=True)
class Selection(ABC):
    """The rules by which a plan selects and names, wherever the images are.

    Attributes:
        base: The input folder.
        config: Patterns and output format.
        listed: Relative paths, for a run over a list of files; None to walk the folder.
        only: Relative paths to take and no others; None for all.
        contested: Outputs that several inputs want; who would not keep its name there gets another.
        may_be_gone: Whether a listed file that is not there any more is skipped, and has not failed.
        keeps_names: Whether every output is called as its input, as tar shards are.
    """

    base: Path | Url
    config: FolderConfig
    listed: tuple[str, ...] | None = None
    only: frozenset[str] | None = None
    contested: frozenset[str] = frozenset()
    may_be_gone: bool = False
    keeps_names: bool = False

    def entries(self) -> Iterator[Entry | Outcome]:
        """Yield the files of our shard in a fixed order, and an outcome for each one that cannot be taken.

        The files of a folder come before those of the folders in it, each sorted by name.
        """
        return filter(self.takes, self.of_all_shards())

    def takes(self, entry: Entry | Outcome) -> bool:
        """Whether a file belongs to our shard, and to those that we want."""
        if self.only is not None and entry.path not in self.only:
            return False
        part = self.config.part
        return part.count == 1 or part.takes(entry.path)

    def of_all_shards(self, ignore: Callable[[str], None] = lambda path: None) -> Iterator[Entry | Outcome]:
        """The same for the whole folder: two images of different shards may share an output.

        Args:
            ignore: Told of each file that no pattern takes; hidden ones do not count.
        """
        return self._from_list(self.listed, ignore) if self.listed is not None else self._walk(ignore)

    @abstractmethod
    def read(self, entry: Entry) -> bytes:
        """The bytes of one file.

        Raises:
            InputError: It cannot be read.
        """

    @abstractmethod
    def _walk(self, ignore: Callable[[str], None]) -> Iterator[Entry | Outcome]:
        """Everything in the folder that is not hidden."""

    @abstractmethod
    def _from_list(self, listed: Iterable[str], ignore: Callable[[str], None]) -> Iterator[Entry | Outcome]:
        """What was listed, in the order of a walk."""

    def _target(self, path: str) -> str:
        """Name of the output of a file, which keeps its whole name where several want one."""
        target = path if self.keeps_names else target_of(path, self.config)
        if target in self.contested and target != path:
            return path + os.path.splitext(target)[1]  # noqa: PTH122  # pathlib would normalise the folders
        return target

    def _selected(self, listed: Iterable[str], ignore: Callable[[str], None]) -> Iterator[str]:
        """The listed paths that the patterns take, in the order of a walk."""
        for path in sorted(listed, key=_place):
            if selects(self.config, path, named=True):
                yield path
            else:
                ignore(path)


@dataclass(frozen=True, kw_only=True)
class Plan(Selection):
    """A folder, or a list of files below one, with the rules that select and name.

    Attributes:
        base: The input folder.
        out: The output folder; it is left out where it lies in the input folder.
    """

    base: Path
    out: Path | None = None

    def read(self, entry: Entry) -> bytes:
        """The bytes of one file.

        Raises:
            InputError: It cannot be read.
        """
        return read_file(entry.source, self.config.limits, name=shown(entry.path))

    def _walk(self, ignore: Callable[[str], None]) -> Iterator[Entry | Outcome]:
        """Walk the tree; links to folders are not followed, so that no loop can hold us."""
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self.base / folder) as scan:
                    found = sorted(scan, key=lambda e: os.fsencode(e.name))
            except OSError as e:
                message = f"cannot list the folder: {e.strerror}"
                yield replace(lost(folder or ".", _reason(e), message, failed=True), is_folder=True)
                continue
            inner = []
            for item in found:
                path = f"{folder}/{item.name}" if folder else item.name
                if item.name.startswith("."):
                    continue
                if item.is_dir(follow_symlinks=False):
                    if self.out is None or not _same_file(self.base / path, self.out):
                        inner.append(path)
                elif item.is_symlink() and _leads_to_folder(self.base / path):
                    yield lost(path, Reason.SYMLINK, "a link to a folder is not followed")
                elif selects(self.config, path):
                    yield self._entry(path)
                else:
                    ignore(path)
            folders += reversed(inner)

    def _from_list(self, listed: Iterable[str], ignore: Callable[[str], None]) -> Iterator[Entry | Outcome]:
        return (self._entry(path, named=True) for path in self._selected(listed, ignore))

    def _entry(self, path: str, *, named: bool = False) -> Entry | Outcome:
        """Look at one file; what the user named and cannot be taken has failed, not been skipped."""
        source = self.base / path
        is_link = os.path.islink(source)  # noqa: PTH114  # never raises, whatever the name
        try:
            status = source.stat()
            # A folder on the way may be a link, too, but the walk does not follow those.
            inside = not (is_link or named) or source.resolve().is_relative_to(self.base.resolve())
        except (OSError, RuntimeError, ValueError) as e:
            if is_link:
                return lost(path, Reason.SYMLINK, "a link that leads nowhere", failed=named)
            reason = _reason(e)
            failed = not (self.may_be_gone and reason is Reason.VANISHED)
            return lost(path, reason, f"cannot read the file: {e}", failed=failed)
        if not inside:
            message = "a link that leaves the input folder is not followed"
            return lost(path, Reason.SYMLINK, message, failed=named)
        if not stat.S_ISREG(status.st_mode):
            return lost(path, Reason.NOT_A_FILE, "not a regular file", failed=named)
        return Entry(path=path, source=source, target=self._target(path), size=status.st_size)


P = TypeVar("P", bound=Selection)


def selects(config: FolderConfig, path: str, *, named: bool = False) -> bool:
    """Whether the patterns take a path; a file that the user named needs no known extension."""
    taken = (named and config.include == FolderConfig.include) or matches(path, config.include)
    return taken and not matches(path, config.exclude)


def target_of(path: str, config: FolderConfig) -> str:
    """Where the output of an image goes, relative to the output folder."""
    # `same` keeps a name whose format we can write; that much the suffix tells.
    written = "GIF" if path.lower().endswith(".gif") else "PNG"
    return output_name(path, config.format, written)


def collisions(entries: Iterable[Entry | Outcome]) -> list[tuple[str, str, str]]:
    """Find inputs that get in each other's way: (first input, second input, output).

    Two inputs can share an output, or the output of one can be the folder that another needs. Both are
    seen from the folder of an input and those above it, so no more names are held than those have.

    Args:
        entries: In the order of a plan.
    """
    shared, in_the_way = [], []
    above: list[tuple[str, dict[str, str]]] = []  # folders from the top to here, and the outputs in each
    for entry in entries:
        if not isinstance(entry, Entry):
            continue
        folders = ["", *reversed(entry.target_folders)]
        while above and above[-1][0] not in folders:
            above.pop()
        if not above or above[-1][0] != folders[-1]:
            above.append((folders[-1], {}))
        first = above[-1][1].setdefault(entry.target, entry.path)
        if first != entry.path:
            shared.append((first, entry.path, entry.target))
        for _, outputs in above[:-1]:
            in_the_way += [(outputs[f], entry.path, f) for f in folders if f in outputs]
    return shared + in_the_way


def without_collisions(plan: P, others: Iterable[Entry | Outcome]) -> P:
    """The plan in which inputs that would share an output keep their whole names and gain a suffix.

    The names depend on which files there are, and not on their order. An output can still be
    contested: by a file that has the longer name already.

    Args:
        plan: The plan.
        others: Every input that has a place in the output folder, also beyond this plan.
    """
    return replace(plan, contested=frozenset(target for _, _, target in collisions(others)))


def folders_of(path: str) -> list[str]:
    """The folders that a relative path runs through, innermost first."""
    return [str(folder) for folder in PurePosixPath(path).parents][:-1]


def files_in_the_way(folders: Iterable[str], out: Path) -> list[str]:
    """Find what lies in the output folder where a folder is needed.

    Raises:
        OutputError: Nobody can look there.
    """
    with looking(out, OutputError):
        return sorted(f for f in folders if os.path.lexists(out / f) and not (out / f).is_dir())


def check_folders(base: Path, out: Path, *, inside: bool = False) -> None:
    """Refuse folders that cannot be read from and written to at once.

    Args:
        base: The input folder.
        out: The output folder.
        inside: Whether it may lie inside the input folder, since nobody looks for images there.

    Raises:
        ConfigError: The input is missing or no folder, or one folder lies inside the other.
    """
    check_folder(base, "; to purify one picture use: zipcli purify - - < IN > OUT")
    with looking(out, OutputError):
        if os.path.lexists(out) and not out.is_dir():
            raise ConfigError(f"{shown(str(out))}: the output exists and is not a folder")
        inner, outer = out.resolve(), base.resolve()
    nestings = [(outer, inner, "the input folder lies inside the output folder")]
    if _same_file(base, out):
        nestings = [(outer, inner, "the output folder is the input folder")]
    elif not inside:
        nestings.append((inner, outer, "the output folder lies inside the input folder"))
    for a, b, words in nestings:
        if any(_same_file(parent, b) for parent in (a, *a.parents)):
            raise ConfigError(f"{shown(str(out))}: {words} {shown(str(base))}; choose a folder outside it")


def check_folder(folder: Path, instead: str = "") -> None:
    """Refuse an input that is missing or no folder; `instead` says what to do with a single picture."""
    name = shown(str(folder))
    with looking(folder, ConfigError):
        try:
            status = folder.stat()
        except FileNotFoundError as e:
            raise ConfigError(f"{name}: there is no such folder") from e
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{name}: not a folder{instead}")


def no_images(plan: Selection) -> str:
    """What to say of a plan that finds nothing."""
    if plan.config.include == TAR_PATTERNS:
        return f"{plan.base}: no tar shards found; those are files named {' '.join(TAR_PATTERNS)}"
    if plan.config.include == FolderConfig.include:
        patterns = " ".join(FolderConfig.include)
        return (
            f"{plan.base}: no images found; images are files named {patterns}, "
            "or what you name with --include"
        )
    return f"{plan.base}: no file matches --include {' '.join(plan.config.include)}"


def relative_paths(listed: Iterable[str], base: Path, out: Path | None) -> tuple[str, ...]:
    """Make listed paths relative to the input folder.

    A path that is absolute, or is found from where we stand, must lie below `base`; any other is
    taken as relative to `base` already. `out` is None where it is remote.

    Raises:
        ConfigError: A path leaves the folder, or lies in the output folder.
    """
    written = None if out is None else Path(os.path.abspath(out))  # noqa: PTH100
    root = Path(os.path.abspath(base))  # noqa: PTH100  # links must stay as they were given
    paths = []
    for name in listed:
        from_here = Path(os.path.abspath(name))  # noqa: PTH100
        if from_here.is_relative_to(root) and (os.path.isabs(name) or os.path.lexists(from_here)):  # noqa: PTH117
            relative = from_here.relative_to(root)
        else:
            relative = Path(os.path.normpath(name))
        if relative.is_absolute() or ".." in relative.parts or relative == Path():
            raise ConfigError(
                f"{shown(name)}: not below {shown(str(base))}; name the folder that holds it with --base"
            )
        if written is not None and (root / relative).is_relative_to(written):
            raise ConfigError(f"{shown(name)}: lies in the output folder; leave it out of the list")
        paths.append(relative.as_posix())
    return tuple(dict.fromkeys(paths))


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a relative path, or the name at its end, fits one of the patterns; case does not count."""
    lowered = path.lower()
    name = PurePosixPath(lowered).name
    return any(fnmatchcase(name, p.lower()) or fnmatchcase(lowered, p.lower()) for p in patterns)


def lost(path: str, reason: Reason, message: str, *, failed: bool = False) -> Outcome:
    """The outcome of a file that cannot be taken: skipped, or failed where the user asked for it."""
    return Outcome(path=path, state="failed" if failed else "skipped", reason=reason, message=message)


def _place(path: str) -> list[tuple[bool, bytes]]:
    """Where the walk would come upon a file: the files of a folder come before the folders in it."""
    *folders, name = path.split("/")
    return [*((True, os.fsencode(folder)) for folder in folders), (False, os.fsencode(name))]


def _reason(error: Exception) -> Reason:
    """Why a name in the input cannot be followed."""
    known = {errno.ENOENT: Reason.VANISHED, errno.ENAMETOOLONG: Reason.NAME_UNSUPPORTED}
    return known.get(getattr(error, "errno", None) or 0, Reason.UNREADABLE)


def _leads_to_folder(link: Path) -> bool:
    try:
        return link.is_dir()
    except OSError:  # a target that we may not look at, or with an impossible name
        return False


def _same_file(a: Path, b: Path) -> bool:
    """Compare by device and inode: strings miss mounts, links and spellings."""
    try:
        return a.samefile(b)
    except OSError:
        return False
