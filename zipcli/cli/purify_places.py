"""What differs between folders of this machine and URLs for `zipcli purify`."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from zipcli.config import FolderConfig
from zipcli.pipeline.url import Url

if TYPE_CHECKING:
    from zipcli.pipeline.ledger import Ledger
    from zipcli.pipeline.plan import Selection
    from zipcli.pipeline.remote_ledger import RemoteLedger


def whole_plan(source: Path | Url, out: Path | Url, files: FolderConfig) -> "Selection":
    """Everything in the input folder, once it is known that both can be used.

    Raises:
        ConfigError: One of them cannot.
    """
    from zipcli.pipeline.plan import Plan, check_folder, check_folders

    if isinstance(source, Path) and isinstance(out, Path):
        check_folders(source, out, inside=True)
        return Plan(base=source, config=files, out=out)
    from zipcli.pipeline.remote import refuse_halves
    from zipcli.pipeline.remote_plan import RemotePlan, check_urls

    if isinstance(out, Url):
        refuse_halves(out)
    if isinstance(source, Path):
        check_folder(source)
        return Plan(base=source, config=files)
    check_urls(source, out)
    return RemotePlan(base=source, config=files, out=out if isinstance(out, Url) else None)


def is_inside(out: Path | Url, source: Path | Url) -> bool:
    """Whether the output lies in the input folder."""
    if isinstance(out, Path) and isinstance(source, Path):
        return out.resolve().is_relative_to(source.resolve())
    if isinstance(out, Path) or isinstance(source, Path):
        return False
    from zipcli.pipeline.remote import Store

    return Store(source).contains(Store(out)) is not None


def ledger_of(out: Path | Url, source: Path | Url, files: FolderConfig) -> "Ledger | RemoteLedger":
    """The ledger of an output folder, which is not open yet."""
    if isinstance(out, Url):
        from zipcli.pipeline.remote_ledger import RemoteLedger

        return RemoteLedger(out, source, files.part)
    from zipcli.pipeline.ledger import Ledger

    return Ledger(out, source, files.part)


def failed_paths(out: Path | Url) -> tuple[str, ...]:
    """The inputs that failed when they were last tried.

    Raises:
        ConfigError: `out` was not written by zipcli, or its state is damaged.
    """
    if isinstance(out, Url):
        from zipcli.pipeline.remote_records import RemoteFolder

        folder = RemoteFolder(out)
        folder.state()
        return folder.records().failed_paths()
    from zipcli.pipeline import records

    return records.failed_paths(out)


def relative_paths(names: list[str], source: Path | Url, out: Path | Url) -> tuple[str, ...]:
    """The names of a list, relative to the input folder.

    Raises:
        ConfigError: A name leaves the folder, or lies in the output folder.
    """
    if isinstance(source, Url):
        from zipcli.pipeline.remote_plan import remote_paths

        return remote_paths(names, source, out)
    from zipcli.pipeline import plan

    return plan.relative_paths(names, source, out if isinstance(out, Path) else None)


def free_bytes(out: Path | Url) -> int | None:
    """Free bytes of the disk of the output folder; a URL has none."""
    if isinstance(out, Url):
        return None
    return shutil.disk_usage(next(p for p in (out, *out.absolute().parents) if p.exists())).free
