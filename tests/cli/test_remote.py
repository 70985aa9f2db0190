"""URLs on both ends: a real S3 on loopback, with faults between it and us."""

import json
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from cli.shell import (
    BLUR,
    PATIENCE,
    images,
    invoke,
    json_lines,
    picture,
    pictures,
    redone,
    run,
    start,
    tree,
    until,
)
from s3_server import S3, STATE, Bucket, Fault, purify

from zipcli.errors import InputError, Reason
from zipcli.pipeline import remote
from zipcli.pipeline.remote import RemoteOutlet
from zipcli.pipeline.url import Url


@pytest.fixture
def filled(here: Path, bucket: Bucket) -> Bucket:
    """Six pictures in `in`, here and in the bucket, and what a local run makes of them in `local`."""
    pictures(here / "in", 6)
    bucket.fill(here / "in")
    assert invoke("purify", "in", "local", *BLUR).exit_code == 0
    return bucket


def test_every_direction_gives_the_bytes_of_a_local_run(filled: Bucket, here: Path, s3: S3) -> None:
    s3.pages = 2
    wanted = tree(here / "local")
    result = purify(filled)
    assert result.exit_code == 0, result.stderr
    assert filled.tree() == wanted
    assert invoke("purify", filled.url("in"), "down", *BLUR).exit_code == 0
    assert tree(here / "down") == wanted
    assert invoke("purify", "in", filled.url("up"), *BLUR).exit_code == 0
    assert filled.tree("up") == wanted
    assert filled.tree("in") == tree(here / "in")
    state = filled.under(STATE)
    names = sorted(name.rpartition("/")[2] for name in state)
    part, *others = names  # its number says how many there were, which is a matter of time
    assert part.endswith(".jsonl")
    assert others == ["begun", "run.json"], "the parts were not joined, or the lock is there"
    assert "run.json" in state


def test_the_second_run_does_nothing_and_status_and_verify_agree(filled: Bucket, s3: S3) -> None:
    assert purify(filled).exit_code == 0
    s3.requests.clear()
    again = purify(filled)
    assert (again.exit_code, redone(again.stdout)) == (0, [])
    assert s3.asked("GET", r"/in/.*png") == 6, "each object is read once"
    assert s3.asked("HEAD", "png") == 0, "an output costs no request of its own"
    assert invoke("verify", filled.url("out")).exit_code == 0
    facts = json.loads(invoke("status", filled.url("out"), "--json").stdout)
    assert facts["counts"]["done"] == 6
    assert (facts["input"], facts["folder"]) == (filled.url("in"), filled.url("out"))
    filled["out/00.png"] = b"changed"
    filled["out/mine.png"] = b"mine"
    assert invoke("verify", filled.url("out")).exit_code == 3


@pytest.mark.fault("F43")
def test_a_store_that_fails_now_and_then_costs_nothing(filled: Bucket, here: Path, s3: S3) -> None:
    s3.faults = [
        Fault("GET", "/in/00.png", status=500, times=2),
        Fault("GET", "/in/02.png", status=503),
        Fault("GET", "/in/04.png", status=429),
        Fault("GET", "/in/sub/01.png", cut=20, times=2),
        Fault("GET", "/in/sub/03.png", hang_up=True),
        Fault("GET", "list-type=2", status=500),
        Fault("PUT", "/out/00.png", status=503, times=3),
        Fault("PUT", "/out/02.png", lose_answer=True),
        Fault("PUT", "/out/sub/01.png", hang_up=True),
        Fault("PUT", "/out/.zipcli/ledger", lose_answer=True),
        Fault("PUT", "/out/.zipcli/lock", lose_answer=True),
        Fault("PUT", "/out/.zipcli/run.json", status=500),
    ]
    result = purify(filled)
    assert result.exit_code == 0, result.stderr
    assert not [fault for fault in s3.faults if fault.times], "a fault was not met"
    assert filled.tree() == tree(here / "local")
    assert invoke("verify", filled.url("out")).exit_code == 0


@pytest.mark.fault("F43")
def test_an_object_that_cannot_be_read_or_written_costs_one_image(filled: Bucket, s3: S3) -> None:
    s3.faults = [
        Fault("GET", "/in/00.png", status=500, times=None),
        Fault("GET", "/in/02.png", status=403, times=None),
        Fault("GET", "/in/04.png", status=404, times=None),
        Fault("GET", "/in/sub/01.png", cut=20, times=None),
        Fault("PUT", "/out/sub/03.png", status=503, times=None),
    ]
    result = purify(filled)
    assert result.exit_code == 3
    reasons = {path: line.get("reason") for path, line in images(result.stdout).items()}
    assert reasons == {
        **{"00.png": "unreadable", "02.png": "unreadable", "04.png": "vanished"},
        **{"sub/01.png": "unreadable", "sub/03.png": "not_stored", "sub/05.png": None},
    }
    refused = s3.asked("GET", "/in/02.png"), s3.asked("GET", "/in/04.png")
    assert refused == (1, 1), "a refusal is no fault to wait for"
    assert s3.asked("GET", "/in/00.png") == remote.TRIES
    assert list(filled.tree()) == ["sub/05.png"]
    s3.faults = []
    retried = purify(filled, "--retry-failed")
    assert (retried.exit_code, len(redone(retried.stdout))) == (0, 5)


@pytest.mark.fault("F43")
def test_a_ledger_that_cannot_be_stored_ends_the_run(filled: Bucket, s3: S3) -> None:
    s3.faults = [Fault("PUT", "/out/.zipcli/ledger", status=500, times=None)]
    result = purify(filled)
    assert result.exit_code == 5, result.stderr
    assert "cannot write the ledger" in result.stderr
    assert filled.tree() == {}, "an output appeared before its line"


def test_what_is_wrong_with_an_object_is_said_and_what_is_too_large_is_not_read(
    here: Path, bucket: Bucket, s3: S3
) -> None:
    picture(here / "in" / "good.png")
    bucket.fill(here / "in")
    bucket["in/bad.png"] = b"no picture"
    bucket["in/empty.png"] = b""
    bucket["in/large.png"] = b"x" * 5000
    bucket["in/.hidden.png"] = bucket["in/.trash/a.png"] = b"hidden"
    bucket["in/notes.txt"] = b"ignored"
    result = purify(bucket, "--max-bytes", "4000")
    assert result.exit_code == 3
    reasons = {path: line.get("reason") for path, line in images(result.stdout).items()}
    assert reasons == {
        **{"bad.png": "unidentified", "empty.png": "empty", "good.png": None, "large.png": "bomb_bytes"}
    }
    assert json_lines(result.stdout)[-1]["ignored"] == 1
    assert s3.asked("GET", "in/large") == s3.asked("GET", "hidden") == s3.asked("GET", "trash") == 0


def test_an_object_with_a_name_that_no_folder_can_hold_fails(here: Path, bucket: Bucket) -> None:
    data = picture(here / "a.png").read_bytes()
    bucket.fs.call_s3("put_object", Bucket=bucket.name, Key="in//a.png", Body=data)
    bucket.fs.call_s3("put_object", Bucket=bucket.name, Key="in/../../b.png", Body=data)
    bucket["in/good.png"] = data
    result = invoke("purify", bucket.url("in"), "down", "--json", *BLUR)
    assert result.exit_code == 3
    assert list(tree(here / "down")) == ["good.png"]
    assert sorted(path.name for path in here.iterdir()) == ["a.png", "down"]


def test_what_is_not_ours_is_refused_before_any_work(filled: Bucket) -> None:
    filled["out/02.png"] = b"precious"
    result = purify(filled)
    assert result.exit_code == 2
    assert "not written by zipcli" in result.stderr
    assert filled.under("out") == {"02.png": b"precious"}


def test_what_comes_into_the_way_meanwhile_is_not_replaced(filled: Bucket, s3: S3) -> None:
    def come() -> None:
        filled["out/02.png"] = b"precious"

    # The put is on its way: only a condition in it can save what has just come.
    s3.faults = [Fault("PUT", "/out/02.png", first=come)]
    result = purify(filled)
    assert result.exit_code == 3
    assert images(result.stdout)["02.png"]["reason"] == "foreign_output"
    assert filled["out/02.png"] == b"precious"
    with pytest.raises(InputError) as caught:
        RemoteOutlet(Url(filled.url("out"))).publish("02.png", b"ours", replace=False)
    assert caught.value.reason is Reason.FOREIGN_OUTPUT


def test_a_run_that_was_killed_goes_on(filled: Bucket, here: Path, s3: S3) -> None:
    pictures(here / "in", 24)
    filled.fill(here / "in")
    s3.faults = [Fault("PUT", "/out/", pause=0.05, times=None)]
    words = (
        "purify",
        filled.url("in"),
        filled.url("out"),
        "--json",
        *BLUR,
        "--batch-size",
        "1",
        "--jobs",
        "2",
    )
    process = start(*words, env=s3.environment)
    with process:
        until(process, "image", 5)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
    s3.faults = []
    left = filled.tree()
    assert invoke("purify", "in", "whole", *BLUR).exit_code == 0
    whole = tree(here / "whole")
    assert 5 <= len(left) < 24
    assert all(whole[path] == data for path, data in left.items()), "half an output"
    result = purify(filled)
    assert result.exit_code == 0, result.stderr
    assert "did not end in order" in result.stderr
    assert filled.tree() == whole
    assert invoke("verify", filled.url("out")).exit_code == 0


def test_a_lock_of_another_machine_needs_a_word_of_the_user(filled: Bucket) -> None:
    owner = {"host": f"not-{socket.gethostname()}", "pid": 1, "started": ""}
    filled[f"{STATE}/lock-00001-of-00001"] = json.dumps(owner).encode()
    result = purify(filled)
    assert result.exit_code == 6
    assert "--force-unlock" in result.stderr
    assert filled.tree() == {}
    assert purify(filled, "--force-unlock").exit_code == 0
    assert "lock-00001-of-00001" not in filled.under(STATE)


def test_two_runs_at_once_do_not_share_a_folder(filled: Bucket, s3: S3) -> None:
    seen = []

    def second() -> None:
        s3.faults = []
        seen.append(purify_elsewhere().returncode)

    def purify_elsewhere() -> "subprocess.CompletedProcess[bytes]":
        return run("purify", filled.url("in"), filled.url("out"), *BLUR, env=s3.environment)

    s3.faults = [Fault("PUT", "/out/00.png", first=second)]
    assert purify(filled).exit_code == 0
    assert seen == [6]


def test_shards_are_merged(filled: Bucket, here: Path) -> None:
    for shard in ("1/2", "2/2"):
        assert purify(filled, "--shard", shard).exit_code == 0
    assert purify(filled).exit_code == 2, "the folder is divided"
    assert invoke("merge", filled.url("out")).exit_code == 0
    assert filled.tree() == tree(here / "local")
    again = purify(filled)
    assert (again.exit_code, redone(again.stdout)) == (0, [])
    assert not [path for path in filled.under(STATE) if "of-00002" in path]


def test_shards_without_images_are_merged_too_and_a_second_merge_finds_all_done(filled: Bucket) -> None:
    for number in range(1, 41):
        assert purify(filled, "--shard", f"{number}/40").exit_code == 0
    for _ in range(2):
        result = invoke("merge", filled.url("out"))
        assert result.exit_code == 0, result.stderr
    assert redone(purify(filled).stdout) == []


def test_an_incomplete_division_is_not_merged(filled: Bucket) -> None:
    assert purify(filled, "--shard", "1/2").exit_code == 0
    result = invoke("merge", filled.url("out"))
    assert result.exit_code == 2
    assert "2/2" in result.stderr


def test_settings_do_not_mix(filled: Bucket) -> None:
    assert purify(filled).exit_code == 0
    before = filled.tree()
    result = purify(filled, "--transform", "gray")
    assert result.exit_code == 2
    assert "transforms" in result.stderr
    assert filled.tree() == before
    other = purify(filled, "--transform", "gray", "--overwrite")
    assert (other.exit_code, len(redone(other.stdout))) == (0, 6)
    assert invoke("verify", filled.url("out")).exit_code == 0


def test_a_damaged_part_is_reported_and_set_aside(filled: Bucket) -> None:
    assert purify(filled).exit_code == 0
    (part,) = [path for path in filled.under(STATE) if path.endswith(".jsonl")]
    lines = filled[f"{STATE}/{part}"].splitlines(keepends=True)
    filled[f"{STATE}/{part}"] = b"".join(lines[:-1]) + lines[-1][:20]
    assert invoke("verify", filled.url("out")).exit_code == 2
    assert json.loads(invoke("status", filled.url("out"), "--json").stdout)["damaged_lines"] == 1
    again = purify(filled)
    assert "1 damaged lines" in again.stderr
    assert (again.exit_code, len(redone(again.stdout))) == (0, 1), "its claim was still there"
    assert invoke("verify", filled.url("out")).exit_code == 0
    assert [path for path in filled.under(STATE) if path.endswith(".damaged")]


def test_an_image_that_fails_later_loses_the_output_of_its_earlier_version(filled: Bucket) -> None:
    assert purify(filled).exit_code == 0
    filled["in/00.png"] = b"no picture any more"
    result = purify(filled)
    assert result.exit_code == 3
    assert "00.png" not in filled.tree()
    assert len(filled.tree()) == 5


def test_a_list_of_names_may_hold_urls(filled: Bucket, here: Path) -> None:
    names = ["00.png", filled.url("in/sub/01.png"), "gone.png"]
    (here / "list").write_text("\n".join(names))
    words = ("--files-from", "list", "--base", filled.url("in"), "--json", *BLUR)
    result = invoke("purify", *words, "down")
    assert result.exit_code == 3
    assert images(result.stdout)["gone.png"]["reason"] == "vanished"
    assert set(tree(here / "down")) == {"00.png", "sub/01.png"}
    (here / "list").write_text("../secret.png")
    assert invoke("purify", *words, "down").exit_code == 2


def test_missing_buckets_and_refused_access_are_one_clear_line(filled: Bucket, here: Path, s3: S3) -> None:
    for words, code in (
        (("s3://no-such-bucket/in", "down"), 2),
        (("in", "s3://no-such-bucket/out"), 5),
    ):
        result = invoke("purify", *words, *BLUR)
        assert result.exit_code == code
        assert "bucket does not exist" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    s3.faults = [Fault("GET", "list-type=2", status=403, times=None)]
    for words, code in ((("in", filled.url("out")), 5), ((filled.url("in"), "down"), 2)):
        result = invoke("purify", *words, *BLUR)
        assert result.exit_code == code
        assert "access refused" in result.stderr
    assert not (here / "down").exists()


def test_without_credentials_a_run_ends_at_once(filled: Bucket, here: Path, s3: S3) -> None:
    nobody = {**s3.environment, "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_CONFIG_FILE": "/dev/null"}
    environment = {k: v for k, v in nobody.items() if "KEY" not in k}
    result = run("purify", filled.url("in"), "down", *BLUR, env=environment, cwd=here)
    assert result.returncode == 2
    assert b"credentials" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:sec/ret@bucket/in",
        "s3://bucket/in?token=secret",
        "https://me:secret@host/in",
        "https://secret@host/in",
        "S3://K:secret@b",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(here: Path, url: str) -> None:
    result = invoke("purify", url, "out", "--json", *BLUR)
    assert result.exit_code == 2
    assert not [part for part in ("sec/ret", "secret", "KEY", "me:") if part in result.stderr]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("purify", "in", "sftp://host/out"), "half an image"),
        (("purify", "in", "https://host/out"), "half an image"),
        (("purify", "oss://bucket/in", "out"), "pip install"),
        (("purify", "quack://bucket/in", "out"), "quack"),
        (("purify", "simplecache::s3://bucket/in", "out"), "one protocol"),
        (("purify", "s3://bucket/../in", "out"), "not a folder"),
        (("purify", "file://host/in", "out"), "absolute"),
        (("purify", "s3://bucket/in", "out", "--watch"), "--watch"),
        (("purify", "memory://a/in", "memory://a/in"), "is the input folder"),
        (("purify", "memory://a/in/b", "memory://a/in"), "inside the output folder"),
        (("evaluate", "s3://bucket/in", "--classifier", "model.pt"), "URLs"),
        (("evaluate", "in", "--classifier", "model.pt", "--purified", "s3://bucket/out"), "URLs"),
        (("report", "s3://bucket/out"), "URLs"),
        (("detect", "s3://bucket/in", "--detector", "frequency"), "URLs"),
        (("attack", "s3://bucket/in", "out", "--attack", "badnets", "--target", "0"), "URLs"),
        (("train", "s3://bucket/in", "model.safetensors"), "URLs"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_what_makes_no_sense_for_a_url_is_refused(here: Path, words: tuple[str, ...], said: str) -> None:
    pictures(here / "in", 1)
    result = invoke(*words, *(BLUR if words[0] == "purify" else ()))
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_a_file_url_is_a_folder(here: Path) -> None:
    pictures(here / "in", 2)
    assert invoke("purify", f"file://{here}/in", f"file://{here}/out", *BLUR).exit_code == 0
    assert len(tree(here / "out")) == 2


def test_a_dry_run_writes_nothing(filled: Bucket) -> None:
    result = purify(filled, "--dry-run")
    assert result.exit_code == 0
    assert json_lines(result.stdout)[-1]["purify"] == 6
    assert filled.under("out") == {}


def test_requests_are_in_flight_together(filled: Bucket, s3: S3) -> None:
    barrier = threading.Barrier(6, timeout=PATIENCE)  # breaks unless all six are asked for at once
    s3.faults = [Fault("GET", "/in/.*png", first=barrier.wait, times=6)]
    assert purify(filled).exit_code == 0
    assert not barrier.broken
