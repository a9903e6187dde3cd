"""Learning: loss over training, and what it took to reach a target loss.

>>> section(group).chart.name
'loss'
"""

from __future__ import annotations

import pandas as pd

from bench.report.charts import CURVE_AXES, Chart, loss_chart
from bench.report.section import Column, Section, number, seeds_table
from bench.stats.curves import reach_frame
from bench.stats.frames import Group

_PARTS = 200  # that longer training curves are averaged over
_NOTE = (
    "Bold: loss on the validation split. Faint: training loss of each step's batch. Means over seeds; bands reach from "
    "the lowest to the highest seed. Time: that of the optimizer steps, without evaluation. Click a method in the "
    "legend to see it alone. Dashed: the target."
)

_REACHED = (
    "The target is the highest final loss of the methods, unless one was given: all reach it, and what it took can be "
    "compared. Between two held-out points the loss is taken to be linear in the tokens; it falls fastest at first, so "
    "that the true moment tends to be earlier. Time: of the optimizer steps. A run read before its end is amid its "
    "learning-rate schedule: planned to end there, it would as a rule have come lower. Several seeds: mean (lowest to "
    "highest)."
)


def section(group: Group) -> Section | None:
    """None without any held-out or training loss."""
    shown = group.without_controls()
    found = [frame for frame in (_heldout(shown), _training(shown)) if len(frame)]
    if not found:
        return None
    curves = pd.concat(found, ignore_index=True)
    reached = reach_frame(group)
    target = float(reached["target"].iloc[0]) if len(reached) and reached["set"].nunique() == 1 else None
    drawing = loss_chart(curves, list(shown.arms["arm"]), target)
    chart = Chart("loss", drawing, "Loss of each method over training.", curves)
    return Section("Learning", chart=chart, parts=[_reached(found) for _, found in reached.groupby("set")], note=_NOTE)


def _reached(reached: pd.DataFrame) -> Section:
    """When the runs of one set reached its target, and their losses at equal tokens and equal time."""
    first = reached.iloc[0]
    tokens, minutes = first["equal_tokens"] / 1e3, first["equal_seconds"] / 60
    columns = [  # header, column, decimals, factor
        ("tokens, thousands", "tokens", 1, 1e-3),
        ("time, min", "seconds", 2, 1 / 60),
        ("energy, Wh", "energy_wh", 2, 1.0),
        (f"loss at {number(tokens, 1)} thousand tokens", "loss_at_equal_tokens", 3, 1.0),
        (f"loss at {number(minutes, 2)} min", "loss_at_equal_seconds", 3, 1.0),
        ("final loss", "final_loss", 3, 1.0),
    ]
    share: Column = ("reached", lambda ended: f"{len(ended) - ended.count('never')} of {len(ended)} seeds", "status")
    table = seeds_table(reached, columns, share)
    return Section(f"Until a held-out loss of {number(first['target'])} nats/token", table=table, note=_REACHED)


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
