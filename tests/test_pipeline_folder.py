"""A folder in, a folder out: isolation, order, detector, memory."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from zipcli.config import DetectConfig, FolderConfig, NoiseSchedule, purify_config
from zipcli.detectors import DETECTORS
from zipcli.detectors.parts import Parts
from zipcli.errors import DeviceLostError, ExitCode, InputError, MemoryExhaustedError, Reason, StoppedError
from zipcli.pipeline.folder import FolderRun
from zipcli.pipeline.ledger import Ledger
from zipcli.pipeline.outcome import Outcome, Summary
from zipcli.pipeline.plan import Plan
from zipcli.pipeline.purifier import Purifier
from zipcli.protocols import Detector, EpsModel, Suspicion
from zipcli.schedule import alpha_bars

LEDGER = ".zipcli/ledger-00001-of-00001.jsonl"


class Calm:
    """A prior that always predicts the same noise; NaN for the images it is told to break."""

    schedule = NoiseSchedule()
    channels = 3
    native_side = None
    minimum_side = 1

    def __init__(self, breaks: Callable[[Tensor], Tensor] = lambda x: torch.zeros(len(x), dtype=torch.bool)):
        self.breaks = breaks

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        return torch.where(self.breaks(x_t)[:, None, None, None], torch.nan, torch.tanh(x_t))


def no_detector() -> Detector:
    return DETECTORS["none"](DetectConfig(detector="none"), Parts())


def save(folder: Path, name: str, level: int = 100, side: int = 8) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(path)


def run(
    base: Path,
    out: Path,
    *,
    model: EpsModel | None = None,
    detector: Detector | None = None,
    report: Callable[[Outcome], None] = lambda _: None,
    check_stop: Callable[[], None] = lambda: None,
    settings: dict[str, object] | None = None,
    **folder: object,
) -> tuple[Summary, dict[str, Outcome]]:
    method = {"method": "zip"} if model else {"method": "blur"}
    purifier = Purifier(purify_config(**method, transforms=("blur:2",), **(settings or {})))
    if model:
        purifier.use(model, {"model_sha256": "0" * 64})
    config = FolderConfig(detector="fake" if detector else "none", **folder)  # type: ignore[arg-type]
    ledger = Ledger(out)
    ledger.use_settings({**purifier.fingerprint_parts, **config.file_settings()}, overwrite=config.overwrite)
    outcomes = {}

    def note(outcome: Outcome) -> None:
        outcomes[outcome.path] = outcome
        report(outcome)

    with ledger.open():
        joined = FolderRun(Plan(base=base, config=config), purifier, detector or no_detector(), ledger)
        return joined.run(note, check_stop), outcomes


def test_every_file_found_ends_in_exactly_one_state(tmp_path: Path) -> None:
    for n in range(5):
        save(tmp_path / "in", f"{n % 2}/{n}.png", level=20 * n)
    (tmp_path / "in" / "bad.png").write_bytes(b"bad")
    (tmp_path / "in" / "link.png").symlink_to("/etc/passwd")
    summary, outcomes = run(tmp_path / "in", tmp_path / "out")
    assert (summary.found, len(outcomes)) == (7, 7)
    assert summary.counts == {"done": 5, "failed": 1, "skipped": 1}
    assert summary.exit_code() == 3
    assert outcomes["bad.png"].reason is Reason.UNIDENTIFIED
    lines = [json.loads(line) for line in (tmp_path / "out" / LEDGER).read_text().splitlines()]
    last = {line["path"]: line for line in lines}
    assert {path: line["state"] for path, line in last.items()} == {p: o.state for p, o in outcomes.items()}
    assert last["bad.png"]["reason"] == "unidentified"
    for line in last.values():
        assert {"fingerprint", "time", "version"} <= set(line)
        assert len(line.get("in_sha256", "")) == (0 if line["path"] == "link.png" else 64)
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").glob("[!.]*/*"))
    assert written == ["0/0.png", "0/2.png", "0/4.png", "1/1.png", "1/3.png"]
    again, _ = run(tmp_path / "in", tmp_path / "out")
    assert again.counts == {"skipped": 6, "failed": 1}


def test_an_image_whose_chain_fails_costs_itself_only(tmp_path: Path) -> None:
    for n in range(6):
        save(tmp_path / "in", f"{n}.png", level=20 * n)
    clean, _ = run(tmp_path / "in", tmp_path / "clean", model=Calm())
    assert clean.counts == {"done": 6}
    calls = []

    def second_of_a_full_batch(x: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.arange(len(x)) == (1 if len(calls) == 1 else -1)

    summary, outcomes = run(tmp_path / "in", tmp_path / "out", model=Calm(second_of_a_full_batch))
    assert summary.counts == {"done": 5, "failed": 1}
    assert outcomes["1.png"].reason is Reason.NONFINITE
    assert "at step 0" in (outcomes["1.png"].message or "")
    assert not (tmp_path / "out" / "1.png").exists()
    for n in (0, 2, 3, 4, 5):
        name = f"{n}.png"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()


class Grey(Calm):
    """A prior for which every image is grey: it calls all of it noise."""

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        alpha_bar = alpha_bars(self.schedule)[t.long()].to(x_t)[:, None, None, None]
        return x_t / (1 - alpha_bar).sqrt()


@pytest.mark.fault("F15")
def test_an_image_of_which_nothing_is_left_is_not_written(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(noise).save(tmp_path / "in" / "a.png")
    save(tmp_path / "in", "grey.png", level=128, side=16)  # of this one nothing more was to be expected
    settings = {"sampler": "ddim", "lambda_": 0.0}
    _, outcomes = run(tmp_path / "in", tmp_path / "out", model=Grey(), settings=settings)
    assert outcomes["a.png"].reason is Reason.SUSPECT_OUTPUT
    assert outcomes["grey.png"].state == "done"
    assert [file.name for file in (tmp_path / "out").glob("*.png")] == ["grey.png"]


@pytest.mark.fault("F15")
def test_what_overflows_in_a_short_format_is_purified_in_a_longer_one(tmp_path: Path) -> None:
    """The built-in prior does overflow in float16."""
    save(tmp_path / "in", "a.png", level=100)
    save(tmp_path / "in", "b.png", level=200)
    written = {}
    for dtype in ("float16", "float32"):
        purifier = Purifier.from_pretrained("builtin", device="cpu", dtype=dtype)
        ledger = Ledger(tmp_path / dtype)
        ledger.use_settings(purifier.fingerprint_parts, overwrite=False)
        outcomes: list[Outcome] = []
        with ledger.open():
            plan = Plan(base=tmp_path / "in", config=FolderConfig())
            summary = FolderRun(plan, purifier, no_detector(), ledger).run(outcomes.append)
        assert summary.counts == {"done": 2}
        written[dtype] = [(tmp_path / dtype / name).read_bytes() for name in ("a.png", "b.png")]
        assert all(("float32" in str(outcome.notes)) == (dtype == "float16") for outcome in outcomes)
    assert written["float16"] == written["float32"]


def test_nothing_is_written_for_an_image_that_fails(tmp_path: Path) -> None:
    save(tmp_path / "in", "a.png")
    summary, _ = run(
        tmp_path / "in", tmp_path / "out", model=Calm(lambda x: torch.ones(len(x), dtype=torch.bool))
    )
    assert summary.counts == {"failed": 1}
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".zipcli"]


def test_batch_size_jobs_and_order_change_no_byte(tmp_path: Path) -> None:
    for n in range(9):
        save(tmp_path / "in", f"{n}.png", level=25 * n, side=8 + n % 2)
    expected = None
    for batch_size, jobs in ((1, 1), (2, 4), (64, 4)):
        out = tmp_path / f"out{batch_size}"
        run(tmp_path / "in", out, model=Calm(), settings={"batch_size": batch_size}, jobs=jobs)
        written = {p.name: p.read_bytes() for p in out.glob("*.png")}
        assert len(written) == 9
        expected = expected or written
        assert written == expected


class ClearsDark:
    """Suspects bright images only."""

    threshold = 0.5

    def __call__(self, images: Sequence[np.ndarray], /) -> list[Suspicion]:
        assert all(image.ndim == 3 for image in images)
        return [Suspicion(score=float(image.mean() > 127.5)) for image in images]


def test_what_the_detector_clears_passes_unchanged_and_is_never_called_done(tmp_path: Path) -> None:
    PIL.Image.effect_noise((8, 8), 30).point(lambda v: v // 3).save(_in(tmp_path) / "dark.png")
    PIL.Image.effect_noise((8, 8), 30).point(lambda v: 170 + v // 4).save(_in(tmp_path) / "bright.png")
    summary, outcomes = run(tmp_path / "in", tmp_path / "out", model=Calm(), detector=ClearsDark())
    assert summary.counts == {"passed": 1, "done": 1}
    assert outcomes["dark.png"].state == "passed"
    dark = [np.asarray(PIL.Image.open(tmp_path / side / "dark.png")) for side in ("in", "out")]
    assert np.array_equal(*dark)
    bright = [np.asarray(PIL.Image.open(tmp_path / side / "bright.png")) for side in ("in", "out")]
    assert not np.array_equal(*bright)
    lines = (tmp_path / "out" / LEDGER).read_text().splitlines()
    last = {line["path"]: line for line in map(json.loads, lines)}
    found = {path: (line["state"], line["score"], line["threshold"]) for path, line in last.items()}
    assert found == {"dark.png": ("passed", 0, 0.5), "bright.png": ("done", 1, 0.5)}


def test_a_stop_leaves_complete_files_and_the_next_run_does_the_rest(tmp_path: Path) -> None:
    for n in range(20):
        save(tmp_path / "in", f"{n:02}.png", level=10 * n)
    seen: list[Outcome] = []

    calls = 0

    def stop() -> None:
        if len(seen) >= 3:
            raise StoppedError(ExitCode.INTERRUPTED)

    def no_faster_than_the_writers(x: Tensor) -> Tensor:
        """Five pairs of images, of five calls each, may be ahead of them."""
        nonlocal calls
        calls += 1
        until = time.monotonic() + 60
        while calls > 5 * 5 and len(seen) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        return torch.zeros(len(x), dtype=torch.bool)

    settings = {"batch_size": 2}
    with pytest.raises(StoppedError):
        run(
            tmp_path / "in",
            tmp_path / "out",
            model=Calm(no_faster_than_the_writers),
            settings=settings,
            report=seen.append,
            check_stop=stop,
        )
    written = sorted((tmp_path / "out").glob("*.png"))
    assert 3 <= len(written) < 20
    assert sorted(outcome.path for outcome in seen) == [path.name for path in written]
    for path in written:
        with PIL.Image.open(path) as image:
            image.load()
    summary, _ = run(tmp_path / "in", tmp_path / "out", model=Calm(), settings=settings)
    assert summary.counts == {"skipped": len(written), "done": 20 - len(written)}


def test_a_lossy_choice_is_recorded(tmp_path: Path) -> None:
    save(tmp_path / "in", "a.png")
    _, outcomes = run(tmp_path / "in", tmp_path / "out", format="jpg")
    assert outcomes["a.png"].lossy is True
    _, outcomes = run(tmp_path / "in", tmp_path / "out2")
    assert outcomes["a.png"].lossy is False


def _in(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir(exist_ok=True)
    return tmp_path / "in"


def test_what_needs_no_network_is_reported_as_it_comes(tmp_path: Path) -> None:
    """A folder that is done already, or whose images pass, must not pile up until its end."""
    for n in range(30):
        save(tmp_path / "in", f"{n:02}.png", level=8 * n)
    run(tmp_path / "in", tmp_path / "out")
    config = FolderConfig(detector="fake")
    purifier = Purifier(purify_config(method="blur", transforms=("blur:2",)))
    pulled = []

    def found() -> Iterator[Outcome]:
        for n in range(30):
            pulled.append(n)
            yield Outcome(path=str(n), state="skipped")

    ledger = Ledger(tmp_path / "out")
    joined = FolderRun(Plan(base=tmp_path / "in", config=config), purifier, no_detector(), ledger)
    assert next(joined.purify(joined.screen(found()))).path == "0"
    assert len(pulled) == 1


@pytest.mark.fault("F11")
def test_a_batch_too_large_for_the_device_is_halved_with_the_same_result(tmp_path: Path) -> None:
    for n in range(6):
        save(tmp_path / "in", f"{n}.png", level=20 * n)
    run(tmp_path / "in", tmp_path / "clean", model=Calm())
    purify_pixels = Purifier.purify_pixels

    def small_device(self: Purifier, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        if len(images) > 2:
            raise MemoryExhaustedError("not enough memory")
        return purify_pixels(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Purifier, "purify_pixels", small_device)
        summary, _ = run(tmp_path / "in", tmp_path / "out", model=Calm())
        assert summary.counts == {"done": 6}
        patch.setattr(Purifier, "purify_pixels", lambda self, images: small_device(self, [*images] * 3))
        summary, outcomes = run(tmp_path / "in", tmp_path / "none", model=Calm())
    assert summary.counts == {"failed": 6}
    assert outcomes["0.png"].reason is Reason.OUT_OF_MEMORY
    for n in range(6):
        name = f"{n}.png"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()


@pytest.mark.fault("F11", "F14")
def test_what_did_not_fit_is_remembered_and_tried_again_later(tmp_path: Path) -> None:
    """Somebody else takes the memory of the device for a while."""
    for n in range(200):
        save(tmp_path / "in", f"{n:03}.png", level=n)
    purify_pixels = Purifier.purify_pixels
    asked: list[int] = []

    def shared_device(self: Purifier, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        asked.append(len(images))
        if len(images) > 2 and len(asked) < 40:
            raise MemoryExhaustedError("not enough memory")
        return purify_pixels(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Purifier, "purify_pixels", shared_device)
        summary, _ = run(tmp_path / "in", tmp_path / "out", model=Calm(), settings={"batch_size": 8})
    assert summary.counts == {"done": 200}
    assert asked[:7] == [8, 4, 2, 2, 4, 2, 2]
    assert set(asked[7:20]) == {2}, "what did not fit was tried again at once"
    assert max(asked[-5:]) >= 4, "it did not grow back"


@pytest.mark.fault("F12")
def test_a_device_that_is_lost_ends_the_run_in_order_and_says_so(tmp_path: Path) -> None:
    for n in range(6):
        save(tmp_path / "in", f"{n}.png", level=20 * n)
    calls = []

    def illegal_access(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) > 5:  # the second image; the first is being written, and that shall not be cut short
            deadline = time.monotonic() + 60
            while not list((tmp_path / "out").glob("*.png")) and time.monotonic() < deadline:
                time.sleep(0.01)
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors ...")
        return torch.zeros(len(x), dtype=torch.bool)

    settings = {"batch_size": 1}
    with pytest.raises(DeviceLostError, match=r"illegal memory access.*run the same command again") as caught:
        run(tmp_path / "in", tmp_path / "out", model=Calm(illegal_access), settings=settings)
    assert caught.value.exit_code == ExitCode.BUG
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.png")}
    assert len(before) == 1
    summary, _ = run(tmp_path / "in", tmp_path / "out", model=Calm(), settings=settings)
    assert summary.counts == {"skipped": 1, "done": 5}
    assert all((tmp_path / "out" / name).read_bytes() == data for name, data in before.items())


def test_an_image_that_cannot_be_read_keeps_its_output(tmp_path: Path) -> None:
    save(tmp_path / "in", "a.png")
    run(tmp_path / "in", tmp_path / "out")

    def unreadable(*_: object, **__: object) -> bytes:
        raise InputError(Reason.UNREADABLE, "a.png: Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zipcli.pipeline.plan.read_file", unreadable)
        summary, _ = run(tmp_path / "in", tmp_path / "out")
    assert summary.counts == {"failed": 1}
    assert (tmp_path / "out" / "a.png").exists()
    summary, _ = run(tmp_path / "in", tmp_path / "out")
    assert summary.exit_code() == 0


@pytest.mark.parametrize("content", [b"bad", b""])
def test_an_image_that_goes_bad_loses_the_output_of_its_earlier_version(
    tmp_path: Path, content: bytes
) -> None:
    save(tmp_path / "in", "a.png")
    run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "a.png").write_bytes(content)
    summary, _ = run(tmp_path / "in", tmp_path / "out")
    assert summary.counts == {"failed": 1}
    assert not (tmp_path / "out" / "a.png").exists()


def test_an_output_edited_by_hand_is_not_removed_with_its_bad_input(tmp_path: Path) -> None:
    save(tmp_path / "in", "a.png")
    run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "a.png").write_bytes(b"bad")
    (tmp_path / "out" / "a.png").write_bytes(b"retouched")
    run(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "a.png").read_bytes() == b"retouched"
