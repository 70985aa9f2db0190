"""Which processes live."""

import os
import subprocess
import sys
import time

from zipcli.living import started


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
