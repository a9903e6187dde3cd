"""Quality: paired differences between the methods with their intervals, and every metric.

>>> section(group).table.headers
['method', 'against', 'difference [95%]', 'verdict', 'examples to settle it']
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.report.charts import Chart, differences_chart
from bench.report.section import Section, Table, crossed, interval, known, number
from bench.stats.compare import compare
from bench.stats.frames import Group

_NOTE = (
    "Difference: method - against, paired by test example and by seed. The band in the chart: differences that are as "
    "good as equal. Better, worse: shown by a test at 5%, adjusted for the number of comparisons of a kind (Holm). "
    "Equivalent: the 90% interval lies within the band. Equal: the same value on every example. Not settled: none of "
    "these; about so many test examples would settle with 80% power whether there is a difference, if it is what it "
    "seems; whether it is within the answer's tolerance is another question."
)


def section(group: Group) -> Section | None:
    """None when no two arms could be compared."""
    found = compare(group).comparisons
    found = found[found["kind"].isin(["score", "loss"])] if len(found) else found
    if found.empty:
        return None
    primary = found[found["family"] == "primary score"].to_dict("records") or found.to_dict("records")
    rows = [
        [row["arm"], row["baseline"], difference(row), row["verdict"], number(row["examples_to_decide"], 0)]
        for row in primary
    ]
    headers = ["method", "against", "difference [95%]", "verdict", "examples to settle"]
    table = Table(headers, rows, text_columns=2)
    parts = [_every_metric(found.to_dict("records")), _scores(group)]
    return Section("Quality", chart=_chart(group, primary), table=table, note=_NOTE, parts=parts)


def difference(row: dict[Any, Any], scale: float = 1.0, digits: int = 3) -> str:
    """A difference with its interval."""
    return interval(row["difference"], row["low"], row["high"], digits, scale, sign=True)


def _chart(group: Group, primary: list[dict[Any, Any]]) -> Chart:
    """Differences between trained arms; those to the untrained base are too large to share their axis."""
    untrained = set(group.arms.loc[group.arms["untrained"].astype(bool), "arm"])
    rows = [row for row in primary if not {row["arm"], row["baseline"]} & untrained] or primary
    data = pd.DataFrame([
        {"pair": f"{row['arm']} - {row['baseline']}", "difference": row["difference"],
         "low": row["low"] if known(row["low"]) else row["difference"],
         "high": row["high"] if known(row["high"]) else row["difference"],
         "verdict": row["verdict"], "tolerance": row["margin"]}
        for row in rows
    ])  # fmt: skip
    name = primary[0]["measure"]
    return Chart("differences", differences_chart(data, name), f"Differences in {name} between methods.", data)


def _every_metric(rows: list[dict[Any, Any]]) -> Section:
    """One row a metric, one column a pair of arms; a star where a difference is shown."""
    cells = {}
    for row in rows:
        name = f"{row['measure']} loss, {row['unit']}" if row["kind"] == "loss" else row["measure"]
        shown = "*" * (row["verdict"] in ("better", "worse"))
        cells[name, f"{row['arm']} - {row['baseline']}"] = number(row["difference"], sign=True) + shown
    note = "Differences; *: shown to be better or worse. Intervals: tables/comparisons.csv. A lower loss is better."
    return Section("Every metric", table=crossed("metric", cells), note=note, fold=True)


def _scores(group: Group) -> Section:
    """Means of every arm."""
    names = [str(name) for name in group.arms if str(name).startswith("score_")]
    columns = [*names, "test_loss", "heldout_loss_before", "heldout_loss_after"]
    shown = [name for name in columns if name in group.arms and group.arms[name].notna().any()]
    rows = [
        [str(arm["arm"]), str(arm["seeds"]), *(number(arm[name]) for name in shown), *_cost(arm)]
        for arm in group.arms.to_dict("records")
    ]
    headers = ["method", "seeds", *(name.removeprefix("score_").replace("_", " ") for name in shown)]
    headers += ["prompt tokens an answer", "ms an answer"]
    note = (
        "Means over seeds. Losses in nats per token: test split; validation split before and after training. An answer "
        "costs its share of a batch of test prompts, with the retrieval of what is shown in them."
    )
    return Section("Scores and losses", table=Table(headers, rows), note=note, fold=True)


def _cost(arm: dict[Any, Any]) -> list[str]:
    return [number(arm.get("prompt_tokens_per_answer"), 0), number(arm.get("answer_seconds"), 1, 1000)]
