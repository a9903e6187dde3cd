"""The three numbers a method that a reader wants first: its score, its memory and its time.

>>> cards_of(group)[1]
Card(arm='full', is_chosen=True, numbers=[('rougeL', '0.272', '0.240 to 0.304'), ...])
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.report.answer import Group, busy_mark, column, mean
from bench.report.format import UNKNOWN, number

_MOST = 8  # with more methods the table is easier to read


@dataclass(frozen=True)
class Card:
    """One method; `numbers` are (what, value with its unit, 95% interval or empty)."""

    arm: str
    is_chosen: bool
    numbers: list[tuple[str, str, str]]


def cards_of(group: Group) -> list[Card]:
    """One card an arm that was scored; none where there are too many to take in."""
    primary, chosen = group.findings.primary, group.recommendation.chosen
    cards = []
    for arm in group.arms:
        estimate = group.findings.estimate(primary, arm)
        if primary is None or estimate is None:
            continue
        runs = group.runs[group.runs["arm"] == arm]
        memory = number(mean(column(runs, "train_peak_bytes")), 2, 2**-30)
        minutes = number(mean(column(runs, "train_seconds")), 1, 1 / 60)
        interval = f"{number(estimate.low)} to {number(estimate.high)}"
        costs = [
            ("peak training memory", f"{memory} GiB", ""),
            ("training", f"{minutes} min", busy_mark(runs, "train")),
        ]
        score = (primary.name, number(estimate.mean), f"95%: {interval}")
        cards.append(Card(arm, arm == chosen, [score, *((w, v, t) for w, v, t in costs if not v.startswith(UNKNOWN))]))
    return cards if len(cards) <= _MOST else []
