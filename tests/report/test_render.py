"""Sections as data become Markdown and HTML that show exactly their text, whatever it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from bench.checkpoint import Base, Evaluated, Manifest, PromptFormat
from bench.report import html, markdown
from bench.report.charts import Chart, memory_chart
from bench.report.section import (
    Examples,
    Headline,
    Report,
    Section,
    Table,
    anchor,
    gib,
    interval,
    mib,
    number,
    over_seeds,
    percent,
    table_of,
)
from bench.stats.reading import read_record

HOSTILE = [
    "<script>window.harmed=1</script>",
    "</script><img src=x onerror=window.harmed=1>",
    "a | b\n| --- |",
    "**bold** _it_ `code` [link](http://example.org) <b>&amp;",
    "\x1b[31mred\x1b[0m\x07",
    "\u202egnp.exe",
    "```\nend of fence",
    "x" * 5000,
]


def parts(arm: str = "lora") -> Chart:
    data = pd.DataFrame([{"arm": arm, "source": "measured", "part": "weights", "GiB": 1.0, "total GiB": 1.0}])
    return Chart("memory", memory_chart(data), f"Memory of {arm}.", data)


def report(text: str = "text", **fields: object) -> Report:
    """Every place that text can be in, holding the same text."""
    examples = Examples(["rougeL"], [text], 0.1, [[text, text, text, 0.5, [[text, True, 0.25]]]], [0])
    sections = [
        Section("Answer", headline=Headline(text, 0.73, text, [text]), table=Table([text, "n"], [[text, "1"]])),
        Section(text, lead=text, items=[text], code=text, note=text, fold=True, chart=parts(text)),
        Section("Examples", examples=examples, parts=[Section(text, lead=text)]),
    ]
    return Report(text, text, [Section("", parts=sections)], [Section(text, table=Table([text], [[text]]))])


def visible(page: str) -> str:
    """The page's text without its scripts, tags taken away and entities resolved."""
    import html as entities

    body = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return entities.unescape(re.sub(r"<[^>]*>", "", body))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_from_outside_is_shown_and_does_nothing(text: str) -> None:
    page = html.page(report(text))
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "<img" not in outside
    assert "<script>window" not in page
    assert not set(outside) & set("\x1b\x07\u202e")
    assert outside.count("<script type=") == 2  # one chart, the examples
    shown = "".join(c for c in text if c not in "\x1b\x07\u202e")
    assert " ".join(shown.split()) in " ".join(visible(page).split())


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_markdown_shows_the_same_text(text: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    found = markdown.render(report(text), {})
    shown = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(found)
    assert "<script" not in shown
    assert "<img" not in shown
    assert "<strong>bold" not in shown
    assert "<a href" not in shown
    assert shown.count("<table>") == 2
    assert not set(found) & set("\x1b\x07\u202e")


def test_every_script_is_named_by_its_hash() -> None:
    page = html.page(report())
    policy = re.search(r"script-src ([^;]*);", page)
    assert policy
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == len(policy[1].split()) == 3  # Vega-Lite, the page's, the examples'
    import base64
    import hashlib

    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)


def test_a_section_in_both_forms() -> None:
    table = Table(["method", "rougeL"], [["full", "0.269 [0.240, 0.300]"], ["lora", "-"]], bold=frozenset({1}))
    headline = Headline("Use lora.", 0.734, "It costs least.", ["Rates untuned."])
    content = Report(
        "Report: demo", "a model", [Section("", parts=[Section("Answer", table=table, headline=headline)])]
    )
    text = markdown.render(content, {})
    assert text == (
        "# Report: demo\n\na model\n\n## Answer\n\n**Use lora.** (73% sure)\n\nIt costs least.\n\n- Rates untuned.\n\n"
        "| method | rougeL |\n| :--- | ---: |\n| full | 0.269 \\[0.240, 0.300\\] |\n| **lora** | - |\n"
    )
    page = html.page(content)
    assert "<strong>73% sure</strong>" in page
    assert "width: 73.4%" in page
    assert '<td class="number">0.269 <small>[0.240,\u00a00.300]</small></td>' in page
    assert page.count('<tr class="chosen">') == 1


def test_an_unknown_sureness_has_no_bar() -> None:
    content = Report(
        "R", "", [Section("", parts=[Section("Answer", headline=Headline("No method meets it.", None, "Why."))])]
    )
    assert 'class="bar"' not in html.page(content)
    assert "sure" not in markdown.render(content, {}).replace("measure", "")


def test_images_and_folds_in_markdown() -> None:
    chart = parts()
    section = Section("Memory", chart=chart, fold=True, note="Definitions.")
    text = markdown.render(Report("R", "", [Section("", parts=[section])]), {id(chart): "plots/memory.svg"})
    assert "<details><summary>Memory</summary>" in text
    assert "![Memory of lora.](plots/memory.svg)" in text
    assert text.rstrip().endswith("</details>")


def test_examples_fill_what_room_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[f"id-{n}", "p" * 900, "r", 1 - n / 100, [["answer", False, 0.5]]] for n in range(100)]
    section = Section("Examples", examples=Examples(["rougeL"], ["lora"], 0.1, rows, list(range(99, -1, -1))))
    content = Report("R", "", [Section("", parts=[section])])
    assert "All 100 test examples" in html.page(content)
    monkeypatch.setattr(html, "LIMIT_BYTES", 60_000)
    page = html.page(content)
    assert len(page.encode()) <= 60_000
    kept = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', page)[0])["rows"]
    assert 0 < len(kept) < 100
    assert f"{len(kept)} of 100 examples" in page
    assert [row[0] for row in kept] == [f"id-{n}" for n in reversed(range(len(kept)))]  # those that differ most


def test_anchors_are_unique_and_keep_other_scripts() -> None:
    assert anchor("Peak memory, GiB") == "peak-memory-gib"
    assert anchor("Answer", ["answer", "answer-2"]) == "answer-3"
    assert anchor("小模型 / 摘要") == "小模型-摘要"
    assert anchor("<>") == "section"


def test_numbers_as_text() -> None:
    assert (gib(3 * 2**29), mib(2**20), mib(19 * 2**20), percent(0.734)) == ("1.50", "1.00", "19", "73%")
    assert (number(None), number(float("nan")), gib(None), percent(None)) == ("-",) * 4
    assert interval(0.25, 0.2, 0.3) == "0.250 [0.200, 0.300]"
    assert interval(0.25, float("nan"), 0.3) == "0.250"
    assert interval(-0.01, -0.02, 0.005, sign=True) == "-0.010 [-0.020, +0.005]"
    assert interval(0.0001, -0.0001, 0.0003, 1, 100, sign=True) == "+0.01 [-0.01, +0.03]"  # never [-0.0, +0.0]
    assert over_seeds([1.0, 2.0, None]) == "1.50 (1.00 to 2.00)"
    assert (over_seeds([2.0, 2.0]), over_seeds([None])) == ("2.00", "-")


def test_columns_of_which_nothing_is_known_are_left_out() -> None:
    frame = pd.DataFrame({"arm": ["a", "b"], "size": [2**30, None], "energy": [None, None]})
    columns = [("method", str, "arm"), ("size, GiB", gib, "size"), ("Wh", number, "energy"), ("x", number, "no")]
    table = table_of(frame, columns)
    assert table.headers == ["method", "size, GiB"]
    assert [list(row) for row in table.rows] == [["a", "1.00"], ["b", "-"]]


def test_the_card_says_what_its_sweep_decided() -> None:
    run = next((Path(__file__).parents[2] / "results/reference").glob("full-*"))
    record = read_record(run, [])
    assert record is not None
    assert record.evaluate is not None
    evaluated = Evaluated(128, markdown.own_scores(run), record.evaluate.heldout_loss, record.evaluate.environment)
    base, prompt = Base("mine", "folder", "", None, "0" * 64), PromptFormat("0", "0", "0")
    manifest = Manifest(
        record.run_id, "model", record.config, base, prompt, evaluated, None, "bench", None, {}, "today", None, {}
    )
    assert "Which method to use" not in markdown.card(manifest)
    answer = r"Use lora\. \(\d+% sure, of base, full, lora, qlora; this is full"
    assert re.search(rf"Which method to use, by the sweep .*: {answer}", markdown.card_of(run)(manifest))
