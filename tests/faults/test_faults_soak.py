"""A long run takes no more of anything at its end than at its beginning (T14)."""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli.shell import BLUR, picture, start


@dataclass(frozen=True)
class Look:
    """What a process takes at one moment."""

    megabytes: float
    descriptors: int
    threads: int
    children: int

    @classmethod
    def at(cls, pid: int) -> "Look":
        folder = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        children = (folder / "task" / str(pid) / "children").read_text().split()
        return cls(
            int(status["VmRSS"].split()[0]) / 1024,
            len(list((folder / "fd").iterdir())),
            int(status["Threads"]),
            len(children),
        )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes in /proc")
def test_memory_descriptors_threads_and_children_stay_what_they_are(
    tmp_path: Path, full: bool, scoreboard: Callable[..., None]
) -> None:
    count = 10_000 if full else 800
    kinds = 40
    for n in range(kinds):
        picture(tmp_path / "kinds" / f"{n}.png", (24 + n % 8, 24 + n // 8), seed=n)
    for n in range(count):
        (tmp_path / "in" / str(n % 100)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / str(n % 100) / f"{n}.png").hardlink_to(tmp_path / "kinds" / f"{n % kinds}.png")
    looks: list[Look] = []
    with start("purify", tmp_path / "in", tmp_path / "out", "--json", *BLUR) as process:
        assert process.stdout is not None
        done = 0
        for line in process.stdout:
            done += json.loads(line)["type"] == "image"
            if done >= 100 and done % (count // 100) == 0 and done < count:
                looks.append(Look.at(process.pid))
    assert process.returncode == 0
    assert done == count
    tenth = len(looks) // 10
    first, last = looks[:tenth], looks[-tenth:]
    before, after = (statistics.median(look.megabytes for look in part) for part in (first, last))
    wrong = [f"memory from {before:.0f} to {after:.0f} MB"] if after > 1.1 * before else []
    for name in ("descriptors", "threads", "children"):
        most = [max(getattr(look, name) for look in part) for part in (first, last)]
        wrong += [f"{name} from {most[0]} to {most[1]}"] if most[1] > most[0] + 2 else []
    scoreboard(
        "soak",
        wrong,
        images=count,
        megabytes=f"{before:.0f} to {after:.0f}",
        descriptors=max(look.descriptors for look in looks),
        threads=max(look.threads for look in looks),
        children=max(look.children for look in looks),
    )
