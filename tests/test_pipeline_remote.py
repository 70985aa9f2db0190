"""The parts of a remote ledger, and URLs; in memory, where every instant can be looked at."""

import itertools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipcli.errors import ConfigError, OutputError
from zipcli.pipeline import remote_ledger
from zipcli.pipeline.outcome import as_line
from zipcli.pipeline.records import WHOLE
from zipcli.pipeline.remote import RemoteOutlet, Store, attempt
from zipcli.pipeline.remote_ledger import PartWriter, RemoteLedger, join_parts
from zipcli.pipeline.remote_records import part_object, parts, read_remote
from zipcli.pipeline.url import Url, location

numbers = itertools.count()


@pytest.fixture
def url() -> Iterator[Url]:
    url = Url(f"memory://zipcli-test-{next(numbers)}/out")
    yield url
    store = Store(url)
    for shard_part in list(parts(url, WHOLE)):
        store.remove(part_object(WHOLE, shard_part[0]))


def line(n: int, state: str = "started") -> dict[str, Any]:
    more = {"out_bytes": n, "out_sha256": "x", "in_sha256": "y"} if state == "done" else {}
    return {"path": f"{n}.png", "out_path": f"{n}.png", "state": state, "fingerprint": "f", **more}


def written(url: Url, lines: list[dict[str, Any]], number: int = 1) -> PartWriter:
    writer = PartWriter(url, WHOLE, number)
    for values in lines:
        writer.wait(writer.add(as_line(values), soon=True))
    return writer


def test_a_ticket_is_good_when_its_line_is_stored(url: Url) -> None:
    writer = PartWriter(url, WHOLE, 1)
    ticket = writer.add(as_line(line(1)), soon=True)
    writer.wait(ticket)
    assert set(read_remote(url, [WHOLE]).by_path) == {"1.png"}
    writer.add(as_line(line(2)), soon=False)
    writer.close()
    assert set(read_remote(url, [WHOLE]).by_path) == {"1.png", "2.png"}


def test_a_line_that_nobody_waits_for_is_stored_soon(url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_ledger, "FLUSH_SECONDS", 0.05)
    writer = PartWriter(url, WHOLE, 1)
    writer.add(as_line(line(1)), soon=False)
    while not parts(url, WHOLE):  # for ever, if it is not
        pass
    writer.close()


def test_there_are_never_many_parts_and_they_end_as_one(url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_ledger, "PARTS_TOGETHER", 5)
    lines = [line(n, state) for n in range(12) for state in ("started", "done")]
    writer = written(url, lines)
    assert len(parts(url, WHOLE)) <= 5 + len(lines) // 5
    writer.close()
    whole = read_remote(url, [WHOLE])
    join_parts(url, WHOLE)
    assert len(parts(url, WHOLE)) == 1
    assert read_remote(url, [WHOLE]).by_path == whole.by_path
    assert [record.state for record in whole.by_path.values()] == ["done"] * 12


@given(st.data())
def test_a_crash_between_joining_and_removing_loses_nothing(data: st.DataObject) -> None:
    url = Url(f"memory://zipcli-test-{next(numbers)}/out")
    states = st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["started", "done", "failed"])), min_size=2, max_size=12
    )
    store = Store(url)
    stored = [as_line(line(n, state)) for n, state in data.draw(states)]
    for number, raw in enumerate(stored, 1):
        store.put(part_object(WHOLE, number), raw)
    before = read_remote(url, [WHOLE]).by_path
    first = data.draw(st.integers(1, len(stored)))  # joined is always the end of the ledger
    store.put(part_object(WHOLE, len(stored) + 1), b"".join(stored[first - 1 :]))
    for number in range(first, data.draw(st.integers(first, len(stored))) + 1):
        store.remove(part_object(WHOLE, number))
    assert read_remote(url, [WHOLE]).by_path == before
    for number, _ in parts(url, WHOLE):
        store.remove(part_object(WHOLE, number))


def test_a_ledger_that_is_too_large_is_joined_at_its_end(url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    written(url, [line(n) for n in range(6)]).close()
    size = parts(url, WHOLE)[0][1]
    monkeypatch.setattr(remote_ledger, "JOIN_BYTES", 3 * size)
    join_parts(url, WHOLE)
    assert [number for number, _ in parts(url, WHOLE)] == [1, 2, 3, 7]
    assert len(read_remote(url, [WHOLE]).by_path) == 6


def test_two_writers_of_one_ledger_do_not_overwrite_each_other(url: Url) -> None:
    first = written(url, [line(1)])
    with pytest.raises(OutputError, match="another run"):
        written(url, [line(2)])
    first.close()
    assert set(read_remote(url, [WHOLE]).by_path) == {"1.png"}


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\n", b'{"path": "a"}\n'])
def test_damage_is_counted(url: Url, damage: bytes) -> None:
    written(url, [line(1)]).close()
    Store(url).put(part_object(WHOLE, 2), damage)
    records = read_remote(url, [WHOLE])
    assert records.damaged_lines == 1
    assert set(records.by_path) == {"1.png"}


def test_an_outlet_and_a_store_can_go_to_another_process(url: Url) -> None:
    outlet = pickle.loads(pickle.dumps(RemoteOutlet(url)))
    outlet.publish("a/b.png", b"data", replace=False)
    assert pickle.loads(pickle.dumps(Store(url))).read("a/b.png") == b"data"


def test_an_output_waits_for_its_line(url: Url) -> None:
    ledger = RemoteLedger(url)
    ledger.use_settings({"a": 1}, overwrite=False)
    with ledger.open():
        ledger.start([("a.png", "a.png", "digest")], 0)
        ledger.publish("a.png", "a.png", b"data")
        assert read_remote(url, [WHOLE]).by_path["a.png"].claim == "a.png"
    assert json.loads(Store(url).read(".zipcli/run.json"))["settings"]["a"] == 1


def test_a_bug_is_not_tried_again() -> None:
    calls = []

    def bug() -> None:
        calls.append(1)
        raise TypeError("ours")

    with pytest.raises(TypeError):
        attempt(bug)
    assert calls == [1]


@pytest.mark.parametrize(
    "text", ["in", "/in", "s3:/bucket", "a:b", "-", "./s3://x", "file:///in", "local:///in"]
)
def test_a_path_is_a_path(text: str) -> None:
    assert location(text) == Path(text.removeprefix("file://").removeprefix("local://"))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://bucket/in/", "s3://bucket/in"),
        ("S3://Bucket/In", "s3://Bucket/In"),
        ("abfs://box@account.dfs.core.windows.net/in", "abfs://box@account.dfs.core.windows.net/in"),
        ("http://127.0.0.1:8000/a@b", "http://127.0.0.1:8000/a@b"),
        ("s3://bucket", "s3://bucket"),
    ],
)
def test_a_url_is_a_url(text: str, url: str) -> None:
    assert location(text) == Url(url)


@pytest.mark.parametrize(
    "text", ["s3://", "s3:///in", "s3://b//in", "s3://b/./in", "s3://b/\nin", "a::s3://b"]
)
def test_what_names_no_folder_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        location(text)


@given(secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=40))
def test_no_secret_of_any_spelling_is_repeated(secret: str) -> None:
    secret = f"1/{secret}Q".replace("@", "q")
    with pytest.raises(ConfigError) as caught:
        location(f"s3://KEYNAME:{secret}@bucket/in")
    assert secret not in str(caught.value)
    assert "KEYNAME" not in str(caught.value)
