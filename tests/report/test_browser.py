"""The HTML report in a real browser: drawn, sorted, searched, harmless, on a phone and in the dark.

Needs a Chromium: the system's, or playwright's own.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic
from served import build_served_sweep

from bench.record import Trial
from bench.report.build import build_report
from bench.report.page import Content, page
from bench.report.sample_browser import Browsable
from bench.sweep.tuning import keep_tuning

pytestmark = pytest.mark.slow
INSTALL = "install one: apt install chromium, or python -m playwright install chromium"
ATTACK = "</script><img src=x onerror='window.harmed=1'><script>window.harmed=1</script>"


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
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Served, with a search of rates; the first prediction is an attack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "SCRIPT", ATTACK)
        folder = build_served_sweep(tmp_path_factory.mktemp("results") / "synthetic")
    trials = [Trial(rate, loss, 20, None, 60.0, f"t{rate}") for rate, loss in ((1e-4, 2.6), (5e-4, 2.4), (2e-3, 2.5))]
    keep_tuning(folder / "rates.yaml", synthetic.make_tuning(synthetic.make_record("lora", 0), trials))
    return build_report(folder)


class Tab:
    """A page, with everything that went wrong in it."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light"):
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda asked: self.requests.append(asked.url))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())

    def drawn(self) -> Tab:
        self.page.wait_for_selector("html[data-charts=drawn]", timeout=60_000)
        return self

    def counted(self, start: str) -> None:
        """Wait until the browser of examples shows so many."""
        self.page.locator("[data-role=count]").filter(has_text=start).wait_for()

    def table_with(self, header: str) -> Any:
        return self.page.locator(
            "main > section > .scroll table", has=self.page.get_by_role("button", name=header)
        ).first


@pytest.fixture(scope="module")
def tab(browser: Any, report: Path) -> Tab:
    return Tab(browser, report).drawn()


def test_every_chart_is_drawn_and_nothing_is_loaded(tab: Tab, report: Path) -> None:
    marks = tab.page.eval_on_selector_all(
        "figure.chart",
        "all => all.map(f => f.querySelectorAll('svg.marks .mark-symbol path, svg.marks .mark-rect path').length)",
    )
    assert len(marks) == 9  # quality, loss, rates, memory, growth, regression, step times, latency, adapters
    assert all(count > 0 for count in marks), marks
    assert tab.wrong == []
    assert tab.requests == [report.as_uri()]


def test_a_chart_can_be_read_without_seeing_it(tab: Tab) -> None:
    for figure in tab.page.locator("figure.chart").all():
        assert "numbers follow" in figure.locator("[role=graphics-document]").first.get_attribute("aria-label")
        assert figure.locator("figcaption").inner_text()
        assert figure.locator("details table tbody tr").count() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(browser: Any, report: Path, scheme: str) -> None:
    """By axe-core: names of controls, order of headings, landmarks, roles, contrast."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install -e .[dev]")
    drawn = Tab(browser, report, scheme=scheme).drawn()
    found = axe.Axe().run(drawn.page)
    assert not found.violations_count, found.generate_report()
    drawn.page.close()


def test_the_cost_is_chosen(tab: Tab) -> None:
    chart = tab.page.locator("figure.chart").first
    assert "peak training memory, GiB" in chart.locator("svg.marks .role-title").text_content()
    chart.get_by_role("radio", name="training time, min").check()
    assert "training time, min" in chart.locator("svg.marks .role-title").text_content()


def test_a_table_sorts_by_a_column(tab: Tab) -> None:
    table = tab.table_with("tokens/s")
    header = table.get_by_role("button", name="peak training memory")
    column = table.locator("tbody tr td:nth-child(5)")
    before = column.all_inner_texts()
    header.click()
    ascending = column.all_inner_texts()
    header.press("Enter")  # by keyboard too
    descending = column.all_inner_texts()
    assert [text[:4] for text in ascending] == ["2.32", "2.50", "4.30", "-"]
    assert [text[:4] for text in descending] == ["4.30", "2.50", "2.32", "-"]  # unknown stays last
    assert table.locator("th[aria-sort=descending]").count() == 1
    header.click()
    assert column.all_inner_texts() == before


def test_rows_are_filtered(tab: Tab) -> None:
    section = tab.page.locator("section[aria-labelledby=differences]")
    rows = section.locator("table").first.locator("tbody tr")
    whole = rows.count()
    box = section.get_by_label("Filter rows").first
    box.fill("qlora lora")
    shown = [row.inner_text() for row in rows.all() if row.is_visible()]
    assert 0 < len(shown) < whole
    assert all("qlora" in text for text in shown)
    box.fill("")
    assert all(row.is_visible() for row in rows.all())


def test_examples_are_searched_filtered_and_turned(tab: Tab) -> None:
    browser = tab.page.locator(".browser")
    count, cards = browser.locator("[data-role=count]"), browser.locator("article")
    assert count.inner_text() == "48 of 48 examples"
    assert cards.count() == 10
    browser.get_by_role("button", name="Next").click()
    assert "page 2 of 5" in browser.inner_text()
    browser.get_by_label("Search").fill("Reference 17")
    tab.counted("1 of")
    assert cards.count() == 1
    assert "lora: synthetic answer 17 | with a bar" in cards.inner_text()
    browser.get_by_label("Search").fill("")
    browser.get_by_label("Methods disagree").check()
    tab.page.locator("[data-role=count]").filter(has_not_text="48 of").wait_for()
    assert int(count.inner_text().split()[0]) < 48
    browser.get_by_label("Methods disagree").uncheck()


def test_what_a_model_wrote_does_nothing(tab: Tab) -> None:
    browser = tab.page.locator(".browser")
    browser.get_by_label("Search").fill("onerror")
    tab.counted("1 of")
    assert ATTACK in browser.locator("article").inner_text()
    assert tab.page.evaluate("window.harmed") is None
    assert tab.page.locator("main img").count() == 0
    browser.get_by_label("Search").fill("")


def test_a_phone_needs_no_sideways_scrolling(browser: Any, report: Path) -> None:
    phone = Tab(browser, report, width=390).drawn()
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    right = "all => all.map(s => s.getBoundingClientRect().right)"
    widths = phone.page.eval_on_selector_all("figure.chart svg.marks", right)
    assert max(widths) <= 390
    assert phone.wrong == []
    phone.page.close()


def test_dark_by_the_system_and_by_the_switch(browser: Any, report: Path) -> None:
    page_colour = "getComputedStyle(document.body).backgroundColor"
    label_colour = "getComputedStyle(document.querySelector('svg .role-axis-label text')).fill"
    dark = Tab(browser, report, scheme="dark").drawn()
    assert dark.page.evaluate(page_colour) == "rgb(22, 24, 27)"
    assert dark.page.evaluate(label_colour) == "rgb(230, 232, 234)"
    dark.page.get_by_label("Colours").select_option("light")
    assert dark.page.evaluate(page_colour) == "rgb(255, 255, 255)"
    assert dark.page.evaluate(label_colour) == "rgb(28, 30, 33)"
    dark.page.close()


def test_ten_thousand_examples_do_not_freeze(browser: Any, tmp_path: Path) -> None:
    answers = [["a" * 60, False, 0.5], ["b" * 60, False, 0.7]]
    rows = [json.dumps([f"id-{n}", f"prompt {n}", f"reference {n}", 0.2 * (n % 2), answers]) for n in range(10_000)]
    facts = {"metrics": ["rougeL"], "arms": ["full", "lora"], "compared": ["full", "lora"], "disagree": 0.1}
    content = Content(samples=Browsable(facts, rows, list(range(10_000))))
    path = tmp_path / "report.html"
    path.write_text(page("# Many\n\n## Sample predictions\n\nText.\n", tmp_path, [content]))
    assert path.stat().st_size < 5_000_000
    many = Tab(browser, path)
    count = many.page.locator("[data-role=count]")
    assert count.inner_text() == "10,000 of 10,000 examples"
    assert many.page.locator("article").count() == 10
    started = time.perf_counter()
    many.page.get_by_label("Search").fill("reference 999")
    many.counted("11 of")
    many.page.get_by_label("Search").fill("")
    many.page.get_by_label("Methods disagree").check()
    many.counted("5,000 of")
    assert time.perf_counter() - started < 10  # seconds when idle: well below one
    assert many.wrong == []
    many.page.close()
