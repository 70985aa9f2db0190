"""Builds the page: data in, HTML out. Nothing here reads a picture or a ledger.

Names and messages come from outside. They enter the page as JSON only, with their control characters
escaped, and its script puts them there as text. The policy of the page lets no other script run, and
nothing be loaded.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from typing import Any

from zipcli.errors import shown
from zipcli.report.evaluation import RATES, Evaluation, Measures

AMPLIFIED = 4
"""Factor of the difference maps."""

PICTURES = ("before", "after", "difference", "suspicion")
SCRIPTS = ("dom.js", "plots.js", "viewer.js", "grid.js", "page.js")


@dataclass(frozen=True, kw_only=True)
class Card:
    """One image on the page.

    Attributes:
        path: Its path in the input folder.
        state: The word of the ledger, or unfinished where a run ended before the image did.
        reason: Why it failed or was skipped.
        message: The same for people.
        notes: What else is to be known about it.
        before: WebP of the input, or None where it cannot be shown.
        after: WebP of the output.
        difference: WebP of |after - before|, the largest of the channels, `AMPLIFIED` times; grey.
        suspicion: WebP of how implausible each pixel of the input is; grey.
        before_missing: Why there is no picture before.
        after_missing: Why there is no picture after.
        is_small: Whether the pictures are the files' own pixels; otherwise they are previews.
        width: Of the output, or of the input where there is no output.
        height: Likewise.
        input_size: Width and height of the input where they differ.
        score: A detector's.
        threshold: The detector's; a score below it passes.
        change: Mean of |after - before|, in levels of 255.
        psnr: Of the output against the input, in dB.
        ms: Milliseconds that it took.
        mode: Mode of the input, in Pillow's words.
        seed: Seed of the run.
        device: Where the network ran.
        out_path: Path of the output.
        out_bytes: Its size.
        in_sha256: Digest of the input.
        out_sha256: Digest of the output.
        time: When it was finished.
        version: The zipcli that did it.
        other_settings: Fingerprint of its settings where they are not those of the run.
    """

    path: str
    state: str
    reason: str | None = None
    message: str | None = None
    notes: tuple[str, ...] = ()
    before: bytes | None = None
    after: bytes | None = None
    difference: bytes | None = None
    suspicion: bytes | None = None
    before_missing: str | None = None
    after_missing: str | None = None
    is_small: bool = False
    width: int | None = None
    height: int | None = None
    input_size: tuple[int, int] | None = None
    score: float | None = None
    threshold: float | None = None
    change: float | None = None
    psnr: float | None = None
    ms: int | None = None
    mode: str | None = None
    seed: int | None = None
    device: str | None = None
    out_path: str | None = None
    out_bytes: int | None = None
    in_sha256: str | None = None
    out_sha256: str | None = None
    time: str | None = None
    version: str | None = None
    other_settings: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a page shows.

    Attributes:
        title: Its heading.
        made: When and by which zipcli.
        cards: The images on the page.
        counts: Images of the run by state, whether they are on the page or not.
        settings: Of the run, as JSON holds them.
        fingerprint: Of the settings.
        notes: What whoever looks at the page should know about it.
        evaluations: What `zipcli evaluate` measured.
    """

    title: str
    made: str
    cards: tuple[Card, ...]
    counts: Mapping[str, int]
    settings: Mapping[str, Any]
    fingerprint: str
    notes: tuple[str, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()


def build_page(report: Report) -> str:
    """Build the page, HTML in ASCII characters, with every picture inside."""
    style, script = _part("page.css"), "".join(map(_part, SCRIPTS))
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src {_digest(style)}",
            f"script-src {_digest(script)}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    parts = {"policy": policy, "style": style, "script": script, "data": _json(_data(report))}
    # In one pass: what is put in may itself look like a place to put something.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("page.html"))


def anchor(path: str) -> str:
    """The part of an address that stands for an image: the same on every page that shows it."""
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:12]


def _part(name: str) -> str:
    return files("zipcli.report").joinpath(name).read_text("ascii")


def _digest(text: str) -> str:
    """A source of a content security policy that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: object) -> str:
    """JSON that neither ends the element it stands in nor begins another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(report: Report) -> dict[str, Any]:
    return {
        **_harmless(
            {
                "title": report.title,
                "made": report.made,
                "counts": report.counts,
                "settings": report.settings,
                "fingerprint": report.fingerprint,
                "notes": report.notes,
                "evaluations": [_evaluation(e) for e in report.evaluations],
            }
        ),
        "amplified": AMPLIFIED,
        "cards": [_card(card) for card in report.cards],
    }


def _card(card: Card) -> dict[str, Any]:
    """The fields that are set; pictures in base64, which needs no escapes."""
    values = {f.name: getattr(card, f.name) for f in fields(card)}
    pictures = {
        name: base64.b64encode(picture).decode()
        for name in PICTURES
        if (picture := values.pop(name)) is not None
    }
    values["name"] = values.pop("path")
    values |= {"id": anchor(card.path), "folder": card.path.rpartition("/")[0].partition("/")[0]}
    values["message"] = card.message and shown(card.message).removeprefix(f"{shown(card.path)}: ")
    return {name: _harmless(value) for name, value in values.items() if value not in (None, ())} | pictures


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    names = dict.fromkeys((*evaluation.before.classes, *evaluation.after.classes))
    return {
        "name": evaluation.name,
        "facts": evaluation.facts,
        "notes": evaluation.notes,
        "rates": _pairs(evaluation.before, evaluation.after),
        "classes": [
            {
                "name": name,
                "rates": _pairs(
                    Measures(rates=evaluation.before.classes.get(name, {})),
                    Measures(rates=evaluation.after.classes.get(name, {})),
                ),
            }
            for name in names
        ],
    }


def _pairs(before: Measures, after: Measures) -> list[dict[str, Any]]:
    sides = {"before": before, "after": after}
    return [
        {"name": name} | {side: asdict(m.rates[name]) for side, m in sides.items() if name in m.rates}
        for name in RATES
        if name in before.rates or name in after.rates
    ]


def _harmless(value: Any) -> Any:
    """The same with every text in it escaped, however deep it lies; JSON has no NaN and no infinity."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {shown(str(name)): _harmless(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(inner) for inner in value]
    return value
