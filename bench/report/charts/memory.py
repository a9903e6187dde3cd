"""Training memory: what the peak is made of, beside the planner's estimate, and how it grew over training.

>>> memory_chart(parts)
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from bench.report.charts.look import HEIGHT, INK, Drawing, colours, faded, highlight, legend, shapes, tooltips
from bench.report.memory_plots import PARTS


def memory_chart(parts: pd.DataFrame) -> Drawing:
    """Stacked bars, one an arm; a paler one below it where there is an estimate.

    Args:
        parts: arm, source ("measured" or "estimated"), part (a label of `memory_plots.PARTS`), GiB, total GiB.
    """
    there = set(parts["part"])
    names = [label for _, label, _ in PARTS if label in there]
    dyes = [colour for _, label, colour in PARTS if label in names]
    arms, sources = list(dict.fromkeys(parts["arm"])), list(dict.fromkeys(parts["source"]))
    scale = alt.Scale(domain=names, range=dyes)
    every = alt.Chart(parts.assign(order=parts["part"].map(names.index)))
    y = alt.Y("arm:N", sort=arms, title=None)
    offset = alt.YOffset("source:N", sort=sources)
    bars = every.mark_bar(stroke=INK, strokeWidth=0.4).encode(
        x=alt.X("GiB:Q", stack="zero", title="peak training memory, GiB"),
        y=y,
        yOffset=offset,
        color=alt.Color("part:N", scale=scale, legend=legend(names)),
        order="order:O",
        opacity=alt.when(alt.datum.source == "measured").then(alt.value(1.0)).otherwise(alt.value(0.5)),
        tooltip=tooltips({"arm": "", "source": "", "part": "", "GiB": ".2f", "total GiB": ".2f"}),
    )
    totals = (
        every.transform_filter("datum.order == 0")
        .mark_text(align="left", dx=4)
        .encode(x=alt.X("total GiB:Q", title="peak training memory, GiB"), y=y, yOffset=offset, text="text:N")
        .transform_calculate(text="format(datum['total GiB'], '.2f') + (datum.source == 'measured' ? '' : ' est.')")
    )
    return alt.layer(bars, totals).properties(height=52 * len(arms))


def growth_chart(growth: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """Memory held after each optimizer step (thin) and the highest so far (bold), mean and range of the seeds.

    Args:
        growth: arm, step, held GiB, highest GiB, low, high (of the highest, over seeds), peak ("yes" where the
            highest of all arose).
    """
    shown, colour, title = highlight(), colours(arms, growth), "training memory, GiB"
    x = alt.X("step:Q", title="optimizer step", scale=alt.Scale(zero=False, nice=False))
    every = alt.Chart(growth)
    told = tooltips({"arm": "", "step": ".4~g", "held GiB": ".2f", "highest GiB": ".2f"})
    bold = alt.Y("highest GiB:Q", title=title, scale=alt.Scale(zero=True))
    return (
        alt.layer(
            every.mark_area().encode(
                x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=colour, opacity=faded(shown, 0.15)
            ),
            every.mark_line(strokeWidth=1).encode(
                x=x, y=alt.Y("held GiB:Q", title=title), color=colour, opacity=faded(shown, 0.6)
            ),
            every.mark_line(strokeWidth=2.6).encode(x=x, y=bold, color=colour, opacity=faded(shown)),
            every.transform_filter("datum.peak == 'yes'")
            .mark_point(size=90, filled=True)
            .encode(x=x, y=bold, color=colour, shape=shapes(arms, growth), opacity=faded(shown)),
            every.mark_point(size=60, opacity=0).encode(x=x, y=bold, tooltip=told),
        )
        .add_params(shown)
        .properties(height=HEIGHT)
    )
