"""The first screen: what to use, how sure that is, three numbers a method, and quality against its cost.

>>> section(group).headline.sentence
'Use lora.'
"""

from __future__ import annotations

import pandas as pd

from bench.report.charts import Chart, quality_chart
from bench.report.section import Headline, Section, Table, gib, interval, joined, known, minutes, number
from bench.stats.decide import SURE, Decision, decide
from bench.stats.frames import Group
from bench.stats.limits import Limits
from bench.stats.rates import warnings

_COSTS = {  # axis -> (column of the arms frame, factor)
    "peak memory, GiB": ("peak_memory_bytes", 2**-30),
    "training time, min": ("train_seconds", 1 / 60),
    "cost, USD": ("cost_usd", 1.0),
}
_NOTE = (
    "Sure: the share of draws from the measured scores in which the method meets the limits and falls short of the "
    "best by no more than the tolerance; the mark on the bar is 95%. In brackets: the 95% interval over seeds and test "
    "examples. Peak memory: the most that one device must have while training. Time: all optimizer steps, without "
    "evaluation. Dashed in the chart: the untrained model, which costs no training; ringed: the answer."
)


def section(group: Group, limits: Limits | None = None) -> Section:
    """The answer under the limits. Without any score its sentence says so."""
    decision = decide(group, limits)
    metric = metric_name(group)
    untrained = dict(zip(group.arms["arm"], group.arms["untrained"].astype(bool), strict=True))
    arms = decision.arms.assign(trained=[not untrained[arm] for arm in decision.arms["arm"]])
    asides = [*_asides(decision, metric), *warnings(group), *_unscored(group)]
    headline = Headline(decision.sentence, decision.sureness, decision.reason, asides)
    return Section("Answer", table=_table(arms, metric), chart=_chart(arms, metric), note=_NOTE, headline=headline)


def metric_name(group: Group) -> str:
    """The task's first metric, by which methods are judged."""
    return next((name for r in group.records if r.evaluate for name in r.evaluate.scores), "score")


def _unscored(group: Group) -> list[str]:
    """Metrics that failed on examples; these examples are left out of every arm's mean and comparison."""
    found = {record.run_id: record.evaluate.unscored for record in group.records if record.evaluate}
    return [f"{name} failed in {run}: {text}." for run, failed in found.items() for name, text in failed.items()]


def _asides(decision: Decision, metric: str) -> list[str]:
    """What being wrong costs, what would make it surer, and what limits the answer."""
    asides = []
    if known(decision.cost_if_wrong):
        asides.append(f"If that is wrong, expect to lose about {number(decision.cost_if_wrong)} {metric}.")
    needs = decision.to_be_sure or {}
    ways = [f"{needs[what]:,.0f} {words}" for what, words in (("examples", "test examples"), ("seeds", "seeds"))
            if known(needs.get(what))]  # fmt: skip
    if ways:
        time = f" (about {number(needs['minutes'], 0)} minutes more)" if known(needs.get("minutes")) else ""
        asides.append(f"About {joined(ways)} in all{time} would make it 95% sure.")
    elif known(decision.sureness) and float(decision.sureness or 0) < SURE:
        asides.append(
            "No number of examples and seeds within reach would make it 95% sure: what was seen lies close to the "
            "tolerance."
        )
    return [*asides, *decision.caveats]


def _table(arms: pd.DataFrame, metric: str) -> Table:
    columns = [
        ("method", list(arms["arm"])),
        (metric, [interval(*values) for values in zip(arms["score"], arms["low"], arms["high"], strict=True)]),
        ("peak memory, GiB", [gib(size) for size in arms["peak_memory_bytes"]]),
        ("training, min", [minutes(seconds) for seconds in arms["train_seconds"]]),
    ]
    rows = list(zip(*(texts for _, texts in columns), strict=True))
    chosen = frozenset(place for place, yes in enumerate(arms["chosen"]) if yes)
    return Table([header for header, _ in columns], rows, bold=chosen)


def _chart(arms: pd.DataFrame, metric: str) -> Chart | None:
    costs = [axis for axis, (column, _) in _COSTS.items() if column in arms and arms[column].notna().any()]
    points = arms[["arm", "score", "low", "high"]].copy()
    for axis in costs:
        points[axis] = arms[_COSTS[axis][0]] * _COSTS[axis][1]
    points["trained"] = arms["trained"]
    points["chosen"] = ["yes" if chosen else "no" for chosen in arms["chosen"]]
    points = points.dropna(subset=["score"])
    if points.empty or not costs:
        return None
    says = f"{metric} of each method against its {costs[0].split(',')[0]}."
    return Chart("quality", quality_chart(points, metric, costs), says, points)
