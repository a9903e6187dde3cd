"""A report as one HTML file that loads nothing: the answer first, charts, tables that sort, examples to browse.

Jinja2 escapes every text. A content security policy names each script of the page by its hash, so that nothing that a
model or a name brings along can run, and no connection is made.

    >>> Path("report.html").write_text(page(report))
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import pydantic_core
import vl_convert
from markupsafe import Markup, escape

from bench.report.charts import VEGA_LITE, Chart
from bench.report.section import Examples, Report, Section, Table, anchor, number, walk
from bench.trust import LONGEST_TEXT, printable, shortened

LIMIT_BYTES = 5_000_000
_DATA_ROWS = 60  # of the table below a chart
_PROMPT_CHARACTERS, _ANSWER_CHARACTERS = 2000, 1500
_WITH_RANGE = re.compile(r"^(\S+) ([\[(][^\])]+[\])])$")  # 0.258 [0.228, 0.289]


def page(report: Report) -> str:
    """The whole file, at most `LIMIT_BYTES` long: what does not fit is left out of the examples and counted."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bench.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else shortened(printable(value), LONGEST_TEXT),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"id": id, "cell": _cell, "numbers": _numbers, "json": _json}
    sections = [*report.chapters, *report.closing]
    scripts = _scripts(sections)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    facts = {"report": report, "anchors": _anchors(report), "scripts": scripts, "hashes": Markup(" ".join(hashes))}
    template = environment.get_template("page.html.j2")
    browsers = [section.examples for section in walk(sections) if section.examples]
    empty = len(template.render(**facts, browsers={id(b): ("", 0) for b in browsers}).encode())
    room = (LIMIT_BYTES - empty) // max(1, len(browsers)) - 1000
    return template.render(**facts, browsers={id(b): _within(b, room) for b in browsers}).lstrip()


def _anchors(report: Report) -> dict[int, str]:
    """`id` of a chapter or section -> the name by which links find it."""
    found: dict[int, str] = {}
    for chapter in report.chapters:
        found[id(chapter)] = anchor(chapter.title, found.values())
        for section in chapter.parts:
            found[id(section)] = anchor(f"{chapter.title} {section.title}", found.values())
    return found | {id(section): anchor(section.title, found.values()) for section in report.closing}


def _scripts(sections: Sequence[Section]) -> list[Markup]:
    """Vega-Lite and Vega-Embed where there is a chart, and the page's own."""
    templates = resources.files("bench.report").joinpath("templates")
    own = [Markup(templates.joinpath(name).read_text("utf-8")) for name in ("page.js", "examples.js")]
    return [_vega(), *own] if any(section.chart for section in walk(sections)) else own


@cache
def _vega() -> Markup:
    return Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE))


def _cell(text: str) -> Markup:
    """A table's cell; an interval or a range stands smaller beside its value and stays on one line."""
    found = _WITH_RANGE.match(shown := shortened(printable(text), LONGEST_TEXT))
    if not found:
        return escape(shown)
    return Markup("{} <small>{}</small>").format(found[1], found[2].replace(" ", "\u00a0"))


def _numbers(chart: Chart) -> Table:
    """The numbers that a chart draws, as a table."""
    rows = [[_value(value) for value in row] for row in chart.data.head(_DATA_ROWS).itertuples(index=False)]
    return Table(list(map(str, chart.data.columns)), rows)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return number(value, 0 if abs(value) >= 1000 else 3)
    return "-" if value is None else str(value)


def _json(value: Any) -> Markup:
    """JSON that is safe inside a script element: it holds no "<", and null for a number that is not finite."""
    text = pydantic_core.to_json(value, inf_nan_mode="null").decode()
    return Markup(printable(text).replace("<", "\\u003c"))


def _within(examples: Examples, room_bytes: int) -> tuple[Markup, int]:
    """(the JSON of as many examples as fit, in the order of the test set; how many these are)."""
    kept: list[tuple[int, str]] = []
    for place, (identity, prompt, reference, spread, answers) in zip(examples.places, examples.rows, strict=True):
        shown = [answer and [shortened(answer[0], _ANSWER_CHARACTERS), *answer[1:]] for answer in answers]
        texts = [identity, shortened(prompt, _PROMPT_CHARACTERS), shortened(reference, _ANSWER_CHARACTERS)]
        row = str(_json([*texts, spread, shown]))
        room_bytes -= len(row.encode()) + 1
        if room_bytes < 0:
            break
        kept.append((place, row))
    facts = {"metrics": list(examples.metrics), "arms": list(examples.arms), "disagree": examples.disagree}
    rows = ",".join(row for _, row in sorted(kept))
    return Markup(f'{{"facts":{_json(facts)},"rows":[{rows}]}}'), len(kept)
