"""Forgetting: what each method lost, or gained, on the regression suite against the untouched base.

>>> section(group).chart.name
'regression'
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from bench.report.charts import Chart, regression_chart
from bench.report.section import Column, Section, crossed, difference, interval, table_of
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
    rows = found[found["baseline"] == found["baseline"].iloc[0]]
    higher = rows["higher_is_better"].astype(bool)
    parts = [part for part in (_language(rows[~higher]), _divergence(group)) if part]
    if not higher.any():
        return Section("Forgetting", _bounded(group), parts=parts)
    points = rows[higher].assign(change=rows["difference"] * 100, low=rows["low"] * 100, high=rows["high"] * 100)
    data = points.rename(columns={"measure": "task", "examples": "items"}).reset_index(drop=True)
    data = data[["task", "arm", "change", "low", "high", "verdict", "items"]].replace([np.inf, -np.inf], np.nan)
    says = f"Change of each regression task against {rows['baseline'].iloc[0]}."
    means = points[points["measure"] == SUITE_MEAN] if SUITE_MEAN in set(points["measure"]) else points
    columns: list[Column] = [
        ("method", str, "arm"),
        (f"{means['measure'].iloc[0]}: change, points [95%]", partial(difference, digits=1), "change", "low", "high"),
        ("verdict", str, "verdict"),
    ]
    chart = Chart("regression", regression_chart(data), says, data)
    return Section("Forgetting", _bounded(group), table_of(means, columns), chart, _NOTE, parts=parts)


def _bounded(group: Group) -> str:
    """How many items of how many a bounded suite took, by task from the fewest to the most; empty: all of them."""
    tasks = next((record.regression.tasks for record in group.records if record.regression), [])
    counts = [(task.items, there) for task in tasks if (there := task.items_available) is not None]
    if all(items == there for items, there in counts):
        return ""
    taken, of = (" to ".join(f"{n:,}" for n in sorted({min(part), max(part)})) for part in zip(*counts, strict=True))
    return f"{taken} of {of} items of each task (bounded by suite.items_per_task)."


def _language(falling: pd.DataFrame) -> Section | None:
    """Tasks of which a lower value is better: bits per byte of general text."""
    if falling.empty:
        return None
    cells = {
        (
            f"{row['measure']}, {row['unit']}",
            row["arm"],
        ): f"{difference(row['difference'], row['low'], row['high'])} {row['verdict']}"
        for row in falling.to_dict("records")
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
