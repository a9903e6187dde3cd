"""What the HTML report draws of a group: each chart with its caption, its text for who cannot see it, and its place.

A chart takes the place of the image of the Markdown report that shows the same, or joins a section. Where there is
nothing to show there is no figure.

    >>> [figure.place for figure in figures_of(group, {"memory": "plots/memory.png"})]
    ['plots/memory.png', 'Speed']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from bench.report import chart_frames as frames
from bench.report import memory_estimates
from bench.report.answer import Group
from bench.report.charts.look import Drawing, spec_of
from bench.report.charts.loss import loss_chart
from bench.report.charts.memory import growth_chart, memory_chart
from bench.report.charts.quality import quality_chart
from bench.report.charts.rates import rates_chart
from bench.report.charts.regression import regression_chart
from bench.report.charts.serving import adapters_chart, latency_chart
from bench.report.charts.speed import step_time_chart
from bench.report.rates import HOW


@dataclass(frozen=True)
class ChartFigure:
    """One chart of the page.

    Attributes:
        place: the path of the image that it stands for, or the heading of the section that it joins.
        spec: Vega-Lite, the data inside.
        caption: what is shown, for everyone.
        data: the numbers drawn, for a table below the chart.
    """

    place: str
    spec: dict[str, Any]
    caption: str
    data: pd.DataFrame


class Drawn(NamedTuple):
    """A chart before it has a place."""

    chart: Drawing
    alternative: str  # what a screen reader says
    caption: str
    data: pd.DataFrame


_CLICK = "Click a method in the legend to see it alone."


def figures_of(group: Group, images: Mapping[str, str], suffix: str = "") -> list[ChartFigure]:
    """Every chart that the group has data for.

    Args:
        images: name of a plot (of `build`) -> the image's path in the Markdown report.
        suffix: what the headings of the group's sections end in.
    """
    made = []
    for where, draw in _DRAWN:
        place = images.get(where) if where.islower() else where + suffix
        drawn = draw(group) if place else None
        if place and drawn:
            text = f"{drawn.alternative} The numbers follow in a table."
            made.append(ChartFigure(place, spec_of(drawn.chart, text), drawn.caption, drawn.data))
    return made


def _quality(group: Group) -> Drawn | None:
    points, costs = frames.quality_points(group)
    primary = group.findings.primary
    if primary is None or not costs:
        return None
    return Drawn(
        quality_chart(points, primary.name, costs),
        f"{primary.name} of each method against what its training took.",
        "Mean over seeds with the 95% interval of the score; choose the cost below the chart. Ringed: the Pareto set, "
        "that is no other trained method is at least as good in score, memory and time and better in one (by point "
        "estimates). Dashed, with its interval: an untrained model, which has no training cost.",
        points,
    )


def _loss(group: Group) -> Drawn | None:
    curves, reached = frames.loss_curves(group)
    if curves.empty:
        return None
    return Drawn(
        loss_chart(curves, reached, group.arms),
        "Training and held-out loss of each method over training.",
        f"Bold: loss on the validation split. Faint: training loss (of more than {frames.BINS} steps the means of "
        f"{frames.BINS} equal parts). Means over seeds; bands reach from the lowest to the highest seed. Time: that of "
        "the optimizer steps, evaluation excluded; the first compile. Dashed: the target; ringed: where a method first "
        f"reached it, mean of the seeds that did (see Time, tokens and energy to a target). {_CLICK}",
        curves,
    )


def _rates(group: Group) -> Drawn | None:
    trials = frames.rate_trials(group)
    if trials.empty:
        return None
    return Drawn(
        rates_chart(trials, group.arms),
        "Held-out loss at the end of each trial against its learning rate.",
        f"{HOW} Ringed: the chosen rate. {_CLICK}",
        trials,
    )


def _memory(group: Group) -> Drawn | None:
    parts = memory_estimates.parts_frame(group)
    if parts.empty:
        return None
    return Drawn(
        memory_chart(parts),
        "Peak training memory of each method by what it is made of.",
        "Mean over seeds. Weights, gradients and optimizer state are summed over the tensors; activations and "
        "workspace are the rest of the measured peak. On a CPU the process (Python and libraries) is part of the peak. "
        + (memory_estimates.ESTIMATED if "estimated" in set(parts["source"]) else ""),
        parts,
    )


def _growth(group: Group) -> Drawn | None:
    growth = frames.memory_growth(group)
    if growth.empty:
        return None
    return Drawn(
        growth_chart(growth, group.arms),
        "Memory held after each optimizer step, and the highest until then.",
        "Thin: held at the end of each step. Bold: the highest of the training phase so far; the marker is the step in "
        "which the peak arose (the table of memory by phase says in which part of a step). Means over seeds; bands "
        f"reach from the lowest to the highest seed. {_CLICK}",
        growth,
    )


def _regression(group: Group) -> Drawn | None:
    changes = frames.regression_changes(group)
    if changes.empty:
        return None
    return Drawn(
        regression_chart(changes),
        f"Change of each regression task against {changes['against'][0]}, by method.",
        "Paired change on the same items, tuned - base, in points, with its 95% interval. Orange: lost; blue: gained. "
        "Bold: shown to be better or worse (Holm-adjusted); a strong colour alone shows nothing.",
        changes,
    )


def _step_times(group: Group) -> Drawn | None:
    seconds = frames.step_seconds(group)
    if seconds.empty:
        return None
    return Drawn(
        step_time_chart(seconds, group.arms),
        "Seconds an optimizer step, by method.",
        f"A tick a timed step, all seeds together (of more than {frames.TICKS}, or of many methods, evenly spread "
        "quantiles). Box: the middle half; diamond: the median; line: from the 10th to the 90th percentile. Steps "
        "differ in how long their examples are.",
        seconds.dropna(subset=["median"]).drop(columns="seconds"),
    )


def _latency(group: Group) -> Drawn | None:
    latencies = frames.latencies(group)
    if latencies.empty:
        return None
    return Drawn(
        latency_chart(latencies, group.arms),
        "Latency of each served form.",
        "Medians with 95% intervals. Choose the requests and the time below the chart.",
        latencies,
    )


def _adapters(group: Group) -> Drawn | None:
    many = frames.adapters(group)
    if many.empty:
        return None
    return Drawn(
        adapters_chart(many, group.arms),
        "Generated tokens a second, or memory, against the number of adapters on one base.",
        "Tokens/s of one device; the requests are shared out evenly among the adapters. Medians with intervals. "
        "Swapped and copies: the share of one is measured, the others follow it. Memory: held with that many adapters "
        f"loaded, measured; as full copies: that of one, and the tensors of the others computed. {_CLICK}",
        many,
    )


_DRAWN: Sequence[tuple[str, Callable[[Group], Drawn | None]]] = (  # (plot, or a section's heading; what draws it)
    ("quality_against_cost", _quality),
    ("loss_curves", _loss),
    ("learning_rate", _rates),
    ("memory", _memory),
    ("memory_over_steps", _growth),
    ("regression", _regression),
    ("Speed", _step_times),
    ("Serving", _latency),
    ("adapters", _adapters),
)
