"""A folder in parts: --shard, the locks of the parts, merge."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from cli.shell import BLUR, ENVIRONMENT, PATIENCE, images, invoke, picture, pictures, run, start, tree, until

from zipcli.config import Shard
from zipcli.errors import ConfigError

STATE = ".zipcli"


@pytest.fixture
def sharded(here: Path) -> Path:
    """Nine pictures in `in`, purified into `out` by three shards."""
    pictures(here / "in", 9)
    for index in (3, 1, 2):
        assert invoke("purify", "in", "out", "--shard", f"{index}/3", *BLUR).exit_code == 0
    return here


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "3", "/", "1/", "/3", "-1/3", "1/0", "a/b", "1/3/3", "\u0661/3", ""]
)
def test_a_shard_that_makes_no_sense_is_refused(here: Path, text: str) -> None:
    pictures(here / "in", 1)
    result = invoke("purify", "in", "out", "--shard", text, *BLUR)
    assert result.exit_code == 2
    assert "1/8" in result.stderr
    with pytest.raises(ConfigError):
        Shard.parse(text)


def test_every_path_has_one_shard_and_shards_are_of_like_size() -> None:
    names = [f"folder/{n}.png" for n in range(6400)]
    taken = Counter(next(n for n in range(1, 65) if Shard(index=n, count=64).takes(name)) for name in names)
    assert taken.total() == len(names)
    assert 60 <= min(taken.values()) <= max(taken.values()) <= 145


def test_a_new_image_moves_no_other_to_another_shard() -> None:
    names = [f"{n}.png" for n in range(100)]
    shard = Shard(index=2, count=5)
    assert [n for n in names if shard.takes(n)] == [n for n in [*names, "new.png"] if shard.takes(n)][
        : len([n for n in names if shard.takes(n)])
    ]


SLURM = "SLURM_ARRAY_TASK_"


def slurm(**values: int) -> dict[str, str]:
    return {f"{SLURM}{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("environment", "shard", "variable"),
    [
        ({"ZIPCLI_SHARD": "3/8", **slurm(ID=1, MIN=1, COUNT=2)}, "3/8", "ZIPCLI_SHARD"),
        (slurm(ID=3, MIN=1, MAX=8, COUNT=8, STEP=1), "3/8", f"{SLURM}ID"),
        (slurm(ID=0, MIN=0, MAX=3, COUNT=4, STEP=1), "1/4", f"{SLURM}ID"),
        (slurm(ID=14, MIN=10, MAX=16, COUNT=4, STEP=2), "3/4", f"{SLURM}ID"),
        (slurm(ID=14, MIN=10, MAX=17, STEP=2), "3/4", f"{SLURM}ID"),
        (slurm(ID=4, MIN=1, COUNT=4), "4/4", f"{SLURM}ID"),
        ({**slurm(ID=2, MIN=1, COUNT=2), "JOB_COMPLETION_INDEX": "x"}, "2/2", f"{SLURM}ID"),
        ({"JOB_COMPLETION_INDEX": "0", "ZIPCLI_SHARD_COUNT": "4"}, "1/4", "JOB_COMPLETION_INDEX"),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "3", "ZIPCLI_SHARD_COUNT": "4"}, "4/4", "AWS_BATCH_JOB_ARRAY_INDEX"),
        (
            {
                "AWS_BATCH_JOB_ARRAY_INDEX": "3",
                "AWS_BATCH_JOB_ARRAY_SIZE": "5",
                "ZIPCLI_SHARD_COUNT": "4",
            },
            "4/5",
            "AWS_BATCH_JOB_ARRAY_INDEX",
        ),
    ],
)
def test_auto_takes_the_shard_that_a_scheduler_gives(
    here: Path, environment: dict[str, str], shard: str, variable: str
) -> None:
    assert Shard.from_environment(environment) == (Shard.parse(shard), variable)
    pictures(here / "in", 4)
    result = invoke("purify", "in", "out", "--shard", "auto", "-q", *BLUR, env=environment)
    assert result.exit_code == 0, result.stderr
    assert f"shard {shard}, by {variable}" in result.stderr
    ledger = f"ledger-{int(shard[0]):05}-of-{int(shard[2]):05}.jsonl"
    assert (here / "out" / STATE / ledger).exists()


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, "ZIPCLI_SHARD"),
        ({"ZIPCLI_SHARD_COUNT": "4"}, "JOB_COMPLETION_INDEX"),
        ({"ZIPCLI_SHARD": ""}, "1/8"),
        ({"ZIPCLI_SHARD": "auto"}, "1/8"),
        ({"ZIPCLI_SHARD": "9/8", **slurm(ID=1, MIN=1, COUNT=2)}, "9/8"),
        (slurm(ID=3), f"{SLURM}MIN"),
        (slurm(ID=3, MIN=1), f"{SLURM}COUNT"),
        (slurm(MIN=1, COUNT=3), f"{SLURM}ID"),
        (slurm(ID=3, MIN=1, COUNT=2), "COUNT 2"),
        (slurm(ID=0, MIN=1, COUNT=2), "ID 0"),
        (slurm(ID=3, MIN=1, MAX=7, COUNT=3, STEP=1), "without gaps"),
        (slurm(ID=2, MIN=1, MAX=7, COUNT=4, STEP=2), "without gaps"),
        (slurm(ID=2, MIN=1, COUNT=4, STEP=0), "without gaps"),
        ({**slurm(MIN=1, COUNT=4), f"{SLURM}ID": "\u0661"}, f"{SLURM}ID"),
        ({"JOB_COMPLETION_INDEX": "0"}, "ZIPCLI_SHARD_COUNT"),
        ({"JOB_COMPLETION_INDEX": "4", "ZIPCLI_SHARD_COUNT": "4"}, "JOB_COMPLETION_INDEX is 4"),
        ({"JOB_COMPLETION_INDEX": "-1", "ZIPCLI_SHARD_COUNT": "4"}, "JOB_COMPLETION_INDEX"),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "1"}, "ZIPCLI_SHARD_COUNT"),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "\x1b[31m", "ZIPCLI_SHARD_COUNT": "4"}, "AWS_BATCH_JOB_ARRAY_INDEX"),
    ],
)
def test_auto_without_a_whole_answer_is_refused_and_says_what_is_missing(
    here: Path, environment: dict[str, str], named: str
) -> None:
    pictures(here / "in", 1)
    result = invoke("purify", "in", "out", "--shard", "auto", *BLUR, env=environment)
    assert result.exit_code == 2
    assert named in result.stderr
    assert "\x1b" not in result.stderr
    assert not (here / "out").exists()


@pytest.mark.fault("F19")
def test_shards_together_make_the_tree_of_one_run(sharded: Path) -> None:
    assert invoke("purify", "in", "whole", *BLUR).exit_code == 0
    assert tree(sharded / "out") == tree(sharded / "whole")
    result = invoke("status", "out", "--json")
    facts = json.loads(result.stdout)
    assert facts["counts"]["done"] == 9
    assert sum(shard["counts"]["done"] for shard in facts["shards"]) == 9
    assert [shard["shard"] for shard in facts["shards"]] == ["1/3", "2/3", "3/3"]
    assert invoke("verify", "out").exit_code == 0


@pytest.mark.fault("F19")
def test_shards_at_the_same_time_do_not_get_in_each_others_way(here: Path) -> None:
    pictures(here / "in", 12)
    words = [("purify", "in", "out", "--json", "--shard", f"{n}/4", *BLUR) for n in range(1, 5)]
    running = [start(*word, cwd=here) for word in words]
    ended = [process.communicate(timeout=PATIENCE) for process in running]
    assert [process.returncode for process in running] == [0] * 4, ended
    found = [path for out, _ in ended for path in images(out)]
    assert len(found) == len(set(found)) == 12
    assert invoke("verify", "out").exit_code == 0
    assert len(tree(here / "out")) == 12


@pytest.mark.fault("F18")
def test_two_runs_of_one_shard_exclude_each_other_and_two_shards_do_not(here: Path) -> None:
    pictures(here / "in", 40)
    words = ("purify", "in", "out", "--json", "--batch-size", "1", "--method", "blur", "--watch")
    with start(*words, "--shard", "1/2", cwd=here) as process:
        until(process, "run_start")
        while not (here / "out" / STATE / "run.json").exists():
            pass
        second = run("purify", "in", "out", "--shard", "1/2", *BLUR, cwd=here)
        other = run("purify", "in", "out", "--shard", "2/2", *BLUR, cwd=here)
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert second.returncode == 6
    assert f"process {process.pid}" in second.stderr.decode()
    assert other.returncode == 0


def test_a_shard_without_images_is_done(here: Path) -> None:
    picture(here / "in" / "a.png")
    codes = [invoke("purify", "in", "out", "--shard", f"{n}/2", *BLUR).exit_code for n in (1, 2)]
    assert codes == [0, 0]
    assert list(tree(here / "out")) == ["a.png"]


def test_inputs_of_two_shards_that_share_an_output_are_refused(here: Path) -> None:
    for n in range(6):
        picture(here / "in" / f"{n}.png")
        picture(here / "in" / f"{n}.jpg")
    result = invoke("purify", "in", "out", "--shard", "1/5", *BLUR)
    assert result.exit_code == 2
    assert all(f"{n}.jpg" in result.stderr for n in range(6))


@pytest.mark.fault("F40")
@pytest.mark.parametrize("words", [(), ("--shard", "1/4")])
def test_another_number_of_shards_is_refused_until_they_are_merged(
    sharded: Path, words: tuple[str, ...]
) -> None:
    result = invoke("purify", "in", "out", *BLUR, *words)
    assert result.exit_code == 2
    assert "--shard I/3" in result.stderr
    assert "zipcli merge out" in result.stderr
    before = tree(sharded / "out")
    assert invoke("merge", "out").exit_code == 0
    result = invoke("purify", "in", "out", "--json", *BLUR, *words)
    assert result.exit_code == 0
    assert {line["state"] for line in images(result.stdout).values()} == {"skipped"}
    assert tree(sharded / "out") == before
    assert invoke("merge", "out").exit_code == (2 if words else 0)  # three of the four have not run


def test_a_shard_goes_on_where_a_run_without_shards_ended(here: Path) -> None:
    pictures(here / "in", 6)
    assert invoke("purify", "in", "out", *BLUR).exit_code == 0
    picture(here / "in" / "new.png", seed=99)
    states: Counter[str] = Counter()
    for index in (1, 2):
        result = invoke("purify", "in", "out", "--json", "--shard", f"{index}/2", *BLUR)
        assert result.exit_code == 0
        states.update(line["state"] for line in images(result.stdout).values())
    assert states == {"skipped": 6, "done": 1}


def test_a_shard_that_is_run_again_after_a_merge_stands_in_nobodys_way(sharded: Path) -> None:
    """A scheduler starts a task once more."""
    assert invoke("merge", "out").exit_code == 0
    assert invoke("purify", "in", "out", "--shard", "2/3", *BLUR).exit_code == 0
    assert invoke("purify", "in", "out", *BLUR).exit_code == 0


def test_merge_wants_every_shard(here: Path) -> None:
    pictures(here / "in", 6)
    assert invoke("purify", "in", "out", "--shard", "2/3", *BLUR).exit_code == 0
    result = invoke("merge", "out")
    assert result.exit_code == 2
    assert "1/3, 3/3" in result.stderr


def test_merge_refuses_what_is_not_in_its_shard_and_leaves_out_damage(sharded: Path) -> None:
    state = sharded / "out" / STATE
    first, second = (state / f"ledger-0000{n}-of-00003.jsonl" for n in (1, 2))
    before = first.read_bytes()
    first.write_bytes(before + second.read_bytes())
    result = invoke("merge", "out")
    assert result.exit_code == 2
    assert "does not belong to shard 1/3" in result.stderr
    first.write_bytes(before + b"garbage\n" + b'{"half": ')
    assert invoke("merge", "out").exit_code == 0
    assert invoke("verify", "out").exit_code == 0
    assert first.with_suffix(".damaged").read_bytes() == b'garbage\n{"half": '


def test_merge_says_when_images_have_failed(here: Path) -> None:
    pictures(here / "in", 2)
    (here / "in" / "bad.png").write_bytes(b"text")
    for n in (1, 2):
        invoke("purify", "in", "out", "--shard", f"{n}/2", *BLUR)
    result = invoke("merge", "out")
    assert result.exit_code == 3
    assert "1 failed" in result.stderr


@pytest.mark.fault("F21")
def test_shards_of_other_settings_are_refused_even_at_the_same_moment(here: Path) -> None:
    pictures(here / "in", 4)
    words = [("purify", "in", "out", "--shard", f"{n}/2", *BLUR, "-t", f"blur:{2 * n}") for n in (1, 2)]
    for _ in range(3):
        running = [start(*word, cwd=here) for word in words]
        ended = [process.communicate(timeout=PATIENCE) for process in running]
        codes = sorted(process.returncode for process in running)
        assert codes == [0, 2], ended
        assert sum(b"other settings" in err for _, err in ended) == 1
        subprocess.run(["rm", "-r", "out"], cwd=here, check=True)


LOCKS_SAY_YES = """
import fcntl, socket, sys
fcntl.flock = lambda descriptor, kind: None
host = sys.argv.pop(1)
socket.gethostname = lambda: host
from zipcli.cli.main import cli
cli()
"""


@pytest.mark.fault("F20")
def test_two_runs_at_once_where_locks_do_not_work_waste_work_and_break_nothing(here: Path) -> None:
    pictures(here / "in", 30)
    assert invoke("purify", "in", "whole", *BLUR).exit_code == 0
    words = ("purify", "in", "out", "--batch-size", "1", "--force-unlock", *BLUR)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", LOCKS_SAY_YES, host, *words],
            cwd=here,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
        )
        for host in ("one", "two")
    ]
    ended = [process.communicate(timeout=PATIENCE)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], ended
    assert tree(here / "out") == tree(here / "whole")
    assert invoke("verify", "out").exit_code == 0


@pytest.mark.fault("F23")
def test_a_run_that_was_killed_is_taken_over_with_a_note(here: Path) -> None:
    pictures(here / "in", 3)
    with start("purify", "in", "out", "--watch", "--json", *BLUR, cwd=here) as process:
        until(process, "run_start")
        while not (here / "out" / STATE / "run.json").exists():
            pass
        process.kill()
        process.communicate(timeout=PATIENCE)
    result = run("purify", "in", "out", *BLUR, cwd=here)
    assert result.returncode == 0
    assert f"process {process.pid} on {os.uname().nodename} had out before" in result.stderr.decode()
    assert "had out before" not in run("purify", "in", "out", *BLUR, cwd=here).stderr.decode()
