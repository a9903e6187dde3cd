"""Charts: a DataFrame in, an Altair chart out. The page draws it with Vega-Embed; `svg` and `image` make files of it.

Each method has one colour and one shape in every chart (colours of Okabe and Ito, 2008, told apart with any colour
vision). Text and axes take the colour of the page's text, so that one chart suits a light and a dark page. What a
reader may choose (an axis, a measure) is a parameter below the chart; an image shows the first choice.

    >>> chart = Chart("loss", loss_chart(curves, ["full", "lora"]), "Held-out loss over training.", curves)
    >>> svg(chart)[:4]
    '<svg'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Any, Literal

import altair as alt
import pandas as pd
import vl_convert

Drawing = alt.Chart | alt.LayerChart | alt.FacetChart
Looks = tuple[alt.Color, alt.Shape]
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.split(".")[:2])  # "v6.1": the version that the specifications are written for
INK = "currentColor"
HEIGHT, ROW = 240, 30  # pixels, of a chart and of a row of words
_IMAGE_WIDTH = 760  # pixels; in the page a chart is as wide as its column
_LETTER, _LEGEND_PIXELS = 6.5, 330  # a legend must fit a phone
_LOOKS = {"base": ("#7a7f87", "square"), "full": ("#0072B2", "circle"), "lora": ("#E69F00", "triangle-up"),
          "qlora": ("#009E73", "diamond")}  # fmt: skip
_MORE_COLOURS = ["#CC79A7", "#D55E00", "#56B4E9", "#8B6914", "#7B5EA7", INK]
_MORE_SHAPES = ["triangle-down", "cross", "triangle-left", "triangle-right", "stroke"]
PARTS = {  # of the peak memory -> colour
    "weights": "#0072B2",
    "gradients": "#E69F00",
    "optimizer state": "#009E73",
    "the rest": "#b9bec6",
}
CURVE_AXES = ("optimizer step", "thousand tokens of training", "minutes of training")
_DOT: dict[str, Any] = {"filled": True, "opacity": 1}
_RING: dict[str, Any] = {"shape": "circle", "size": 420, "strokeWidth": 1.5, "color": INK}  # around what is chosen
_CLICKED = alt.selection_point(fields=["arm"], bind="legend", name="shown")  # in the legend
LATENCY_TIMES = ("total, s", "first token, s")


@dataclass(frozen=True)
class Chart:
    """A drawing with its name (of its file), a text for who cannot see it, and the numbers drawn."""

    name: str
    drawing: Drawing
    alternative: str
    data: pd.DataFrame

    @cached_property
    def specification(self) -> dict[str, Any]:
        """Vega-Lite for the page; made once, for the page's two passes and the image files."""
        return _vega_lite(self)

    def _repr_svg_(self) -> str:
        """How a notebook shows the chart: needs no network."""
        return svg(self)


def _vega_lite(chart: Chart) -> dict[str, Any]:
    """With the data inside; as wide as its column."""
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    lines = {"gridColor": INK, "gridOpacity": 0.1, "domainColor": INK, "domainOpacity": 0.35, "tickColor": INK}
    fitted = alt.AutoSizeParams(type="fit-x", contains="padding")
    drawn = (
        chart.drawing.properties(width="container", autosize=fitted, background="transparent")
        .properties(description=f"{chart.alternative} The numbers follow in a table.")
        .configure(font="system-ui, sans-serif", text=alt.MarkConfig(color=INK))
        .configure_axis(**text, **lines, labelLimit=190, tickCount=6)
        .configure_legend(**text, orient="top", title=None, labelLimit=_LEGEND_PIXELS - 30, symbolOpacity=1)
        .configure_title(color=INK, fontSize=12, fontWeight="normal", orient="bottom", anchor="middle")
        .configure_view(stroke=None)
    )
    with alt.data_transformers.enable("default", max_rows=None):
        spec: dict[str, Any] = drawn.to_dict()
    for rows in spec.get("datasets", {}).values():
        rows[:] = [  # five digits are more than a chart shows
            {name: float(f"{value:.5g}") if isinstance(value, float) else value
             for name, value in row.items() if not pd.isna(value)} for row in rows
        ]  # fmt: skip
    return spec


def _for_image(chart: Chart) -> dict[str, Any]:
    fixed = {"width": _IMAGE_WIDTH, "background": "white", "padding": 12}
    return {name: value for name, value in chart.specification.items() if name != "autosize"} | fixed


def svg(chart: Chart) -> str:
    """The chart as SVG on white."""
    return str(vl_convert.vegalite_to_svg(_for_image(chart), vl_version=VEGA_LITE))


def image(chart: Chart, kind: Literal["png", "pdf"]) -> bytes:
    """The chart as a PNG (twice the SVG's size) or a PDF."""
    if kind == "png":
        return vl_convert.vegalite_to_png(_for_image(chart), vl_version=VEGA_LITE, scale=2)
    return vl_convert.vegalite_to_pdf(_for_image(chart), vl_version=VEGA_LITE)


def look(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Arm -> (colour, shape). The four known methods keep theirs, whatever else is shown."""
    more = zip(cycle(_MORE_COLOURS), cycle(_MORE_SHAPES), strict=False)
    return {arm: _LOOKS.get(arm) or next(more) for arm in arms}


def _looks(arms: Sequence[str], data: pd.DataFrame) -> Looks:
    """Colour and shape by arm, with a legend of the arms that the data hold."""
    shown = [arm for arm in arms if arm in set(data["arm"])]
    colours, shapes = zip(*map(look(arms).__getitem__, shown), strict=True) if shown else ((), ())
    legend = _legend(shown)
    return (
        alt.Color("arm:N", scale=alt.Scale(domain=shown, range=list(colours)), legend=legend),
        alt.Shape("arm:N", scale=alt.Scale(domain=shown, range=list(shapes)), legend=legend),
    )


def _legend(names: Sequence[str]) -> alt.Legend:
    """Above the chart, in as many columns as a phone has room for."""
    widest = max((len(name) for name in names), default=1) * _LETTER + 34
    return alt.Legend(columns=max(1, int(_LEGEND_PIXELS / widest)), symbolLimit=0)


def _choice(name: str, question: str, options: Iterable[str]) -> alt.Parameter:
    """Radio buttons under the chart; a constant when there is one option."""
    found = list(dict.fromkeys(options))
    bind = alt.binding_radio(options=found, name=f"{question} ") if len(found) > 1 else alt.Undefined
    return alt.param(name, value=found[0], bind=bind)


def _layered(
    layers: Sequence[alt.Chart], choice: alt.Parameter, *more: alt.Parameter, height: float = HEIGHT
) -> Drawing:
    """The chosen quantity stands below the chart: an axis cannot have a title that changes."""
    drawn = alt.layer(*layers).add_params(choice, *more)
    return drawn.properties(height=height, title=alt.Title(text=alt.ExprRef(choice.name)))


def _tooltips(formats: Mapping[str, str]) -> list[alt.Tooltip]:
    """Column -> number format of d3, or an empty one for text."""
    return [
        alt.Tooltip(field=name, type="quantitative" if form else "nominal", format=form or alt.Undefined, title=name)
        for name, form in formats.items()
    ]


def quality_chart(points: pd.DataFrame, score: str, costs: Sequence[str]) -> Drawing:
    """Score with its interval against a cost that the reader chooses; untrained arms cross the chart as bands.

    Args:
        points: arm, score, low, high, trained (bool), chosen ("yes" or "no") and the columns `costs`.
    """
    colour, shape = _looks(list(points["arm"]), points)
    described = _tooltips({"arm": "", "score": ".3f", "low": ".3f", "high": ".3f"} | dict.fromkeys(costs, ".2f"))
    lowest, highest = float(points["low"].min()), float(points["high"].max())
    room = 0.06 * (highest - lowest) or 0.05
    scale = alt.Scale(domain=[lowest - room, highest + room], nice=True)
    y, low = (alt.Y(f"{name}:Q", title=f"{score}, 95% interval", scale=scale) for name in ("score", "low"))
    trained = points["trained"].astype(bool)
    dots = alt.Chart(points[trained]).transform_calculate(x="datum[against]")
    dots = dots.encode(x=alt.X("x:Q", title=None, scale=alt.Scale(zero=True, nice=True)))
    layers = [
        dots.mark_rule(strokeWidth=2).encode(y=low, y2="high:Q", color=colour),
        dots.mark_point(size=110, **_DOT).encode(y=y, color=colour, shape=shape, tooltip=described),
        dots.transform_filter("datum.chosen == 'yes'").mark_point(**_RING).encode(y=y),
    ]
    if not trained.all():
        across = alt.Chart(points[~trained]).encode(color=colour, tooltip=described[:4])
        layers.append(across.mark_rect(opacity=0.12).encode(y=low, y2="high:Q"))
        layers.append(across.mark_rule(strokeDash=[6, 4], strokeWidth=2).encode(y=y))
    return _layered(layers, _choice("against", "against", costs))


def sureness_chart(answers: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """The chosen arm and its sureness against one limit, or the tolerance, that the reader chooses.

    Args:
        answers: limit (its name with its unit), start, end (of a range of its values with one answer), arm ("none": no
            method meets the limit), sureness (0..1), now (the value in force; NaN: the limit is not set).
    """
    named = [*arms, *(["none"] if "none" in set(answers["arm"]) else [])]
    described = _tooltips({"arm": "", "sureness": ".0%", "start": ".3~g", "end": ".3~g"})
    x = alt.X("start:Q", title=None, scale=alt.Scale(zero=False, nice=False), axis=alt.Axis(grid=False))
    y = alt.Y("sureness:Q", title="how sure", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=4))
    every = alt.Chart(answers).transform_filter("datum.limit == limit")
    ranges = every.encode(x=x, x2="end:Q", y=y, color=_looks(named, answers)[0], tooltip=described)
    now = every.transform_filter("isValid(datum.now)").mark_rule(strokeDash=[4, 4], color=INK).encode(x="now:Q")
    layers = [ranges.mark_rect(opacity=0.28).encode(y2=alt.datum(0)), ranges.mark_rule(strokeWidth=3), now]
    return _layered(layers, _choice("limit", "as a function of", answers["limit"]), height=190)


def differences_chart(differences: pd.DataFrame, unit: str) -> Drawing:
    """Paired differences with their intervals; the band is the tolerance within which methods count as equal.

    Args:
        differences: pair ("lora - full"), difference, low, high, verdict, tolerance.
    """
    x = alt.X("difference:Q", title=f"difference in {unit}, 95% interval", scale=alt.Scale(zero=True))
    described = _tooltips({"pair": "", "difference": "+.3f", "low": "+.3f", "high": "+.3f", "verdict": ""})
    every = alt.Chart(differences).encode(y=alt.Y("pair:N", sort=None, title=None), tooltip=described)
    band = alt.Chart(differences.head(1)).transform_calculate(start="-datum.tolerance")
    return alt.layer(
        band.mark_rect(opacity=0.12, color=INK).encode(x="start:Q", x2="tolerance:Q"),
        alt.Chart(differences.head(1)).mark_rule(color=INK, opacity=0.5, aria=False).encode(x=alt.datum(0)),
        every.mark_rule(strokeWidth=2, color=INK).encode(x="low:Q", x2="high:Q"),
        every.mark_point(size=80, color=INK, **_DOT).encode(x=x),
    ).properties(height=ROW * len(differences))


def loss_chart(curves: pd.DataFrame, arms: Sequence[str], target: float | None = None) -> Drawing:
    """Held-out loss bold, with a band from the lowest to the highest seed; training loss faint.

    Args:
        curves: arm, kind ("held-out" or "training"), loss, low, high (nats per token, over seeds) and `CURVE_AXES`.
        target: a held-out loss, drawn as a dashed line.
    """
    y, looks = alt.Y("loss:Q", title="loss, nats per token", scale=alt.Scale(zero=False)), _looks(arms, curves)
    described = _tooltips({"arm": "", "kind": "", "loss": ".3f", "low": ".3f", "high": ".3f"})
    x = alt.X("x:Q", title=None, scale=alt.Scale(zero=False, nice=False))
    layers = list[alt.Chart]()
    for kind, rows in reversed(list(curves.groupby("kind"))):  # training below held-out
        every = alt.Chart(rows).transform_calculate(x="datum[by]").encode(x=x, y=y, color=looks[0])
        faint = every.mark_line(strokeWidth=1).encode(opacity=_faded(0.4))
        layers += [faint] if kind == "training" else _curves(every, looks, described)
    if target is not None:
        goal = alt.Chart(pd.DataFrame({"target": [target]}))
        layers.append(goal.mark_rule(strokeDash=[5, 4], color=INK).encode(y="target:Q"))
    return _layered(layers, _choice("by", "by", CURVE_AXES), _CLICKED)


def frontier_chart(points: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """Learning across, forgetting down: a path an arm, from the base on, with the band of its interval.

    Args:
        points: arm, measure (the reader chooses one), step, learned (nats a token), forgotten, low, high.
    """
    x = alt.X("learned:Q", title="learned: loss below the base's, nats/token")
    y = alt.Y("forgotten:Q", title="forgotten (down: more)", scale=alt.Scale(reverse=True, nice=True))
    described = _tooltips({"arm": "", "step": "d"} | dict.fromkeys(("learned", "forgotten", "low", "high"), ".3f"))
    every = alt.Chart(points).transform_filter("datum.measure == of").encode(x=x, y=y)
    layers = _curves(every, _looks(arms, points), described, order="step:Q")
    return _layered(layers, _choice("of", "forgetting as", points["measure"]), _CLICKED)


def layers_chart(changes: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """A quantity of the trained weights that the reader chooses, by layer; bands from the lowest to the highest seed.

    Args:
        changes: arm, layer, quantity, value, low, high.
    """
    x = alt.X("layer:Q", title="layer", axis=alt.Axis(format="d", tickMinStep=1))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=True))
    described = _tooltips({"arm": "", "layer": "d", "value": ".3~g", "low": ".3~g", "high": ".3~g"})
    every = alt.Chart(changes).transform_filter("datum.quantity == of").encode(x=x, y=y)
    layers = _curves(every, _looks(arms, changes), described)
    return _layered(layers, _choice("of", "of the change", changes["quantity"]), _CLICKED)


def _curves(every: alt.Chart, looks: Looks, described: list[alt.Tooltip], **path: str) -> list[alt.Chart]:
    """A line an arm through its points, over the band from "low" to "high". `path`: how a line runs."""
    every = every.encode(color=looks[0])
    return [
        every.mark_area().encode(y="low:Q", y2="high:Q", opacity=_faded(0.18)),
        every.mark_line(strokeWidth=2.6).encode(opacity=_faded(1.0), **path),
        every.mark_point(size=60, filled=True).encode(shape=looks[1], opacity=_faded(1.0), tooltip=described),
    ]


def _faded(opacity: float) -> Any:
    """`opacity` for the arm that was clicked in the legend, next to nothing for the others."""
    return alt.when(_CLICKED).then(alt.value(opacity)).otherwise(alt.value(opacity * 0.12))


def memory_chart(parts: pd.DataFrame) -> Drawing:
    """Stacked bars, one an arm; a paler one below it for the planner's estimate.

    Args:
        parts: arm, source ("measured" or "estimated"), part (of `PARTS`), GiB, total GiB.
    """
    names, sources = [part for part in PARTS if part in set(parts["part"])], parts["source"].nunique()
    every = alt.Chart(parts.assign(order=parts["part"].map(names.index)))
    every = every.encode(y=alt.Y("arm:N", sort=None, title=None), yOffset=alt.YOffset("source:N", sort=None))
    scale = alt.Scale(domain=names, range=[PARTS[name] for name in names])
    bars = every.mark_bar(stroke=INK, strokeWidth=0.3).encode(
        x=alt.X("GiB:Q", stack="zero", title="peak memory, GiB"),
        color=alt.Color("part:N", scale=scale, legend=_legend(names)),
        order="order:O",
        opacity=alt.when(alt.datum.source == "measured").then(alt.value(1.0)).otherwise(alt.value(0.45)),
        tooltip=_tooltips({"arm": "", "source": "", "part": "", "GiB": ".2f", "total GiB": ".2f"}),
    )
    text = "format(datum['total GiB'], '.2f') + (datum.source == 'measured' ? '' : ' estimated')"
    totals = every.transform_filter("datum.order == 0").transform_calculate(text=text)
    totals = totals.mark_text(align="left", dx=4).encode(x="total GiB:Q", text="text:N")
    return alt.layer(bars, totals).properties(height=(26 if sources > 1 else 20) * sources * parts["arm"].nunique())


def regression_chart(changes: pd.DataFrame) -> Drawing:
    """A heat map of the suite; orange: lost, blue: gained; bold: shown to be a change.

    Args:
        changes: task, arm, change (points), low, high (95% interval; NaN: unknown), verdict, items.
    """
    arms = list(changes["arm"].unique())
    widest = float(changes["change"].abs().max()) or 1.0
    slanting = len(arms) > 4 or any(len(arm) > 12 for arm in arms)
    x = alt.X("arm:N", sort=None, title=None, axis=alt.Axis(orient="top", labelAngle=-35 * slanting))
    described = _tooltips({"task": "", "arm": "", "change": "+.1f", "low": "+.1f", "high": "+.1f", "verdict": ""})
    every = alt.Chart(changes).encode(x=x, y=alt.Y("task:N", sort=None, title=None), tooltip=described)
    scale = alt.Scale(range=["#D55E00", "#F7F7F7", "#0072B2"], domain=[-widest, 0, widest])
    cells = every.mark_rect(stroke="#888888", strokeWidth=0.5).encode(alt.Color("change:Q", scale=scale, legend=None))
    ink = alt.when(f"datum.change > {0.6 * widest}").then(alt.value("#FFFFFF")).otherwise(alt.value("#111111"))
    bold = alt.ExprRef("datum.verdict == 'better' || datum.verdict == 'worse' ? 'bold' : 'normal'")
    ends = "isValid(datum.low) ? '  [' + format(datum.low, '+.1f') + ', ' + format(datum.high, '+.1f') + ']' : ''"
    room = f"width / {len(arms)} < 120 ? '' : ({ends})"
    texts = every.transform_calculate(text=f"format(datum.change, '+.1f') + ({room})")
    texts = texts.mark_text(fontSize=12, fontWeight=bold).encode(text="text:N", color=ink)
    return alt.layer(cells, texts).properties(height=26 * changes["task"].nunique())


def step_time_chart(seconds: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """A box an arm: quartiles, median, whiskers from the 10th to the 90th percentile.

    Args:
        seconds: arm, p10, p25, median, p75, p90, p99 (seconds), timed steps; one row an arm.
    """
    colour = _looks(arms, seconds)[0].legend(None)
    described = _tooltips({"arm": ""} | dict.fromkeys(("p10", "p25", "median", "p75", "p90", "p99"), ".4~g"))
    every = alt.Chart(seconds).encode(y=alt.Y("arm:N", sort=list(arms), title=None))
    x = alt.X("p10:Q", title="seconds an optimizer step", scale=alt.Scale(zero=True))
    boxes = every.mark_bar(size=14, opacity=0.75).encode(x="p25:Q", x2="p75:Q", color=colour, tooltip=described)
    return alt.layer(
        every.mark_rule(strokeWidth=2).encode(x=x, x2="p90:Q", color=colour),
        boxes,
        every.mark_point(shape="diamond", size=80, color=INK, **_DOT).encode(x="median:Q", tooltip=described),
    ).properties(height=ROW * len(seconds))


def rates_chart(trials: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """Held-out loss against learning rate; crosses: diverged; ringed: the chosen rate.

    Args:
        trials: arm, learning rate, loss, ended ("yes", or why not), chosen ("yes" or "no").
    """
    ended, (colour, shape) = trials["ended"] == "yes", _looks(arms, trials)
    x = alt.X("learning rate:Q", scale=alt.Scale(type="log", nice=False, padding=20), axis=alt.Axis(format=".0e"))
    y = alt.Y("loss:Q", title="held-out loss, nats per token", scale=alt.Scale(zero=False))
    described = _tooltips({"arm": "", "learning rate": ".2~e", "loss": ".3f", "ended": "", "chosen": ""})
    whole, cut = (alt.Chart(rows).encode(x=x, y=y) for rows in (trials[ended], trials[~ended]))
    layers = [
        whole.mark_line(strokeWidth=2).encode(color=colour),
        whole.mark_point(size=80, **_DOT).encode(color=colour, shape=shape, tooltip=described),
        whole.transform_filter("datum.chosen == 'yes'").mark_point(**_RING),
    ]
    if not ended.all():
        layers.append(cut.mark_point(shape="cross", angle=45, size=90).encode(color=colour, tooltip=described))
    return alt.layer(*layers).properties(height=HEIGHT)


def latency_chart(latencies: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """Medians with their intervals; the reader chooses the requests and the time.

    Args:
        latencies: name ("lora: merged"), arm, requests ("batch 8, prompt 64"), and for each of `LATENCY_TIMES` the
            median under its name, "low NAME" and "high NAME".
    """
    requests, clock = _choice("requests", "requests:", latencies["requests"]), _choice("clock", "time:", LATENCY_TIMES)
    colour, shape = _looks(arms, latencies)
    described = _tooltips({"name": "", "requests": "", "median": ".3f", "low": ".3f", "high": ".3f"})
    every = alt.Chart(latencies).transform_filter("datum.requests == requests")
    every = every.transform_calculate(median="datum[clock]", low="datum['low ' + clock]", high="datum['high ' + clock]")
    every = every.encode(y=alt.Y("name:N", sort=None, title=None), color=colour)
    rules = every.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    x = alt.X("median:Q", title=None, scale=alt.Scale(zero=True))
    points = every.mark_point(size=90, **_DOT).encode(x=x, shape=shape, tooltip=described)
    return _layered([rules, points], clock, requests, height=ROW * latencies["name"].nunique())


def adapters_chart(many: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """Generated tokens a second against the number of adapters on one base.

    Args:
        many: arm, way (how requests for several adapters are answered), adapters, tokens/s.
    """
    colour, shape = _looks(arms, many)
    dashes = alt.StrokeDash("way:N", legend=alt.Legend(columns=1, symbolStrokeColor=INK, orient="bottom"), sort=None)
    scale = alt.Scale(type="log", base=2)
    x = alt.X("adapters:Q", title="adapters on one base", scale=scale, axis=alt.Axis(format="d"))
    y = alt.Y("tokens/s:Q", title="generated tokens/s", scale=alt.Scale(zero=True))
    described = _tooltips({"arm": "", "way": "", "adapters": "d", "tokens/s": ".4~g"})
    every = alt.Chart(many).encode(x=x, y=y, color=colour)
    lines = every.mark_line(strokeWidth=2).encode(strokeDash=dashes)
    points = every.mark_point(size=60, **_DOT).encode(shape=shape, tooltip=described)
    return alt.layer(lines, points).properties(height=HEIGHT)
