"""The report's figures, one function each: frames and findings in, a matplotlib Figure out.

A method has one colour and one marker everywhere. The colours are those of Okabe and Ito (2008), told apart with
any colour vision and in grey print.

    >>> quality_against_cost(findings, runs).savefig("quality_against_cost.png", dpi=DPI)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis.compare import Comparison, Estimate, Findings
from bench.analysis.order import is_base
from bench.analysis.recommend import pareto_set

DPI = 130
Styles = dict[str, dict[str, Any]]  # arm -> matplotlib keywords
Lines = dict[str, list[tuple[np.ndarray, np.ndarray]]]  # arm -> (x, y) of each of its runs
GREY = "#6b6b6b"
_COLOURS = {"base": GREY, "full": "#0072B2", "lora": "#E69F00", "qlora": "#009E73"}
_MORE = ["#CC79A7", "#D55E00", "#56B4E9", "#000000", "#8B6914", "#7B5EA7"]
_MARKERS = {"base": "s", "full": "o", "lora": "^", "qlora": "D"}
_MORE_MARKERS = ["v", "P", "X", "<", ">", "*"]


def styles(arms: Sequence[str]) -> Styles:
    """Arm -> colour and marker; the four known methods keep theirs whatever else is shown."""
    others = [arm for arm in arms if arm not in _COLOURS]
    return {
        arm: {
            "color": _COLOURS.get(arm) or _MORE[others.index(arm) % len(_MORE)],
            "marker": _MARKERS.get(arm) or _MORE_MARKERS[others.index(arm) % len(_MORE_MARKERS)],
        }
        for arm in arms
    }


def quality_against_cost(findings: Findings, runs: pd.DataFrame) -> Figure | None:
    """The primary score against peak training memory and against training time; None when nothing was trained."""
    primary = findings.primary
    trained = [arm for arm, records in findings.arms.items() if not is_base(records[0])]
    estimates = {arm: e for arm in findings.arms if (e := findings.estimate(primary, arm))}
    if primary is None or not any(arm in estimates for arm in trained):
        return None
    look = styles(list(findings.arms))
    points = _points(runs, {arm: estimates[arm].mean for arm in trained if arm in estimates})
    points["pareto"] = pareto_set(points, maximise=["quality"], minimise=["memory", "time"])
    figure = Figure(figsize=(9.5, 4.3), layout="constrained")
    for place, (column, label) in enumerate((("memory", "peak training memory, GiB"), ("time", "training time, min"))):
        axes = figure.add_subplot(1, 2, place + 1)
        for arm, point in points.iterrows():
            estimate = estimates[str(arm)]
            low, high = _ends(estimate)
            error = [[estimate.mean - low], [high - estimate.mean]]
            axes.errorbar(
                point[column], estimate.mean, yerr=error, **look[str(arm)], ms=8, capsize=4, lw=1.5, ls="none"
            )
        marked = points[points["pareto"]]
        axes.scatter(marked[column], marked["quality"], s=230, facecolors="none", edgecolors="black", lw=1.2)
        _base_lines(axes, findings, estimates, look)
        axes.set_xlabel(label)
        axes.set_xlim(0, float(points[column].max()) * 1.12 if points[column].notna().any() else 1)
        finish(axes)
        lows, highs = zip(*map(_ends, estimates.values()), strict=True)
        if max(highs) - min(lows) < 1e-6:  # all scores equal: no scale of their own
            axes.set_ylim(min(lows) - 0.05, max(highs) + 0.05)
        axes.set_ylabel(f"{primary.name}, 95% interval" if place == 0 else "")
    handles = [_handle(arm, look) for arm in findings.arms if arm in estimates]
    ring = Line2D(
        [], [], ls="none", marker="o", ms=13, mfc="none", mec="black", label="Pareto set (score, memory, time)"
    )
    figure.legend(handles=[*handles, ring], loc="outside lower center", ncols=6, frameon=False)
    return figure


def _ends(estimate: Estimate) -> tuple[float, float]:
    """The interval to draw; that of a single example is infinite and not drawn."""
    return (estimate.low, estimate.high) if np.isfinite(estimate.high) else (estimate.mean, estimate.mean)


def _points(runs: pd.DataFrame, quality: dict[str, float]) -> pd.DataFrame:
    means = runs.groupby("arm", sort=False)[["train_peak_bytes", "train_seconds"]].mean()
    points = pd.DataFrame({"quality": pd.Series(quality)})
    points["memory"] = means["train_peak_bytes"].reindex(points.index) / 2**30
    points["time"] = means["train_seconds"].reindex(points.index) / 60
    return points


def _base_lines(axes: Axes, findings: Findings, estimates: dict[str, Estimate], look: Styles) -> None:
    """Untrained arms have no training cost: a line across, with its interval as a band."""
    for arm in (arm for arm, records in findings.arms.items() if is_base(records[0]) and arm in estimates):
        estimate = estimates[arm]
        axes.axhline(estimate.mean, color=look[arm]["color"], lw=1.5, ls="--")
        axes.axhspan(*_ends(estimate), color=look[arm]["color"], alpha=0.12, lw=0)


def _handle(arm: str, look: Styles) -> Line2D:
    untrained = arm.split(" ")[0].split("_")[0] == "base"
    return Line2D([], [], label=arm, lw=1.5, ms=7, ls="--" if untrained else "none",
                  color=look[arm]["color"], marker="" if untrained else look[arm]["marker"])  # fmt: skip


def regression_changes(comparisons: Sequence[Comparison], arms: Sequence[str]) -> Figure | None:
    """Change of every accuracy-like task against the base, in points, with 95% intervals."""
    shown = [c for c in comparisons if c.measure.kind == "regression" and c.measure.higher_is_better]
    if not shown:
        return None
    tasks = list(dict.fromkeys(c.measure.name for c in shown))
    compared = [arm for arm in arms if any(c.arm == arm for c in shown)]
    look = styles(arms)
    figure = Figure(figsize=(9.5, 1.5 + (0.25 + 0.17 * len(compared)) * len(tasks)), layout="constrained")
    axes = figure.add_subplot()
    offsets = np.linspace(-0.28, 0.28, len(compared)) if len(compared) > 1 else np.zeros(1)
    for arm, offset in zip(compared, offsets, strict=True):
        rows = [c for c in shown if c.arm == arm]
        where = [tasks.index(c.measure.name) + offset for c in rows]
        values = np.array([(c.difference, c.low, c.high) for c in rows]) * 100
        values[~np.isfinite(values).all(axis=1), 1:] = np.nan  # a single item has an infinite interval
        error = np.abs(values[:, 1:].T - values[:, 0])
        axes.errorbar(values[:, 0], where, xerr=error, **look[arm], ls="none", ms=6, capsize=3, lw=1.4, label=arm)
    axes.axvline(0, color="black", lw=1)
    for border in range(1, len(tasks)):
        axes.axhline(border - 0.5, color="#e3e3e3", lw=0.8)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.invert_yaxis()
    axes.set_xlabel(f"change against {shown[0].baseline}, points (95% interval)")
    finish(axes, grid="x")
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    return figure


def draw_lines(axes: Axes, lines: Lines, look: Styles, **kept: Any) -> None:
    """Every line of an arm in its colour, as one collection: a thousand runs are drawn as fast as ten."""
    for arm, found in lines.items():
        segments = [np.column_stack(line) for line in found]
        axes.add_collection(LineCollection(segments, colors=look[arm]["color"], **kept))
    axes.autoscale_view()


def finish(axes: Axes, grid: str = "y") -> None:
    """Grid and frame, the same in every figure."""
    axes.grid(axis="both" if grid == "y" else "x", color="#e3e3e3", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
