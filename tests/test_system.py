"""Which processes live."""

import os
import platform
import subprocess
import sys
import time

import pytest

from zipcli.system import started


def test_a_process_that_lives_has_one_start() -> None:
    mine = started(os.getpid())
    assert mine is not None
    assert mine == started(os.getpid())
    assert mine != started(os.getppid())


def test_a_process_that_has_ended_lives_no_more() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert started(child.pid) is not None
        child.kill()
        until = time.monotonic() + 10
        while started(child.pid) is not None and time.monotonic() < until:
            time.sleep(0.01)
        assert started(child.pid) is None  # and nobody has asked for its end yet
    assert started(child.pid) is None


FAULTS = """
import resource, sys
from zipcli.system import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(50):
    blocks = [bytearray(8 << 20) for _ in range(4)]
    for block in blocks:
        block[::4096] = bytes([1]) * (len(block) // 4096)
    del block, blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is asked")
@pytest.mark.parametrize(("variable", "kept"), [("", True), ("MALLOC_TRIM_THRESHOLD_", False)])
def test_freed_memory_is_not_asked_for_anew_unless_a_user_tunes_it(variable: str, kept: bool) -> None:
    def faults(how: str) -> int:
        env = os.environ | ({variable: "65536"} if variable else {})
        argv = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(argv, env=env, capture_output=True, check=True, text=True).stdout)

    assert (faults("kept") < faults("as it was") / 5) == kept
