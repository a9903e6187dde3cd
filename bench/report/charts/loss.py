"""Loss by optimizer step, token or minute: held-out bold, training faint, seeds as bands.

>>> loss_chart(curves, targets)
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from bench.report.charts.look import HEIGHT, INK, choice, chosen_title, colours, faded, highlight, shapes, tooltips

AXES = ("optimizer step", "thousand tokens of training", "minutes of training")


def loss_chart(curves: pd.DataFrame, targets: pd.DataFrame, arms: Sequence[str]) -> alt.LayerChart:
    """Lines with bands from the lowest to the highest seed.

    Args:
        curves: arm, kind ("held-out" or "training"), loss, low, high (nats per token; over seeds), seeds, and `AXES`.
        targets: arm, loss and `AXES`: where an arm's held-out loss first reached the target, of which each row holds
            the loss; may be empty.
    """
    by, shown = choice("by", "by", AXES), highlight()
    x = alt.X("x:Q", title=None, scale=alt.Scale(zero=False, nice=False))
    y = alt.Y("loss:Q", title="loss, nats per token", scale=alt.Scale(zero=False))
    low = alt.Y("low:Q", title=None)
    colour = colours(arms)
    told = tooltips({"arm": "", "kind": "", "loss": ".3f", "low": ".3f", "high": ".3f", "seeds": "d"})
    told += tooltips({AXES[0]: ".4~g", AXES[1]: ".1f", AXES[2]: ".2f"})
    every = alt.Chart(curves).transform_calculate(x="datum[by]")
    held, training = (every.transform_filter(alt.datum.kind == kind) for kind in ("held-out", "training"))
    layers = [
        training.mark_area().encode(x=x, y=low, y2="high:Q", color=colour, opacity=faded(shown, 0.08)),
        training.mark_line(strokeWidth=1).encode(x=x, y=y, color=colour, opacity=faded(shown, 0.55)),
        held.mark_area().encode(x=x, y=low, y2="high:Q", color=colour, opacity=faded(shown, 0.18)),
        held.mark_line(strokeWidth=2.6).encode(x=x, y=y, color=colour, opacity=faded(shown)),
        held.mark_point(size=60, filled=True).encode(
            x=x, y=y, color=colour, shape=shapes(arms), opacity=faded(shown), tooltip=told
        ),
        # Faint lines are hard to hit: unseen points carry their numbers.
        training.mark_point(size=60, opacity=0).encode(x=x, y=y, tooltip=told),
    ]
    if len(targets):
        goal = alt.Chart(targets)
        layers += [
            goal.mark_rule(strokeDash=[5, 4], color=INK, strokeWidth=1).encode(y=alt.Y("target:Q", title=None)),
            goal.transform_calculate(x="datum[by]")
            .mark_point(shape="circle", size=260, color=INK)
            .encode(x=x, y=y, opacity=faded(shown), tooltip=told[:1] + told[-3:]),
        ]
    return alt.layer(*layers).add_params(by, shown).properties(height=HEIGHT + 40, title=chosen_title(by))
