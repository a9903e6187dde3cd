"""Quality against what it costs, the cost to be chosen: memory, time or money.

>>> quality_chart(points, "rougeL", ["peak training memory, GiB", "training time, min"])
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from bench.report.charts.look import HEIGHT, INK, Drawing, choice, chosen_title, colours, shapes, tooltips


def quality_chart(points: pd.DataFrame, score: str, costs: Sequence[str]) -> Drawing:
    """One point an arm with its interval; rings: the Pareto set; dashed across: untrained arms, which cost nothing.

    Args:
        points: arm, score, low, high (its 95% interval), seeds, Pareto set ("yes" or "no"), trained (bool), and the
            columns `costs`, of which unknown values are NaN.
    """
    arms, title = list(points["arm"]), f"{score}, 95% interval"
    against, colour = choice("against", "against", costs), colours(arms, points)
    scores = {"arm": "", "score": ".3f", "low": ".3f", "high": ".3f", "seeds": "d"}
    told = tooltips(scores | {"Pareto set": ""} | dict.fromkeys(costs, ".2f"))
    x = alt.X("x:Q", title=None, scale=alt.Scale(zero=True, nice=True))
    y, low = (alt.Y(f"{name}:Q", title=title, scale=alt.Scale(zero=False)) for name in ("score", "low"))
    trained = points[points["trained"]]
    rings = alt.Chart(trained[trained["Pareto set"] == "yes"]).transform_calculate(x="datum[against]")
    dots = alt.Chart(trained).transform_calculate(x="datum[against]")
    layers = [
        dots.mark_rule(strokeWidth=2).encode(x=x, y=low, y2="high:Q", color=colour),
        dots.mark_point(size=110, filled=True, opacity=1).encode(
            x=x, y=y, color=colour, shape=shapes(arms, points), tooltip=told
        ),
        rings.mark_point(shape="circle", size=420, color=INK).encode(x=x, y=y),
    ]
    if not points["trained"].all():
        across = alt.Chart(points[~points["trained"]]).encode(color=colour, tooltip=tooltips(scores))
        layers.append(across.mark_rect(opacity=0.12).encode(y=low, y2="high:Q"))
        layers.append(across.mark_rule(strokeDash=[6, 4], strokeWidth=2).encode(y=y))
    return alt.layer(*layers).add_params(against).properties(height=HEIGHT, title=chosen_title(against))
