"""What a user can afford and needs: the limits of a recommendation, and the words that set them.

    >>> limits_from_words(["memory_gb=24", "time_hours=2", "quality_tolerance=3%", "mergeable=yes"])
    Limits(memory_bytes=24000000000.0, time_seconds=7200.0, ..., quality_relative=0.03, mergeable=True, ...)

A limit is the most that is allowed; what equals it is allowed. What each is held against: docs/recommendation.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.config import ConfigurationError, suggest

GB, GIB, HOUR, MINUTE = 1e9, 2**30, 3600, 60
_YES_OR_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True)
class Limits:
    """None, False: not limited.

    Attributes:
        memory_bytes: highest memory of the training stage, summed over the GPUs used.
        time_seconds: training, that is all optimizer steps, without evaluation.
        cost_usd: that time at the price.
        forgetting_share: loss of the regression suite's mean against the untrained base, 0 to 1.
        quality_tolerance: how far below the best that qualifies a score may be, in the score's unit (0 to 1).
        quality_relative: the same as a share of the best's score; at most one of the two is set.
        mergeable: the model that is served must be one without an adapter.
        adapters: how many tasks one base shall serve, with an adapter each.
        price_usd_per_hour: of the machine; None takes what the runs' hardware settings say.
    """

    memory_bytes: float | None = None
    time_seconds: float | None = None
    cost_usd: float | None = None
    forgetting_share: float | None = None
    quality_tolerance: float | None = None
    quality_relative: float | None = None
    mergeable: bool = False
    adapters: int | None = None
    price_usd_per_hour: float | None = None

    def quality_margin(self, best_score: float, default: float) -> float:
        """The tolerance in the unit of the score; `default` where none was given."""
        if self.quality_relative is not None:
            return self.quality_relative * abs(best_score)
        return default if self.quality_tolerance is None else self.quality_tolerance


@dataclass(frozen=True)
class Word:
    """A name that can be given a value on the command line.

    Attributes:
        sets: the field of `Limits`.
        unit: as a person reads it; one of it is `scale` of the field's unit.
        read: text -> fields; raises ValueError with what was expected.
    """

    sets: str
    unit: str
    scale: float
    meaning: str
    read: Callable[[str], Mapping[str, Any]]


def limits_from_words(words: Sequence[str]) -> Limits:
    """Read `name=value` words.

    Raises:
        ConfigurationError: with every mistake: an unknown name, a bad value, a limit set twice.
    """
    fields: dict[str, Any] = {}
    set_by: dict[str, str] = {}
    problems = []
    for text in words:
        name, _, value = (part.strip() for part in text.partition("="))
        word = WORDS.get(name)
        if word is None:
            problems.append(f"{text}: there is no limit {name!r}{suggest(name, list(WORDS))}")
        elif word.sets in set_by:
            problems.append(f"{text}: {set_by[word.sets]} has set this limit already; give one of the two")
        else:
            set_by[word.sets] = text
            try:
                fields |= word.read(value)
            except ValueError as error:
                problems.append(f"{text}: expected {error}; given {value!r}")
    if problems:
        raise ConfigurationError(problems)
    return Limits(**fields)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _amount(field: str, scale: float, *, zero: bool = False, most: float = math.inf) -> Callable[[str], dict[str, Any]]:
    """Reads a finite number above 0 (or from 0 on), at most `most`."""
    expected = f"a number {'from 0 on' if zero else 'above 0'}" + ("" if most == math.inf else f", at most {most:g}")

    def read(text: str) -> dict[str, Any]:
        value = _number(text)
        if not (math.isfinite(value) and (value > 0 or (zero and value == 0)) and value <= most):
            raise ValueError(expected)
        return {field: value * scale}

    return read


def _tolerance(text: str) -> dict[str, Any]:
    relative = text.endswith("%")
    value = _number(text.removesuffix("%"))
    if not 0 <= value <= (100 if relative else 1):
        raise ValueError("points of the score, which goes from 0 to 1 (0.01), or a share of the best's score (3%)")
    return {"quality_relative": value / 100} if relative else {"quality_tolerance": value}


def _yes_or_no(text: str) -> dict[str, Any]:
    if text.lower() not in _YES_OR_NO:
        raise ValueError("yes or no")
    return {"mergeable": _YES_OR_NO[text.lower()]}


def _count(text: str) -> dict[str, Any]:
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError("a whole number from 1 on")
    return {"adapters": int(text)}


WORDS = {
    "memory_gb": Word("memory_bytes", "GB", GB, "peak memory of training, in 10^9 bytes", _amount("memory_bytes", GB)),
    "memory_gib": Word(
        "memory_bytes", "GiB", GIB, "the same in 2^30 bytes, as a card sold as 24 GB has 24 of",
        _amount("memory_bytes", GIB),
    ),
    "time_hours": Word("time_seconds", "h", HOUR, "training, without evaluation", _amount("time_seconds", HOUR)),
    "time_minutes": Word("time_seconds", "min", MINUTE, "the same in minutes", _amount("time_seconds", MINUTE)),
    "cost_usd": Word("cost_usd", "USD", 1, "training time at the machine's price", _amount("cost_usd", 1, zero=True)),
    "price_usd_per_hour": Word(
        "price_usd_per_hour", "USD/h", 1, "that price; without it, what hardware.price_usd_per_hour was",
        _amount("price_usd_per_hour", 1),
    ),
    "quality_tolerance": Word(
        "quality_tolerance", "of the score", 1,
        "how far below the best that qualifies the score may be: 0.01 of a score from 0 to 1, or 3% of the best's",
        _tolerance,
    ),
    "forgetting_tolerance": Word(
        "forgetting_share", "points", 0.01, "points (0 to 100) that the regression suite's mean may lose",
        _amount("forgetting_share", 0.01, zero=True, most=100),
    ),
    "mergeable": Word("mergeable", "", 1, "yes: the served model must be one without an adapter", _yes_or_no),
    "adapters": Word("adapters", "", 1, "tasks that one base shall serve, with an adapter each", _count),
}  # fmt: skip
