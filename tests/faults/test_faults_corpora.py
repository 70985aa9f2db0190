"""Every file of public collections of difficult images, none of which is in this repository (T2).

Opt-in: ZIPCLI_CORPORA names a folder with checkouts, such as those that the README lists. Their files
are read where they are.
"""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cli.shell import BLUR, start
from PIL import Image

from zipcli.errors import Reason

CORPORA = os.environ.get("ZIPCLI_CORPORA", "")

pytestmark = pytest.mark.skipif(
    not CORPORA, reason="opt-in: ZIPCLI_CORPORA names a folder of difficult images"
)


class Memory(threading.Thread):
    """Watches the most memory that any decode worker of a process has taken."""

    def __init__(self, parent: int) -> None:
        super().__init__(daemon=True)
        self.parent = parent
        self.most = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            with suppress(OSError):
                for pid in Path(f"/proc/{self.parent}/task/{self.parent}/children").read_text().split():
                    with suppress(OSError, StopIteration, IndexError):
                        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                        peak = next(line for line in lines if line.startswith("VmHWM"))
                        self.most = max(self.most, int(peak.split()[1]))


@pytest.mark.slow
def test_every_file_of_the_corpora_ends_in_one_state(tmp_path: Path, scoreboard: Callable[..., None]) -> None:
    began = time.monotonic()
    names = {path.relative_to(CORPORA).as_posix() for path in Path(CORPORA).rglob("*") if path.is_file()}
    # Without an image's suffix, `x` would become `x.png`, like its neighbour of that name.
    listed = sorted(name for name in names if f"{name}.png" not in names)
    (tmp_path / "list").write_bytes(b"\0".join(map(os.fsencode, listed)))
    words = ("purify", "--base", CORPORA, tmp_path / "out", "--files-from", tmp_path / "list", "-0")
    with start(
        *words, "--json", "--on-collision", "append", *BLUR, stderr=(tmp_path / "err").open("wb")
    ) as process:
        memory = Memory(process.pid)
        memory.start()
        out, _ = process.communicate()
        memory.over.set()
    seconds = time.monotonic() - began
    said = (tmp_path / "err").read_text()
    lines = [json.loads(line) for line in out.splitlines()]
    found = [line for line in lines if line["type"] == "image"]
    end = lines[-1]
    assert process.returncode in (0, 3), said
    assert "Traceback" not in said
    assert end["type"] == "run_end"
    assert (
        len(found)
        == len(listed)
        == end["found"]
        == end["done"] + end["skipped"] + end["failed"] + end["passed"]
    )
    assert len({line.get("path_b64", line["path"]) for line in found}) == len(found)
    reasons = Counter(line["reason"] for line in found if "reason" in line)
    assert set(reasons) <= set(Reason)
    done = [line for line in found if line["state"] == "done"]
    for line in done:
        with Image.open(tmp_path / "out" / line["out_path"]) as image:
            image.load()
            assert (image.format, image.n_frames if hasattr(image, "n_frames") else 1) == ("PNG", 1)
    assert memory.most < 1.5 * 2**20, "a worker took more than its limit"
    scoreboard(
        "corpora",
        [],
        files=len(found),
        done=len(done),
        failed=end["failed"],
        skipped=end["skipped"],
        crashes=reasons["decode_crash"],
        timeouts=reasons["decode_timeout"],
        most_worker_mib=memory.most // 1024,
        seconds=round(seconds),
        **{f"reason_{reason}": count for reason, count in sorted(reasons.items())},
    )
