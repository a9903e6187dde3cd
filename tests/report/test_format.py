"""Numbers and text for people."""

from __future__ import annotations

import math

import pytest
from markdown_it import MarkdownIt

from bench.report import format as shown


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_unknown_is_a_dash(missing: float | None) -> None:
    texts = [shown.gib(missing), shown.minutes(missing), shown.percent(missing), shown.number(missing)]
    assert texts == ["-"] * 4
    assert shown.with_interval(missing, missing, missing) == "-"
    assert shown.mean_and_range([]) == "-"


def test_units() -> None:
    assert shown.gib(3 * 2**30) == "3.00"
    assert shown.mib(19 * 2**20) == "19"
    assert shown.minutes(90) == "1.5"
    assert shown.percent(0.035039) == "3.5%"
    assert shown.with_interval(0.012, -0.001, 0.025, 1, 100, sign=True) == "+1.2 [-0.1, +2.5]"
    assert shown.mean_and_range([1.0, 3.0]) == "2.00 (1.00 to 3.00)"
    assert shown.mean_and_range([2.0]) == "2.00"
    assert shown.p_text(0.0001) == "< 0.001"


@pytest.mark.parametrize(
    "text",
    ["a|b", "**bold** _it_", "![x](y)", "<b>", "`code`", "a_b_c", "back\\slash", "&lt;", "~~x~~", "# no", "a\n\nb"],
)
def test_cells_show_their_text(text: str) -> None:
    markdown = shown.table(["column"], [[shown.cell(text)]])
    tokens = MarkdownIt("commonmark", {"html": False}).enable("table").parse(markdown)
    inline = [token for token in tokens if token.type == "inline"][1].children or []
    assert {token.type for token in inline} <= {"text", "text_special"}
    assert "".join(token.content for token in inline) == " ".join(text.split())


def test_fence_cannot_be_closed_from_inside() -> None:
    text = "```\n````\n</code><script>"
    tokens = MarkdownIt("commonmark", {"html": False}).parse(shown.fenced(text))
    assert [(token.type, token.content) for token in tokens] == [("fence", text + "\n")]


def test_shortened_says_how_much_is_missing() -> None:
    assert shown.shortened("abcdef", 4) == "abcd\n... (2 more characters)"
    assert shown.shortened("abc", 4) == "abc"
