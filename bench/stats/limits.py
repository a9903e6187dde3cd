"""What a user can afford and needs: the limits of a decision, and the words of the command line that set them.

>>> limits_from_words(["memory_gib=24", "time_hours=2", "quality_tolerance=3%", "mergeable=yes"])
Limits(memory_gib=24.0, time_hours=2.0, cost_usd=None, ..., quality_tolerance='3%', mergeable=True, ...)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from bench.config import PositiveInt
from bench.mistakes import ConfigurationError, all_of, checked

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid")
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
From0 = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _tolerance(given: Any) -> float | str:
    share = isinstance(given, str) and given.endswith("%")
    number = float(given.removesuffix("%")) if share else float(given)
    if not (0 <= number <= 100 if share else 0 <= number < math.inf):
        raise ValueError("expected a number from 0 on in the score's unit, or a share of the best such as 3%")
    return given if share else number


@dataclass(frozen=True, config=STRICT)
class Limits:
    """What a user can afford and needs, by the words of the command line, in their units. None, False: no limit.

    A limit is the most that is allowed; what equals it is allowed.
    """

    memory_gib: Above0 | None = field(default=None, metadata={"unit": "GiB", "help": "peak memory of one device"})
    time_hours: Above0 | None = field(default=None, metadata={"unit": "h", "help": "training, without evaluation"})
    cost_usd: From0 | None = field(default=None, metadata={"unit": "USD", "help": "that time at the machine's price"})
    forgetting_tolerance: Annotated[From0, Field(le=100)] | None = field(
        default=None, metadata={"unit": "points", "help": "that the regression suite's mean may lose, of 100"}
    )
    quality_tolerance: Annotated[float | str, BeforeValidator(_tolerance)] | None = field(
        default=None, metadata={"unit": "score", "help": "shortfall from the best that does not matter: 0.01, or 3%"}
    )
    mergeable: bool = field(default=False, metadata={"unit": "", "help": "yes: serve one model without an adapter"})
    adapters: PositiveInt | None = field(
        default=None, metadata={"unit": "", "help": "tasks that share one base in serving"}
    )
    price_usd_per_hour: Above0 | None = field(
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
    """Read words such as memory_gib=24, quality_tolerance=3% or mergeable=yes; raises as `from_words`."""
    return from_words(Limits, words)


def from_words(kind: type[T], words: Sequence[str]) -> T:
    """A dataclass of limits from `name=value` words.

    Raises:
        ConfigurationError: with every mistake: an unknown name, a bad value, a limit set twice.
    """
    given = [(name.strip(), value.strip()) for name, _, value in (text.partition("=") for text in words)]

    def once() -> None:
        if twice := [name for name, count in Counter(name for name, _ in given).items() if count > 1]:
            raise ConfigurationError([f"{name}: this limit is set twice; give it once" for name in twice])

    return all_of(once, lambda: checked(kind, dict(given)))[1]
