"""What all charts share: a method's colour and shape, axes that a reader chooses, and colours that follow the page.

Text, axes and rings are drawn in the page's own text colour (`currentColor`), so that a chart is right on a light and
on a dark page without being drawn again.

    >>> spec_of(chart, "Bars: peak memory of each method.")["width"]
    'container'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from bench.report.plots import styles

Drawing = alt.Chart | alt.LayerChart | alt.FacetChart
INK = "currentColor"
HEIGHT, ROW = 300, 26  # pixels, of a chart and of a row of words; the width is that of the page
_SHAPES = {  # matplotlib's markers -> Vega's shapes
    "s": "square", "o": "circle", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross",
    "X": "cross", "<": "triangle-left", ">": "triangle-right", "*": "stroke",
}  # fmt: skip
_LETTER, _LEGEND_PIXELS = 6.5, 330  # a legend must fit a phone


def spec_of(chart: Drawing, description: str) -> dict[str, Any]:
    """The Vega-Lite specification with its data inside.

    Args:
        description: what a screen reader says of the chart.
    """
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    lines = {"gridColor": INK, "gridOpacity": 0.14, "domainColor": INK, "domainOpacity": 0.4, "tickColor": INK}
    legends = {"orient": "top", "title": None, "labelLimit": _LEGEND_PIXELS - 30, "symbolOpacity": 1}
    fitted = alt.AutoSizeParams(type="fit-x", contains="padding")
    drawn = (
        chart.properties(width="container", autosize=fitted, description=description, background="transparent")
        .configure(font="system-ui, sans-serif", text=alt.MarkConfig(color=INK))
        .configure_axis(**text, **lines, labelLimit=190, tickCount=8)
        .configure_legend(**text, **legends)
        .configure_title(color=INK, fontSize=12, fontWeight="normal", orient="bottom", anchor="middle")
        .configure_view(stroke=None)
    )
    with alt.data_transformers.enable("default", max_rows=None):
        spec: dict[str, Any] = drawn.to_dict()
    for rows in spec.get("datasets", {}).values():
        rows[:] = [{name: _short(value) for name, value in row.items() if value is not None} for row in rows]
    return spec


def _short(value: Any) -> Any:
    """Five digits are more than a chart shows."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def colours(arms: Sequence[str], drawn: pd.DataFrame) -> alt.Color:
    """Each arm of `drawn` in the colour it has among all; black, which a dark page swallows, becomes the text's."""
    look = styles(arms)
    there = set(drawn["arm"])
    those = [arm for arm in arms if arm in there]
    ink = [INK if look[arm]["color"] == "#000000" else look[arm]["color"] for arm in those]
    return alt.Color("arm:N", scale=alt.Scale(domain=those, range=ink), legend=legend(those))


def shapes(arms: Sequence[str], drawn: pd.DataFrame) -> alt.Shape:
    """Each arm with its own shape, so that nothing is told by colour alone."""
    look = styles(arms)
    there = set(drawn["arm"])
    those = [arm for arm in arms if arm in there]
    scale = alt.Scale(domain=those, range=[_SHAPES[look[arm]["marker"]] for arm in those])
    return alt.Shape("arm:N", scale=scale, legend=legend(those))


def legend(names: Sequence[str]) -> alt.Legend:
    """Above the chart, in as many columns as a phone has room for."""
    widest = max((len(name) for name in names), default=1) * _LETTER + 34
    return alt.Legend(columns=max(1, int(_LEGEND_PIXELS / widest)), symbolLimit=0)


def choice(name: str, question: str, options: Sequence[str]) -> alt.Parameter:
    """A row of radio buttons under the chart; without a choice a constant."""
    if len(options) == 1:
        return alt.param(name, value=options[0])
    return alt.param(name, value=options[0], bind=alt.binding_radio(options=list(options), name=f"{question} "))


def chosen_title(parameter: alt.Parameter) -> alt.Title:
    """The name of the chosen axis, below the chart; axes themselves cannot have a title that changes."""
    return alt.Title(text=alt.ExprRef(parameter.name), orient="bottom", anchor="middle")


def highlight() -> alt.Parameter:
    """A click on an arm in the legend shows that arm alone; a click beside it shows all."""
    return alt.selection_point(fields=["arm"], bind="legend", name="shown")


def faded(shown: alt.Parameter, opacity: float = 1.0) -> Any:
    """`opacity` for what is shown, next to nothing for the rest."""
    return alt.when(shown).then(alt.value(opacity)).otherwise(alt.value(opacity * 0.12))


def tooltips(formats: Mapping[str, str]) -> list[alt.Tooltip]:
    """Column -> number format (d3), or an empty one for text."""
    return [
        alt.Tooltip(field=name, type="quantitative" if form else "nominal", format=form or alt.Undefined, title=name)
        for name, form in formats.items()
    ]
