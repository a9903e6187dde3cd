"""Held-out loss against the learning rate, as the search of `make tune` found it.

>>> rates_chart(trials, ["full", "lora"])
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from bench.report.charts.look import HEIGHT, INK, Drawing, colours, faded, highlight, shapes, tooltips


def rates_chart(trials: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """A line an arm through the trials that ended; crosses for the others; the chosen rate ringed.

    Args:
        trials: arm, learning rate, loss (where it is drawn), ended ("yes", or why not), chosen ("yes" or "no").
    """
    shown, colour, shape = highlight(), colours(arms, trials), shapes(arms, trials)
    ended = trials["ended"] == "yes"
    lines, crosses, rings = (
        alt.Chart(rows) for rows in (trials[ended], trials[~ended], trials[trials["chosen"] == "yes"])
    )
    x = alt.X("learning rate:Q", scale=alt.Scale(type="log", nice=False, padding=20), axis=alt.Axis(format=".0e"))
    y = alt.Y("loss:Q", title="held-out loss, nats per token", scale=alt.Scale(zero=False))
    told = tooltips({"arm": "", "learning rate": ".2~e", "loss": ".3f", "ended": "", "chosen": ""})
    look = {"x": x, "y": y, "opacity": faded(shown)}
    layers = [
        lines.mark_line(strokeWidth=2).encode(**look, color=colour),
        lines.mark_point(size=80, filled=True).encode(**look, color=colour, shape=shape, tooltip=told),
        rings.mark_point(shape="circle", size=420, color=INK).encode(**look),
    ]
    if not ended.all():
        layers.append(crosses.mark_point(shape="cross", angle=45, size=90).encode(**look, color=colour, tooltip=told))
    return alt.layer(*layers).add_params(shown).properties(height=HEIGHT)
