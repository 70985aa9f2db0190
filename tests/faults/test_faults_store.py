"""Kills that nothing can catch, at any instant of a run from an object store to itself."""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cli.shell import BLUR, ENVIRONMENT, invoke, pictures, tree
from faults.forked import Forks
from s3_server import S3, Bucket

from zipcli.pipeline.remote_records import RemoteFolder
from zipcli.pipeline.url import Url

IMAGES = 60
KILLS = 8
KILLS_OF_A_FOLDER = 4


@pytest.fixture
def s3_forks(s3: S3, bucket: Bucket, here: Path) -> Iterator[Forks]:
    """A server of runs that know where the store is."""
    bucket.fill(pictures(here / "warm-up", 1), "warm-up")
    with closing(Forks({**ENVIRONMENT, **s3.environment})) as forks:
        forks.warm_up("purify", bucket.url("warm-up"), bucket.url("warm"), *BLUR, cwd=here)
        yield forks


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """The MD5 of files, which S3 tells of what was put at once."""
    return {path: hashlib.md5(data, usedforsecurity=False).hexdigest() for path, data in files.items()}


@pytest.mark.fault("F01", "F43")
def test_kills_at_any_instant_of_a_run_between_stores_cost_nothing(
    s3_forks: Forks, bucket: Bucket, here: Path
) -> None:
    bucket.fill(pictures(here / "in", IMAGES))
    assert invoke("purify", "in", "local", *BLUR).exit_code == 0
    expected, before = digests(tree(here / "local")), bucket.listing("in")

    def purify(out: str, kill_after: float | None = None) -> tuple[bool, float]:
        words = ("purify", bucket.url("in"), bucket.url(out), *BLUR, "--batch-size", "8")
        done = s3_forks.run(*words, cwd=here, kill_after=kill_after)
        assert done.killed or done.returncode == 0, done.err.decode()
        assert not done.lingered
        return done.killed, done.seconds

    moments, kills, folders = random.Random(0), 0, 0
    _, seconds = purify("out")
    while kills < KILLS:
        out, most, is_killed = f"out-{folders}", min(kills + KILLS_OF_A_FOLDER, KILLS), True
        while is_killed:  # the run that goes on may be hit as well
            is_killed, _ = purify(out, moments.uniform(0, seconds) if kills < most else None)
            kills += is_killed
            visible = bucket.etags(out)
            assert visible.items() <= expected.items(), "half an output, or another"
        assert visible == expected
        assert_ended_well(bucket, out)
        folders += 1
    assert bucket.listing("in") == before, "an input was changed"


def assert_ended_well(bucket: Bucket, out: str) -> None:
    """Every image is done, once, and the ledger is one part that nobody holds."""
    folder = RemoteFolder(Url(bucket.url(out)))
    facts = json.loads(invoke("status", str(folder), "--json").stdout)
    assert facts["counts"] == {**dict.fromkeys(facts["counts"], 0), "done": IMAGES}
    verified = invoke("verify", str(folder))
    assert verified.exit_code == 0, verified.output
    assert [record.state for record in folder.records().by_path.values()] == ["done"] * IMAGES
    state = [name.rpartition("/")[2] for name in bucket.listing(f"{out}/.zipcli")]
    assert len(state) == 3
    assert {"begun", "run.json"} < set(state)
