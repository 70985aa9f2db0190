"""What the page is made of: the ledger, the pictures that it vouches for, and which of them are shown."""

import hashlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zipcli.config import ReportConfig
from zipcli.errors import ConfigError, Reason
from zipcli.metrics import Share
from zipcli.pipeline.evaluation import Evaluation, Fidelity, Side
from zipcli.pipeline.ledger import Ledger
from zipcli.pipeline.outcome import Outcome
from zipcli.pipeline.report import (
    CHANGED,
    GONE,
    LEAST_PREVIEW_SIDE,
    PREVIEW_SIDES,
    choose,
    make_report,
    preview_side,
    read_run,
    write_report,
)
from zipcli.report.page import AMPLIFIED, Card, Report

SETTINGS = {"steps": 20}


def pixels(size: tuple[int, int] = (32, 24), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def save(file: Path, image: np.ndarray) -> str:
    """Write a picture and return its digest."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file, "PNG")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def ledger(folder: Path) -> Ledger:
    (folder / "in").mkdir(exist_ok=True)
    made = Ledger(folder / "out", folder / "in")
    made.use_settings(SETTINGS, overwrite=False)
    return made


def purified(folder: Path, before: np.ndarray, after: np.ndarray, name: str = "a.png", **more: Any) -> None:
    """What a run over one image leaves."""
    with ledger(folder).open() as book:
        book.finish(
            Outcome(
                path=name,
                state="done",
                in_sha256=save(folder / "in" / name, before),
                out_sha256=save(folder / "out" / name, after),
                out_path=name,
                size=(after.shape[1], after.shape[0]),
                **more,
            )
        )


def made(folder: Path, suspicion_map: Any = None, **config: Any) -> Report:
    return make_report(folder / "out", ReportConfig(**config), lambda done, total: None, suspicion_map)


def only(report: Report) -> Card:
    (card,) = report.cards
    return card


def shown(picture: bytes | None) -> np.ndarray:
    """The pixels of an embedded picture; grey ones have three equal channels."""
    assert picture is not None
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "WEBP"
        return np.asarray(image.convert("RGB"))


def append(folder: Path, *lines: Any) -> None:
    with (folder / "out" / ".zipcli" / "ledger-00001-of-00001.jsonl").open("ab") as file:
        for line in lines:
            file.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder whose `out` holds a ledger of no images."""
    with ledger(tmp_path).open():
        pass
    return tmp_path


# Where the images were


def test_a_run_records_where_its_images_were_and_it_is_no_setting(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    with book.open():
        pass
    without = Ledger(tmp_path / "other")
    without.use_settings(SETTINGS, overwrite=False)
    assert book.fingerprint == without.fingerprint
    assert read_run(tmp_path / "out").input == tmp_path / "in"


def test_a_relative_folder_is_recorded_as_it_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    book = Ledger(Path("out"), Path("in"))
    book.use_settings(SETTINGS, overwrite=False)
    with book.open():
        pass
    monkeypatch.chdir("/")
    assert read_run(tmp_path / "out").input == tmp_path / "in"


def test_a_folder_whose_name_is_no_utf8_is_found_again(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    purified(folder, pixels(), pixels())
    assert read_run(folder / "out").input == folder / "in"
    assert only(made(folder)).before is not None


# The ledger


def test_the_last_line_about_an_image_counts(empty: Path) -> None:
    with ledger(empty).open() as book:
        book.start([("a.png", "a.png", "1"), ("b.png", "b.png", "2")], 0)
        book.finish(Outcome(path="a.png", state="failed", reason=Reason.EMPTY, message="empty"))
    run = read_run(empty / "out")
    assert [(card.path, card.state, card.reason) for card in run.cards] == [
        ("a.png", "failed", "empty"),
        ("b.png", "unfinished", None),
    ]


def test_what_a_detector_said_is_read(empty: Path) -> None:
    append(empty, {"path": "a.png", "state": "passed", "score": 0.25, "threshold": 0.5})
    (card,) = read_run(empty / "out").cards
    assert (card.state, card.score, card.threshold) == ("passed", 0.25, 0.5)


def test_outputs_of_other_settings_are_marked(empty: Path) -> None:
    append(empty, {"path": "a.png", "state": "done", "fingerprint": "0" * 32})
    assert read_run(empty / "out").cards[0].other_settings == "0" * 32
    assert "1 images are still those of other settings." in made(empty).notes


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\n",
        b"[]\n",
        b"null\n",
        b"[" * 100_000 + b"\n",
        {"path": "a.png"},
        {"path": "a.png", "state": "eaten"},
        {"path": "a.png", "state": []},
        {"path": "a\0.png", "state": "done"},
        {"path": "\ud800.png", "state": "done"},
        {"path": "a.png", "out_path": "\0", "state": "done"},
        {"path": "a.png", "path_b64": "?", "state": "done"},
    ],
    ids=repr,
)
def test_a_damaged_line_is_counted_and_the_others_are_read(empty: Path, line: Any) -> None:
    append(empty, {"path": "b.png", "state": "done"}, line, {"path": "c.png", "state": "done"})
    run = read_run(empty / "out")
    assert [card.path for card in run.cards] == ["b.png", "c.png"]
    assert run.damaged_lines == 1
    assert "1 damaged lines in the ledger are ignored." in made(empty).notes


def test_half_a_line_at_the_end_says_nothing_yet(empty: Path) -> None:
    append(empty, b'{"path": "a.png", "sta')
    assert read_run(empty / "out").damaged_lines == 0


@pytest.mark.parametrize("value", ["x", [], {}, None, True, [1], [0, 1], [1.5, 2], [-1, 4], 1e999, 10**400])
def test_a_field_of_the_wrong_type_is_dropped(empty: Path, value: Any) -> None:
    fields = ("size", "score", "threshold", "psnr", "ms", "seed", "out_bytes", "notes", "time", "in_sha256")
    append(empty, {"path": "a.png", "state": "done"} | dict.fromkeys(fields, value))
    (card,) = read_run(empty / "out").cards
    assert (card.width, card.height, card.score, card.psnr, card.ms, card.seed) == (None,) * 6
    assert card.time in (None, value)
    write_report(empty / "out", empty / "r.html", ReportConfig(), lambda done, total: None, overwrite=False)


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="holds no ledger; give the output folder"):
        made(tmp_path)


@pytest.mark.parametrize("run", ["", "3", "[" * 100_000, '{"settings": 3}', '{"settings": {}, "format": 1}'])
def test_a_damaged_run_record_is_named(empty: Path, run: str) -> None:
    (empty / "out" / ".zipcli" / "run.json").write_text(run)
    with pytest.raises(ConfigError, match=r"run\.json: damaged"):
        made(empty)


def test_a_newer_format_is_refused(empty: Path) -> None:
    run = empty / "out" / ".zipcli" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"format": 99}))
    with pytest.raises(ConfigError, match="newer"):
        made(empty)


# Which images


def cards(count: int, **changes: Any) -> list[Card]:
    return [replace(Card(path=f"{n:04}.png", state="done"), **changes) for n in range(count)]


def test_failures_are_never_left_out() -> None:
    many = [replace(card, state="failed") if n % 10 == 3 else card for n, card in enumerate(cards(100))]
    chosen = choose(many, 20)
    assert len(chosen) == 20
    assert sum(card.state == "failed" for card in chosen) == 10
    assert [card.path for card in choose(many, 3)] == [c.path for c in many if c.state == "failed"]
    assert choose(many, 100) == many


def test_the_most_suspicious_images_stay_in_their_order() -> None:
    many = [replace(card, score=float(n % 7)) for n, card in enumerate(cards(70))] + cards(30)
    chosen = choose(many, 20)
    assert [card.score for card in chosen] == [5.0, 6.0] * 10
    assert len(choose(many, 75)) == 75


def test_without_scores_every_nth_image_stays() -> None:
    assert [card.path for card in choose(cards(10), 5)] == [f"{n:04}.png" for n in (0, 2, 4, 6, 8)]
    assert len(choose(cards(10), 7)) == 7
    assert choose([], 5) == []


def test_many_large_images_get_smaller_previews() -> None:
    (few, large), (more, middle) = PREVIEW_SIDES
    big = {"width": 300, "height": 65}
    assert preview_side(cards(few, **big)) == large
    assert preview_side(cards(few + 1, **big)) == middle
    assert preview_side(cards(more + 1, **big)) == LEAST_PREVIEW_SIDE
    assert preview_side(cards(more + 1, width=64, height=64)) == large


def test_the_page_says_how_many_are_left_out(empty: Path) -> None:
    append(empty, *({"path": f"{n}.png", "state": "done"} for n in range(30)))
    report = made(empty, limit=10)
    assert len(report.cards) == 10
    assert report.counts == {"done": 30}
    assert any(note.startswith("20 of 30 images are left out") for note in report.notes)


# What `zipcli evaluate` measured


def test_what_evaluate_writes_is_understood(empty: Path) -> None:
    side = Side(
        ca=Share(count=88, total=100),
        asr=Share(count=4, total=90),
        asr_all=None,
        pa=Share(count=80, total=100),
        ra=Share(count=70, total=90),
        per_class=(("cat", Share(count=9, total=10), None, None),),
    )
    evaluation = Evaluation(
        name="badnets",
        classes=("cat",),
        target="cat",
        before=side,
        after=side,
        purified_clean=Fidelity(psnr=[30.0], ssim=[0.9], images=1),
        poisoned=Fidelity(),
        purified_poisoned=Fidelity(),
        settings={},
        cost={},
        notes=("few images",),
    )
    (empty / "e.json").write_text(json.dumps(evaluation.as_json()))
    (read,) = made(empty, evaluation=(empty / "e.json",)).evaluations
    assert list(read.after.rates) == ["ca", "asr", "pa", "ra"]
    assert read.before.rates["ca"].count == 88
    assert read.before.rates["ca"].low == pytest.approx(0.8019, abs=1e-4)
    assert read.after.classes["cat"]["ca"].value == 0.9
    assert set(read.facts) == {"der", "psnr", "ssim"}
    assert read.notes == ("few images",)


# The pictures


def test_small_pictures_are_embedded_as_they_are(tmp_path: Path) -> None:
    before, after = pixels((64, 8)), pixels((64, 8), seed=1)
    purified(tmp_path, before, after)
    card = only(made(tmp_path))
    assert (shown(card.before) == before).all()
    assert (shown(card.after) == after).all()
    assert (card.is_small, card.width, card.height) == (True, 64, 8)


def test_the_difference_is_exact_and_amplified(tmp_path: Path) -> None:
    before = pixels()
    after = before.copy()
    after[0, 0] = before[0, 0] ^ 1
    after[3, 5, 1] = before[3, 5, 1] ^ 2
    purified(tmp_path, before, after)
    card = only(made(tmp_path))
    expected = np.zeros((24, 32, 1), np.uint8)
    expected[0, 0], expected[3, 5] = AMPLIFIED, 2 * AMPLIFIED
    assert (shown(card.difference) == expected).all()
    assert card.change == round((3 * 1 + 2) / before.size, 3)


def test_a_difference_that_is_large_does_not_wrap(tmp_path: Path) -> None:
    purified(tmp_path, np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8))
    card = only(made(tmp_path))
    assert (shown(card.difference) == 255).all()
    assert card.change == 255


def test_large_pictures_are_embedded_as_previews(tmp_path: Path) -> None:
    before = np.full((300, 900, 3), 200, np.uint8)
    after = before.copy()
    after[:150] -= 10
    purified(tmp_path, before, after)
    report = made(tmp_path)
    card = only(report)
    assert shown(card.before).shape == shown(card.difference).shape == (107, 320, 3)
    assert (card.is_small, card.width, card.height, card.change) == (False, 900, 300, 5.0)
    difference = shown(card.difference).astype(int)
    assert abs(difference[:45] - 40).max() <= 4
    assert difference[60:].max() <= 4
    assert any("previews of 320 pixels" in note for note in report.notes)


def test_a_grey_picture_is_compared_with_one_in_three_channels(tmp_path: Path) -> None:
    grey = pixels()[..., 0]
    purified(tmp_path, grey, np.repeat(grey[..., None], 3, axis=2))
    card = only(made(tmp_path))
    assert card.change == 0
    assert (shown(card.before)[..., 1] == grey).all()


def test_pictures_of_two_sizes_are_shown_and_not_subtracted(tmp_path: Path) -> None:
    purified(tmp_path, pixels((40, 30)), pixels((30, 30)))
    card = only(made(tmp_path))
    assert (card.input_size, card.width, card.change, card.difference) == ((40, 30), 30, None, None)
    assert shown(card.before).shape == (30, 40, 3)


def test_a_picture_that_was_changed_since_is_named_and_not_shown(tmp_path: Path) -> None:
    for side in ("in", "out"):
        purified(tmp_path, pixels(), pixels(seed=1))
        save(tmp_path / side / "a.png", pixels(seed=2))
        report = made(tmp_path)
        card = only(report)
        missing = {"in": (card.before, card.before_missing), "out": (card.after, card.after_missing)}
        assert missing[side] == (None, CHANGED)
        assert (card.difference, card.change) == (None, None)
        words = {"in": "inputs", "out": "outputs"}[side]
        assert f"1 {words} were changed since, and are not shown." in report.notes


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    purified(tmp_path, pixels(), pixels(seed=1))
    (tmp_path / "in" / "a.png").unlink()
    report = made(tmp_path)
    assert only(report).before_missing == GONE
    assert "1 inputs are not there any more." in report.notes


def test_an_input_folder_that_is_gone_leaves_a_page_that_says_so(tmp_path: Path) -> None:
    purified(tmp_path, pixels(), pixels(seed=1))
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    report = made(tmp_path)
    assert only(report).after is not None
    (note,) = report.notes
    assert note.startswith("The folder in is not there any more")
    assert str(tmp_path) not in note
    assert only(made(tmp_path, input=tmp_path / "elsewhere")).before is not None


def test_a_run_that_recorded_no_folder_says_so(tmp_path: Path) -> None:
    purified(tmp_path, pixels(), pixels(seed=1))
    run = tmp_path / "out" / ".zipcli" / "run.json"
    values = json.loads(run.read_text())
    del values["input"]
    run.write_text(json.dumps(values))
    assert any("did not record where its images were" in note for note in made(tmp_path).notes)
    assert not made(tmp_path, input=tmp_path / "in").notes


def test_a_suspicion_map_is_drawn_of_the_input(tmp_path: Path) -> None:
    before = pixels()
    purified(tmp_path, before, pixels(seed=1))
    card = only(made(tmp_path, suspicion_map=lambda image: 255 - image[..., 0]))
    assert (shown(card.suspicion)[..., 2] == 255 - before[..., 0]).all()
    assert only(made(tmp_path)).suspicion is None


def test_a_failed_image_shows_its_input_where_that_can_be_read(empty: Path) -> None:
    sha256 = save(empty / "in" / "a.png", pixels())
    (empty / "in" / "b.png").write_bytes(b"")
    with ledger(empty).open() as book:
        book.finish(Outcome(path="a.png", state="failed", reason=Reason.NONFINITE, in_sha256=sha256))
        digest = hashlib.sha256(b"").hexdigest()
        book.finish(Outcome(path="b.png", state="failed", reason=Reason.EMPTY, in_sha256=digest))
        book.finish(Outcome(path="c.png", state="failed", reason=Reason.UNREADABLE))
    a, b, c = made(empty).cards
    assert a.before is not None
    assert (a.after, a.after_missing) == (None, None)
    assert (b.before, b.before_missing) == (None, "cannot be shown (empty)")
    assert (c.before, c.before_missing) == (None, None)


def test_a_path_that_leaves_the_folder_shows_nothing_that_the_ledger_does_not_know(empty: Path) -> None:
    save(empty / "secret.png", pixels())
    append(
        empty, {"path": "../secret.png", "state": "done", "in_sha256": "0" * 64, "out_path": "/etc/passwd"}
    )
    card = only(made(empty))
    assert (card.before, card.after) == (None, None)


# The file


def test_whoever_watches_is_told_of_every_image_and_may_stop(tmp_path: Path) -> None:
    for n in range(5):
        purified(tmp_path, pixels(seed=n), pixels(seed=n + 1), f"{n}.png")
    seen = []
    target = tmp_path / "r.html"
    write_report(tmp_path / "out", target, ReportConfig(), lambda *at: seen.append(at), overwrite=False)
    assert seen == [(n, 5) for n in range(1, 6)]
    before = target.read_bytes()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path / "out", target, ReportConfig(), stop, overwrite=True)
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "r.html"]
