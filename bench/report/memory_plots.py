"""The report's figures of training memory: what the peak is made of, and when it arose.

>>> memory_over_steps(steps, arms).savefig("memory_over_steps.png", dpi=DPI)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bench.report.plots import GREY, Lines, draw_lines, finish, styles

PARTS = [  # column, label, colour (cividis: another scale than the methods')
    ("start_bytes", "process before the model", "#D9D9D9"),
    ("weights_bytes", "weights", "#00224E"),
    ("gradients_bytes", "gradients", "#575D6D"),
    ("optimizer_bytes", "optimizer state", "#A59C74"),
    ("rest_bytes", "activations and workspace", "#FEE838"),
]


def memory_parts(runs: pd.DataFrame) -> Figure | None:
    """Peak training memory by arm, stacked: what was measured of tensors, and the rest of the peak."""
    if "train_peak_bytes" not in runs or not runs["train_peak_bytes"].notna().any():
        return None
    means = peak_parts(runs)
    figure = Figure(figsize=(9.5, 1.5 + 0.55 * len(means)), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(means))
    for column, label, colour in PARTS:
        width = means[column].to_numpy() / 2**30
        if width.any():
            axes.barh(means.index, width, left=left, color=colour, edgecolor="white", lw=0.6, label=label)
        left = left + width
    peaks = means["train_peak_bytes"] / 2**30
    for place, peak in enumerate(peaks):
        axes.text(max(peak, left[place]), place, f"  {peak:.2f}", va="center")
    axes.set_xlim(0, max(left.max(), peaks.max()) * 1.1)
    axes.set_xlabel("peak training memory, GiB")
    axes.invert_yaxis()
    finish(axes, grid="x")
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure


def peak_parts(runs: pd.DataFrame) -> pd.DataFrame:
    """By arm with a known peak, means over seeds: train_peak_bytes and the columns of `PARTS`, 0 where unknown."""
    columns = ["train_peak_bytes", "start_bytes", "weights_bytes", "gradients_bytes", "optimizer_bytes"]
    means = (
        runs.reindex(columns=["arm", *columns])
        .astype(dict.fromkeys(columns, float))
        .groupby("arm", sort=False)[columns]
        .mean()
    )
    means = means[means["train_peak_bytes"].notna()].fillna(0)
    return means.assign(rest_bytes=(means["train_peak_bytes"] - means[columns[1:]].sum(axis=1)).clip(lower=0))


def memory_over_steps(steps: pd.DataFrame, arms: Sequence[str]) -> Figure | None:
    """Memory held after each optimizer step (thin) and the highest so far (bold), the step of the peak marked.

    Args:
        steps: with a column `arm` besides those of `frame.steps_frame`.
    """
    steps = steps[steps["peak_so_far_bytes"].notna()]
    if steps.empty:
        return None
    look = styles(arms)
    figure = Figure(figsize=(9.5, 4.3), layout="constrained")
    axes = figure.add_subplot()
    held: Lines = {}
    highest: Lines = {}
    for (arm, _), rows in steps.groupby(["arm", "run_id"], sort=False):
        step = rows["step"].to_numpy(dtype=float)
        for lines, name in ((held, "memory_bytes"), (highest, "peak_so_far_bytes")):
            lines.setdefault(str(arm), []).append((step, rows[name].astype(float).to_numpy() / 2**30))
    draw_lines(axes, held, look, lw=0.9, alpha=0.6)
    draw_lines(axes, highest, look, lw=2.2)
    for arm, found in highest.items():
        firsts = [(step[peak.argmax()], peak.max()) for step, peak in found]
        axes.plot(*zip(*firsts, strict=True), **look[arm], ms=9, ls="none")
    axes.set_ylim(0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training memory, GiB")
    finish(axes)
    shown = [arm for arm in arms if arm in highest]
    handles = [Line2D([], [], label=arm, lw=2.2, ms=7, **look[arm]) for arm in shown]
    handles.append(Line2D([], [], label="highest so far: bold", lw=2.2, color=GREY))
    handles.append(Line2D([], [], label="held: thin", lw=0.9, alpha=0.6, color=GREY))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    return figure
