"""Forgetting: what each method lost, or gained, on the regression suite against the untouched base.

>>> section(group).chart.name
'regression'
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.report.next.charts import Chart, regression_chart
from bench.report.next.section import Section, Table, interval, known
from bench.report.next.sections.quality import difference
from bench.stats.compare import Comparison, compare
from bench.stats.frames import Group
from bench.stats.measures import SUITE_MEAN

_NOTE = (
    "Change against the untouched base on the same items, in points (0 to 100), with its 95% interval. Orange: lost; "
    "blue: gained; bold: shown to be a change (Holm). All tasks: the mean of the accuracy-like tasks, each counted alike."
)


def section(group: Group) -> Section | None:
    """None without a suite, or without a base to compare with."""
    found = [c for c in compare(group.without_controls()).comparisons if c.measure.kind == "regression"]
    base = next((c.baseline for c in found), None)
    rising = [c for c in found if c.measure.higher_is_better and c.baseline == base]
    if not rising:
        return None
    data = pd.DataFrame([_row(c) for c in rising])
    chart = Chart("regression", regression_chart(data), f"Change of each regression task against {base}.", data)
    means = [c for c in rising if c.measure.name == SUITE_MEAN] or rising
    rows = [[c.arm, difference(c, 100, 1), c.verdict] for c in means]
    table = Table(["method", f"{means[0].measure.name}: change, points [95%]", "verdict"], rows)
    falling = [c for c in found if not c.measure.higher_is_better and c.baseline == base]
    parts = [part for part in (_language(falling), _divergence(group)) if part]
    return Section("Forgetting", chart=chart, table=table, note=_NOTE, parts=parts)


def _row(c: Comparison) -> dict[str, object]:
    low, high = (100 * end if known(end) else None for end in (c.low, c.high))
    return {"task": c.measure.name, "arm": c.arm, "change": 100 * c.difference, "low": low, "high": high,
            "verdict": c.verdict, "items": c.examples}  # fmt: skip


def _language(falling: Sequence[Comparison]) -> Section | None:
    """Tasks of which a lower value is better: bits per byte of general text."""
    if not falling:
        return None
    arms = list(dict.fromkeys(c.arm for c in falling))
    cells = {(c.measure, c.arm): f"{difference(c)}" for c in falling}
    rows = [[f"{m.name}, {m.unit}", *(cells.get((m, arm), "-") for arm in arms)]
            for m in dict.fromkeys(c.measure for c in falling)]  # fmt: skip
    note = "Change against the base with its 95% interval; above 0 is worse."
    return Section("General text", table=Table(["text", *arms], rows), note=note, fold=True)


def _divergence(group: Group) -> Section | None:
    """How far the predictions have moved from the base's."""
    found = [e for e in compare(group).estimates if e.measure.kind == "divergence"]
    if not found:
        return None
    names = list(dict.fromkeys(e.measure.name for e in found))
    cells = {(e.arm, e.measure.name): interval(e.mean, e.low, e.high) for e in found}
    rows = [[arm, *(cells.get((arm, name), "-") for name in names)] for arm in dict.fromkeys(e.arm for e in found)]
    note = (
        "KL(base || model) a token: how far the predictions have moved from the untouched base's, for better or worse. "
        "A lower bound: the base's 512 likeliest tokens one by one, the others as one. 0: nothing has changed."
    )
    table = Table(["method", *(f"{name}, nats/token" for name in names)], rows)
    return Section("Distance from the base's predictions", table=table, note=note, fold=True)
