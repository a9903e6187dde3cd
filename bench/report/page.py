"""One HTML file a report: answer first, charts, tables that sort and filter, the test examples; it loads nothing.

A content security policy names each script of the page by its hash; it forbids every other one, and any connection.

    >>> page(markdown, Path("results/default"), [Content(figures=figures_of(group, images))])
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import altair
import jinja2
import vl_convert
from markupsafe import Markup

from bench.report.cards import Card
from bench.report.figures import ChartFigure
from bench.report.format import number
from bench.report.html import to_html
from bench.report.sample_browser import Browsable

LIMIT_BYTES = 5_000_000
_SPARE_BYTES = 1000  # for what a browser of examples says about itself
_DATA_ROWS = 100  # of the table below a chart


@dataclass(frozen=True)
class Content:
    """What a group adds to its Markdown; headings of its sections end in `suffix`."""

    suffix: str = ""
    cards: Sequence[Card] = ()
    figures: Sequence[ChartFigure] = ()
    samples: Browsable | None = None


def page(markdown: str, folder: Path, contents: Sequence[Content] = ()) -> str:
    """The whole file. `folder` is where the Markdown's relative image paths start."""
    loader = jinja2.PackageLoader("bench.report")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    fragments: Any = environment.get_template("fragments.html.j2").module
    inserts: dict[str, list[Markup]] = {}
    browsers: dict[str, tuple[Browsable, Any]] = {}  # by a mark that stands for it until the room for it is known
    for content in contents:
        if content.cards:
            inserts[f"Answer{content.suffix}"] = [fragments.cards(content.cards)]
        for figure in content.figures:
            made = fragments.figure(figure.caption, _json(figure.spec), *_table(figure))
            inserts.setdefault(figure.place, []).append(made)
        if content.samples:
            mark = secrets.token_hex(16)
            browsers[mark] = (content.samples, fragments.browser)
            inserts[f"Sample predictions{content.suffix}"] = [Markup(mark)]
    body = to_html(markdown, folder, inserts)
    scripts = _scripts(charts=any(content.figures for content in contents), samples=bool(browsers))
    text = environment.get_template("page.html.j2").render(
        title=next((heading.text for heading in body.headings if heading.level == 1), "Report"),
        headings=[heading for heading in body.headings[1:] if heading.level < 3],
        body=body.content,
        scripts=scripts,
        hashes=" ".join(map(_hash, scripts)),
    )
    return _with_samples(text, browsers)


def _scripts(*, charts: bool, samples: bool) -> list[Markup]:
    """Those that the page needs; Vega and Vega-Lite once."""
    names = ["theme.js", "tables.js", *(["samples.js"] if samples else []), *(["charts.js"] if charts else [])]
    own = [Markup(resources.files("bench.report").joinpath("templates", name).read_text("utf-8")) for name in names]
    if not charts:
        return own
    version = ".".join(altair.SCHEMA_VERSION.split(".")[:2])  # "v6.4": the one that the charts are written for
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return [*own[:-1], Markup(bundle), own[-1]]


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(value: Any) -> Markup:
    """Safe inside a script element: it holds no "<"."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def _table(figure: ChartFigure) -> tuple[list[str], list[list[str]], int]:
    """(headers, rows, how many rows there are) of the numbers drawn."""
    shown = figure.data.iloc[:_DATA_ROWS]
    rows = [[_cell(value) for value in row] for row in shown.itertuples(index=False)]
    return list(map(str, figure.data.columns)), rows, len(figure.data)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return number(value, 0 if abs(value) >= 1000 else 3)
    return "-" if value is None else str(value)


def _with_samples(text: str, browsers: Mapping[str, tuple[Browsable, Any]]) -> str:
    """Fill the room that is left below `LIMIT_BYTES`, shared out evenly among the groups."""
    for left, (mark, (samples, browser)) in zip(range(len(browsers), 0, -1), browsers.items(), strict=True):
        room = (LIMIT_BYTES - len(text.encode())) // left - 3 * _SPARE_BYTES
        kept = samples.within(room)
        text = text.replace(mark, str(browser(Markup(kept.content), kept.shown, kept.examples, samples.facts)))
    return text
