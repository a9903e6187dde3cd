"""The page in a real browser: drawn, sorted, searched, harmless, on a phone and in the dark, and short enough to read.

Needs a Chromium: the system's, or playwright's own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic import ATTACK, build_sweep

pytest.importorskip("bench.stats.decide", reason="the decision is not there yet")
pytestmark = pytest.mark.slow
from bench.report import html  # noqa: E402
from bench.report.build import read_groups, write_report  # noqa: E402
from bench.report.section import Examples, Report, Section  # noqa: E402

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
INSTALL = "install one: apt install chromium, or python -m playwright install chromium"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e .[dev]")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(
                executable_path=next(filter(None, found), None), args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
        except sync_api.Error as error:
            pytest.skip(f"no browser that starts ({str(error).splitlines()[0]}); {INSTALL}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the committed sweep."""
    folder = tmp_path_factory.mktemp("results") / "reference"
    shutil.copytree(REFERENCE, folder)
    return write_report(*read_groups(folder))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose first prediction, and the name of one method, are an attack."""
    return write_report(*read_groups(build_sweep(tmp_path_factory.mktemp("results") / "synthetic")))


class Tab:
    """A page with its charts drawn, and everything that went wrong in it."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light", height: int = 900):
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda line: line.type in ("error", "warning") and self.wrong.append(line.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-charts=drawn]", timeout=60_000)

    def counted(self, start: str) -> None:
        """Wait until the browser of examples shows so many."""
        self.page.locator("[data-role=count]").filter(has_text=start).wait_for()


@pytest.fixture(scope="module")
def tab(browser: Any, reference: Path) -> Tab:
    return Tab(browser, reference)


def test_every_chart_is_drawn_and_nothing_is_loaded(tab: Tab, reference: Path) -> None:
    marks = tab.page.eval_on_selector_all(
        "figure.chart",
        "all => all.filter(f => !f.closest('details:not([open])'))"
        ".map(f => f.querySelectorAll('svg.marks [class^=mark-]').length)",
    )
    assert len(marks) >= 5
    assert all(count > 0 for count in marks), marks
    assert tab.wrong == []
    assert tab.requests == [reference.as_uri()]


def test_the_page_is_short_and_small(tab: Tab, reference: Path) -> None:
    assert tab.page.evaluate("document.documentElement.scrollHeight") <= 9000
    assert reference.stat().st_size < 5_000_000


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_first_screen_answers(browser: Any, reference: Path, width: int, height: int) -> None:
    """The sentence, the bar, the methods' numbers, and the chart of quality begin above the fold."""
    screen = Tab(browser, reference, width=width, height=height)
    tops = [screen.page.locator(found).first.bounding_box() for found in
            (".answer h2", ".sureness", ".answer table tbody tr:last-child", ".answer figure.chart")]  # fmt: skip
    assert all(box and box["y"] < height for box in tops), tops
    assert [box["y"] for box in tops[:3]] == sorted(box["y"] for box in tops[:3])
    assert screen.page.locator(".answer tr.chosen").count() == 1
    assert screen.page.evaluate("document.documentElement.scrollWidth") <= width
    screen.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(browser: Any, reference: Path, scheme: str) -> None:
    """By axe-core, with all that is folded opened: names of controls, order of headings, landmarks, roles, contrast."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install -e .[dev]")
    opened = Tab(browser, reference, scheme=scheme)
    opened.page.evaluate("document.querySelectorAll('main details').forEach(d => { d.open = true; })")
    found = axe.Axe().run(opened.page)
    assert not found.violations_count, found.generate_report()
    opened.page.close()


def test_a_chart_can_be_read_without_seeing_it(tab: Tab) -> None:
    for section in tab.page.locator("section:has(> .evidence > figure)").all():
        label = section.locator("[role=graphics-document]").first.get_attribute("aria-label")
        assert "numbers follow" in label
        assert section.locator(".small table tbody tr").count() > 0


def test_the_cost_is_chosen(tab: Tab) -> None:
    chart = tab.page.locator("figure.chart").first
    assert "peak memory, GiB" in chart.locator("svg.marks .role-title").text_content()
    chart.get_by_role("radio", name="training time, min").check()
    assert "training time, min" in chart.locator("svg.marks .role-title").text_content()


def test_a_table_sorts_by_a_column(tab: Tab) -> None:
    table = tab.page.locator(".answer table").first
    header = table.get_by_role("button", name="peak memory")
    column = table.locator("tbody tr td:nth-child(3)")
    before = column.all_inner_texts()
    known = sorted((text.split()[0] for text in before if not text.startswith("-")), key=float)
    assert len(set(known)) == len(known) == len(before) - 1, "one arm is not measured, the others differ"
    header.click()
    assert [text.split()[0] for text in column.all_inner_texts()] == [*known, "-"]
    header.press("Enter")  # by keyboard too
    assert [text.split()[0] for text in column.all_inner_texts()] == [*known[::-1], "-"]  # unknown stays last
    assert table.locator("th[aria-sort=descending]").count() == 1
    header.click()
    assert column.all_inner_texts() == before


def test_a_link_opens_its_folded_section_and_rows_are_filtered(tab: Tab) -> None:
    tab.page.get_by_label("Contents").get_by_role("link", name="Environment").click()
    section = tab.page.locator("section[aria-labelledby=environment]")
    section.locator("details[open]").wait_for()
    section.get_by_label("Filter rows").fill("torch 2.")
    shown = [row.inner_text() for row in section.locator("tbody tr").all() if row.is_visible()]
    assert shown
    assert all("torch" in text for text in shown)


def test_examples_are_searched_filtered_and_turned(tab: Tab) -> None:
    browser = tab.page.locator(".browser")
    count, cards = browser.locator("[data-role=count]"), browser.locator("article")
    assert count.inner_text() == "128 of 128 examples"
    assert cards.count() == 2
    first = cards.first.inner_text()
    browser.get_by_role("button", name="Next").click()
    assert "page 2 of 64" in browser.inner_text()
    assert cards.first.inner_text() != first
    browser.get_by_label("Search").fill("square root")
    tab.page.locator("[data-role=count]").filter(has_not_text="128 of").wait_for()
    assert all("square root" in card.inner_text().lower() for card in cards.all())
    browser.get_by_label("Search").fill("")
    browser.get_by_label("Methods disagree").check()
    tab.page.locator("[data-role=count]").filter(has_not_text="128 of").wait_for()
    assert 0 < int(count.inner_text().split()[0]) < 128
    browser.get_by_label("Methods disagree").uncheck()


def test_what_came_from_outside_does_nothing(browser: Any, attacked: Path) -> None:
    opened = Tab(browser, attacked)
    examples = opened.page.locator(".browser")
    examples.get_by_label("Search").fill("onerror")
    opened.counted("1 of")
    assert ATTACK in examples.locator("article").inner_text()
    assert opened.page.evaluate("window.harmed") is None
    assert opened.page.locator("main img").count() == 0
    assert opened.wrong == []
    opened.page.close()


def test_dark_by_the_system_and_by_the_switch(browser: Any, reference: Path) -> None:
    page_colour = "getComputedStyle(document.body).backgroundColor"
    label_colour = "getComputedStyle(document.querySelector('svg .role-axis-label text')).fill"
    dark = Tab(browser, reference, scheme="dark")
    assert dark.page.evaluate(page_colour) == "rgb(21, 23, 26)"
    assert dark.page.evaluate(label_colour) == "rgb(231, 233, 236)"
    dark.page.locator("#theme select").select_option("light")
    assert dark.page.evaluate(page_colour) == "rgb(255, 255, 255)"
    assert dark.page.evaluate(label_colour) == "rgb(27, 30, 35)"
    dark.page.close()


def test_ten_thousand_examples_do_not_freeze(browser: Any, tmp_path: Path) -> None:
    answers = [["a" * 60, False, 0.5], ["b" * 60, False, 0.7]]
    rows = [[f"id-{n}", f"prompt {n}", f"reference {n}", 0.2 * (n % 2), answers] for n in range(10_000)]
    section = Section("Examples", examples=Examples(["rougeL"], ["full", "lora"], 0.1, rows, list(range(10_000))))
    path = tmp_path / "report.html"
    path.write_text(html.page(Report("Many", "", [Section("", parts=[section])])))
    assert path.stat().st_size < 5_000_000
    many = Tab(browser, path)
    assert many.page.locator("[data-role=count]").inner_text() == "10,000 of 10,000 examples"
    started = time.perf_counter()
    many.page.get_by_label("Search").fill("reference 999")
    many.counted("11 of")
    many.page.get_by_label("Search").fill("")
    many.page.get_by_label("Methods disagree").check()
    many.counted("5,000 of")
    assert time.perf_counter() - started < 10  # seconds when idle: well below one
    assert many.wrong == []
    many.page.close()
