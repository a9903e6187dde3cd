"""Serving: latency by form and batch, and many adapters on one base.

>>> latency_chart(latencies, ["base", "lora"])
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from bench.report.charts.look import (
    HEIGHT,
    ROW,
    Drawing,
    choice,
    chosen_title,
    colours,
    faded,
    highlight,
    shapes,
    tooltips,
)

TIMES = ("total, s", "first token, s")


def latency_chart(latencies: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """Medians with their intervals; the batch, the length of prompt and the time are chosen below the chart.

    Args:
        latencies: name ("lora: merged"), arm, form, requests ("batch 8, prompt 64"), and for each of `TIMES` the
            median under its name, low and high under "low NAME" and "high NAME".
    """
    names = list(dict.fromkeys(latencies["name"]))
    requests = choice("requests", "requests:", list(dict.fromkeys(latencies["requests"])))
    clock = choice("clock", "time:", TIMES)
    every = (
        alt.Chart(latencies)
        .transform_filter("datum.requests == requests")
        .transform_calculate(median="datum[clock]", low="datum['low ' + clock]", high="datum['high ' + clock]")
    )
    y, colour = alt.Y("name:N", sort=names, title=None), colours(arms, latencies)
    x = alt.X("median:Q", title=None, scale=alt.Scale(zero=True))
    told = tooltips({"name": "", "requests": "", "median": ".3f", "low": ".3f", "high": ".3f"})
    return (
        alt.layer(
            every.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=None), x2="high:Q", y=y, color=colour),
            every.mark_point(size=90, filled=True, opacity=1).encode(
                x=x, y=y, color=colour, shape=shapes(arms, latencies), tooltip=told
            ),
        )
        .add_params(requests, clock)
        .properties(height=ROW * len(names), title=chosen_title(clock))
    )  # fmt: skip


def adapters_chart(many: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """Tokens a second, or memory, against the number of adapters on one base.

    Args:
        many: arm, quantity ("generated tokens/s" or "memory, GiB"), way (how it is done), adapters, value, low, high.
    """
    quantity, shown = choice("quantity", "show", list(dict.fromkeys(many["quantity"]))), highlight()
    ways = list(dict.fromkeys(many["way"]))
    dashes = alt.StrokeDash(
        "way:N", scale=alt.Scale(domain=ways, range=[[1, 0], [6, 4], [2, 3], [8, 3, 2, 3], [1, 1]][: len(ways)]),
        legend=alt.Legend(columns=1, symbolStrokeColor="currentColor", orient="bottom"),
    )  # fmt: skip
    every = alt.Chart(many).transform_filter("datum.quantity == quantity")
    x = alt.X(
        "adapters:Q", title="adapters on one base", scale=alt.Scale(type="log", base=2), axis=alt.Axis(format="d")
    )
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=True))
    told = tooltips({"arm": "", "way": "", "adapters": "d", "value": ".4~g", "low": ".4~g", "high": ".4~g"})
    colour = colours(arms, many)
    return (
        alt.layer(
            every.mark_rule().encode(
                x=x, y=alt.Y("low:Q", title=None), y2="high:Q", color=colour, opacity=faded(shown)
            ),
            every.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dashes, opacity=faded(shown)),
            every.mark_point(size=60, filled=True).encode(
                x=x, y=y, color=colour, shape=shapes(arms, many), opacity=faded(shown), tooltip=told
            ),
        )
        .add_params(quantity, shown)
        .properties(height=HEIGHT, title=alt.Title(text=alt.ExprRef("quantity"), orient="top", anchor="start"))
    )
