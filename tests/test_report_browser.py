"""The page in a real browser: what it shows, what it lets one do, and that it asks the network for nothing.

Needs a Chromium: `apt-get install chromium`, or ZIPCLI_CHROMIUM with the path of one.
"""

import http.server
import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.shell import BLUR, noise, picture, run
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from zipcli.config import ReportConfig
from zipcli.pipeline.report import write_report
from zipcli.report.page import Card, Report, anchor, build_page

PATIENCE = 60_000
"""Milliseconds in which a page does what it does at once on a free core."""

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
CLASSES = ("cat", "dog", "ship")
HOSTILE = (
    "<img src=x onerror=document.title='taken'>.png",
    "<script>document.title='taken'<",
    "a\u202egnp.exe.png",
    "line\nbreak\x1b[31m.png",
    os.fsdecode(b"caf\xe9.png"),
    "\u05e9\u05dc\u05d5\u05dd.png",
)
RATE = {"value": 0.88, "count": 88, "total": 100, "low": 0.8, "high": 0.93}
FALLEN = {"value": 0.04, "count": 4, "total": 100, "low": 0.016, "high": 0.098}


@dataclass
class Seen:
    """What a browser said while a page was open."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = os.environ.get("ZIPCLI_CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.fail("no browser: apt-get install chromium, or set ZIPCLI_CHROMIUM to the path of a Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            args=["--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"],
        )
        yield browser
        browser.close()


@pytest.fixture
def seen() -> Iterator[Seen]:
    """Fails a test whose page complained, or asked for anything but itself."""
    seen = Seen()
    yield seen
    assert seen.complaints == []
    assert len(set(seen.requests)) == 1, seen.requests


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, seen: Seen) -> Iterator[Open]:
    contexts = []

    def open_page(address: str | Path, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page.on("console", lambda message: seen.complaints.append(message.text))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("request", lambda request: note_request(seen, request.url))
        page.goto(address.as_uri() if isinstance(address, Path) else address)
        return page

    yield open_page
    for context in contexts:
        context.close()


def note_request(seen: Seen, url: str) -> None:
    if not url.startswith("data:"):
        seen.requests.append(url.partition("#")[0])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `out`, purified for real, and `report.html`, with scores and maps of suspicion."""
    folder = tmp_path_factory.mktemp("browser")
    for n in range(60):
        size = (32, 32) if n % 10 else (120, 80)
        picture(folder / "in" / CLASSES[n % 3] / f"{n}.png", size, seed=n)
    for n, name in enumerate(HOSTILE):
        picture(folder / "in" / "names" / name, (16, 16), seed=100 + n) if name.endswith(".png") else picture(
            folder / "in" / name / "script>.png", (16, 16), seed=100 + n
        )
    (folder / "in" / "broken").mkdir()
    for n in range(14):
        (folder / "in" / "broken" / f"{n}.png").write_bytes(b"")
    (folder / "in" / "broken" / "letter.png").write_text("Dear reader")
    assert run("purify", "in", "out", *BLUR, cwd=folder).returncode == 3
    give_scores(folder / "out" / ".zipcli" / "ledger-00001-of-00001.jsonl")
    side = {"ca": RATE, "asr": RATE, "per_class": [{"class": f"<b>{c}</b>", "ca": RATE} for c in CLASSES]}
    evaluation = {"type": "evaluation", "schema": 1, "name": "<b>badnets</b>", "der": 0.9}
    evaluation |= {"before": side, "after": side | {"asr": FALLEN}}
    (folder / "e.json").write_text(json.dumps(evaluation))
    write_report(
        folder / "out",
        folder / "report.html",
        ReportConfig(evaluation=(folder / "e.json",), title="<b>clean</b>"),
        lambda done, total: None,
        overwrite=False,
        suspicion_map=lambda pixels: pixels.max(axis=2) - pixels.min(axis=2),
    )
    return folder


def give_scores(ledger: Path) -> None:
    """Write what a detector would have: scores for two thirds of the images."""
    lines = [json.loads(line) for line in ledger.read_bytes().splitlines()]
    for n, line in enumerate(lines):
        if line["state"] == "done" and n % 3:
            line |= {"score": (n * 7919 % 1000) / 1000, "threshold": 0.5}
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def page(run_folder: Path, open_page: Open) -> Page:
    """The page of `run_folder`, with its images in sight."""
    page = open_page(run_folder / "report.html")
    page.locator("#images").evaluate("(images) => images.scrollIntoView()")
    expect(page.locator("#grid a").nth(12)).to_be_visible()
    return page


def names_in_sight(page: Page) -> list[str]:
    return page.locator("#grid .name").all_inner_texts()


def numbers_in_sight(page: Page, word: str) -> list[float]:
    """The figures after a word in the captions of the cards, in their order."""
    found = (
        re.search(rf"{word} ([\d.]+)", text) for text in page.locator("#grid .figures").all_inner_texts()
    )
    return [float(match[1]) for match in found if match]


def open_image(page: Page, name: str) -> None:
    page.fill("#text", name)
    page.locator("#grid a").first.click()
    expect(page.locator("#viewer")).to_be_visible()


def cut_of(page: Page) -> float:
    """Where the border between before and after is drawn, as a share of the width."""
    return page.evaluate(
        "() => { const f = document.querySelector('#frame').getBoundingClientRect(),"
        " e = document.querySelector('#frame .edge').getBoundingClientRect();"
        " return (e.left + e.width / 2 - f.left) / f.width }"
    )


# What is there


def test_the_page_shows_the_images_and_complains_of_nothing(page: Page) -> None:
    expect(page.locator("#title")).to_have_text("<b>clean</b>")
    expect(page.locator("#summary")).to_have_text("81 images \u00b7 66 done \u00b7 15 failed")
    expect(page.locator("#count")).to_have_text("81 images")
    page.wait_for_function(
        "() => [...document.querySelectorAll('#grid img')].every((i) => i.complete && i.naturalWidth > 0)"
    )
    assert page.locator("#grid img").count() > 10


def test_every_name_is_shown_as_text_and_runs_nothing(run_folder: Path, page: Page) -> None:
    page.fill("#text", "names")
    assert "names/<img src=x onerror=document.title='taken'>.png" in names_in_sight(page)
    assert "names/a\\u202egnp.exe.png" in names_in_sight(page)
    assert "names/line\\nbreak\\x1b[31m.png" in names_in_sight(page)
    assert "names/caf\\udce9.png" in names_in_sight(page)
    page.fill("#text", "script>")
    assert names_in_sight(page) == ["<script>document.title='taken'</script>.png"]
    for name in ("names", "script>"):
        open_image(page, name)
        for _ in range(4):
            page.keyboard.press("j")
        page.keyboard.press("Escape")
    page.locator(".classes summary").click()
    expect(page.locator(".classes h3").first).to_contain_text("<b>")
    assert page.title() == "<b>clean</b>"
    assert page.locator("#grid script, #viewer script, #evaluations b, #grid b").count() == 0


def test_failures_are_listed_with_their_reasons_and_lead_to_the_images(page: Page) -> None:
    groups = page.locator("#failures .group")
    assert groups.locator("h3").all_inner_texts() == ["empty\n14", "unidentified\n1"]
    expect(groups.first.locator("li")).to_have_count(10)
    expect(groups.first.locator("li").first).to_contain_text("the file is empty; copy it again")
    groups.first.get_by_role("button", name="Show all 14").click()
    expect(page.locator("#count")).to_have_text("14 of 81 images")
    groups.nth(1).get_by_role("link").click()
    expect(page.locator("#name")).to_have_text("broken/letter.png")
    expect(page.locator("#verdict")).to_have_text(
        "not an image that we know; convert it to PNG or leave it out"
    )
    expect(page.locator("#frame")).to_contain_text("no picture")


def test_the_measures_are_plotted(page: Page) -> None:
    titles = page.locator("#measures h3").all_inner_texts()
    assert titles == ["Change, of 255", "PSNR, dB", "Suspicion score", "Time for an image"]
    expect(page.locator("#measures .mark")).to_have_count(1)  # the threshold
    expect(page.locator("#evaluations h2")).to_have_text("<b>badnets</b>")
    label = page.get_by_role("img", name=re.compile("Attack success")).get_attribute("aria-label")
    assert label is not None
    assert "before 88.0\u00a0% (88/100), 95 % from 80.0\u00a0% to 93.0\u00a0%" in label
    assert "after 4.0\u00a0% (4/100)" in label
    circle, width = page.evaluate(
        "() => { const s = document.querySelectorAll('.rate svg')[1], c = s.querySelector('circle.after'),"
        " b = s.getBoundingClientRect(), r = c.getBoundingClientRect();"
        " return [r.left + r.width / 2 - b.left, b.width] }"
    )
    assert circle / width == pytest.approx(0.04, abs=0.01)


def test_the_settings_and_digests_are_shown(run_folder: Path, page: Page) -> None:
    page.locator("#settings summary").click()
    expect(page.locator("#settings")).to_contain_text("blur")
    run = json.loads((run_folder / "out" / ".zipcli" / "run.json").read_text())
    expect(page.locator("#settings dd").first).to_have_text(run["fingerprint"])


# Filter and sort


def test_words_states_and_folders_filter(page: Page) -> None:
    page.fill("#text", "DOG .png")
    expect(page.locator("#count")).to_have_text("20 of 81 images")
    assert all(name.startswith("dog/") for name in names_in_sight(page))
    page.fill("#text", "")
    page.locator("#states input[value=failed]").check()
    expect(page.locator("#count")).to_have_text("15 of 81 images")
    page.fill("#text", "unidentified")
    expect(page.locator("#count")).to_have_text("1 of 81 images")
    page.select_option("#folder", "/cat")
    expect(page.locator("#nothing")).to_be_visible()
    expect(page.locator("#grid li")).to_have_count(0)
    page.fill("#text", "")
    page.locator("#states input[value='']").check()
    expect(page.locator("#count")).to_have_text("20 of 81 images")


def test_names_sort_by_their_numbers(page: Page) -> None:
    page.select_option("#folder", "/cat")
    assert names_in_sight(page)[:4] == ["cat/0.png", "cat/3.png", "cat/6.png", "cat/9.png"]
    page.click("#turn")
    assert names_in_sight(page)[:2] == ["cat/57.png", "cat/54.png"]


@pytest.mark.parametrize(("key", "word"), [("score", "score"), ("change", "change")])
def test_numbers_sort_with_the_largest_first(page: Page, key: str, word: str) -> None:
    page.select_option("#folder", "/dog")
    page.select_option("#sort", key)
    numbers = numbers_in_sight(page, word)
    assert len(numbers) > 10
    assert numbers == sorted(numbers, reverse=True)
    page.click("#turn")
    assert numbers_in_sight(page, word) == sorted(numbers)
    texts = page.locator("#grid .figures").all_inner_texts()
    has_it = [word in text for text in texts]
    assert has_it == sorted(has_it, reverse=True)  # those without the number come last both ways


def test_time_sorts(page: Page) -> None:
    page.select_option("#sort", "ms")
    page.click("#turn")
    order = page.evaluate("() => shown.filter((c) => c.ms !== undefined).map((c) => c.ms)")
    assert len(order) == 66
    assert order == sorted(order)


# One image


def test_the_slider_follows_the_mouse(page: Page) -> None:
    open_image(page, "cat/3.png")
    assert cut_of(page) == pytest.approx(0.5, abs=0.01)
    box = page.locator("#frame").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    for share in (0.4, 0.25):
        page.mouse.move(box["x"] + share * box["width"], middle)
    page.mouse.up()
    assert cut_of(page) == pytest.approx(0.25, abs=0.02)
    page.mouse.click(box["x"] + 0.8 * box["width"], middle)
    assert cut_of(page) == pytest.approx(0.8, abs=0.02)
    for share in (0, 1):
        page.mouse.click(box["x"] + share * (box["width"] - 1), middle)
        assert cut_of(page) == pytest.approx(share, abs=0.01)


def test_left_of_the_slider_is_before_and_right_of_it_after(run_folder: Path, page: Page) -> None:
    open_image(page, "cat/3.png")
    shot = Image.open(io.BytesIO(page.locator("#frame").screenshot())).convert("RGB")
    scale = shot.width // 32
    assert scale >= 8
    for side, folder, column in (("before", "in", 4), ("after", "out", 27)):
        with Image.open(run_folder / folder / "cat" / "3.png") as image:
            expected = np.asarray(image.convert("RGB"))[:28, column].astype(int)
        middle = scale // 2
        seen = [shot.getpixel((column * scale + middle, row * scale + middle)) for row in range(28)]
        assert np.abs(np.array(seen) - expected).max() <= 2, side


def test_the_keyboard_does_everything(page: Page) -> None:
    page.locator("#text").focus()
    page.keyboard.type("cat/")
    page.locator("#states input").first.focus()
    page.keyboard.press("Tab")  # one stop for all cards
    expect(page.locator("#grid a").first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#grid a").nth(1)).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator("#grid li:focus-within .name")).to_have_text("cat/57.png")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_have_text("cat/0.png")
    expect(page.locator("#slider")).to_be_focused()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert cut_of(page) == pytest.approx(0.55, abs=0.001)
    page.keyboard.press("Home")
    assert cut_of(page) == 0
    page.keyboard.press("j")
    expect(page.locator("#name")).to_have_text("cat/3.png")
    expect(page.locator("#slider")).to_be_focused()
    page.keyboard.press("2")
    expect(page.locator("#caption")).to_contain_text("4 times as bright")
    page.keyboard.press("3")
    expect(page.get_by_role("img", name="Map of suspicion")).to_be_visible()
    page.keyboard.press("j")
    expect(page.get_by_role("img", name="Map of suspicion")).to_be_visible()
    page.keyboard.press("1")
    page.keyboard.press("k")
    expect(page.locator("#name")).to_have_text("cat/3.png")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#grid li:focus-within .name")).to_have_text("cat/3.png")


def test_focus_stays_inside_the_open_image_and_is_seen(page: Page) -> None:
    open_image(page, "cat/3.png")
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "() => viewer.contains(document.activeElement) || document.activeElement === document.body"
        )
    page.locator("#previous").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineWidth") == "2px"


def test_every_control_has_a_name(page: Page) -> None:
    open_image(page, "cat/3.png")
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('input, select, button, dialog, svg[role=img], fieldset')]"
        ".filter((e) => !(e.labels?.[0]?.textContent || e.getAttribute('aria-label') || e.textContent.trim()"
        " || document.getElementById(e.getAttribute('aria-labelledby'))?.textContent))"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert unnamed == []
    assert page.evaluate("() => [...document.images].every((i) => i.hasAttribute('alt'))")


def test_the_facts_are_those_of_the_ledger(run_folder: Path, page: Page) -> None:
    open_image(page, "cat/0.png")
    lines = (run_folder / "out" / ".zipcli" / "ledger-00001-of-00001.jsonl").read_text().splitlines()
    (line,) = [
        value for value in map(json.loads, lines) if value["path"] == "cat/0.png" and value["state"] == "done"
    ]
    facts = page.locator("#facts").inner_text()
    for text in (
        line["in_sha256"],
        line["out_sha256"],
        "120 \u00d7 80",
        f"{line['psnr']:.2f} dB",
        "cat/0.png",
    ):
        assert text in facts.replace("\u00a0", " ")


def test_an_address_opens_its_image_and_back_closes_it(run_folder: Path, page: Page, open_page: Open) -> None:
    page.locator("#grid a").nth(5).click()
    name = page.inner_text("#name")
    address = page.url
    assert address.endswith(f"#{anchor(name)}")
    page.keyboard.press("j")
    following = page.inner_text("#name")
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    assert "#" not in page.url
    page.go_forward()
    expect(page.locator("#name")).to_have_text(following)
    page.reload()
    expect(page.locator("#name")).to_have_text(following)
    page.click("#close")
    expect(page.locator("#viewer")).to_be_hidden()
    shared = open_page(address)
    expect(shared.locator("#name")).to_have_text(name)
    shared.keyboard.press("Escape")
    expect(shared.locator("#viewer")).to_be_hidden()
    expect(shared.locator("#grid a").first).to_be_visible()


def test_an_address_of_an_image_that_is_not_there_opens_the_page(run_folder: Path, open_page: Open) -> None:
    page = open_page((run_folder / "report.html").as_uri() + "#000000000000")
    expect(page.locator("#grid a").first).to_be_attached()
    expect(page.locator("#viewer")).to_be_hidden()


def test_the_buttons_walk_through_what_is_filtered(page: Page) -> None:
    open_image(page, "ship/5")
    expect(page.locator("#place")).to_have_text("1 of 5")
    expect(page.locator("#previous")).to_be_disabled()
    for _ in range(4):
        page.click("#next")
    expect(page.locator("#place")).to_have_text("5 of 5")
    expect(page.locator("#next")).to_be_disabled()


def test_an_image_without_its_input_is_shown_with_the_reason(run_folder: Path, open_page: Open) -> None:
    target = run_folder / "without.html"
    moved = run_folder / "moved"
    (run_folder / "in").rename(moved)
    try:
        config = ReportConfig()
        write_report(run_folder / "out", target, config, lambda done, total: None, overwrite=True)
    finally:
        moved.rename(run_folder / "in")
    page = open_page(target)
    expect(page.locator("#notes")).to_contain_text("The folder in is not there any more")
    open_image(page, "cat/3.png")
    expect(page.locator("#caption")).to_have_text("No picture before: not there any more.")
    expect(page.get_by_role("img", name="The image after")).to_be_visible()
    expect(page.locator("#slider")).to_have_count(0)


# Where it is looked at


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(run_folder: Path, open_page: Open, scheme: str) -> None:
    page = open_page(
        run_folder / "report.html", viewport=PHONE, is_mobile=True, has_touch=True, color_scheme=scheme
    )
    page.locator(".classes summary").tap()
    page.locator("#settings summary").tap()
    widths = "() => [document.documentElement.scrollWidth, viewer.scrollWidth, innerWidth]"
    assert page.evaluate(widths)[0] == PHONE["width"]
    page.fill("#text", "cat")
    page.locator("#grid a").nth(1).tap()
    expect(page.locator("#slider")).to_be_visible()
    assert page.evaluate(widths) == [PHONE["width"]] * 3
    box = page.locator("#frame").bounding_box()
    assert box is not None
    page.touchscreen.tap(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    assert cut_of(page) == pytest.approx(0.75, abs=0.02)
    page.locator("#next").tap()
    expect(page.locator("#place")).to_have_text("3 of 20")
    for button in ("#previous", "#next", "#close"):
        size = page.locator(button).bounding_box()
        assert size is not None
        assert size["height"] >= 44


def luminance(colour: str) -> float:
    """Relative luminance of a colour as the browser writes it, rgb(r, g, b). Source: WCAG 2.2."""
    levels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_paper(run_folder: Path, open_page: Open, scheme: str) -> None:
    page = open_page(run_folder / "report.html", color_scheme=scheme)
    colour = "(e, name) => getComputedStyle(e)[name]"
    paper = luminance(page.locator("html").evaluate(colour, "backgroundColor"))
    assert (paper > 0.5) == (scheme == "light")
    for place in ("#title", "#summary", "#grid .figures", "#grid .bad", "#count"):
        ink = luminance(page.locator(place).first.evaluate(colour, "color"))
        low, high = sorted((paper, ink))
        assert (high + 0.05) / (low + 0.05) >= 4.5, place


def test_a_server_is_asked_for_the_page_and_nothing_else(run_folder: Path, open_page: Open) -> None:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(run_folder))

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            page = open_page(f"http://127.0.0.1:{server.server_port}/report.html")
            open_image(page, "cat/3.png")
            page.keyboard.press("2")
            page.wait_for_timeout(300)  # for what a page asks for when it is idle
        finally:
            server.shutdown()
    assert asked == ["/report.html"]


def test_the_policy_stops_what_a_name_might_start(page: Page, seen: Seen) -> None:
    """Whatever found a way in could still run no script and reach no server."""
    page.evaluate(
        "() => { const s = document.createElement('script'), i = document.createElement('img');"
        " s.append('document.title = 1'); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(s, i) }"
    )
    until = time.monotonic() + PATIENCE / 1000
    while len(seen.complaints) < 2 and time.monotonic() < until:
        page.wait_for_timeout(100)
    assert page.title() == "<b>clean</b>"
    assert len(seen.complaints) >= 2
    assert all(
        "Content Security Policy" in text or "requires 'TrustedScript'" in text for text in seen.complaints
    )
    seen.complaints.clear()
    seen.requests[:] = [url for url in seen.requests if not url.endswith("/x.png")]


# Many images


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 images of 32 x 32 pixels, as many bytes as they have."""
    pictures = []
    for seed in range(50):
        buffer = io.BytesIO()
        noise((32, 32), seed=seed).resize((24, 24)).resize((32, 32)).save(buffer, "WEBP", lossless=True)
        pictures.append(buffer.getvalue())
    cards = tuple(
        Card(
            path=f"{CLASSES[n % 3]}/{n:05}.png",
            state="failed" if n % 100 == 0 else "done",
            reason="empty" if n % 100 == 0 else None,
            before=pictures[n % 50],
            after=pictures[(n + 1) % 50],
            difference=pictures[(n + 2) % 50],
            is_small=True,
            width=32,
            height=32,
            change=float(n * 7919 % 5000) / 100,
            ms=n,
            in_sha256=f"{n:064x}",
            out_sha256=f"{n:064x}",
        )
        for n in range(5000)
    )
    file = tmp_path_factory.mktemp("large") / "large.html"
    report = Report(
        title="many",
        made="today",
        cards=cards,
        counts={"done": 4950, "failed": 50},
        settings={},
        fingerprint="f",
    )
    file.write_text(build_page(report))
    return file


def nodes(page: Page) -> int:
    return page.evaluate("() => document.querySelectorAll('*').length")


def test_5000_images_open_at_once_and_only_those_in_sight_exist(large_page: Path, open_page: Open) -> None:
    assert large_page.stat().st_size > 15e6  # as large as real ones
    began = time.monotonic()
    page = open_page(large_page)
    page.wait_for_function(
        "() => { const i = document.querySelector('#grid img'); return i.complete && i.naturalWidth }"
    )
    assert time.monotonic() - began < 60  # one or two on an idle core
    assert nodes(page) < 900
    for share in (0.3, 0.7, 1):
        page.evaluate("(share) => window.scrollTo(0, share * document.body.scrollHeight)", share)
        page.wait_for_function(
            "() => [...document.querySelectorAll('#grid li')].some((li) => {"
            " const r = li.getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight })"
        )
        assert nodes(page) < 900
    assert names_in_sight(page)[-1] == "ship/04997.png"


def test_5000_images_filter_and_sort_at_once(large_page: Path, open_page: Open) -> None:
    page = open_page(large_page)
    took = page.evaluate(
        "() => { const began = performance.now(), s = document.querySelector('#sort');"
        " s.value = 'change'; s.dispatchEvent(new Event('change'));"
        " const t = document.querySelector('#text'); t.value = 'dog';"
        " t.dispatchEvent(new Event('input')); return performance.now() - began }"
    )
    assert took < 10_000  # a tenth of a second on an idle core
    expect(page.locator("#count")).to_have_text("1,667 of 5,000 images")
    assert numbers_in_sight(page, "change") == sorted(numbers_in_sight(page, "change"), reverse=True)
    page.locator("#grid a").first.focus()
    page.keyboard.press("End")
    expect(page.locator("#grid li:focus-within")).to_have_attribute("aria-posinset", "1667")
    assert nodes(page) < 900
