"""Learning and forgetting: each method's way through both, and what it forgot at equal learning.

>>> section(group).chart.name
'frontier'
"""

from __future__ import annotations

from bench.report.charts import Chart, frontier_chart
from bench.report.section import UNKNOWN, Column, Section, difference, number, table_of
from bench.stats.curves import NO_OVERLAP, SUITE, equal_learning, frontier_frame
from bench.stats.frames import Group

_NOTE = (
    "Learned: how far the loss of validation examples fell below the untouched base's. Forgotten: what the suite's "
    "mean lost, in points of 100, or KL(base || model) in nats a token, on general text or at the answers to the "
    "task's own prompts; against the base in 16 bit, on a smaller suite than above. Bands: 95% over items, at these "
    "seeds; brackets: over seeds and items. At equal learning: the mean over the range of learning that all runs of "
    "both methods reached by training, in a line between two points; above 0 the first method forgets more. A point "
    "that had learned less than one before it counts in the chart alone. The learning rate falls to 0 only at the end: "
    "a run stopped earlier is not one that was planned to be as short."
)


def section(group: Group) -> Section | None:
    """None where nothing was measured along training."""
    shown = frontier_frame(group)
    if shown.empty:
        return None
    in_points = shown["measure"].map({SUITE: 100.0}).fillna(1.0)
    shown = shown.assign(**{name: shown[name] * in_points for name in ("forgotten", "low", "high")})
    shown["measure"] = shown["measure"].replace(SUITE, f"{SUITE}, points")
    drawing = frontier_chart(shown, list(group.arms["arm"]))
    chart = Chart("frontier", drawing, "Forgetting of each method against its learning, along training.", shown)
    columns: list[Column] = [
        ("forgotten as", str, "measure"),
        ("methods", lambda arm, baseline: f"{arm} - {baseline}", "arm", "baseline"),
        ("verdict", str, "verdict"),
        ("difference at equal learning [95%]", _difference, "measure", "difference", "low", "high"),
        ("learned, nats/token", _range, "from", "to", "verdict"),
    ]
    found = equal_learning(group)
    table = table_of(found, columns, text_columns=3) if len(found) else None
    return Section("Learning and forgetting", chart=chart, table=table, note=_NOTE)


def _difference(measure: str, value: float, low: float, high: float) -> str:
    return difference(value, low, high, *((1, 100) if measure == SUITE else (3, 1)))


def _range(low: float, high: float, word: str) -> str:
    return UNKNOWN if word == NO_OVERLAP else f"{number(low, 2)} to {number(high, 2)}"
