"""A program that outlives zipcli for a moment: it removes what a classifier left, however zipcli went.

Nothing in a process can clean up after a second Ctrl-C or a SIGKILL of that process. So this one waits
beside it, at the other end of a pipe that closes when zipcli is gone, and then ends the programs of
the process group that it was told last, and removes the folder of temporary pictures.
"""

import os
import shutil
import signal
import sys
from contextlib import suppress


def main(folder: str) -> None:
    """Wait for the end of standard input, each line of which is a process group, or 0 for none."""
    group = 0
    for line in sys.stdin:
        group = int(line)
    if group:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
