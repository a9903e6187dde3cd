"""What would change the answer: the chosen method and how sure it is, against each limit and the tolerance.

>>> section(group).title
'What would change the answer'
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from bench.report.next.charts import Chart, sureness_chart
from bench.report.next.section import Section, Table, known, number, percent
from bench.report.next.sections.answer import metric_name
from bench.stats.decide import Limits, decide
from bench.stats.frames import Group

_LIMITS = {  # a limit with its unit -> (its name among `Limits`, column of the arms frame, factor)
    "memory limit, GiB": ("memory_gib", "peak_memory_bytes", 2**-30),
    "time limit, hours": ("time_hours", "train_seconds", 1 / 3600),
    "cost limit, USD": ("cost_usd", "cost_usd", 1.0),
}
_VALUES = 24  # of one limit
_NOTE = (
    "Colour: the method that would be chosen. Height: how sure that choice would be, when this limit alone holds. "
    "Expected shortfall: how far a method's score is expected to lie below the best of those that meet the limits. "
    "Within: probability that it falls short by no more than the tolerance. The same for several limits at once: "
    "python -m bench report recommend FOLDER memory_gib=24 time_hours=2 mergeable=yes"
)


def section(group: Group) -> Section | None:
    """None when fewer than two arms can be compared."""
    decision = decide(group)
    if len(decision.arms) < 2 or decision.arm is None:
        return None
    metric = metric_name(group)
    answers = _answers(group, metric, decision.tolerance)
    arms = list(decision.arms["arm"])
    says = "The chosen method and how sure it is, against each limit and the tolerance."
    chart = Chart("what_would_change", sureness_chart(answers, arms), says, answers)
    return Section(
        "What would change the answer", chart=chart, table=_table(decision.arms, decision.tolerance), note=_NOTE
    )


def _table(arms: pd.DataFrame, tolerance: float) -> Table:
    headers = ["method", "expected shortfall", f"within {number(tolerance)} of the best", "best", "why not"]
    rows = [
        [arm["arm"], number(arm["expected_shortfall"]), percent(arm["within"]), percent(arm["probability_best"]),
         "chosen" if arm["chosen"] else arm["why_not"] or ""]
        for arm in arms.to_dict("records")
    ]  # fmt: skip
    chosen = frozenset(place for place, yes in enumerate(arms["chosen"]) if yes)
    return Table(headers, rows, bold=chosen)


def _answers(group: Group, metric: str, tolerance: float) -> pd.DataFrame:
    """Columns of `sureness_chart`."""
    largest = max(4 * tolerance, float(decide(group).arms["expected_shortfall"].max()) * 1.2)
    edges = np.linspace(0, largest, _VALUES + 1)
    name = f"tolerance, {metric}"
    rows = [
        _row(name, start, end, decide(group, tolerance=max(float(start + end) / 2, 1e-9)), tolerance)
        for start, end in pairwise(edges)
    ]
    for name, (limit, column, factor) in _LIMITS.items():
        values = group.arms[column].dropna().astype(float) * factor if column in group.arms else pd.Series(dtype=float)
        if len(values) < 2:
            continue
        edges = np.linspace(values.min() * 0.9, values.max() * 1.1, _VALUES + 1)
        for start, end in pairwise(edges):
            found = decide(group, limits=Limits(**{limit: float(start + end) / 2}))
            rows.append(_row(name, start, end, found, None))
    return pd.DataFrame(rows)


def _row(limit: str, start: float, end: float, decision: Any, now: float | None) -> dict[str, Any]:
    sureness = decision.sureness if known(decision.sureness) else 1.0
    arm = decision.arm or "none"
    return {"limit": limit, "start": start, "end": end, "arm": arm, "sureness": sureness, "now": now}
