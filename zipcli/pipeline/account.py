"""What a run knows of its output folder, wherever that is: settings, records, and whose a name is.

`Ledger` and `RemoteLedger` are accounts that are kept: they say where the lines and the outputs go.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zipcli import __version__
from zipcli.config import Shard
from zipcli.errors import InputError, LockedError, Reason, shown
from zipcli.pipeline.outcome import json_path
from zipcli.pipeline.records import WHOLE, Record, Records
from zipcli.pipeline.resume import DECISIONS, Decision, Found, Outputs, find
from zipcli.pipeline.settings import complete, fingerprint
from zipcli.pipeline.url import Url


class Account(ABC):
    """The settings of a run and the records of its output folder; safe in threads, touches no file itself."""

    def __init__(self, out: Path | Url, outputs: Outputs, shard: Shard) -> None:
        """Know nothing yet.

        Args:
            out: The output folder.
            outputs: How to look at what is in the output folder.
            shard: The part of the folder that this run takes.
        """
        self.out: Path | Url = out
        self.shard = shard
        self.settings: dict[str, Any] = {}
        self.fingerprint = ""
        self.took_over: str | None = None
        self._outputs = outputs
        self._overwrite = False
        self._known = Records()
        self._published: dict[str, str] = {}
        self._write_lock = threading.Lock()

    def use_settings(self, settings: dict[str, Any], *, overwrite: bool) -> None:
        """Say what this run does; settings are never mixed in one folder.

        Args:
            settings: Everything that can change the bytes of an output, ready for JSON.
            overwrite: Purify again what was purified with other settings.

        Raises:
            ConfigError: The folder has outputs of other settings and `overwrite` is False.
        """
        self.settings = complete(settings)
        self.fingerprint = fingerprint(self.settings)
        self._overwrite = overwrite
        self._refuse_other_settings()

    @abstractmethod
    def open(self, *, force: bool = False) -> AbstractContextManager["Account"]:
        """Hold the folder, and write lines until the end of the block.

        `took_over` says afterwards who had the folder before and did not let go of it.

        Args:
            force: Take it from an owner who cannot be seen from here.

        Raises:
            LockedError: Another run holds the folder.
            OutputError: The folder cannot be written.
        """

    @abstractmethod
    def _refuse_other_settings(self) -> None:
        """Refuse a folder of other settings, unless `_overwrite` is set."""

    @property
    def records(self) -> Mapping[str, Record]:
        """The last record of each input, by its path."""
        return self._known.by_path

    @property
    def damaged_lines(self) -> int:
        """Lines that could not be understood."""
        return self._known.damaged_lines

    def decide(
        self, path: str, target: str, in_sha256: str | None, *, overwrite: bool, paranoid: bool = False
    ) -> Decision:
        """Decide about one input.

        Args:
            path: The input.
            target: Its output, relative to the output folder.
            in_sha256: Digest of the input; None to leave changes of the input out of it.
            overwrite: Whether files that are not ours may be replaced.
            paranoid: Whether to read an output before it is believed to be done.
        """
        record = self.records.get(path)
        found = find(self._outputs, target, record, in_sha256, self.fingerprint, paranoid=paranoid)
        return Decision.PURIFY if found is Found.FOREIGN and overwrite else DECISIONS[found]

    def owns(self, path: str, target: str) -> bool:
        """Whether an output, should it exist, was written by us for this input."""
        record = self.records.get(path)
        return record is not None and target in record.targets

    def stale(self) -> int:
        """Count the outputs that this run left behind with other settings."""
        return sum(
            record.output is not None
            and record.output.fingerprint != self.fingerprint
            and self._outputs.size(record.output.path) is not None
            for record in self.records.values()
        )

    def may_replace(self, path: str, target: str) -> bool:
        """Whether what is at the name of an output may be replaced; asked when it is written.

        Raises:
            InputError: This run has written it for another input.
        """
        if not self._overwrite:
            return self.owns(path, target)
        with self._write_lock:  # overwriting is for what others wrote, and not for what we have just written
            first = self._published.setdefault(target, path)
        if first != path:
            raise _collision(path, first, target)
        return True

    def _refuse_collision(self, path: str, target: str) -> None:
        """Say so where what is in the way is the output of another input."""
        with self._write_lock:
            records = self.records.items()
            owners = [other for other, record in records if other != path and target in record.targets]
        if owners:
            raise _collision(path, owners[0], target)

    def _is_outdated(self, path: str, target: str, in_sha256: str | None) -> bool:
        """Whether an output is ours and not of this very version of its input, which has failed now.

        It would pass for the current one. What somebody has edited stays, and so does the output of
        an input that cannot be read, which may well be unchanged.
        """
        record = self.records.get(path)
        if record is None or target not in record.targets or in_sha256 is None:
            return False
        size = self._outputs.size(target)
        if size is None:
            return False
        output = record.output
        if output is not None and output.path == target and output.bytes == size:
            return (output.in_sha256, output.fingerprint) != (in_sha256, self.fingerprint)
        return record.claim == target

    def _started(
        self, images: Iterable[tuple[str, str, str | None]], seed: int | None
    ) -> list[dict[str, Any]]:
        """The lines that say of (path, target, input digest) that an output may appear."""
        return [
            {
                **{"state": "started", **json_path("path", path), **json_path("out_path", target)},
                **{"in_sha256": in_sha256, "seed": seed},
            }
            for path, target, in_sha256 in images
        ]

    def _stamped(self, line: dict[str, Any]) -> dict[str, Any]:
        """A line with what every line has."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {**line, "fingerprint": self.fingerprint, "time": now, "version": __version__}

    def _learn(self, line: dict[str, Any]) -> None:
        """Know what a line says that was just written."""
        with self._write_lock:
            self._known.add(line)

    def _strangers(self, locks: Iterable[Shard], *, changes: bool) -> list[Shard]:
        """The shards of some locks that we must not work beside.

        They divide the folder in another way, or we would change their settings.
        """
        return [
            there for there in locks if there != self.shard and (changes or there.count != self.shard.count)
        ]


def stranger_at_work(name: str, shard: Shard, who: str) -> LockedError:
    """What to say of a run that must end before ours can begin in the folder that messages call `name`."""
    whose = "a run without --shard" if shard == WHOLE else f"shard {shard}"
    return LockedError(f"{name}: {whose} is writing there ({who}); wait for it")


def _collision(path: str, first: str, target: str) -> InputError:
    message = f"{shown(path)}: {shown(first)} has become {shown(target)} already; rename one"
    return InputError(Reason.COLLISION, message)
