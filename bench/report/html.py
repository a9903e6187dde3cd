"""The Markdown report as one HTML file that needs no network: plots inside, light and dark, wide and narrow.

Raw HTML in the Markdown is switched off, so that a prediction holding a tag is shown as text.

    >>> page = to_html("# Report\\n\\n<script>", folder=Path("results/default"))
    >>> "<script>" in page
    False
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token


def to_html(markdown: str, folder: Path) -> str:
    """One HTML document.

    Args:
        folder: where the Markdown's relative image paths start; images outside of it are shown as a link.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("image", _inline_image)
    parser.add_render_rule("text", _text)
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    environment: dict[str, Any] = {"folder": folder.resolve()}
    tokens = parser.parse(markdown, environment)
    headings = _name_headings(tokens)
    body = parser.renderer.render(tokens, parser.options, environment)
    links = "".join(f'<a href="#{anchor}">{html.escape(text)}</a>' for level, text, anchor in headings if level == "h2")
    title = next((text for level, text, _ in headings if level == "h1"), "Report")
    page = resources.files("bench.report").joinpath("templates", "page.html").read_text(encoding="utf-8")
    values = {"TITLE": html.escape(title), "LINKS": links, "BODY": body}
    return re.sub(r"\{\{(TITLE|LINKS|BODY)\}\}", lambda found: values[found[1]], page)


def _name_headings(tokens: Sequence[Token]) -> list[tuple[str, str, str]]:
    """Give every heading an id; returns (tag, text, id)."""
    named: list[tuple[str, str, str]] = []
    for place, token in enumerate(tokens):
        if token.type != "heading_open":
            continue
        text = "".join(child.content for child in tokens[place + 1].children or [])
        anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        taken = {used for _, _, used in named}
        unique = anchor
        while unique in taken:
            unique += "-x"
        token.attrSet("id", unique)
        named.append((token.tag, text, unique))
    return named


def _text(self: RendererHTML, tokens: Sequence[Token], place: int, options: Any, environment: Any) -> str:
    # A number's interval or range stays on one line: cells break before it, never inside.
    return _RANGE.sub(lambda found: found[0].replace(" ", "&nbsp;"), html.escape(tokens[place].content))


_RANGE = re.compile(r"[\[(][-+.\d]+(?:,| to) [-+.\d]+[\])]")


def _inline_image(
    self: RendererHTML, tokens: Sequence[Token], place: int, options: Any, environment: dict[str, Any]
) -> str:
    token = tokens[place]
    folder: Path = environment["folder"]
    source, alt = str(token.attrGet("src") or ""), html.escape(token.content)
    path = (folder / source).resolve()
    if not path.is_relative_to(folder) or path.suffix != ".png" or not path.is_file():
        return f'<a href="{html.escape(source)}">{alt}</a>'
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{alt}" src="data:image/png;base64,{data}">'


def _table_open(self: RendererHTML, tokens: Sequence[Token], place: int, options: Any, environment: Any) -> str:
    # Wide tables scroll inside their box; the box takes the keyboard's focus so that arrow keys reach it.
    return '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>\n'


def _table_close(self: RendererHTML, tokens: Sequence[Token], place: int, options: Any, environment: Any) -> str:
    return "</table></div>\n"
