"""Sweeps over time.

>>> history_chart(points, ["base", "full", "lora"])
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from bench.report.charts.look import HEIGHT, INK, Drawing, choice, colours, faded, highlight, shapes, tooltips

QUANTITIES = ("score", "peak training memory, GiB", "tokens/s")


def history_chart(points: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """A line an arm through its sweeps, one of `QUANTITIES` at a time.

    Args:
        points: started (ISO 8601), sweep, arm, commit, device, and the columns `QUANTITIES`, of which unknown is None.
    """
    show, shown = choice("show", "show", QUANTITIES), highlight()
    every = alt.Chart(points).transform_calculate(y="datum[show]").transform_filter("isValid(datum.y)")
    x = alt.X("started:T", title="started, UTC", scale=alt.Scale(type="utc", padding=20))
    y = alt.Y("y:Q", title=None, scale=alt.Scale(zero=False))
    told = tooltips({"arm": "", "sweep": "", "started": "", "commit": "", "device": ""})
    told += tooltips(dict(zip(QUANTITIES, (".3f", ".2f", ".0f"), strict=True)))
    colour = colours(arms, points)
    return (
        alt.layer(
            every.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, opacity=faded(shown)),
            every.mark_point(size=80, filled=True).encode(
                x=x, y=y, color=colour, shape=shapes(arms, points), opacity=faded(shown), tooltip=told
            ),
        )
        .add_params(show, shown)
        .properties(height=HEIGHT, title=alt.Title(text=alt.ExprRef("show"), orient="top", anchor="start", color=INK))
    )
