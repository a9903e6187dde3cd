"""A section of the report as data, written once and rendered twice: to Markdown and to HTML.

A section holds plain text and values, never markup: the renderers escape everything. Numbers become text here (GiB,
minutes and percent exist only in a report); an unknown number is "-", never 0.

    >>> table = Table(["method", "peak memory, GiB"], [["lora", gib(3_049_000_000)]])
    >>> Section("Memory", lead="LoRA needs the least memory.", table=table).table.rows[0]
    ['lora', '2.84']
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.trust import printable

if TYPE_CHECKING:
    from bench.report.charts import Chart

UNKNOWN = "-"


@dataclass(frozen=True)
class Table:
    """Rows of ready text.

    Attributes:
        headers: one a column, with its unit.
        text_columns: the first columns that hold words, set flush left; the others hold numbers, set flush right.
        bold: indices of the rows to emphasize.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    bold: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Headline:
    """The answer of a group: one sentence, how sure it is (0..1; None: unknown), why, and what else to know."""

    sentence: str
    sureness: float | None
    reason: str
    asides: Sequence[str] = ()


@dataclass(frozen=True)
class Examples:
    """Test examples to browse, those on which the methods' scores differ most first.

    Attributes:
        metrics: names of the scores; the first is the primary one.
        arms: whose answers are shown.
        disagree: difference of two scores from which on methods disagree.
        rows: [id, prompt, reference, spread of the scores, [answer of each arm or None]]; an answer is
            [text, whether it was cut at the length limit, score of each metric ...].
        places: of each row in the test set.
    """

    metrics: Sequence[str]
    arms: Sequence[str]
    disagree: float
    rows: Sequence[Sequence[Any]]
    places: Sequence[int]


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        lead: one or two sentences that say what the section shows.
        items: a list below the lead.
        code: a command or a log, shown as it is.
        note: definitions, in small print.
        fold: whether the page shows the title alone until it is opened.
        parts: subsections.
    """

    title: str
    lead: str = ""
    table: Table | None = None
    chart: Chart | None = None
    note: str = ""
    fold: bool = False
    items: Sequence[str] = ()
    code: str = ""
    parts: Sequence[Section] = ()
    headline: Headline | None = None
    examples: Examples | None = None


def walk(sections: Iterable[Section]) -> Iterator[Section]:
    """The sections, each followed by its parts."""
    for section in sections:
        yield section
        yield from walk(section.parts)


@dataclass(frozen=True)
class Report:
    """What both renderers read.

    Attributes:
        subtitle: what was compared, in one line.
        chapters: one a model, task and suite, whose parts are its sections; untitled when there is no other.
        closing: sections about the whole sweep.
    """

    title: str
    subtitle: str
    chapters: Sequence[Section]
    closing: Sequence[Section] = ()


def anchor(text: str, taken: Iterable[str] = ()) -> str:
    """A name for links and files that is none of those taken: lower-case letters of any script, digits, hyphens."""
    base = re.sub(r"[^\w]+|_+", "-", printable(text).lower()).strip("-")[:80]
    base = base.encode()[:160].decode(errors="ignore") or "section"  # a file's name has at most 255 bytes
    names, numbered = set(taken), (f"{base}-{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([base], numbered) if name not in names)


def known(value: Any) -> bool:
    """Whether a number is there: neither None nor NaN nor infinite."""
    return value is not None and not pd.isna(value) and math.isfinite(float(value))


def number(value: Any, digits: int = 3, scale: float = 1.0, *, sign: bool = False) -> str:
    """`value * scale` with fixed decimals."""
    return f"{float(value) * scale:{'+' if sign else ''},.{digits}f}" if known(value) else UNKNOWN


count = partial(number, digits=0)
gib = partial(number, digits=2, scale=2**-30)  # of bytes
minutes = partial(number, digits=1, scale=1 / 60)  # of seconds


def mib(size_bytes: Any) -> str:
    """Bytes as MiB; small sizes keep two decimals."""
    return number(size_bytes, 2 if known(size_bytes) and float(size_bytes) < 10 * 2**20 else 0, 2**-20)


def percent(share: Any, digits: int = 0) -> str:
    """A share (0..1) as a percentage."""
    return f"{number(share, digits, 100)}%" if known(share) else UNKNOWN


def interval(value: Any, low: Any, high: Any, digits: int = 3, scale: float = 1.0, *, sign: bool = False) -> str:
    """A value beside its interval; the value alone when the interval is unknown."""
    if not known(low) or not known(high) or not known(value):
        return number(value, digits, scale, sign=sign)
    width = abs(float(high) - float(low)) * scale
    if width > 0:  # so many decimals that the ends differ: [+0.0, +0.0] would say more than is known
        digits = max(digits, math.ceil(-math.log10(width)))
    text = number(value, digits, scale, sign=sign)
    return f"{text} [{number(low, digits, scale, sign=sign)}, {number(high, digits, scale, sign=sign)}]"


difference = partial(interval, sign=True)


def over_seeds(values: Iterable[Any], digits: int = 2, scale: float = 1.0) -> str:
    """The mean, with the lowest and the highest seed when they differ."""
    present = [float(value) for value in values if known(value)]
    if not present:
        return UNKNOWN
    low, high = number(min(present), digits, scale), number(max(present), digits, scale)
    mean = number(sum(present) / len(present), digits, scale)
    return mean if low == high else f"{mean} ({low} to {high})"


Column = tuple[str, Callable[..., str], *tuple[str, ...]]  # header, how it is written, columns of the frame it shows


def table_of(frame: pd.DataFrame, columns: Iterable[Column], text_columns: int = 1, bold: str = "") -> Table:
    """A table with one row a row of the frame; columns of which nothing is known are left out.

    Args:
        bold: column that is true for the rows to emphasize.

    >>> table_of(arms, [("method", str, "arm"), ("rougeL", interval, "score", "low", "high")]).headers
    ['method', 'rougeL']
    """
    rows = frame.to_dict("records")
    texts = {header: [write(*map(row.get, names)) for row in rows] for header, write, *names in columns}
    shown = {header: cells for header, cells in texts.items() if set(cells) != {UNKNOWN}}
    chosen = frozenset(place for place, row in enumerate(rows) if bold and row[bold])
    return Table(list(shown), list(zip(*shown.values(), strict=True)), text_columns, chosen)


def seeds_table(runs: pd.DataFrame, columns: Iterable[tuple[str, str, int, float]], *more: Column) -> Table:
    """A table with one row an arm, over its seeds; columns of which nothing is known are left out.

    Args:
        runs: one row a run of an arm.
        columns: (header, column of the frame, decimals, factor).
        more: columns that show lists of the runs' values, after the method.
    """
    shown = [(header, partial(over_seeds, digits=digits, scale=scale), name) for header, name, digits, scale in columns]
    names = dict.fromkeys(name for _, _, *names in (*more, *shown) for name in names)
    by_arm = runs.reindex(columns=["arm", *names]).groupby("arm", sort=False).agg(list).reset_index()
    return table_of(by_arm, [("method", str, "arm"), *more, *shown])


def crossed(corner: str, cells: Mapping[tuple[str, str], str]) -> Table:
    """A table of (row, column) -> text, both in the order in which they come first; "-" where there is no text."""
    rows, columns = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    return Table(
        [corner, *columns], [[row, *(cells.get((row, column), UNKNOWN) for column in columns)] for row in rows]
    )
