"""The first screen: what to use, how sure that is, three numbers a method, quality against cost; what would change it.

>>> section(group).headline.sentence
'Use lora.'
>>> change(group).title
'What would change it'
"""

from __future__ import annotations

import pandas as pd

from bench.report.charts import Chart, quality_chart, sureness_chart
from bench.report.section import Column, Headline, Section, gib, interval, known, minutes, number, percent, table_of
from bench.stats.decide import decide, sureness_against
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
_LIMITS = {  # of `stats.limits.Limits` -> as a reader sees it
    "quality_tolerance": "tolerance",
    "memory_gib": "memory limit, GiB",
    "time_hours": "time limit, hours",
    "cost_usd": "cost limit, USD",
    "forgetting_tolerance": "forgetting allowed, points",
}
_CHANGE_NOTE = (
    "Colour: the method that would be chosen. Height: how sure that choice would be, when this limit alone holds. "
    "Expected shortfall: how far a method's score is expected to lie below the best of those that meet the limits. "
    "Within: probability that it falls short by no more than the tolerance. Several limits at once: "
    "python -m bench report FOLDER memory_gib=24 time_hours=2 mergeable=yes"
)


def section(group: Group, limits: Limits | None = None) -> Section:
    """The answer under the limits. Without any score its sentence says so."""
    decision = decide(group, limits)
    metric = metric_name(group)
    untrained = dict(zip(group.arms["arm"], group.arms["untrained"].astype(bool), strict=True))
    arms = decision.arms.assign(trained=[not untrained[arm] for arm in decision.arms["arm"]])
    lost = f"If that is wrong, expect to lose about {number(decision.cost_if_wrong)} {metric}."
    asides = [lost] if known(decision.cost_if_wrong) else []
    asides += [*filter(None, [decision.surer]), *decision.caveats, *warnings(group)]
    unscored = {record.run_id: record.evaluate.unscored for record in group.records if record.evaluate}
    # these examples are left out of every arm's mean and comparison
    asides += [f"{name} failed in {run}: {text}." for run, of_run in unscored.items() for name, text in of_run.items()]
    headline = Headline(decision.sentence, decision.sureness, decision.reason, asides)
    columns: list[Column] = [
        ("method", str, "arm"),
        (metric, interval, "score", "low", "high"),
        ("peak memory, GiB", gib, "peak_memory_bytes"),
        ("training, min", minutes, "train_seconds"),
    ]
    table = table_of(arms, columns, bold="chosen")
    return Section("Answer", table=table, chart=_chart(arms, metric), note=_NOTE, headline=headline)


def metric_name(group: Group) -> str:
    """The task's first metric, by which methods are judged."""
    return next((name for r in group.records if r.evaluate for name in r.evaluate.scores), "score")


def _chart(arms: pd.DataFrame, metric: str) -> Chart | None:
    costs = {axis: arms[column] * scale for axis, (column, scale) in _COSTS.items()
             if column in arms and arms[column].notna().any()}  # fmt: skip
    points = arms[["arm", "score", "low", "high"]].assign(**costs, trained=arms["trained"])
    points = points.assign(chosen=arms["chosen"].map({True: "yes", False: "no"})).dropna(subset=["score"])
    if points.empty or not costs:
        return None
    says = f"{metric} of each method against its {next(iter(costs)).split(',')[0]}."
    return Chart("quality", quality_chart(points, metric, list(costs)), says, points)


def change(group: Group, limits: Limits | None = None) -> Section | None:
    """None when fewer than two arms can be compared."""
    decision = decide(group, limits)
    answers = _answers(group, decision.tolerance, limits)
    if len(decision.arms) < 2 or answers.empty:
        return None
    says = "The chosen method and how sure it is, against each limit and the tolerance."
    chart = Chart("what_would_change", sureness_chart(answers, list(decision.arms["arm"])), says, answers)
    columns: list[Column] = [
        ("method", str, "arm"),
        ("why", lambda text: text or "chosen", "why_not"),
        ("expected shortfall", number, "expected_shortfall"),
        (f"within {number(decision.tolerance)} of the best", percent, "within"),
        ("the best", percent, "probability_best"),
    ]
    table = table_of(decision.arms, columns, text_columns=2, bold="chosen")
    return Section("What would change it", chart=chart, table=table, note=_CHANGE_NOTE)


def _answers(group: Group, tolerance: float, limits: Limits | None) -> pd.DataFrame:
    """Columns of `sureness_chart`: a value of a limit holds until the next."""
    frames = []
    for limit, name in _LIMITS.items():
        found = sureness_against(group, limit, limits)
        now = getattr(limits, limit, None)
        if limit == "quality_tolerance":
            name, now = f"{name}, {metric_name(group)}", tolerance
        frames.append(found.assign(limit=name, start=found["value"], end=found["value"].shift(-1), now=now).iloc[:-1])
    answers = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    return answers.fillna({"arm": "none", "sureness": 1.0})[["limit", "start", "end", "arm", "sureness", "now"]]
