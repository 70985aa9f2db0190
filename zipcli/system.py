"""What we ask of the operating system: which processes live, and how ours gets memory and waits."""

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

_EXITING = 0x4
"""PF_EXITING of the Linux kernel: set before a process lets go of its locks, and for ever after."""

_KEPT_BYTES = 256 * 2**20
"""Freed memory that stays ours. A network frees and asks for the same megabytes in every layer; given back
to the system each time, they cost a fault for each page: up to 13 % of a run, by luck of the heap."""

_MALLOPT = {-1: _KEPT_BYTES, -3: 32 * 2**20}
"""M_TRIM_THRESHOLD, and M_MMAP_THRESHOLD at its highest; see malloc(3)."""


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, unless the environment tunes it; nothing elsewhere."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with suppress(AttributeError, OSError, TypeError):
        for option, value in _MALLOPT.items():
            ctypes.CDLL(None).mallopt(option, value)


def spin_less() -> None:
    """Let threads of a network sleep when they wait for long; to be called before torch is imported.

    By default they spin, at the cost of our threads that decode and write. A user who has set something
    is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


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
    except FileNotFoundError:  # none, or hidden from us, or a system without /proc
        pass
    except ProcessLookupError:  # it ended while we read
        return None
    except OSError:
        return "unknown"
    try:
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
