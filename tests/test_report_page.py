"""The page as text: what is in it, what cannot get into it, and the evaluations that it shows."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipcli.errors import ConfigError
from zipcli.report.evaluation import Rate, parse_evaluation
from zipcli.report.page import SCRIPTS, Card, Report, anchor, build_page

HOSTILE = [
    "</script><script>alert(1)</script>.png",
    "<!--<script>.png",
    "<img src=x onerror=alert(1)>.png",
    "\"'&amp;`${alert(1)}.png",
    "{{script}}{{data}}{{nothing}}.png",
    "a\u202egnp.exe",
    "\x1b[31mred\nline\u2028line\ufeff.png",
    "caf\udce9.png",
    "__proto__",
]


class Elements(HTMLParser):
    """Which elements a page has, and the text inside its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.is_inside = False
        self.texts: dict[int, str] = {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.is_inside = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.is_inside = False

    def handle_data(self, data: str) -> None:
        number = len(self.tags) - 1
        if self.is_inside:
            self.texts[number] = self.texts.get(number, "") + data

    def inside(self, tag: str) -> list[str]:
        return [self.texts.get(n, "") for n, (name, _) in enumerate(self.tags) if name == tag]


def report(*cards: Card, **changes: Any) -> Report:
    values: dict[str, Any] = {
        "title": "clean",
        "made": "today",
        "cards": cards,
        "counts": {"done": len(cards)},
        "settings": {"steps": 20},
        "fingerprint": "f" * 32,
    }
    return Report(**values | changes)


def card(path: str = "a.png", **changes: Any) -> Card:
    values: dict[str, Any] = {"path": path, "state": "done"}
    return Card(**values | changes)


def data_of(page: str) -> dict[str, Any]:
    data, _ = Elements(page).inside("script")
    return json.loads(data)


def policy(page: str) -> dict[str, list[str]]:
    (content,) = [
        attributes["content"] or ""
        for tag, attributes in Elements(page).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    return {words[0]: words[1:] for words in (part.split() for part in content.split(";"))}


def test_the_policy_allows_this_script_this_style_and_nothing_else() -> None:
    page = build_page(report(card()))
    _, script = Elements(page).inside("script")
    (style,) = Elements(page).inside("style")
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in (script, style)
    ]
    rules = policy(page)
    assert [rules["script-src"], rules["style-src"]] == [[digests[0]], [digests[1]]]
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert rules["img-src"] == ["data:"]
    assert "unsafe" not in page.partition("</head>")[0].replace(style, "")


def test_the_page_names_no_address_but_that_of_svg() -> None:
    page = build_page(report(card()))
    assert set(re.findall(r"(?:https?:)?//[\w.]+[\w./]*", page)) == {"http://www.w3.org/2000/svg"}
    for _, attributes in Elements(page).tags:
        for name in ("src", "href", "action", "style"):
            assert attributes.get(name, "data:,") in ("data:,", "#images")
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in page
    assert "@import" not in page


def test_the_scripts_make_no_html_of_text() -> None:
    for name in SCRIPTS:
        text = files("zipcli.report").joinpath(name).read_text("ascii")
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|</|<!--|import|fetch",
            text,
        )
        assert not found, name


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_only_data(name: str) -> None:
    page = build_page(
        report(
            card(name, state="failed", reason=name, message=name, notes=(name,), mode=name, out_path=name),
            title=name,
            notes=(name,),
            settings={name: [name, {name: name}]},
            fingerprint=name,
            counts={name: 1},
        )
    )
    plain = build_page(report(card(state="failed"), settings={}))
    assert [tag for tag, _ in Elements(page).tags] == [tag for tag, _ in Elements(plain).tags]
    assert page.isascii()
    data = data_of(page)
    (shown,) = data["cards"]
    for text in (data["title"], data["notes"][0], shown["name"], shown["reason"], shown["out_path"]):
        assert text.isprintable()
        assert text == data["title"]
    if name.isprintable():
        assert data["title"] == name


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_no_text_leaves_its_place(name: str) -> None:
    data, _ = Elements(build_page(report(title=name))).inside("script")
    assert not set("<>&") & set(data)
    assert json.loads(data)["title"].isprintable()


def test_pictures_go_in_as_they_are() -> None:
    picture = bytes(range(256))
    (shown,) = data_of(build_page(report(card(before=picture, after=b"b"))))["cards"]
    assert base64.b64decode(shown["before"]) == picture
    assert base64.b64decode(shown["after"]) == b"b"
    assert "difference" not in shown


def test_a_number_that_json_does_not_know_becomes_text() -> None:
    data = data_of(build_page(report(settings={"lambda_": math.inf, "list": [math.nan]})))
    assert data["settings"] == {"lambda_": "inf", "list": ["nan"]}


def test_a_message_does_not_repeat_the_name_of_its_image() -> None:
    failed = card("a\n.png", state="failed", message="a\\n.png: the file is empty")
    (shown,) = data_of(build_page(report(failed)))["cards"]
    assert shown["message"] == "the file is empty"


def test_the_folder_of_an_image_is_the_first_of_its_path() -> None:
    cards = (card("a.png"), card("cat/a.png"), card("cat/b/a.png"))
    assert [c["folder"] for c in data_of(build_page(report(*cards)))["cards"]] == ["", "cat", "cat"]


def test_an_anchor_belongs_to_a_path_and_is_safe_in_an_address() -> None:
    anchors = {anchor(name) for name in HOSTILE}
    assert len(anchors) == len(HOSTILE)
    assert all(re.fullmatch("[0-9a-f]{12}", text) for text in anchors)
    assert anchor("cat/0.png") == anchor("cat/0.png")


# Evaluations

RATE = {"value": 0.88, "count": 88, "total": 100, "low": 0.8, "high": 0.93}
SIDE = {
    "ca": RATE,
    "asr": None,
    "asr_all": RATE | {"value": 0.5, "count": 50},
    "per_class": [{"class": "<b>cat</b>", "ca": RATE, "asr": None}],
}
EVALUATION = {
    "type": "evaluation",
    "schema": 1,
    "name": "badnets",
    "classes": ["cat"],
    "before": SIDE,
    "after": SIDE | {"pa": RATE},
    "der": 0.93,
    "fidelity": {"purified_clean": {"psnr": None, "ssim": 0.9, "images": 3}, "poisoned": {"psnr": 30.0}},
    "notes": ["<b>few images"],
}


def test_an_evaluation_is_read() -> None:
    text = json.dumps(EVALUATION | {"from_the_future": 1, "before": SIDE | {"robustness": {}}})
    evaluation = parse_evaluation(text, "e.json")
    assert evaluation.name == "badnets"
    assert evaluation.before.rates["ca"] == Rate(value=0.88, count=88, total=100, low=0.8, high=0.93)
    assert list(evaluation.before.rates) == ["ca", "asr_all"]
    assert list(evaluation.after.rates) == ["ca", "asr_all", "pa"]
    assert evaluation.facts == {"der": 0.93, "ssim": 0.9}
    assert evaluation.notes == ("<b>few images",)
    assert list(evaluation.before.classes) == ["<b>cat</b>"]


def test_a_rate_without_an_interval_and_a_side_that_is_missing_are_read() -> None:
    side = {"ca": {"value": 1, "count": 3, "total": 3}}
    evaluation = parse_evaluation(json.dumps(EVALUATION | {"before": None, "after": side}), "e.json")
    assert evaluation.before.rates == {}
    assert evaluation.after.rates["ca"] == Rate(value=1.0, count=3, total=3)


def test_the_page_pairs_the_rates_before_and_after() -> None:
    evaluation = parse_evaluation(json.dumps(EVALUATION), "e.json")
    (shown,) = data_of(build_page(report(evaluations=(evaluation,))))["evaluations"]
    assert [rate["name"] for rate in shown["rates"]] == ["ca", "asr_all", "pa"]
    assert shown["rates"][0]["before"]["count"] == 88
    assert "before" not in shown["rates"][2]
    assert shown["classes"][0]["name"] == "<b>cat</b>"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"evaluation"',
        "[" * 100_000,
        json.dumps({"type": "purify", "schema": 1}),
        json.dumps({"type": "evaluation", "schema": 1}),
        *(
            json.dumps(EVALUATION | change)
            for change in (
                {"name": 3},
                {"before": [1]},
                {"before": {"ca": 0.5}},
                {"before": {"ca": {"value": 0.5}}},
                {"before": {"ca": RATE | {"value": 1.5}}},
                {"before": {"ca": RATE | {"value": "0.5"}}},
                {"before": {"ca": RATE | {"value": True}}},
                {"before": {"ca": RATE | {"count": 101}}},
                {"before": {"ca": RATE | {"count": 1.5}}},
                {"before": {"ca": RATE | {"low": math.nan}}},
                {"after": {"per_class": [{"ca": RATE}]}},
                {"after": {"per_class": 3}},
                {"der": math.inf},
                {"fidelity": {"purified_clean": {"psnr": "high"}}},
                {"fidelity": 3},
                {"notes": [3]},
                {"notes": 3},
            )
        ),
    ],
)
def test_a_damaged_evaluation_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^e\.json: not what `zipcli evaluate` writes, or damaged"):
        parse_evaluation(text, "e.json")


def test_an_evaluation_of_another_schema_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"e\.json: schema '2' is not 1"):
        parse_evaluation(json.dumps(EVALUATION | {"schema": 2}), "e.json")
