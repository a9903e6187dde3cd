"""Forgetting: what each method lost, or gained, on the regression suite against the untouched base.

>>> section(group).chart.name
'regression'
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bench.report.charts import Chart, regression_chart
from bench.report.section import Section, Table, crossed, difference, interval
from bench.stats.compare import compare
from bench.stats.frames import Group
from bench.stats.measures import SUITE_MEAN

_NOTE = (
    "Change against the untouched base on the same items, in points (0 to 100), with its 95% interval. Orange: lost; "
    "blue: gained; bold: shown to be a change (Holm: over all tasks and methods; for the mean, over the methods). "
    "All tasks: the mean of the accuracy-like tasks, each counted alike."
)


def section(group: Group) -> Section | None:
    """None without a suite, or without a base to compare with."""
    found = compare(group).comparisons
    controls = group.arms.loc[group.arms["control"].astype(bool), "arm"]
    found = found[(found["kind"] == "regression") & ~found["arm"].isin(controls)] if len(found) else found
    if found.empty:
        return None
    rows = found[found["baseline"] == found["baseline"].iloc[0]].to_dict("records")
    rising = [row for row in rows if row["higher_is_better"]]
    parts = [part for part in (_language(rows), _divergence(group)) if part]
    if not rising:
        return Section("Forgetting", parts=parts)
    data = pd.DataFrame([
        {"task": row["measure"], "arm": row["arm"], "change": 100 * row["difference"], "low": 100 * row["low"],
         "high": 100 * row["high"], "verdict": row["verdict"], "items": row["examples"]}
        for row in rising
    ]).replace([np.inf, -np.inf], np.nan)  # fmt: skip
    says = f"Change of each regression task against {rising[0]['baseline']}."
    means = [row for row in rising if row["measure"] == SUITE_MEAN] or rising
    texts = [[row["arm"], _difference(row, 1, 100), row["verdict"]] for row in means]
    table = Table(["method", f"{means[0]['measure']}: change, points [95%]", "verdict"], texts)
    chart = Chart("regression", regression_chart(data), says, data)
    return Section("Forgetting", chart=chart, table=table, note=_NOTE, parts=parts)


def _difference(row: dict[Any, Any], digits: int = 3, scale: float = 1.0) -> str:
    return difference(row["difference"], row["low"], row["high"], digits, scale)


def _language(rows: list[dict[Any, Any]]) -> Section | None:
    """Tasks of which a lower value is better: bits per byte of general text."""
    falling = [row for row in rows if not row["higher_is_better"]]
    if not falling:
        return None
    cells = {
        (f"{row['measure']}, {row['unit']}", row["arm"]): f"{_difference(row)} {row['verdict']}" for row in falling
    }
    note = "Change against the base with its 95% interval; above 0 is worse."
    return Section("General text", table=crossed("text", cells), note=note, fold=True)


def _divergence(group: Group) -> Section | None:
    """How far the predictions have moved from the base's."""
    found = compare(group).estimates
    found = found[found["kind"] == "divergence"] if len(found) else found
    if found.empty:
        return None
    cells = {(row["arm"], f"{row['measure']}, nats/token"): interval(row["mean"], row["low"], row["high"])
             for row in found.to_dict("records")}  # fmt: skip
    note = (
        "KL(base || model) a token: how far the predictions have moved from the untouched base's, for better or worse. "
        "A lower bound: the base's 512 likeliest tokens one by one, the others as one. 0: nothing has changed."
    )
    return Section("Distance from the base's predictions", table=crossed("method", cells), note=note, fold=True)
