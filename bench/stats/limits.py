"""What a user can afford and needs: the limits of a decision, and the words of the command line that set them.

>>> limits_from_words(["memory_gib=24", "time_hours=2", "quality_tolerance=3%", "mergeable=yes"])
Limits(memory_gib=24.0, time_hours=2.0, cost_usd=None, ..., quality_tolerance='3%', mergeable=True, ...)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from bench.config import suggest
from bench.mistakes import ConfigurationError


@dataclass(frozen=True)
class Limits:
    """What a user can afford and needs, by the words of the command line, in their units. None, False: no limit.

    A limit is the most that is allowed; what equals it is allowed.
    """

    memory_gib: float | None = field(default=None, metadata={"unit": "GiB", "help": "peak memory of one device"})
    time_hours: float | None = field(default=None, metadata={"unit": "h", "help": "training, without evaluation"})
    cost_usd: float | None = field(default=None, metadata={"unit": "USD", "help": "that time at the machine's price"})
    forgetting_tolerance: float | None = field(
        default=None, metadata={"unit": "points", "help": "that the regression suite's mean may lose, of 100"}
    )
    quality_tolerance: float | str | None = field(
        default=None, metadata={"unit": "score", "help": "shortfall from the best that does not matter: 0.01, or 3%"}
    )
    mergeable: bool = field(default=False, metadata={"unit": "", "help": "yes: serve one model without an adapter"})
    adapters: int | None = field(default=None, metadata={"unit": "", "help": "tasks that share one base in serving"})
    price_usd_per_hour: float | None = field(
        default=None, metadata={"unit": "USD/h", "help": "of the machine, in the place of hardware.price_usd_per_hour"}
    )

    def amounts(self) -> dict[str, float]:
        """Limit -> the most that is allowed, in the units of the draws; of what an arm must be able to do 0."""
        most = {name: (getattr(self, name), unit) for name, (_, unit) in COLUMNS.items()}
        needs = {"mergeable": self.mergeable, "adapters": (self.adapters or 1) > 1}
        asked = {name: value * unit for name, (value, unit) in most.items() if value is not None}
        return asked | {name: 0.0 for name, wanted in needs.items() if wanted}


COLUMNS = {  # limit on an amount -> (column of the arms frame, one of the limit's unit in the column's)
    "memory_gib": ("peak_memory_bytes", 2.0**30),
    "time_hours": ("train_seconds", 3600.0),
    "cost_usd": ("cost_usd", 1.0),
    "forgetting_tolerance": ("forgetting", 0.01),
}


def limits_from_words(words: Sequence[str]) -> Limits:
    """Read `name=value` words, such as memory_gib=24, quality_tolerance=3% or mergeable=yes.

    Raises:
        ConfigurationError: with every mistake: an unknown name, a bad value, a limit set twice.
    """
    found: dict[str, Any] = {}
    problems = []
    known = [f.name for f in fields(Limits)]
    for text in words:
        name, _, value = (part.strip() for part in text.partition("="))
        if name not in known:
            problems.append(f"{text}: there is no limit {name!r}{suggest(name, known)}")
        elif name in found:
            problems.append(f"{text}: this limit is set twice; give it once")
        else:
            try:
                found[name] = _value(name, value)
            except ValueError as error:
                problems.append(f"{text}: expected {error}; given {value!r}")
    if problems:
        raise ConfigurationError(problems)
    return Limits(**found)


def _value(name: str, text: str) -> Any:
    """The value of one limit; raises ValueError with what is allowed."""
    if name == "mergeable":
        if text.lower() not in ("yes", "no", "true", "false"):
            raise ValueError("yes or no")
        return text.lower() in ("yes", "true")
    if name == "adapters":
        if not (text.isdecimal() and int(text) > 0):
            raise ValueError("a whole number from 1 on")
        return int(text)
    percent = name == "quality_tolerance" and text.endswith("%")
    try:
        number = float(text.removesuffix("%") if percent else text)
    except ValueError:
        number = math.nan
    most = 100.0 if percent or name == "forgetting_tolerance" else math.inf
    may_be_zero = name in ("quality_tolerance", "forgetting_tolerance", "cost_usd")
    if not (0 <= number <= most and math.isfinite(number) and (number or may_be_zero)):
        least = "from 0 on" if may_be_zero else "above 0"
        share = " in the score's unit, or a share of the best score such as 3%" if name == "quality_tolerance" else ""
        raise ValueError(f"a number {least}{'' if most == math.inf else f', at most {most:g}'}{share}")
    return text if percent else number
