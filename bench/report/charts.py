"""Charts: a DataFrame in, an Altair chart out. The page draws it with Vega-Embed; `svg` and `image` make files of it.

Each method has one colour and one shape in every chart (colours of Okabe and Ito, 2008, told apart with any colour
vision). Text and axes take the colour of the page's text, so that one chart suits a light and a dark page. What a
reader may choose (an axis, a measure) is a parameter below the chart; an image shows the first choice.

    >>> chart = Chart("loss", loss_chart(curves, ["full", "lora"]), "Held-out loss over training.", curves)
    >>> svg(chart)[:4]
    '<svg'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import altair as alt
import pandas as pd
import vl_convert

Drawing = alt.Chart | alt.LayerChart | alt.FacetChart
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.split(".")[:2])  # "v6.1": the version that the specifications are written for
INK = "currentColor"
HEIGHT, ROW = 240, 30  # pixels, of a chart and of a row of words
_IMAGE_WIDTH = 760  # pixels; in the page a chart is as wide as its column
_LETTER, _LEGEND_PIXELS = 6.5, 330  # a legend must fit a phone
_COLOURS = {"base": "#7a7f87", "full": "#0072B2", "lora": "#E69F00", "qlora": "#009E73"}
_MORE_COLOURS = ["#CC79A7", "#D55E00", "#56B4E9", "#8B6914", "#7B5EA7", INK]
_SHAPES = {"base": "square", "full": "circle", "lora": "triangle-up", "qlora": "diamond"}
_MORE_SHAPES = ["triangle-down", "cross", "triangle-left", "triangle-right", "stroke"]
PARTS = {  # of the peak memory -> colour
    "weights": "#0072B2",
    "gradients": "#E69F00",
    "optimizer state": "#009E73",
    "the rest": "#b9bec6",
}
CURVE_AXES = ("optimizer step", "thousand tokens of training", "minutes of training")
LATENCY_TIMES = ("total, s", "first token, s")


@dataclass(frozen=True)
class Chart:
    """A drawing with its name (of its file), a text for who cannot see it, and the numbers drawn."""

    name: str
    drawing: Drawing
    alternative: str
    data: pd.DataFrame

    def _repr_svg_(self) -> str:
        """How a notebook shows the chart: needs no network."""
        return svg(self)


def specification(chart: Chart) -> dict[str, Any]:
    """Vega-Lite for the page, with the data inside; as wide as its column."""
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
    return {name: value for name, value in specification(chart).items() if name != "autosize"} | fixed


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
    others = [arm for arm in arms if arm not in _COLOURS]
    more = dict(zip(others, zip(cycle(_MORE_COLOURS), cycle(_MORE_SHAPES), strict=False), strict=False))
    return {arm: more.get(arm) or (_COLOURS[arm], _SHAPES[arm]) for arm in arms}


def _looks(arms: Sequence[str], data: pd.DataFrame) -> tuple[alt.Color, alt.Shape]:
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


def _choice(name: str, question: str, options: Sequence[str]) -> alt.Parameter:
    """Radio buttons under the chart; a constant when there is one option."""
    if len(options) == 1:
        return alt.param(name, value=options[0])
    return alt.param(name, value=options[0], bind=alt.binding_radio(options=list(options), name=f"{question} "))


def _chosen_title(parameter: alt.Parameter) -> alt.Title:
    """The chosen quantity below the chart: an axis cannot have a title that changes."""
    return alt.Title(text=alt.ExprRef(parameter.name), orient="bottom", anchor="middle")


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
    arms, title = list(points["arm"]), f"{score}, 95% interval"
    against, (colour, shape) = _choice("against", "against", costs), _looks(arms, points)
    described = _tooltips({"arm": "", "score": ".3f", "low": ".3f", "high": ".3f"} | dict.fromkeys(costs, ".2f"))
    x = alt.X("x:Q", title=None, scale=alt.Scale(zero=True, nice=True))
    lowest, highest = float(points["low"].min()), float(points["high"].max())
    room = 0.06 * (highest - lowest) or 0.05
    scale = alt.Scale(domain=[lowest - room, highest + room], nice=True)
    y, low = (alt.Y(f"{name}:Q", title=title, scale=scale) for name in ("score", "low"))
    trained = points[points["trained"].astype(bool)]
    dots = alt.Chart(trained).transform_calculate(x="datum[against]")
    chosen = trained[trained["chosen"] == "yes"]
    layers = [
        dots.mark_rule(strokeWidth=2).encode(x=x, y=low, y2="high:Q", color=colour),
        dots.mark_point(size=110, filled=True, opacity=1).encode(
            x=x, y=y, color=colour, shape=shape, tooltip=described
        ),
    ]
    if len(chosen):
        rings = alt.Chart(chosen).transform_calculate(x="datum[against]")
        layers.append(rings.mark_point(shape="circle", size=420, color=INK, strokeWidth=1.5).encode(x=x, y=y))
    across = alt.Chart(points[~points["trained"].astype(bool)]).encode(color=colour, tooltip=described[:4])
    if len(trained) < len(points):
        layers.append(across.mark_rect(opacity=0.12).encode(y=low, y2="high:Q"))
        layers.append(across.mark_rule(strokeDash=[6, 4], strokeWidth=2).encode(y=y))
    return alt.layer(*layers).add_params(against).properties(height=HEIGHT, title=_chosen_title(against))


def sureness_chart(answers: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """The chosen arm and its sureness against one limit, or the tolerance, that the reader chooses.

    Args:
        answers: limit (its name with its unit), start, end (of a range of its values with one answer), arm ("none": no
            method meets the limit), sureness (0..1), now (the value in force; NaN: the limit is not set).
    """
    limit = _choice("limit", "as a function of", list(dict.fromkeys(answers["limit"])))
    named = [*arms, *(["none"] if "none" in set(answers["arm"]) else [])]
    every = alt.Chart(answers).transform_filter("datum.limit == limit")
    x = alt.X("start:Q", title=None, scale=alt.Scale(zero=False, nice=False), axis=alt.Axis(grid=False))
    y = alt.Y("sureness:Q", title="how sure", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=4))
    colour, _ = _looks(named, answers)
    described = _tooltips({"arm": "", "sureness": ".0%", "start": ".3~g", "end": ".3~g"})
    areas = every.mark_rect(opacity=0.28).encode(x=x, x2="end:Q", y=y, y2=alt.datum(0), color=colour, tooltip=described)
    lines = every.mark_rule(strokeWidth=3).encode(x=x, x2="end:Q", y=y, color=colour, tooltip=described)
    now = every.transform_filter("isValid(datum.now)").mark_rule(strokeDash=[4, 4], color=INK).encode(x="now:Q")
    drawn = alt.layer(areas, lines, now).add_params(limit)
    return drawn.properties(height=190, title=_chosen_title(limit))


def differences_chart(differences: pd.DataFrame, unit: str) -> Drawing:
    """Paired differences with their intervals; the band is the tolerance within which methods count as equal.

    Args:
        differences: pair ("lora - full"), difference, low, high, verdict, tolerance.
    """
    pairs = list(differences["pair"])
    every = alt.Chart(differences)
    x = alt.X("difference:Q", title=f"difference in {unit}, 95% interval", scale=alt.Scale(zero=True))
    y = alt.Y("pair:N", sort=pairs, title=None)
    ends = alt.X("low:Q", title=f"difference in {unit}, 95% interval")
    described = _tooltips({"pair": "", "difference": "+.3f", "low": "+.3f", "high": "+.3f", "verdict": ""})
    band = alt.Chart(differences.head(1)).transform_calculate(start="-datum.tolerance")
    return alt.layer(
        band.mark_rect(opacity=0.12, color=INK).encode(x=alt.X("start:Q"), x2="tolerance:Q"),
        alt.Chart(differences.head(1)).mark_rule(color=INK, opacity=0.5, aria=False).encode(x=alt.datum(0)),
        every.mark_rule(strokeWidth=2, color=INK).encode(x=ends, x2="high:Q", y=y, tooltip=described),
        every.mark_point(size=80, filled=True, opacity=1, color=INK).encode(x=x, y=y, tooltip=described),
    ).properties(height=ROW * len(pairs))


def loss_chart(curves: pd.DataFrame, arms: Sequence[str], target: float | None = None) -> Drawing:
    """Held-out loss bold, with a band from the lowest to the highest seed; training loss faint.

    Args:
        curves: arm, kind ("held-out" or "training"), loss, low, high (nats per token, over seeds) and `CURVE_AXES`.
        target: a held-out loss, drawn as a dashed line.
    """
    by, shown = _choice("by", "by", CURVE_AXES), alt.selection_point(fields=["arm"], bind="legend", name="shown")
    colour, shape = _looks(arms, curves)
    x = alt.X("x:Q", title=None, scale=alt.Scale(zero=False, nice=False))
    y, low = (alt.Y(f"{name}:Q", title="loss, nats per token", scale=alt.Scale(zero=False)) for name in ("loss", "low"))
    described = _tooltips({"arm": "", "kind": "", "loss": ".3f", "low": ".3f", "high": ".3f"})
    layers = []
    for kind in ("training", "held-out"):
        rows = curves[curves["kind"] == kind]
        every = alt.Chart(rows).transform_calculate(x="datum[by]").encode(x=x, color=colour)
        if len(rows) and kind == "training":
            layers.append(every.mark_line(strokeWidth=1).encode(y=y, opacity=_faded(shown, 0.4)))
        elif len(rows):
            points = every.mark_point(size=60, filled=True)
            layers += [
                every.mark_area().encode(y=low, y2="high:Q", opacity=_faded(shown, 0.18)),
                every.mark_line(strokeWidth=2.6).encode(y=y, opacity=_faded(shown)),
                points.encode(y=y, shape=shape, opacity=_faded(shown), tooltip=described),
            ]
    if target is not None:
        goal = alt.Chart(pd.DataFrame({"target": [target]}))
        layers.append(goal.mark_rule(strokeDash=[5, 4], color=INK).encode(y=alt.Y("target:Q")))
    return alt.layer(*layers).add_params(by, shown).properties(height=HEIGHT, title=_chosen_title(by))


def frontier_chart(points: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """Learning across, forgetting down: a path an arm, from the base on, with the band of its interval.

    Args:
        points: arm, measure (the reader chooses one), step, learned (nats a token), forgotten, low, high.
    """
    of, shown = (
        _choice("of", "forgetting as", list(dict.fromkeys(points["measure"]))),
        alt.selection_point(fields=["arm"], bind="legend", name="shown"),
    )
    colour, shape = _looks(arms, points)
    x = alt.X("learned:Q", title="learned: loss below the base's, nats/token")
    scale = alt.Scale(reverse=True, nice=True)
    y, low = (alt.Y(f"{name}:Q", title="forgotten (down: more)", scale=scale) for name in ("forgotten", "low"))
    every = alt.Chart(points).transform_filter("datum.measure == of").encode(x=x, color=colour)
    path = every.encode(y=y, order="step:Q")
    numbers = dict.fromkeys(("learned", "forgotten", "low", "high"), ".3f")
    described = _tooltips({"arm": "", "step": "d"} | numbers)
    drawn = alt.layer(
        every.mark_area().encode(y=low, y2="high:Q", opacity=_faded(shown, 0.18)),
        path.mark_line(strokeWidth=2.6).encode(opacity=_faded(shown)),
        path.mark_point(size=60, filled=True).encode(shape=shape, opacity=_faded(shown), tooltip=described),
    )
    return drawn.add_params(of, shown).properties(height=HEIGHT, title=_chosen_title(of))


def layers_chart(changes: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """A quantity of the trained weights that the reader chooses, by layer; bands from the lowest to the highest seed.

    Args:
        changes: arm, layer, quantity, value, low, high.
    """
    of, (colour, shape) = (
        _choice("of", "of the change", list(dict.fromkeys(changes["quantity"]))),
        _looks(arms, changes),
    )
    x = alt.X("layer:Q", title="layer", axis=alt.Axis(format="d", tickMinStep=1))
    y, low = (alt.Y(f"{name}:Q", title=None, scale=alt.Scale(zero=True)) for name in ("value", "low"))
    described = _tooltips({"arm": "", "layer": "d", "value": ".3~g", "low": ".3~g", "high": ".3~g"})
    every = alt.Chart(changes).transform_filter("datum.quantity == of").encode(x=x, color=colour)
    return (
        alt.layer(
            every.mark_area(opacity=0.18).encode(y=low, y2="high:Q"),
            every.mark_line(strokeWidth=2).encode(y=y),
            every.mark_point(size=40, filled=True, opacity=1).encode(y=y, shape=shape, tooltip=described),
        )
        .add_params(of)
        .properties(height=HEIGHT, title=_chosen_title(of))
    )


def _faded(shown: alt.Parameter, opacity: float = 1.0) -> Any:
    """`opacity` for the arm that was clicked in the legend, next to nothing for the others."""
    return alt.when(shown).then(alt.value(opacity)).otherwise(alt.value(opacity * 0.12))


def memory_chart(parts: pd.DataFrame) -> Drawing:
    """Stacked bars, one an arm; a paler one below it for the planner's estimate.

    Args:
        parts: arm, source ("measured" or "estimated"), part (of `PARTS`), GiB, total GiB.
    """
    names = [part for part in PARTS if part in set(parts["part"])]
    arms, sources = list(dict.fromkeys(parts["arm"])), list(dict.fromkeys(parts["source"]))
    every = alt.Chart(parts.assign(order=parts["part"].map(names.index)))
    title = "peak memory, GiB"
    y, offset = alt.Y("arm:N", sort=arms, title=None), alt.YOffset("source:N", sort=sources)
    scale = alt.Scale(domain=names, range=[PARTS[name] for name in names])
    bars = every.mark_bar(stroke=INK, strokeWidth=0.3).encode(
        x=alt.X("GiB:Q", stack="zero", title=title),
        y=y,
        yOffset=offset,
        color=alt.Color("part:N", scale=scale, legend=_legend(names)),
        order="order:O",
        opacity=alt.when(alt.datum.source == "measured").then(alt.value(1.0)).otherwise(alt.value(0.45)),
        tooltip=_tooltips({"arm": "", "source": "", "part": "", "GiB": ".2f", "total GiB": ".2f"}),
    )
    text = "format(datum['total GiB'], '.2f') + (datum.source == 'measured' ? '' : ' estimated')"
    totals = (
        every.transform_filter("datum.order == 0")
        .transform_calculate(text=text)
        .mark_text(align="left", dx=4)
        .encode(x=alt.X("total GiB:Q", title=title), y=y, yOffset=offset, text="text:N")
    )
    return alt.layer(bars, totals).properties(height=(26 if len(sources) > 1 else 20) * len(sources) * len(arms))


def regression_chart(changes: pd.DataFrame) -> Drawing:
    """A heat map of the suite; orange: lost, blue: gained; bold: shown to be a change.

    Args:
        changes: task, arm, change (points), low, high (95% interval; NaN: unknown), verdict, items.
    """
    tasks, arms = (list(dict.fromkeys(changes[column])) for column in ("task", "arm"))
    widest = float(changes["change"].abs().max()) or 1.0
    slanting = len(arms) > 4 or any(len(arm) > 12 for arm in arms)
    x = alt.X("arm:N", sort=arms, title=None, axis=alt.Axis(orient="top", labelAngle=-35 * slanting))
    y = alt.Y("task:N", sort=tasks, title=None)
    described = _tooltips({"task": "", "arm": "", "change": "+.1f", "low": "+.1f", "high": "+.1f", "verdict": ""})
    every = alt.Chart(changes).encode(x=x, y=y, tooltip=described)
    scale = alt.Scale(range=["#D55E00", "#F7F7F7", "#0072B2"], domain=[-widest, 0, widest])
    colour = alt.Color("change:Q", scale=scale, legend=None)
    cells = every.mark_rect(stroke="#888888", strokeWidth=0.5).encode(color=colour)
    ink = alt.when(f"datum.change > {0.6 * widest}").then(alt.value("#FFFFFF")).otherwise(alt.value("#111111"))
    bold = alt.ExprRef("datum.verdict == 'better' || datum.verdict == 'worse' ? 'bold' : 'normal'")
    ends = "isValid(datum.low) ? '  [' + format(datum.low, '+.1f') + ', ' + format(datum.high, '+.1f') + ']' : ''"
    room = f"width / {len(arms)} < 120 ? '' : ({ends})"
    texts = (
        every.transform_calculate(text=f"format(datum.change, '+.1f') + ({room})")
        .mark_text(fontSize=12, fontWeight=bold)
        .encode(text="text:N", color=ink)
    )
    return alt.layer(cells, texts).properties(height=26 * len(tasks))


def step_time_chart(seconds: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """A box an arm: quartiles, median, whiskers from the 10th to the 90th percentile.

    Args:
        seconds: arm, p10, p25, median, p75, p90, p99 (seconds), timed steps; one row an arm.
    """
    every, title = alt.Chart(seconds), "seconds an optimizer step"
    y, colour = alt.Y("arm:N", sort=list(arms), title=None), _looks(arms, seconds)[0].legend(None)
    described = _tooltips({"arm": ""} | dict.fromkeys(("p10", "p25", "median", "p75", "p90", "p99"), ".4~g"))
    whole, quartiles, median = (alt.X(f"{name}:Q", title=title) for name in ("p10", "p25", "median"))
    diamonds = every.mark_point(shape="diamond", size=80, filled=True, opacity=1, color=INK)
    return alt.layer(
        every.mark_rule(strokeWidth=2).encode(x=whole.scale(zero=True), x2="p90:Q", y=y, color=colour),
        every.mark_bar(size=14, opacity=0.75).encode(x=quartiles, x2="p75:Q", y=y, color=colour, tooltip=described),
        diamonds.encode(x=median, y=y, tooltip=described),
    ).properties(height=ROW * len(seconds))


def rates_chart(trials: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """Held-out loss against learning rate; crosses: diverged; ringed: the chosen rate.

    Args:
        trials: arm, learning rate, loss, ended ("yes", or why not), chosen ("yes" or "no").
    """
    ended = trials["ended"] == "yes"
    colour, shape = _looks(arms, trials)
    x = alt.X("learning rate:Q", scale=alt.Scale(type="log", nice=False, padding=20), axis=alt.Axis(format=".0e"))
    y = alt.Y("loss:Q", title="held-out loss, nats per token", scale=alt.Scale(zero=False))
    described = _tooltips({"arm": "", "learning rate": ".2~e", "loss": ".3f", "ended": "", "chosen": ""})
    whole = alt.Chart(trials[ended]).encode(x=x, y=y)
    layers = [
        whole.mark_line(strokeWidth=2).encode(color=colour),
        whole.mark_point(size=80, filled=True, opacity=1).encode(color=colour, shape=shape, tooltip=described),
        whole.transform_filter("datum.chosen == 'yes'").mark_point(shape="circle", size=420, color=INK),
    ]
    if not ended.all():
        cut = alt.Chart(trials[~ended]).mark_point(shape="cross", angle=45, size=90)
        layers.append(cut.encode(x=x, y=y, color=colour, tooltip=described))
    return alt.layer(*layers).properties(height=HEIGHT)


def latency_chart(latencies: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """Medians with their intervals; the reader chooses the requests and the time.

    Args:
        latencies: name ("lora: merged"), arm, requests ("batch 8, prompt 64"), and for each of `LATENCY_TIMES` the
            median under its name, "low NAME" and "high NAME".
    """
    names = list(dict.fromkeys(latencies["name"]))
    requests = _choice("requests", "requests:", list(dict.fromkeys(latencies["requests"])))
    clock = _choice("clock", "time:", LATENCY_TIMES)
    every = (
        alt.Chart(latencies)
        .transform_filter("datum.requests == requests")
        .transform_calculate(median="datum[clock]", low="datum['low ' + clock]", high="datum['high ' + clock]")
    )
    y, (colour, shape) = alt.Y("name:N", sort=names, title=None), _looks(arms, latencies)
    x = alt.X("median:Q", title=None, scale=alt.Scale(zero=True))
    described = _tooltips({"name": "", "requests": "", "median": ".3f", "low": ".3f", "high": ".3f"})
    rules = every.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=None), x2="high:Q", y=y, color=colour)
    points = every.mark_point(size=90, filled=True, opacity=1).encode(
        x=x, y=y, color=colour, shape=shape, tooltip=described
    )
    drawn = alt.layer(rules, points).add_params(requests, clock)
    return drawn.properties(height=ROW * len(names), title=_chosen_title(clock))


def adapters_chart(many: pd.DataFrame, arms: Sequence[str]) -> Drawing:
    """Generated tokens a second against the number of adapters on one base.

    Args:
        many: arm, way (how requests for several adapters are answered), adapters, tokens/s.
    """
    ways, (colour, shape) = list(dict.fromkeys(many["way"])), _looks(arms, many)
    dashes = alt.StrokeDash("way:N", legend=alt.Legend(columns=1, symbolStrokeColor=INK, orient="bottom"), sort=ways)
    scale = alt.Scale(type="log", base=2)
    x = alt.X("adapters:Q", title="adapters on one base", scale=scale, axis=alt.Axis(format="d"))
    y = alt.Y("tokens/s:Q", title="generated tokens/s", scale=alt.Scale(zero=True))
    described = _tooltips({"arm": "", "way": "", "adapters": "d", "tokens/s": ".4~g"})
    every = alt.Chart(many).encode(x=x, y=y, color=colour)
    lines = every.mark_line(strokeWidth=2).encode(strokeDash=dashes)
    points = every.mark_point(size=60, filled=True, opacity=1).encode(shape=shape, tooltip=described)
    return alt.layer(lines, points).properties(height=HEIGHT)
