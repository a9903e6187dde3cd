"""How the seconds of the optimizer steps are distributed.

>>> step_time_chart(seconds, ["full", "lora"])
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from bench.report.charts.look import Drawing, colours, tooltips


def step_time_chart(seconds: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """A box an arm (quartiles, median; whiskers from the 10th to the 90th percentile) over a tick a step.

    Args:
        seconds: one row a tick: arm, seconds; and on the first row of each arm p10, p25, median, p75, p90, p99,
            timed steps (elsewhere NaN).
    """
    every, title = alt.Chart(seconds), "seconds an optimizer step"
    boxes = every.transform_filter("isValid(datum.median)")
    y, colour = alt.Y("arm:N", sort=list(arms), title=None), colours(arms, seconds).legend(None)
    told = tooltips({"arm": ""} | dict.fromkeys(("p10", "p25", "median", "p75", "p90", "p99"), ".4~g"))
    told += tooltips({"timed steps": "d"})
    x = alt.X("seconds:Q", title=title, scale=alt.Scale(zero=True))
    return alt.layer(
        every.mark_tick(thickness=1, opacity=0.35, size=30).encode(x=x, y=y, color=colour),
        boxes.mark_rule(strokeWidth=2).encode(x=alt.X("p10:Q", title=title), x2="p90:Q", y=y, color=colour),
        boxes.mark_bar(size=14, opacity=0.75).encode(
            x=alt.X("p25:Q", title=title), x2="p75:Q", y=y, color=colour, tooltip=told
        ),
        boxes.mark_point(shape="diamond", size=90, filled=True, opacity=1, stroke="white", strokeWidth=1).encode(
            x=alt.X("median:Q", title=title), y=y, color=colour, tooltip=told
        ),
    ).properties(height=44 * seconds["arm"].nunique())
