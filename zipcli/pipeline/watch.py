"""Which images have come to a folder, or have changed there, and are complete."""

from collections.abc import Callable
from contextlib import suppress

from zipcli.pipeline.plan import Entry, Plan

Look = tuple[int, ...]


class Watch:
    """Looks at the files of a plan again and again.

    A file is complete when two looks see the same, and its decoder agrees: half a picture whose writer
    pauses fails, and is taken again when it has grown.
    """

    def __init__(self, plan: Plan) -> None:
        """Look at nothing yet."""
        self._plan = plan
        self._last: dict[str, Look] = {}
        self._handed_out: dict[str, Look] = {}

    def look(self, check_stop: Callable[[], None]) -> frozenset[str]:
        """Paths of the files that have settled since the last look and were not handed out as they are."""
        now: dict[str, Look] = {}
        for entry in self._plan.entries():
            check_stop()
            now[entry.path] = _look(entry) if isinstance(entry, Entry) else ()
        settled = {
            path
            for path, look in now.items()
            if look == self._last.get(path) and look != self._handed_out.get(path)
        }
        self._last = now
        self._handed_out = {path: look for path, look in self._handed_out.items() if path in now}
        self._handed_out |= {path: now[path] for path in settled}
        return frozenset(settled)


def _look(entry: Entry) -> Look:
    """What changes when somebody writes to a file or puts another in its place; empty once it is gone."""
    with suppress(OSError):
        status = entry.source.stat()
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return ()
