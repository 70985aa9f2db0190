"""What a store has done without saying so, and who came meanwhile: nothing is lost, and nobody's is taken."""

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from cli.shell import BLUR, images, invoke, pictures, redone, tree
from s3_server import S3, STATE, Bucket, Fault, purify

from zipcli.pipeline import remote
from zipcli.pipeline.lock import Owner, this_process
from zipcli.pipeline.records import Record
from zipcli.pipeline.remote_lock import remotely_locked
from zipcli.pipeline.remote_records import RemoteFolder
from zipcli.pipeline.url import Url

OUT = "/out/02.png"
LOCK = f"{STATE}/lock-00001-of-00001"

LOST = {
    "the connection is cut": {"lose_answer": True},
    "a gateway says 500": {"belied": 500},
    # aiohttp, too, tries once more where a connection was used before.
    "every answer to a put is lost": {"lose_answer": True, "times": 2 * remote.TRIES},
}

pytestmark = pytest.mark.fault("F43")


@pytest.fixture
def filled(here: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Three pictures in `in`, here and in the bucket, and what a local run makes of them in `local`."""
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    pictures(here / "in", 3)
    bucket.fill(here / "in")
    assert invoke("purify", "in", "local", *BLUR).exit_code == 0
    return bucket


def record(bucket: Bucket, path: str = "02.png") -> Record:
    """What the ledger says of an image."""
    return RemoteFolder(Url(bucket.url("out"))).records().by_path[path]


def is_whole(bucket: Bucket, here: Path) -> bool:
    """Whether all is as after a run without faults, and nothing is left to do."""
    again = purify(bucket)
    assert (again.exit_code, redone(again.stdout)) == (0, []), again.stderr
    verified = invoke("verify", bucket.url("out"))
    assert verified.exit_code == 0, verified.output
    return bucket.tree() == tree(here / "local") and not [p for p in bucket.under(STATE) if "lock" in p]


@pytest.mark.parametrize("loss", LOST.values(), ids=LOST)
def test_no_output_no_line_no_setting_and_no_lock_depends_on_an_answer(
    filled: Bucket, here: Path, s3: S3, loss: dict[str, Any]
) -> None:
    # What is put without a condition is put again until somebody answers, and needs no looking.
    state = [f"{STATE}/{name}" for name in ("lock", "run.json", r"ledger-.*/\d+\.jsonl")]
    s3.faults = [Fault("PUT", name, **loss) for name in (OUT, *state)]
    result = purify(filled)
    assert result.exit_code == 0, result.stderr
    s3.faults = []
    last = record(filled)
    assert (last.state, last.claim, last.targets) == ("done", None, ("02.png",))
    assert is_whole(filled, here)


def test_a_merge_does_not_depend_on_an_answer(filled: Bucket, here: Path, s3: S3) -> None:
    for shard in ("1/2", "2/2"):
        assert purify(filled, "--shard", shard).exit_code == 0
    s3.faults = [
        Fault("PUT", "ledger-00001-of-00001", lose_answer=True),
        Fault("DELETE", "ledger-00001-of-00002", lose_answer=True),
    ]
    result = invoke("merge", filled.url("out"))
    assert result.exit_code == 0, result.stderr
    assert is_whole(filled, here)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("other bytes", {"status": 500}),
        ("other bytes", {"lose_answer": True}),
        ("the same bytes", {"status": 500}),
        ("no bytes", {"lose_answer": True}),
    ],
)
def test_what_comes_while_an_answer_is_lost_is_neither_replaced_nor_ours(
    filled: Bucket, here: Path, s3: S3, theirs: str, ours: dict[str, Any]
) -> None:
    data = {"other bytes": b"precious", "the same bytes": tree(here / "local")["02.png"], "no bytes": b""}

    def come() -> None:
        filled["out/02.png"] = data[theirs]

    s3.faults = [Fault("PUT", OUT, first=come, **ours)]
    result = purify(filled)
    assert result.exit_code == 3, result.stderr
    assert images(result.stdout)["02.png"]["reason"] == "foreign_output"
    assert record(filled).targets == ()
    assert purify(filled).exit_code == 2, "it is in the way"
    assert filled["out/02.png"] == data[theirs]
    assert filled.store.look("out/02.png").mark is None, "it was replaced by its like"


def test_an_output_that_nobody_could_look_at_is_known_again(filled: Bucket, here: Path, s3: S3) -> None:
    s3.faults = [
        Fault("PUT", OUT, lose_answer=True, times=None),
        Fault("HEAD", OUT, status=500, times=None),
    ]
    result = purify(filled)
    assert images(result.stdout)["02.png"]["reason"] == "not_stored"
    s3.faults = []
    assert filled["out/02.png"] == tree(here / "local")["02.png"], "it was stored"
    again = purify(filled)
    assert (again.exit_code, redone(again.stdout)) == (0, ["02.png"])
    assert is_whole(filled, here)


def test_an_output_that_nobody_could_look_at_gives_way_to_that_of_a_new_version(
    filled: Bucket, here: Path, s3: S3
) -> None:
    s3.faults = [
        Fault("PUT", OUT, lose_answer=True, times=None),
        Fault("HEAD", OUT, status=500, times=None),
    ]
    assert purify(filled).exit_code == 3
    s3.faults = []
    filled["in/02.png"] = filled["in/00.png"]
    assert purify(filled).exit_code == 0
    assert filled["out/02.png"] == tree(here / "local")["00.png"]
    filled["in/02.png"] = b"no picture"
    assert purify(filled).exit_code == 3
    assert "02.png" not in filled.tree(), "it would pass for that of the new version"


@pytest.mark.parametrize("later", ["the same", "no picture"])
def test_what_came_to_a_name_that_we_had_begun_is_neither_replaced_nor_removed(
    filled: Bucket, s3: S3, later: str
) -> None:
    s3.faults = [Fault("PUT", OUT, status=500, times=None)]
    assert images(purify(filled).stdout)["02.png"]["reason"] == "not_stored"
    assert record(filled).claim == "02.png"
    s3.faults = []
    filled["out/02.png"] = b"precious"
    if later == "no picture":
        filled["in/02.png"] = b"no picture"
    result = purify(filled)
    wanted = "foreign_output" if later == "the same" else "unidentified"
    assert images(result.stdout)["02.png"]["reason"] == wanted
    assert filled["out/02.png"] == b"precious"
    assert record(filled).targets == ()


def test_what_is_put_just_before_we_write_over_our_own_stays(filled: Bucket, s3: S3) -> None:
    s3.faults = [
        Fault("PUT", OUT, lose_answer=True, times=None),
        Fault("HEAD", OUT, status=500, times=None),
    ]
    assert purify(filled).exit_code == 3
    filled["in/02.png"] = filled["in/00.png"]

    def come() -> None:
        s3.faults = []
        filled["out/02.png"] = b"precious"

    # The first put finds our own in the way; the second is to write over it.
    s3.faults = [Fault("PUT", OUT), Fault("PUT", OUT, first=come)]
    assert images(purify(filled).stdout)["02.png"]["reason"] == "foreign_output"
    assert filled["out/02.png"] == b"precious"


def test_of_runs_with_other_settings_that_begin_at_once_the_first_decides(filled: Bucket, s3: S3) -> None:
    other = invoke("purify", filled.url("in"), filled.url("other"), *BLUR, "--transform", "gray")
    assert other.exit_code == 0
    theirs = filled["other/.zipcli/run.json"]

    def come() -> None:
        filled[f"{STATE}/run.json"] = theirs

    s3.faults = [Fault("PUT", "/out/.zipcli/run.json", first=come, lose_answer=True)]
    assert purify(filled).exit_code == 2
    assert filled[f"{STATE}/run.json"] == theirs
    assert filled.tree() == {}


def test_a_lock_that_was_stored_without_our_knowledge_does_not_lock_us_out(
    filled: Bucket, here: Path, s3: S3
) -> None:
    s3.faults = [
        Fault("PUT", LOCK, belied=500, times=remote.TRIES),
        Fault("HEAD", LOCK, status=500),
    ]
    assert purify(filled).exit_code == 5
    assert purify(filled).exit_code == 0, "the process that has the lock lives, since it is this one"
    assert is_whole(filled, here)


@pytest.fixture
def stale(filled: Bucket) -> Bucket:
    """A bucket with the lock of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = Owner(host=this_process().host, pid=ended.pid, started="long ago")
    filled[LOCK] = json.dumps(asdict(owner)).encode()
    return filled


@pytest.mark.parametrize("times", [1, None])
def test_a_lock_that_was_taken_over_without_an_answer_is_ours(
    stale: Bucket, here: Path, s3: S3, times: int | None
) -> None:
    s3.faults = [Fault("PUT", LOCK), Fault("PUT", LOCK, lose_answer=True, times=times)]
    result = purify(stale)
    assert result.exit_code == 0, result.stderr
    assert "did not end in order" in result.stderr
    s3.faults = []
    assert is_whole(stale, here)


@pytest.mark.parametrize("loss", [{"status": 500}, {"lose_answer": True}], ids=["not seen", "not answered"])
def test_of_two_runs_that_take_over_a_lock_one_has_it(stale: Bucket, s3: S3, loss: dict[str, Any]) -> None:
    with ExitStack() as stack:

        def come() -> None:
            store = RemoteFolder(Url(stale.url("out"))).store
            stack.enter_context(remotely_locked(store, LOCK.removeprefix("out/"), force=False))

        # Their put comes between ours and the next try of it.
        s3.faults = [Fault("PUT", LOCK), Fault("PUT", LOCK, first=come, **loss)]
        result = purify(stale)
        assert result.exit_code == 6, result.stderr
        assert stale.tree() == {}
        assert json.loads(stale[LOCK])["pid"] == this_process().pid, "they have lost it"
    assert purify(stale).exit_code == 0


def test_to_let_go_of_a_lock_twice_does_not_take_it_from_the_next(filled: Bucket, s3: S3) -> None:
    theirs = json.dumps(asdict(this_process())).encode()

    def come() -> None:
        filled[LOCK] = theirs

    s3.faults = [Fault("DELETE", LOCK, last=come, lose_answer=True)]
    assert purify(filled).exit_code == 0
    assert filled[LOCK] == theirs


def test_a_store_without_these_conditions_will_do(stale: Bucket, here: Path, s3: S3) -> None:
    s3.faults = [Fault("PUT", LOCK), Fault("PUT", LOCK, status=501), Fault("DELETE", LOCK, status=501)]
    assert purify(stale).exit_code == 0
    assert is_whole(stale, here)


def test_a_large_object_is_one_put(bucket: Bucket, s3: S3) -> None:
    bucket.store.create("large", bytes(101 * 2**20), "mark")  # s3fs would put it in parts
    assert (s3.asked("PUT", "large"), s3.asked("POST", "large")) == (1, 0)
    assert bucket.store.look("large").mark == "mark"
