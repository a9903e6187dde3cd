"""Learning: loss over training, and what it took to reach a target loss.

>>> section(group).chart.name
'loss'
"""

from __future__ import annotations

import pandas as pd

from bench.report.charts import CURVE_AXES, Chart, loss_chart
from bench.report.section import Section
from bench.stats.frames import Group

_PARTS = 200  # that longer training curves are averaged over
_NOTE = (
    "Bold: loss on the validation split. Faint: training loss of each step's batch. Means over seeds; bands reach from "
    "the lowest to the highest seed. Time: that of the optimizer steps, without evaluation. Click a method in the "
    "legend to see it alone."
)


def section(group: Group) -> Section | None:
    """None without any held-out or training loss."""
    shown = group.without_controls()
    found = [frame for frame in (_heldout(shown), _training(shown)) if len(frame)]
    if not found:
        return None
    curves = pd.concat(found, ignore_index=True)
    drawing = loss_chart(curves, list(shown.arms["arm"]))
    return Section("Learning", chart=Chart("loss", drawing, "Loss of each method over training.", curves), note=_NOTE)


def _heldout(group: Group) -> pd.DataFrame:
    points = group.sweep.heldout
    points = points[points["run_id"].isin(group.runs["run_id"])].dropna(subset=["loss"])
    numbers = {"tokens": points["train_tokens"] / 1e3, "minutes": points["train_seconds"] / 60}
    return _over_seeds(points.assign(loss=points["loss"].astype(float), **numbers), "held-out", "step")


def _training(group: Group) -> pd.DataFrame:
    """Means over parts of the steps are weighted by the tokens that carry the loss."""
    steps = group.sweep.steps
    steps = steps[steps["run_id"].isin(group.runs["run_id"])].dropna(subset=["loss"])
    if steps.empty:
        return steps
    most = max(int(steps["step"].max()), 1)
    steps = steps.assign(
        part=(steps["step"] - 1) * min(_PARTS, most) // most,
        tokens=steps.groupby("run_id")["tokens"].cumsum() / 1e3,
        minutes=steps["elapsed_seconds"] / 60,
        weighted=steps["loss"].astype(float) * steps["supervised_tokens"],
    )
    by = steps.groupby(["arm", "run_id", "part"], sort=False)
    runs = by[["step", "tokens", "minutes"]].mean()
    runs["loss"] = by["weighted"].sum() / by["supervised_tokens"].sum()
    return _over_seeds(runs.reset_index(), "training", "part")


def _over_seeds(points: pd.DataFrame, kind: str, key: str) -> pd.DataFrame:
    """Columns of `loss_chart`."""
    by = points.groupby(["arm", key], sort=False)
    frame = by["loss"].agg(loss="mean", low="min", high="max")
    frame[list(CURVE_AXES)] = by[["step", "tokens", "minutes"]].mean().to_numpy()
    return frame.reset_index().assign(kind=kind)[["arm", "kind", "loss", "low", "high", *CURVE_AXES]]
