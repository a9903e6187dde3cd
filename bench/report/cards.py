"""The three numbers a method that a reader wants first: its score, its memory and its time.

>>> cards_of(group)[1]
Card(arm='full', mark='recommended', numbers=[('rougeL', '0.272', '0.240 to 0.304'), ...])
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.report.answer import Group, busy_mark, column, mean
from bench.report.format import UNKNOWN, number

_MOST = 8  # with more methods the table is easier to read


@dataclass(frozen=True)
class Card:
    """One method.

    Attributes:
        mark: "recommended", "undecided" for those between which the data cannot decide, else empty.
        numbers: what, its value with its unit, and what must stand beside it.
    """

    arm: str
    mark: str
    numbers: list[tuple[str, str, str]]


def cards_of(group: Group) -> list[Card]:
    """One card an arm that was scored; none where there are too many to take in."""
    primary, advice = group.findings.primary, group.recommendation
    open_between = [advice.chosen, *advice.undecided] if advice.undecided else []
    cards = []
    for arm in group.arms:
        estimate = group.findings.estimate(primary, arm)
        if primary is None or estimate is None:
            continue
        runs = group.runs[group.runs["arm"] == arm]
        memory = number(mean(column(runs, "train_peak_bytes")), 2, 2**-30)
        minutes = number(mean(column(runs, "train_seconds")), 1, 1 / 60)
        interval = f"{number(estimate.low)} to {number(estimate.high)}"
        costs = [("peak memory", f"{memory} GiB", ""), ("training", f"{minutes} min", busy_mark(runs, "train"))]
        mark = "undecided" if arm in open_between else "recommended" if arm == advice.chosen else ""
        score = (primary.name, number(estimate.mean), f"95%: {interval}")
        cards.append(Card(arm, mark, [score, *((w, v, t) for w, v, t in costs if not v.startswith(UNKNOWN))]))
    return cards if len(cards) <= _MOST else []
