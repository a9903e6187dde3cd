"""The report's figure of losses: by optimizer step, by token and by minute, with the target and where it was reached.

>>> loss_curves(steps, compare_curves(arms, sweep.step_rows), arms).savefig("loss_curves.png", dpi=DPI)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bench.analysis.curves import Curve, Floats
from bench.analysis.targets import CurveComparison, CurveReading
from bench.report.plots import GREY, Lines, draw_lines, finish, styles

_AXES = ("optimizer step", "thousand tokens of training", "minutes of training")


def loss_curves(steps: pd.DataFrame, compared: Sequence[CurveComparison], arms: Sequence[str]) -> Figure | None:
    """Training loss (faint) and held-out loss (bold), one line a seed; None without either.

    Args:
        steps: with a column `arm` besides those of `frame.steps_frame`.
        arms: all that are shown in the report.
    """
    runs = [(arm, run) for one in compared for arm, own in one.runs.items() for run in own]
    if steps.empty and not runs:
        return None
    look = styles(arms)
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes: Axes | None = None
    trained = _training(steps)
    for place, label in enumerate(_AXES):
        axes = figure.add_subplot(1, len(_AXES), place + 1, sharey=axes)
        heldout: Lines = {}
        points: Lines = {}
        for arm, run in runs:
            losses = np.where(np.isfinite(run.curve.loss.y), run.curve.loss.y, np.nan)
            tokens = np.union1d(run.curve.loss.x, run.curve.seconds.x)  # by the minute the line bends at every step
            tokens = tokens[(tokens >= run.curve.loss.x[0]) & (tokens <= run.curve.loss.x[-1])]
            read = np.interp(tokens, run.curve.loss.x, losses)
            heldout.setdefault(arm, []).append((_x(run.curve, tokens)[place], read))
            points.setdefault(arm, []).append((_x(run.curve, run.curve.loss.x)[place], losses))
        draw_lines(axes, trained[place], look, lw=0.9, alpha=0.35)
        draw_lines(axes, heldout, look, lw=2.2)
        for arm, found in points.items():
            axes.plot(*np.concatenate(found, axis=1), **look[arm], ms=5, ls="none")
        _mark_targets(axes, compared, place)
        if place == 0:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(label)
        axes.set_ylabel("loss, nats per token" if place == 0 else "")
        finish(axes)
    there = {*steps["arm"], *(arm for arm, _ in runs)}
    shown = [arm for arm in arms if arm in there]
    handles = [Line2D([], [], label=arm, lw=2.2, ms=5, **look[arm]) for arm in shown]
    handles.append(Line2D([], [], label="held-out: bold", lw=2.2, color=GREY))
    handles.append(Line2D([], [], label="training: faint", lw=0.9, alpha=0.5, color=GREY))
    if any(one.target is not None for one in compared):
        handles.append(Line2D([], [], label="target", lw=1.2, ls="--", color="black"))
        handles.append(Line2D([], [], label="reached", ls="none", marker="o", ms=11, mfc="none", mec="black"))
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False)
    return figure


def _training(steps: pd.DataFrame) -> list[Lines]:
    """Of each axis."""
    if steps.empty:
        return [{} for _ in _AXES]
    tokens = steps.groupby("run_id", sort=False)["tokens"].cumsum() / 1e3
    loss = steps["loss"].to_numpy(dtype=float, na_value=np.nan)
    places = {run: np.asarray(own) for run, own in steps.groupby("run_id", sort=False).indices.items()}
    arm_of = dict(zip(steps["run_id"], steps["arm"], strict=True))
    lines: list[Lines] = []
    for x in (steps["step"], tokens, steps["elapsed_seconds"] / 60):
        values = x.to_numpy(dtype=float, na_value=np.nan)
        lines.append({})
        for run, own in places.items():
            lines[-1].setdefault(arm_of[run], []).append((values[own], loss[own]))
    return lines


def _x(curve: Curve, tokens: Floats) -> tuple[Floats, Floats, Floats]:
    """Numbers of tokens on each of the axes."""
    steps = np.interp(tokens, curve.loss.x, np.array(curve.steps, dtype=float))
    return steps, tokens / 1e3, np.interp(tokens, curve.seconds.x, curve.seconds.y) / 60


def _mark_targets(axes: Axes, compared: Sequence[CurveComparison], place: int) -> None:
    for target in dict.fromkeys(one.target for one in compared if one.target is not None):
        axes.axhline(target, color="black", lw=1.2, ls="--", zorder=1)
    reached: list[tuple[float, float]] = []
    for one in compared:
        for run in (run for own in one.runs.values() for run in own):
            if one.target is not None and (tokens := _reached_tokens(run)) is not None:
                where = float(_x(run.curve, np.array([tokens]))[place][0])
                reached.append((where, min(one.target, float(run.curve.loss.y[0])) if tokens == 0 else one.target))
    if reached:
        x, y = zip(*reached, strict=True)
        axes.scatter(x, y, s=130, facecolors="none", edgecolors="black", zorder=4)


def _reached_tokens(run: CurveReading) -> float | None:
    return run.reach.tokens if run.reach else None
