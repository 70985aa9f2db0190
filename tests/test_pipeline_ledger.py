"""The state folder: what may be skipped, what must be redone, what must be refused."""

import json
import os
from pathlib import Path

import pytest

from zipcli.errors import ConfigError, LockedError, Reason
from zipcli.pipeline.ledger import Ledger
from zipcli.pipeline.outcome import Outcome
from zipcli.pipeline.resume import Decision
from zipcli.pipeline.settings import fingerprint

SETTINGS = {"transforms": ["blur:2"], "seed": 0}


def ledger(out: Path, settings: dict[str, object] = SETTINGS) -> Ledger:
    made = Ledger(out)
    made.use_settings(settings, overwrite=False)
    return made


def done(out: Path, name: str = "a", content: bytes = b"out") -> None:
    """What a finished run leaves."""
    with ledger(out).open() as book:
        book.start([(f"{name}.jpg", f"{name}.png", "in")], 0)
        (out / f"{name}.png").write_bytes(content)
        book.finish(
            Outcome(
                path=f"{name}.jpg",
                state="done",
                in_sha256="in",
                out_path=f"{name}.png",
                out_bytes=len(content),
            )
        )


def decide(out: Path, sha256: str | None = "in", *, overwrite: bool = False) -> Decision:
    return ledger(out).decide("a.jpg", "a.png", sha256, overwrite=overwrite)


def test_a_new_image_is_purified(tmp_path: Path) -> None:
    assert decide(tmp_path) is Decision.PURIFY


def test_a_finished_image_is_skipped(tmp_path: Path) -> None:
    done(tmp_path)
    assert decide(tmp_path) is Decision.SKIP


def test_a_changed_input_is_purified_again(tmp_path: Path) -> None:
    done(tmp_path)
    assert decide(tmp_path, "other") is Decision.PURIFY


def test_a_deleted_output_is_made_again(tmp_path: Path) -> None:
    done(tmp_path)
    (tmp_path / "a.png").unlink()
    assert decide(tmp_path) is Decision.PURIFY


def test_an_output_of_another_size_is_made_again(tmp_path: Path) -> None:
    done(tmp_path)
    (tmp_path / "a.png").write_bytes(b"edited")
    assert decide(tmp_path) is Decision.PURIFY


def test_modification_times_do_not_matter(tmp_path: Path) -> None:
    done(tmp_path)
    os.utime(tmp_path / "a.png", (0, 4_000_000_000))
    assert decide(tmp_path) is Decision.SKIP


def test_an_output_without_a_record_is_foreign(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    assert decide(tmp_path) is Decision.REFUSE
    assert decide(tmp_path, overwrite=True) is Decision.PURIFY


def test_an_output_that_was_started_only_is_ours_from_a_crash(tmp_path: Path) -> None:
    with ledger(tmp_path).open() as book:
        book.start([("a.jpg", "a.png", "in")], 0)
    (tmp_path / "a.png").write_bytes(b"out")
    assert decide(tmp_path) is Decision.PURIFY
    assert ledger(tmp_path).owns("a.jpg", "a.png")


def test_an_output_of_an_image_that_failed_before_it_started_is_foreign(tmp_path: Path) -> None:
    with ledger(tmp_path).open() as book:
        book.finish(Outcome(path="a.jpg", state="failed", reason=Reason.EMPTY))
    (tmp_path / "a.png").write_bytes(b"mine")
    assert decide(tmp_path) is Decision.REFUSE


def test_an_output_stays_ours_when_its_input_fails_later(tmp_path: Path) -> None:
    done(tmp_path)
    with ledger(tmp_path).open() as book:
        book.finish(Outcome(path="a.jpg", state="failed", reason=Reason.EMPTY))
    assert decide(tmp_path) is Decision.PURIFY
    assert ledger(tmp_path).owns("a.jpg", "a.png")


def test_a_start_that_failed_gives_a_foreign_name_back(tmp_path: Path) -> None:
    with ledger(tmp_path).open() as book:
        book.start([("a.jpg", "a.png", "in")], 0)
        book.finish(Outcome(path="a.jpg", state="failed", reason=Reason.MASK_SIZE, in_sha256="in"))
    (tmp_path / "a.png").write_bytes(b"mine")
    assert decide(tmp_path) is Decision.REFUSE


def test_an_output_from_a_crash_stays_ours_when_its_input_cannot_be_read_meanwhile(tmp_path: Path) -> None:
    with ledger(tmp_path).open() as book:
        book.start([("a.jpg", "a.png", "in")], 0)
    (tmp_path / "a.png").write_bytes(b"out")
    with ledger(tmp_path).open() as book:
        book.finish(Outcome(path="a.jpg", state="failed", reason=Reason.UNREADABLE))
    assert decide(tmp_path) is Decision.PURIFY


def test_another_run_that_ended_before_the_lock_is_seen(tmp_path: Path) -> None:
    early = ledger(tmp_path)
    other = ledger(tmp_path, SETTINGS | {"seed": 1})
    with other.open():
        pass
    with pytest.raises(ConfigError, match="seed: 1 there, 0 now"), early.open():
        pass


@pytest.mark.parametrize("run", ['{"settings": [], "format": 1}', '{"settings": {}, "format": "x"}', "3", ""])
def test_a_damaged_run_record_is_named(tmp_path: Path, run: str) -> None:
    done(tmp_path)
    (tmp_path / ".zipcli" / "run.json").write_text(run)
    with pytest.raises(ConfigError, match=r"run\.json|other settings"):
        ledger(tmp_path)


def test_outputs_of_other_settings_are_counted(tmp_path: Path) -> None:
    done(tmp_path, "a")
    done(tmp_path, "b")
    other = Ledger(tmp_path)
    other.use_settings(SETTINGS | {"seed": 1}, overwrite=True)
    with other.open():
        other.finish(Outcome(path="a.jpg", state="done", in_sha256="in", out_path="a.png", out_bytes=3))
        assert other.stale() == 1


def test_an_image_that_passed_is_skipped(tmp_path: Path) -> None:
    with ledger(tmp_path).open() as book:
        (tmp_path / "a.png").write_bytes(b"out")
        book.finish(Outcome(path="a.jpg", state="passed", in_sha256="in", out_path="a.png", out_bytes=3))
    assert decide(tmp_path) is Decision.SKIP


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    done(tmp_path)
    with pytest.raises(ConfigError, match=r"seed: 0 there, 1 now"):
        ledger(tmp_path, SETTINGS | {"seed": 1})
    again = Ledger(tmp_path)
    again.use_settings(SETTINGS | {"seed": 1}, overwrite=True)
    assert again.decide("a.jpg", "a.png", "in", overwrite=True) is Decision.PURIFY


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    done(tmp_path)
    run = tmp_path / ".zipcli" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"format": 99}))
    with pytest.raises(ConfigError, match="newer"):
        ledger(tmp_path)


def test_a_torn_last_line_is_ignored_and_the_next_one_begins_on_its_own(tmp_path: Path) -> None:
    done(tmp_path)
    file = tmp_path / ".zipcli" / "ledger-00001-of-00001.jsonl"
    file.write_bytes(file.read_bytes() + b'{"state": "do')
    assert decide(tmp_path) is Decision.SKIP
    assert ledger(tmp_path).damaged_lines == 0
    done(tmp_path, "b")
    assert ledger(tmp_path).damaged_lines == 0
    assert ledger(tmp_path).decide("b.jpg", "b.png", "in", overwrite=False) is Decision.SKIP


@pytest.mark.parametrize("garbage", [b"\xff\xfe\x00\n", b"[]\n", b"{}\n", b"null\n", b'{"path": 3}\n', b"\n"])
def test_garbage_lines_are_counted_and_never_make_anything_done(tmp_path: Path, garbage: bytes) -> None:
    done(tmp_path)
    file = tmp_path / ".zipcli" / "ledger-00001-of-00001.jsonl"
    file.write_bytes(garbage + file.read_bytes())
    assert decide(tmp_path) is Decision.SKIP
    assert ledger(tmp_path).damaged_lines == 1


def test_names_that_are_not_utf8_survive_the_ledger(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    done(tmp_path, name)
    assert ledger(tmp_path).decide(f"{name}.jpg", f"{name}.png", "in", overwrite=False) is Decision.SKIP
    lines = (tmp_path / ".zipcli" / "ledger-00001-of-00001.jsonl").read_text().splitlines()
    assert all("path_b64" in json.loads(line) for line in lines)


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    with (
        ledger(tmp_path).open(),
        pytest.raises(LockedError, match=f"process {os.getpid()}"),
        ledger(tmp_path).open(),
    ):
        pass


def test_halves_of_a_crash_are_swept(tmp_path: Path) -> None:
    done(tmp_path)
    half = tmp_path / ".zipcli" / "tmp" / "00001-of-00001" / "x.part"
    half.write_bytes(b"half")
    with ledger(tmp_path).open():
        assert not half.exists()


def test_the_fingerprint_follows_every_setting() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2}) != fingerprint({"b": 2})
