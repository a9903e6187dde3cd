"""Quality: paired differences between the methods with their intervals, and every metric.

>>> section(group).table.headers
['method', 'against', 'difference [95%]', 'verdict', 'examples to settle it']
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.report.next.charts import Chart, differences_chart
from bench.report.next.section import Section, Table, interval, known, number
from bench.report.next.sections.answer import metric_name
from bench.stats.compare import Comparison, compare
from bench.stats.frames import Group

_NOTE = (
    "Difference: method - against, paired by test example and by seed. The band in the chart: differences that are as "
    "good as equal. Better, worse: shown by a test at 5%, adjusted for the number of comparisons of a kind (Holm). "
    "Equivalent: the 90% interval lies within the band. Not settled: neither; about so many test examples would show the "
    "difference seen with 80% power."
)


def section(group: Group) -> Section | None:
    """None when no two arms could be compared."""
    found = [c for c in compare(group).comparisons if c.measure.kind in ("score", "loss")]
    primary = [c for c in found if c.measure.kind == "score" and c.measure.name == metric_name(group)] or found
    if not found:
        return None
    rows = [[c.arm, c.baseline, difference(c), c.verdict, number(c.examples_to_decide, 0)] for c in primary]
    headers = ["method", "against", "difference [95%]", "verdict", "examples to settle it"]
    parts = [_every_metric(found), _scores(group)]
    return Section(
        "Quality", chart=_chart(group, primary), table=Table(headers, rows, text_columns=2), note=_NOTE, parts=parts
    )


def difference(c: Comparison, scale: float = 1.0, digits: int = 3) -> str:
    """A difference with its interval."""
    return interval(c.difference, c.low, c.high, digits, scale, sign=True)


def _chart(group: Group, primary: Sequence[Comparison]) -> Chart:
    """Differences between trained arms; those to the untrained base are too large to share their axis."""
    untrained = set(group.arms.loc[group.arms["untrained"].astype(bool), "arm"])
    shown = [c for c in primary if not {c.arm, c.baseline} & untrained] or primary
    rows = [
        {"pair": f"{c.arm} - {c.baseline}", "difference": c.difference, "low": c.low if known(c.low) else c.difference,
         "high": c.high if known(c.high) else c.difference, "verdict": c.verdict, "tolerance": c.margin}
        for c in shown
    ]  # fmt: skip
    data = pd.DataFrame(rows)
    name = primary[0].measure.name
    return Chart("differences", differences_chart(data, name), f"Differences in {name} between methods.", data)


def _every_metric(found: Sequence[Comparison]) -> Section:
    """One row a metric, one column a pair of arms; a star where the difference is shown."""
    pairs = list(dict.fromkeys((c.arm, c.baseline) for c in found))
    cells = {(c.measure, c.arm, c.baseline): c for c in found}
    rows = []
    for measure in dict.fromkeys(c.measure for c in found):
        compared = [cells.get((measure, *pair)) for pair in pairs]
        star = [c is not None and c.verdict in ("better", "worse") for c in compared]
        texts = [number(c.difference, sign=True) if c else "-" for c in compared]
        unit = "" if measure.unit == "score" else f", {measure.unit}"
        name = f"{measure.name} {measure.kind}" if measure.kind == "loss" else measure.name
        rows.append([f"{name}{unit}", *(f"{text}{'*' * shown}" for text, shown in zip(texts, star, strict=True))])
    note = (
        "Differences; *: shown to be better or worse. Intervals are in tables/comparisons.csv. A lower loss is better."
    )
    headers = ["metric", *(f"{arm} - {baseline}" for arm, baseline in pairs)]
    return Section("Every metric", table=Table(headers, rows), note=note, fold=True)


def _scores(group: Group) -> Section:
    """Means of every arm."""
    names = [str(name) for name in group.arms if str(name).startswith("score_")]
    columns = [*names, "test_loss", "heldout_loss_before", "heldout_loss_after"]
    shown = [name for name in columns if name in group.arms and group.arms[name].notna().any()]
    rows = [[str(arm["arm"]), str(arm["seeds"]), *(number(arm[name]) for name in shown)]
            for arm in group.arms.to_dict("records")]  # fmt: skip
    headers = ["method", "seeds", *(name.removeprefix("score_").replace("_", " ") for name in shown)]
    note = "Means over seeds. Losses in nats per token: test split; validation split before and after training."
    return Section("Scores and losses", table=Table(headers, rows), note=note, fold=True)
