"""Makes the before/after page: reads the ledger and the pictures it speaks of, and writes one file."""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zipcli import __version__
from zipcli.config import LIMITS, Limits, ReportConfig
from zipcli.errors import ConfigError, InputError, Reason, shown
from zipcli.images.guard import decode
from zipcli.images.load import Pixels, read_file
from zipcli.pipeline.one_file import check_target, write_target
from zipcli.pipeline.outcome import path_from_json
from zipcli.pipeline.plan import check_folder
from zipcli.pipeline.settings import STATE_FOLDER, read_state
from zipcli.pipeline.streams import map_ahead
from zipcli.report.evaluation import Evaluation, parse_evaluation
from zipcli.report.page import AMPLIFIED, Card, Report, build_page

SMALL_SIDE = 64
"""Pictures up to this side are shown as they are; of larger ones there are previews."""

PREVIEW_SIDES = ((1000, 320), (2500, 224))
"""Up to so many large images: the longer side of a preview in pixels. So 5,000 photographs
make a page of about 83 MB, and fewer no larger one."""

LEAST_PREVIEW_SIDE = 160
PREVIEW_QUALITY = 80
JOBS = 4
PIXELS_AHEAD = 32 * 10**6

LARGEST = 2**53
"""Numbers from there on are damage; a browser could not tell them from their neighbours."""

CHANGED = "changed since"
GONE = "not there any more"

Watcher = Callable[[int, int], None]
"""Told how many images are read, and of how many; it may raise to stop."""

SuspicionMap = Callable[[Pixels], Pixels]
"""How implausible each pixel is: uint8 (H, W, 3) sRGB to uint8 (H, W). Several threads call it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the state folder of an output folder says.

    Attributes:
        settings: Of the outputs.
        fingerprint: Of the settings.
        input: Where the images were, or None where that was not recorded.
        cards: The images, by path, without their pictures.
        damaged_lines: Lines of the ledger that say nothing.
    """

    settings: dict[str, Any]
    fingerprint: str
    input: Path | None
    cards: tuple[Card, ...]
    damaged_lines: int


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `write_report` made: how much is on the page, and what its reader should know."""

    images: int
    failed: int
    bytes: int
    notes: tuple[str, ...]


def write_report(
    out: Path,
    target: Path,
    config: ReportConfig,
    watch: Watcher,
    *,
    overwrite: bool,
    suspicion_map: SuspicionMap | None = None,
) -> Written:
    """Make the page of an output folder.

    Args:
        out: The output folder.
        target: The page; it appears whole or not at all.
        config: What to show.
        watch: Told of each image that is read; it may raise to stop.
        overwrite: Whether `target` may be replaced.
        suspicion_map: Draws how implausible each pixel of an input is; None to leave that out.

    Raises:
        ConfigError: `out` was not written by zipcli, something is in the way, or a file is damaged.
        OutputError: The page cannot be written.
    """
    check_target(target, overwrite=overwrite)
    report = make_report(out, config, watch, suspicion_map)
    data = build_page(report).encode("ascii")
    write_target(data, target, overwrite=overwrite)
    return Written(
        images=len(report.cards), failed=report.counts.get("failed", 0), bytes=len(data), notes=report.notes
    )


def make_report(
    out: Path, config: ReportConfig, watch: Watcher, suspicion_map: SuspicionMap | None = None
) -> Report:
    """Read what the page shows; the arguments are those of `write_report`."""
    evaluations = tuple(read_evaluation(file) for file in config.evaluation)
    check_folder(out)
    run = read_run(out)
    if config.input is not None:
        check_folder(config.input)
    chosen = choose(run.cards, config.limit)
    source = config.input or run.input
    is_there = source is not None and source.is_dir()
    pictures = Pictures(out, source if is_there else None, preview_side(chosen), suspicion_map)
    cards = []
    with ThreadPoolExecutor(JOBS, thread_name_prefix="zipcli") as pool:
        try:
            for card in map_ahead(pool, pictures.add, chosen, cost=_pixels, budget=PIXELS_AHEAD):
                cards.append(card)
                watch(len(cards), len(chosen))
        finally:
            pool.shutdown(cancel_futures=True)
    return Report(
        title=out.resolve().name if config.title is None else config.title,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, zipcli {__version__}",
        cards=tuple(cards),
        counts=Counter(card.state for card in run.cards),
        settings=run.settings,
        fingerprint=run.fingerprint,
        notes=tuple(_notes(run, cards, pictures, is_there=is_there)),
        evaluations=evaluations,
    )


def _limits(card: Card) -> Limits:
    """A picture that was purified is shown as it was read, whatever the run was told to allow."""
    if card.state not in ("done", "passed"):
        return LIMITS
    pixels = (card.width or 0) * (card.height or 0)
    return Limits(max_pixels=max(LIMITS.max_pixels, pixels), frames="first", allow_truncated=True)


def _pixels(card: Card) -> int:
    """Memory that reading an image may take; a failed one stands for an ordinary photograph."""
    return (card.width or 1000) * (card.height or 1000)


def _notes(run: Run, cards: Sequence[Card], pictures: "Pictures", *, is_there: bool) -> Iterator[str]:
    left_out = len(run.cards) - len(cards)
    if left_out:
        yield f"{left_out:,} of {len(run.cards):,} images are left out; --limit says how many are shown."
    if run.input is None and not is_there:
        yield "The run did not record where its images were, so there are no pictures before; give --input."
    elif not is_there:
        name = run.input.name if run.input else ""  # the path around it is nobody's business
        yield f"The folder {name} is not there any more, so there are no pictures before; give --input."
    for side in ("before", "after"):
        missing = Counter(getattr(card, f"{side}_missing") for card in cards)
        what = "inputs" if side == "before" else "outputs"
        if count := missing[CHANGED]:
            yield f"{count:,} {what} were changed since, and are not shown."
        if (count := missing[GONE]) and (is_there or side == "after"):
            yield f"{count:,} {what} are not there any more."
    if count := sum(card.other_settings is not None for card in cards):
        yield f"{count:,} images are still those of other settings."
    if run.damaged_lines:
        yield f"{run.damaged_lines:,} damaged lines in the ledger are ignored."
    if any(not card.is_small and (card.before or card.after) for card in cards):
        yield (
            f"Images of more than {SMALL_SIDE} pixels are shown as previews of {pictures.side} pixels; "
            "what is said of a difference is of the images themselves."
        )


def read_evaluation(file: Path) -> Evaluation:
    """Read a file of `zipcli evaluate`.

    Raises:
        ConfigError: It cannot be read, or is damaged.
    """
    name = shown(str(file))
    try:
        return parse_evaluation(file.read_text("utf-8"), name)
    except OSError as e:
        raise ConfigError(f"{name}: cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{name}: not what `zipcli evaluate` writes; it is no text") from e


def read_run(out: Path) -> Run:
    """Read the state folder of an output folder; a run may be writing there meanwhile.

    Raises:
        ConfigError: There is none, or it is damaged or of a newer version.
    """
    state = read_state(out)
    if state.has_tars:
        raise ConfigError(f"{shown(str(out))}: holds tar shards, of which no page is made; unpack them first")
    cards, damaged_lines = _read_ledger(out / STATE_FOLDER, state.fingerprint)
    return Run(
        settings=state.settings,
        fingerprint=state.fingerprint,
        input=state.input,
        cards=cards,
        damaged_lines=damaged_lines,
    )


def _read_ledger(folder: Path, fingerprint: str) -> tuple[tuple[Card, ...], int]:
    """The last line about each image, in the order of their paths, and the number of damaged lines."""
    cards: dict[str, Card] = {}
    damaged = 0
    for file in sorted(folder.glob("ledger-*.jsonl")):
        try:
            with file.open("rb") as lines:
                for line in lines:
                    try:
                        card = _card(json.loads(line), fingerprint)
                    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                        damaged += line.endswith(b"\n")  # half a line at the end says nothing yet
                    else:
                        cards[card.path] = card
        except OSError as e:
            raise ConfigError(f"{shown(str(file))}: cannot be read: {e.strerror}") from e
    return tuple(cards[path] for path in sorted(cards)), damaged


STATES = {"started": "unfinished", **{state: state for state in ("done", "passed", "skipped", "failed")}}


def _card(line: dict[str, Any], fingerprint: str) -> Card:
    """What a line of the ledger says of an image; a field of another type than it should have is dropped."""

    def number(name: str) -> Any:
        value = line.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return value if abs(value) < LARGEST else None  # NaN is not below it

    def text(name: str) -> str | None:
        return value if isinstance(value := line.get(name), str) else None

    path = path_from_json(line, "path")
    out_path = path_from_json(line, "out_path") if "out_path" in line else None
    for name in (path, path if out_path is None else out_path):
        if not name or b"\0" in os.fsencode(name):  # and what no file system can spell is a ValueError
            raise ValueError("no file has such a name")
    width, height = _size(line.get("size"))
    notes = line.get("notes")
    return Card(
        path=path,
        state=STATES[line["state"]],
        reason=text("reason"),
        message=text("message"),
        notes=tuple(map(str, notes)) if isinstance(notes, list) else (),
        width=width,
        height=height,
        score=number("score"),
        threshold=number("threshold"),
        psnr=number("psnr"),
        ms=number("ms"),
        mode=text("mode"),
        seed=number("seed"),
        device=text("device"),
        out_path=out_path,
        out_bytes=number("out_bytes"),
        in_sha256=text("in_sha256"),
        out_sha256=text("out_sha256"),
        time=text("time"),
        version=text("version"),
        other_settings=None if line.get("fingerprint") == fingerprint else str(line.get("fingerprint")),
    )


def _size(value: object) -> tuple[int | None, int | None]:
    if isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value):
        return value[0], value[1]
    return None, None


def choose(cards: Sequence[Card], limit: int) -> list[Card]:
    """At most `limit` images and all failures, in their order.

    The most suspicious ones stay where a detector gave scores; otherwise, and among those without a
    score, every n-th, so that no folder is left out for its name.
    """
    failed = [n for n, card in enumerate(cards) if card.state == "failed"]
    rest = [n for n, card in enumerate(cards) if card.state != "failed"]
    room = max(0, limit - len(failed))
    scored = sorted((n for n in rest if cards[n].score is not None), key=lambda n: -(cards[n].score or 0))
    others = [n for n in rest if cards[n].score is None]
    kept = scored[:room]
    left = min(len(others), room - len(kept))
    kept += [others[k * len(others) // left] for k in range(left)]
    return [cards[n] for n in sorted({*failed, *kept})]


def preview_side(cards: Sequence[Card]) -> int:
    """Longer side of the previews, so that many of them still make a page that opens."""
    large = sum(max(card.width or 0, card.height or 0) > SMALL_SIDE for card in cards)
    return next((side for most, side in PREVIEW_SIDES if large <= most), LEAST_PREVIEW_SIDE)


class Pictures:
    """Reads the pictures of one run and makes of them what the page shows."""

    def __init__(self, out: Path, source: Path | None, side: int, suspicion_map: SuspicionMap | None) -> None:
        """Say where the pictures are.

        Args:
            out: The output folder.
            source: The input folder, or None where it is gone.
            side: Longer side of a preview.
            suspicion_map: As for `write_report`.
        """
        self.out, self.source, self.side, self.suspicion_map = out, source, side, suspicion_map

    def add(self, card: Card) -> Card:
        """The card with its pictures, and with why one is missing; called in any thread."""
        before, before_missing = self._pixels(self.source, card.path, card.in_sha256, _limits(card))
        after, after_missing = None, None
        if card.state in ("done", "passed") and card.out_path is not None:
            after, after_missing = self._pixels(self.out, card.out_path, card.out_sha256, _limits(card))
        is_small = all(max(p.shape) <= SMALL_SIDE for p in (before, after) if p is not None)
        shape = next((p.shape for p in (after, before) if p is not None), (card.height, card.width))
        card = replace(
            card,
            before=self._picture(before),
            after=self._picture(after),
            before_missing=before_missing,
            after_missing=after_missing,
            is_small=is_small,
            height=shape[0],
            width=shape[1],
        )
        if before is not None and self.suspicion_map is not None:
            card = replace(card, suspicion=self._picture(self.suspicion_map(before)))
        if before is None or after is None:
            return card
        if before.shape != after.shape:
            return replace(card, input_size=(before.shape[1], before.shape[0]))
        difference = np.maximum(before, after) - np.minimum(before, after)
        return replace(
            card, difference=self._map(difference.max(axis=2)), change=round(float(difference.mean()), 3)
        )

    def _pixels(
        self, folder: Path | None, path: str, sha256: str | None, limits: Limits
    ) -> tuple[Pixels | None, str | None]:
        """The picture that the ledger knows by its digest, as (H, W, 3), or why there is none."""
        if sha256 is None:  # it was never read
            return None, None
        if folder is None:
            return None, GONE
        try:
            data = read_file(folder / path, name=shown(path))
            if hashlib.sha256(data).hexdigest() != sha256:
                return None, CHANGED
            pixels = decode(data, shown(path), limits).pixels
        except InputError as e:
            return None, GONE if e.reason is Reason.VANISHED else f"cannot be shown ({e.reason})"
        return (pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)), None

    def _picture(self, pixels: Pixels | None) -> bytes | None:
        """Pixels as WebP: a small picture as it is, of a large one a preview."""
        if pixels is None:
            return None
        image = Image.fromarray(pixels)
        if max(image.size) <= SMALL_SIDE:
            return _webp(image, lossless=True)
        image.thumbnail((self.side, self.side), Image.Resampling.LANCZOS, reducing_gap=2)
        return _webp(image, quality=PREVIEW_QUALITY)

    def _map(self, difference: Pixels) -> bytes:
        """A difference, (H, W), amplified after it is made smaller: a preview must not saturate early."""
        image = Image.fromarray(difference)
        is_small = max(image.size) <= SMALL_SIDE
        if not is_small:
            image.thumbnail((self.side, self.side), Image.Resampling.BOX, reducing_gap=None)
        image = image.point([min(255, AMPLIFIED * level) for level in range(256)])
        return _webp(image, lossless=True) if is_small else _webp(image, quality=PREVIEW_QUALITY)


def _webp(image: Image.Image, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **settings)
    return buffer.getvalue()
