"""Reads what `zipcli evaluate` measured; fields that we do not know are ignored."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zipcli.errors import ConfigError

SCHEMA = 1
RATES = ("ca", "asr", "asr_all", "pa", "ra")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of images, with its interval of 95 % where one was given.

    Attributes:
        value: The share, 0 to 1.
        count: Images that count.
        total: Images that were looked at.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    count: int
    total: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The rates of one set of images, by their names in `RATES`, over all and for each class."""

    rates: Mapping[str, Rate] = field(default_factory=dict)
    classes: Mapping[str, Mapping[str, Rate]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a classifier made of images before and after.

    Attributes:
        name: What was done to the images.
        before: Without a defence.
        after: Of the purified images.
        facts: Single numbers: der, and psnr and ssim of purified clean images against the clean ones.
        notes: What its reader should know.
    """

    name: str
    before: Measures
    after: Measures
    facts: Mapping[str, float]
    notes: tuple[str, ...] = ()


def parse_evaluation(text: str, name: str) -> Evaluation:
    """Read the JSON of one evaluation.

    Args:
        text: What the file holds.
        name: What messages call the file.

    Raises:
        ConfigError: It is no evaluation, a damaged one, or one of a newer version.
    """
    try:
        value = json.loads(text)
        if not isinstance(value, dict) or value.get("type") != "evaluation":
            raise ValueError("no evaluation")
        if value.get("schema") != SCHEMA:
            raise ConfigError(
                f"{name}: schema {str(value.get('schema'))[:20]!r} is not {SCHEMA}; make the report with the "
                "zipcli that wrote the evaluation"
            )
        fidelity = (value.get("fidelity") or {}).get("purified_clean") or {}
        facts = {"der": value.get("der"), "psnr": fidelity.get("psnr"), "ssim": fidelity.get("ssim")}
        return Evaluation(
            name=_text(value["name"]),
            before=_measures(value.get("before") or {}),
            after=_measures(value.get("after") or {}),
            facts={key: _finite(fact) for key, fact in facts.items() if fact is not None},
            notes=tuple(_text(note) for note in value.get("notes") or ()),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        if isinstance(e, ConfigError):
            raise
        raise ConfigError(
            f"{name}: not what `zipcli evaluate` writes, or damaged ({_reason(e)}); make it again"
        ) from e


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _measures(value: Mapping[str, Any]) -> Measures:
    classes = {_text(row["class"]): _rates(row) for row in value.get("per_class") or ()}
    return Measures(rates=_rates(value), classes=classes)


def _rates(value: Mapping[str, Any]) -> dict[str, Rate]:
    """The rates that are there; null stands for a rate of no images at all."""
    return {name: _rate(value[name], name) for name in RATES if value.get(name) is not None}


def _rate(value: Mapping[str, Any], name: str) -> Rate:
    ends = {end: _share(value[end], name) for end in ("low", "high") if value.get(end) is not None}
    count, total = value["count"], value["total"]
    if type(count) is not int or type(total) is not int or not 0 <= count <= total:
        raise ValueError(f"{name}: the counts are {count!r} of {total!r}")
    return Rate(value=_share(value["value"], name), count=count, total=total, **ends)


def _share(value: object, name: str) -> float:
    share = _finite(value)
    if not 0 <= share <= 1:
        raise ValueError(f"{name}: {share} is no share of 1")
    return share


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no name")
    return value
