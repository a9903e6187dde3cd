"""Quality: paired differences between the methods with their intervals, and every metric.

>>> section(group).table.headers
['method', 'against', 'difference [95%]', 'verdict', 'examples to settle it']
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from bench.report.charts import Chart, differences_chart
from bench.report.section import Column, Section, count, crossed, difference, number, table_of
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
    primary = found[found["family"] == "primary score"] if "primary score" in set(found["family"]) else found
    columns: list[Column] = [
        ("method", str, "arm"),
        ("against", str, "baseline"),
        ("difference [95%]", difference, "difference", "low", "high"),
        ("verdict", str, "verdict"),
        ("examples to settle", count, "examples_to_decide"),
    ]
    table = table_of(primary, columns, text_columns=2)
    parts = [_every_metric(found), _scores(group)]
    return Section("Quality", chart=_chart(group, primary), table=table, note=_NOTE, parts=parts)


def _chart(group: Group, primary: pd.DataFrame) -> Chart:
    """Differences between trained arms; those to the untrained base are too large to share their axis."""
    untrained = list(group.arms.loc[group.arms["untrained"].astype(bool), "arm"])
    trained = primary[~primary["arm"].isin(untrained) & ~primary["baseline"].isin(untrained)]
    rows = trained if len(trained) else primary
    ends = {end: rows[end].where(np.isfinite(rows[end]), rows["difference"]) for end in ("low", "high")}
    data = rows.assign(pair=rows["arm"] + " - " + rows["baseline"], tolerance=rows["margin"], **ends)
    data = data[["pair", "difference", "low", "high", "verdict", "tolerance"]].reset_index(drop=True)
    name = primary["measure"].iloc[0]
    return Chart("differences", differences_chart(data, name), f"Differences in {name} between methods.", data)


def _every_metric(found: pd.DataFrame) -> Section:
    """One row a metric, one column a pair of arms; a star where a difference is shown."""
    cells = {}
    for row in found.to_dict("records"):
        name = f"{row['measure']} loss, {row['unit']}" if row["kind"] == "loss" else row["measure"]
        shown = "*" * (row["verdict"] in ("better", "worse"))
        cells[name, f"{row['arm']} - {row['baseline']}"] = number(row["difference"], sign=True) + shown
    note = "Differences; *: shown to be better or worse. Intervals: tables/comparisons.csv. A lower loss is better."
    return Section("Every metric", table=crossed("metric", cells), note=note, fold=True)


def _scores(group: Group) -> Section:
    """Means of every arm."""
    measured = [str(name) for name in group.arms if str(name).startswith("score_")]
    measured += ["test_loss", "heldout_loss_before", "heldout_loss_after"]
    columns: list[Column] = [("method", str, "arm"), ("seeds", str, "seeds")]
    columns += [(name.removeprefix("score_").replace("_", " "), number, name) for name in measured]
    columns += [
        ("prompt tokens an answer", count, "prompt_tokens_per_answer"),
        ("ms an answer", partial(number, digits=1, scale=1000), "answer_seconds"),
    ]
    note = (
        "Means over seeds. Losses in nats per token: test split; validation split before and after training. An answer "
        "costs its share of a batch of test prompts, with the retrieval of what is shown in them."
    )
    return Section("Scores and losses", table=table_of(group.arms, columns), note=note, fold=True)
