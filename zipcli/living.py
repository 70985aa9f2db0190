"""Which processes of this machine live."""

import os
from functools import cache
from pathlib import Path

_EXITING = 0x4
"""PF_EXITING of the Linux kernel: set before a process lets go of its locks, and for ever after."""


def started(pid: int) -> str | None:
    """What tells a process from an earlier one of its number, in words of the system.

    A process that has ended is none, even where its parent has not asked for its end: it writes
    nothing any more, and some parents (the first process of many containers) never ask.

    Args:
        pid: Its number on this machine.

    Returns:
        Its start; "unknown" where there is such a process and no more can be known; None where there
        is none.
    """
    try:
        # Behind the name, which may hold anything: fields 9 (flags) and 22 (ticks from boot to start).
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if int(words[6]) & _EXITING else words[19].decode() + _boot()
    except ProcessLookupError:  # it ended while we read
        return None
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):  # noqa: PTH112
            return None
    except OSError:
        return "unknown"
    try:  # a system without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "unknown"


@cache
def _boot() -> str:
    try:
        return "@" + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
