"""Numbers and tables as a person reads them: GiB, minutes and percent exist only from here on.

Unknown is "-", never 0. Text from outside (predictions, messages, settings) is escaped by `cell` or `fenced`.

    >>> gib(2 * 2**30), minutes(90.0), with_interval(0.3, 0.28, 0.32)
    ('2.00', '1.5', '0.300 [0.280, 0.320]')
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

UNKNOWN = "-"
_SPECIAL = re.compile(r"([\\`*\[\]<>|&~#]|(?<!\w)_|_(?!\w))")


def known(value: Any) -> bool:
    """Whether a number is there."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def number(value: Any, digits: int = 3, scale: float = 1.0, *, sign: bool = False) -> str:
    """`value * scale` with fixed decimals."""
    return f"{float(value) * scale:{'+' if sign else ''}.{digits}f}" if known(value) else UNKNOWN


def gib(size_bytes: Any) -> str:
    """Bytes as GiB."""
    return number(size_bytes, 2, 2**-30)


def mib(size_bytes: Any) -> str:
    """Bytes as MiB."""
    return number(size_bytes, 0, 2**-20)


def minutes(seconds: Any) -> str:
    """Seconds as minutes."""
    return number(seconds, 1, 1 / 60)


def percent(share: Any, digits: int = 1) -> str:
    """A share (0..1) as a percentage."""
    text = number(share, digits, 100)
    return text if text == UNKNOWN else f"{text}%"


def with_interval(value: Any, low: Any, high: Any, digits: int = 3, scale: float = 1.0, *, sign: bool = False) -> str:
    """A point estimate beside its interval."""
    ends = f"[{number(low, digits, scale, sign=sign)}, {number(high, digits, scale, sign=sign)}]"
    return f"{number(value, digits, scale, sign=sign)} {ends}" if known(value) else UNKNOWN


def mean_and_range(values: Sequence[Any], digits: int = 2, scale: float = 1.0) -> str:
    """The mean over seeds, with the lowest and the highest where there are several."""
    present = [float(value) for value in values if known(value) and value == value]
    if not present:
        return UNKNOWN
    text = number(sum(present) / len(present), digits, scale)
    ends = number(min(present), digits, scale), number(max(present), digits, scale)
    return f"{text} ({ends[0]} to {ends[1]})" if ends[0] != ends[1] else text


def p_text(p: float) -> str:
    """A p-value; tiny ones as a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def cell(text: Any) -> str:
    """Text as one Markdown table cell that shows exactly this text."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split())) or UNKNOWN


def fenced(text: str, language: str = "text") -> str:
    """Text as a code block that it cannot end: the fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """A Markdown table of ready cells: the first `text_columns` flush left, the rest flush right."""
    rule = [":---" if place < text_columns else "---:" for place in range(len(headers))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(headers), rule, *rows])


def shortened(text: str, characters: int) -> str:
    """The beginning of a text, with the number of characters left out."""
    if len(text) <= characters:
        return text
    return f"{text[:characters]}\n... ({len(text) - characters} more characters)"
