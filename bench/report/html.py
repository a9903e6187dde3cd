"""The Markdown report as HTML: sections with anchors, images made part of the page or replaced by a chart.

Raw HTML in the Markdown is switched off, so that a prediction holding a tag is shown as text.

    >>> body = to_html("# Report\\n\\n<script>", folder=Path("results/default"))
    >>> "<script>" in body.content
    False
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup


@dataclass(frozen=True)
class Heading:
    """One line of the table of contents."""

    level: int
    text: str
    anchor: str


@dataclass(frozen=True)
class Body:
    """The report without the page around it."""

    content: Markup
    headings: list[Heading]


def to_html(markdown: str, folder: Path, inserts: Mapping[str, Sequence[Markup]] | None = None) -> Body:
    """The body of a page.

    Args:
        folder: where the Markdown's relative image paths start; images outside of it are shown as a link.
        inserts: ready HTML by place. An image's path: stands for the image, and for the paragraph below it, which is
            its caption. The text of a heading: follows the first block of its section.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("image", _inline_image)
    parser.add_render_rule("text", _text)
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    environment: dict[str, Any] = {"folder": folder.resolve()}
    tokens = parser.parse(markdown, environment)
    headings = _name_headings(tokens)
    blocks = _inserted(_blocks(tokens), inserts or {})
    return Body(Markup(parser.renderer.render(_sections(blocks), parser.options, environment)), headings)


def _blocks(tokens: Sequence[Token]) -> list[list[Token]]:
    """The tokens of each outermost block: a heading, a paragraph, a table, ..."""
    blocks: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += token.nesting
        blocks[-1].append(token)
        if depth == 0:
            blocks.append([])
    return blocks[:-1]


def _inserted(blocks: Sequence[list[Token]], inserts: Mapping[str, Sequence[Markup]]) -> list[list[Token]]:
    result: list[list[Token]] = []
    waiting: Sequence[Markup] = ()  # of the section that has begun, for after its first block
    caption = False
    for block in blocks:
        if caption and block[0].type == "paragraph_open":
            caption = False
            continue
        caption = False
        image = _image_of(block)
        if image in inserts:
            result.append([_raw(fragment) for fragment in inserts[image]])
            caption = True
            continue
        if block[0].type == "heading_open":
            result += [[_raw(fragment) for fragment in waiting], block]  # a section without a first block
            waiting = inserts.get(_plain(block[1]), ())
        else:
            result += [block, [_raw(fragment) for fragment in waiting]]
            waiting = ()
    return [block for block in [*result, [_raw(fragment) for fragment in waiting]] if block]


def _image_of(block: Sequence[Token]) -> str:
    """The path of the image that a paragraph consists of; else empty."""
    children = (block[1].children or []) if block[0].type == "paragraph_open" else []
    return str(children[0].attrGet("src") or "") if len(children) == 1 and children[0].type == "image" else ""


def _sections(blocks: Sequence[Sequence[Token]]) -> list[Token]:
    """Every heading of the first two levels begins a section that it names."""
    result: list[Token] = []
    is_open = False
    for block in blocks:
        if block[0].type == "heading_open" and block[0].tag in ("h1", "h2"):
            result += [_raw(Markup("</section>\n"))] if is_open else []
            result.append(_raw(Markup('<section aria-labelledby="{}">\n').format(block[0].attrGet("id"))))
            is_open = True
        result += block
    return [*result, _raw(Markup("</section>\n"))] if is_open else result


def _raw(fragment: Markup) -> Token:
    return Token("html_block", "", 0, content=str(fragment))


def _name_headings(tokens: Sequence[Token]) -> list[Heading]:
    """Give every heading an id of its own."""
    named: list[Heading] = []
    for place, token in enumerate(tokens):
        if token.type != "heading_open":
            continue
        text = _plain(tokens[place + 1])
        anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        taken = {heading.anchor for heading in named}
        while anchor in taken:
            anchor += "-x"
        token.attrSet("id", anchor)
        named.append(Heading(int(token.tag[1]), text, anchor))
    return named


def _plain(inline: Token) -> str:
    return "".join(child.content for child in inline.children or [])


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
    # Large tables scroll inside their box; the box takes the keyboard's focus so that arrow keys reach it.
    before = (at for at in range(place, -1, -1) if tokens[at].type == "heading_open")
    section = next((_plain(tokens[at + 1]) for at in before), "the report")
    environment["tables"] = number = environment.get("tables", 0) + 1
    label = html.escape(f"table {number}, {section}", quote=True)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>\n'


def _table_close(self: RendererHTML, tokens: Sequence[Token], place: int, options: Any, environment: Any) -> str:
    return "</table></div>\n"
