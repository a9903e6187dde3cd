"""Loss by optimizer step, token or minute: held-out bold, training faint, seeds as bands.

>>> loss_chart(curves, targets)
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from bench.report.charts.look import (
    HEIGHT,
    INK,
    Drawing,
    choice,
    chosen_title,
    colours,
    faded,
    highlight,
    shapes,
    tooltips,
)

AXES = ("optimizer step", "thousand tokens of training", "minutes of training")
_TITLE = "loss, nats per token"


def loss_chart(curves: pd.DataFrame, targets: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """Lines with bands from the lowest to the highest seed.

    Args:
        curves: arm, kind ("held-out" or "training"), loss, low, high (nats per token; over seeds), seeds, and `AXES`.
        targets: arm, loss and `AXES`: where an arm's held-out loss first reached the target, of which each row holds
            the loss; may be empty.
    """
    by, shown = choice("by", "by", AXES), highlight()
    colour, shape = colours(arms, curves), shapes(arms, curves)
    x = alt.X("x:Q", title=None, scale=alt.Scale(zero=False, nice=False))
    y, low = (alt.Y(f"{name}:Q", title=_TITLE, scale=alt.Scale(zero=False)) for name in ("loss", "low"))
    told = tooltips({"arm": "", "kind": "", "loss": ".3f", "low": ".3f", "high": ".3f", "seeds": "d"})
    told += tooltips({AXES[0]: ".4~g", AXES[1]: ".1f", AXES[2]: ".2f"})
    layers = []
    for kind, band, line, width in (("training", 0.08, 0.55, 1.0), ("held-out", 0.18, 1.0, 2.6)):
        rows = curves[curves["kind"] == kind]
        every = alt.Chart(rows).transform_calculate(x="datum[by]").encode(x=x)
        points = every.mark_point(size=60, filled=True)
        if kind == "training":  # thin lines are hard to hit: unseen points carry their numbers
            points = points.encode(y=y, tooltip=told, opacity=alt.value(0))
        else:
            points = points.encode(y=y, tooltip=told, color=colour, shape=shape, opacity=faded(shown))
        if len(rows):
            layers += [
                every.mark_area().encode(y=low, y2="high:Q", color=colour, opacity=faded(shown, band)),
                every.mark_line(strokeWidth=width).encode(y=y, color=colour, opacity=faded(shown, line)),
                points,
            ]
    if len(targets):
        goal = alt.Chart(targets)
        layers += [
            goal.mark_rule(strokeDash=[5, 4], color=INK, strokeWidth=1).encode(y=alt.Y("target:Q", title=_TITLE)),
            goal.transform_calculate(x="datum[by]")
            .mark_point(shape="circle", size=260, color=INK)
            .encode(x=x, y=y, opacity=faded(shown), tooltip=told[:1] + told[-3:]),
        ]
    return alt.layer(*layers).add_params(by, shown).properties(height=HEIGHT + 40, title=chosen_title(by))
