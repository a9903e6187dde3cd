"""What would change it: the chosen method and how sure it is, against each limit and the tolerance.

>>> section(group).title
'What would change it'
"""

from __future__ import annotations

import pandas as pd

from bench.report.charts import Chart, sureness_chart
from bench.report.section import Section, Table, number, percent
from bench.report.sections.answer import metric_name
from bench.stats.decide import decide, sureness_against
from bench.stats.frames import Group
from bench.stats.limits import Limits

_LIMITS = {  # of `stats.limits.Limits` -> as a reader sees it
    "quality_tolerance": "tolerance",
    "memory_gib": "memory limit, GiB",
    "time_hours": "time limit, hours",
    "cost_usd": "cost limit, USD",
    "forgetting_tolerance": "forgetting allowed, points",
}
_NOTE = (
    "Colour: the method that would be chosen. Height: how sure that choice would be, when this limit alone holds. "
    "Expected shortfall: how far a method's score is expected to lie below the best of those that meet the limits. "
    "Within: probability that it falls short by no more than the tolerance. Several limits at once: "
    "python -m bench report FOLDER memory_gib=24 time_hours=2 mergeable=yes"
)


def section(group: Group, limits: Limits | None = None) -> Section | None:
    """None when fewer than two arms can be compared."""
    decision = decide(group, limits)
    answers = _answers(group, decision.tolerance, limits)
    if len(decision.arms) < 2 or answers.empty:
        return None
    says = "The chosen method and how sure it is, against each limit and the tolerance."
    chart = Chart("what_would_change", sureness_chart(answers, list(decision.arms["arm"])), says, answers)
    table = _table(decision.arms, decision.tolerance)
    return Section("What would change it", chart=chart, table=table, note=_NOTE)


def _table(arms: pd.DataFrame, tolerance: float) -> Table:
    headers = ["method", "why", "expected shortfall", f"within {number(tolerance)} of the best", "the best"]
    rows = [
        [arm["arm"], "chosen" if arm["chosen"] else arm["why_not"], number(arm["expected_shortfall"]),
         percent(arm["within"]), percent(arm["probability_best"])]
        for arm in arms.to_dict("records")
    ]  # fmt: skip
    chosen = frozenset(place for place, yes in enumerate(arms["chosen"]) if yes)
    return Table(headers, rows, text_columns=2, bold=chosen)


def _answers(group: Group, tolerance: float, limits: Limits | None) -> pd.DataFrame:
    """Columns of `sureness_chart`: a value of a limit holds until the next."""
    frames = []
    for limit, name in _LIMITS.items():
        found = sureness_against(group, limit, limits=limits)
        if len(found) > 1:
            of_score = limit == "quality_tolerance"
            found = found.assign(limit=f"{name}, {metric_name(group)}" if of_score else name, start=found["value"])
            now = tolerance if of_score else getattr(limits, limit, None)
            found = found.assign(end=found["value"].shift(-1), now=now)
            frames.append(found.iloc[:-1])
    if not frames:
        return pd.DataFrame()
    answers = pd.concat(frames, ignore_index=True)
    answers["arm"] = answers["arm"].fillna("none")
    answers["sureness"] = answers["sureness"].fillna(1.0)
    return answers[["limit", "start", "end", "arm", "sureness", "now"]]
