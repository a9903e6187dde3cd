"""Quality against what it costs, the cost to be chosen: memory, time or money.

>>> quality_chart(points, "rougeL", ["peak training memory, GiB", "training time, min"])
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from bench.report.charts.look import HEIGHT, INK, choice, chosen_title, colours, shapes, tooltips


def quality_chart(points: pd.DataFrame, score: str, costs: Sequence[str]) -> alt.LayerChart:
    """One point an arm with its interval; rings: the Pareto set; dashed across: untrained arms, which cost nothing.

    Args:
        points: arm, score, low, high (its 95% interval), seeds, Pareto set ("yes" or "no"), trained (bool), and the
            columns `costs`, of which unknown values are NaN.
    """
    arms = list(points["arm"])
    against = choice("against", "against", costs)
    told = tooltips({"arm": "", "score": ".3f", "low": ".3f", "high": ".3f", "seeds": "d", "Pareto set": ""})
    told += tooltips(dict.fromkeys(costs, ".2f"))
    y = alt.Y("score:Q", title=f"{score}, 95% interval", scale=alt.Scale(zero=False))
    low = alt.Y("low:Q", title=None)
    every = alt.Chart(points)
    trained = every.transform_filter("datum.trained").transform_calculate(x="datum[against]")
    x = alt.X("x:Q", title=None, scale=alt.Scale(zero=True, nice=True))
    untrained = every.transform_filter("!datum.trained").encode(color=colours(arms), tooltip=told)
    rings = trained.transform_filter("datum['Pareto set'] == 'yes'")
    return (
        alt.layer(
            untrained.mark_rect(opacity=0.12).encode(y=y, y2="high_drawn:Q").transform_calculate(
                score="datum.low", high_drawn="datum.high"
            ),
            untrained.mark_rule(strokeDash=[6, 4], strokeWidth=2).encode(y=y),
            trained.mark_rule(strokeWidth=2).encode(x=x, y=low, y2="high:Q", color=colours(arms)),
            rings.mark_point(shape="circle", size=420, color=INK, opacity=0.9).encode(x=x, y=y),
            trained.mark_point(size=110, filled=True, opacity=1).encode(
                x=x, y=y, color=colours(arms), shape=shapes(arms), tooltip=told
            ),
        )
        .add_params(against)
        .properties(height=HEIGHT, title=chosen_title(against))
    )  # fmt: skip
