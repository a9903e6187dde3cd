"""What the interactive charts draw, as DataFrames: one function a chart, a group in, the columns that the chart names.

Nothing grows with the number of runs: seeds become a mean with a range, and long curves are averaged over `BINS` equal
parts of their steps. No rows: nothing is known.

    >>> points, costs = quality_points(group)
    >>> points[["arm", "score", "low", "high"]]
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from bench.analysis import serving
from bench.analysis.order import is_base
from bench.analysis.recommend import pareto_set
from bench.report.answer import Group
from bench.report.charts.loss import AXES
from bench.report.charts.serving import TIMES
from bench.report.rates import tunings_of
from bench.report.serving import served_arms
from bench.report.serving_plots import WAYS

BINS, TICKS = 200, 200
_FEWEST_TICKS, _ALL_TICKS = 20, 4000  # of an arm, however many there are; of all arms together
_COSTS = {  # axis -> (column of runs, factor)
    "peak training memory, GiB": ("train_peak_bytes", 2**-30),
    "training time, min": ("train_seconds", 1 / 60),
    "cost, USD": ("cost_usd", 1.0),
}


def quality_points(group: Group) -> tuple[pd.DataFrame, list[str]]:
    """(the columns of `quality_chart`, the costs that are known of any trained arm)."""
    findings, rows = group.findings, []
    columns = [column for column, _ in _COSTS.values()]
    means = group.runs.reindex(columns=["arm", *columns]).astype(dict.fromkeys(columns, float)).groupby("arm").mean()
    known = means.to_dict()
    for arm, records in findings.arms.items():
        if estimate := findings.estimate(findings.primary, arm):
            ends = (estimate.low, estimate.high) if math.isfinite(estimate.high) else (estimate.mean, estimate.mean)
            row = {"arm": arm, "score": estimate.mean, "low": ends[0], "high": ends[1], "seeds": estimate.seeds}
            spent = {axis: known[column][arm] * factor for axis, (column, factor) in _COSTS.items()}
            rows.append(row | spent | {"trained": not is_base(records[0])})
    points = pd.DataFrame(rows, columns=["arm", "score", "low", "high", "seeds", *_COSTS, "trained"])
    trained = points[points["trained"].astype(bool)]
    costs = [axis for axis in _COSTS if trained[axis].notna().any()]
    chosen = dict(zip(trained.index, pareto_set(trained, maximise=["score"], minimise=[*_COSTS][:2]), strict=True))
    points["Pareto set"] = ["yes" if chosen.get(place) else "no" for place in points.index]
    return points.drop(columns=[axis for axis in _COSTS if axis not in costs]), costs


def loss_curves(group: Group) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(`curves`, `targets`) of `loss_chart`."""
    compared = group.curves
    found = [curves for curves in (_heldout(group), _training(group)) if len(curves)]
    curves = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    rows = []
    for one in compared:
        for arm, runs in one.runs.items():
            reached = [(run.curve, run.reach) for run in runs if run.reach and run.reach.tokens is not None]
            if one.target is not None and reached:
                places = [
                    (float(np.interp(reach.tokens or 0.0, curve.loss.x, np.array(curve.steps, dtype=float))),
                     (reach.tokens or 0.0) / 1e3, (reach.seconds or 0.0) / 60)
                    for curve, reach in reached
                ]  # fmt: skip
                rows.append({"arm": arm, "target": one.target, "loss": one.target}
                            | dict(zip(AXES, np.mean(places, axis=0), strict=True)))  # fmt: skip
    return curves, pd.DataFrame(rows, columns=["arm", "target", "loss", *AXES])


def _heldout(group: Group) -> pd.DataFrame:
    points = group.with_arm(group.sweep.heldout).dropna(subset=["loss"])
    points = points.assign(loss=points["loss"].astype(float), tokens=points["train_tokens"] / 1e3)
    points["minutes"] = points["train_seconds"] / 60
    return _over_seeds(points, "held-out", "step")


def _training(group: Group) -> pd.DataFrame:
    """Means of a bin are weighted by the tokens that carry the loss."""
    steps = group.with_arm(group.sweep.steps).dropna(subset=["loss"])
    if steps.empty:
        return steps
    steps = steps.assign(
        bin=binned(steps),
        tokens=steps.groupby("run_id")["tokens"].cumsum() / 1e3,
        minutes=steps["elapsed_seconds"] / 60,
    )
    steps["weighed"] = steps["loss"].astype(float) * steps["supervised_tokens"]
    by = steps.groupby(["arm", "run_id", "bin"], sort=False)
    runs = by[["step", "tokens", "minutes"]].mean()
    runs["loss"] = by["weighed"].sum() / by["supervised_tokens"].sum()
    return _over_seeds(runs.reset_index(), "training", "bin")


def _over_seeds(points: pd.DataFrame, kind: str, key: str) -> pd.DataFrame:
    """Mean, lowest and highest loss of the runs of an arm at one place."""
    if points.empty:
        return points
    by = points.groupby(["arm", key], sort=False)
    frame = by["loss"].agg(loss="mean", low="min", high="max", seeds="size")
    frame[list(AXES)] = by[["step", "tokens", "minutes"]].mean().to_numpy()
    return frame.reset_index().assign(kind=kind)[["arm", "kind", "loss", "low", "high", "seeds", *AXES]]


def binned(steps: pd.DataFrame) -> pd.Series:
    """The part of the longest run, of at most `BINS` equal ones, that each step is in."""
    most = max(int(steps["step"].max()), 1)
    return (steps["step"] - 1) * min(BINS, most) // most


def memory_growth(group: Group) -> pd.DataFrame:
    """The columns of `growth_chart`: of a bin the highest, then over seeds."""
    steps = group.with_arm(group.sweep.steps).dropna(subset=["peak_so_far_bytes"])
    if steps.empty:
        return pd.DataFrame()
    steps = steps.assign(bin=binned(steps), held=steps["memory_bytes"].astype(float) / 2**30,
                         highest=steps["peak_so_far_bytes"].astype(float) / 2**30)  # fmt: skip
    runs = steps.groupby(["arm", "run_id", "bin"], sort=False)[["step", "held", "highest"]].max().reset_index()
    by = runs.groupby(["arm", "bin"], sort=False)
    highest = by["highest"]
    means = {"step": by["step"].mean(), "held GiB": by["held"].mean(), "highest GiB": highest.mean()}
    frame = pd.DataFrame({**means, "low": highest.min(), "high": highest.max()}).reset_index().drop(columns="bin")
    first = frame.groupby("arm")["highest GiB"].idxmax()
    return frame.assign(peak=np.where(frame.index.isin(first), "yes", "no"))


def rate_trials(group: Group) -> pd.DataFrame:
    """The columns of `rates_chart`; a loss that is not finite is drawn at the upper edge of the others."""
    rows = [
        {"arm": arm, "learning rate": trial.learning_rate, "loss": trial.loss,
         "ended": "not finite" if trial.loss is None else f"at step {trial.steps}" if trial.stopped_early else "yes",
         "chosen": "yes" if trial.learning_rate == tuning.learning_rate else "no"}
        for arm, tuning in tunings_of(group).items()
        for trial in tuning.trials
    ]  # fmt: skip
    trials = pd.DataFrame(rows)
    known = trials.loc[trials["ended"] == "yes", "loss"] if rows else pd.Series(dtype=float)
    if known.empty:
        return pd.DataFrame()
    ceiling = known.max() + 0.15 * ((known.max() - known.min()) or 0.3)
    return trials.assign(loss=trials["loss"].astype(float).fillna(ceiling).clip(upper=ceiling))


def regression_changes(group: Group) -> pd.DataFrame:
    """The columns of `regression_chart`, of the tasks for which higher is better."""
    against = next((c.baseline for c in group.findings.comparisons), None)
    rows = [
        {"task": c.measure.name, "arm": c.arm, "against": c.baseline, "change": 100 * c.difference,
         "low": 100 * c.low if math.isfinite(c.low) else None, "high": 100 * c.high if math.isfinite(c.high) else None,
         "verdict": c.verdict, "items": c.examples}
        for c in group.findings.comparisons
        if c.measure.kind == "regression" and c.measure.higher_is_better and c.baseline == against
    ]  # fmt: skip
    return pd.DataFrame(rows)


def step_seconds(group: Group) -> pd.DataFrame:
    """The columns of `step_time_chart`."""
    steps = group.with_arm(group.sweep.steps)
    most = max(_FEWEST_TICKS, min(TICKS, _ALL_TICKS // max(1, steps["arm"].nunique())))
    found: list[pd.DataFrame] = []
    for arm in group.arms:
        seconds = steps.loc[(steps["arm"] == arm) & steps["timed"].astype(bool), "seconds"].astype(float).to_numpy()
        if len(seconds):
            ticks = np.quantile(seconds, np.linspace(0, 1, most)) if len(seconds) > most else np.sort(seconds)
            frame = pd.DataFrame({"arm": arm, "seconds": ticks})
            for name, share in (
                ("p10", 0.1),
                ("p25", 0.25),
                ("median", 0.5),
                ("p75", 0.75),
                ("p90", 0.9),
                ("p99", 0.99),
            ):
                frame.loc[0, name] = np.quantile(seconds, share)
            frame.loc[0, "timed steps"] = len(seconds)
            found.append(frame)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def latencies(group: Group) -> pd.DataFrame:
    """The columns of `latency_chart`."""
    rows = []
    for arm, records in served_arms(group).items():
        for one in serving.latencies(records):
            row: dict[str, object] = {"name": f"{arm}: {one.form}", "arm": arm, "form": one.form,
                   "requests": f"batch {one.batch_size}, prompt {one.prompt_tokens}"}  # fmt: skip
            for time, median in zip(TIMES, (one.total_seconds, one.first_token_seconds), strict=True):
                row |= {time: median.value, f"low {time}": median.low, f"high {time}": median.high}
            rows.append(row)
    return pd.DataFrame(rows)


def adapters(group: Group) -> pd.DataFrame:
    """The columns of `adapters_chart`, of the first served run of each arm."""
    rows: list[dict[str, object]] = []
    for arm, records in served_arms(group).items():
        served = records[0].serve
        if served is None or served.adapters is None:
            continue
        many = served.adapters
        for way, by_count in serving.adapter_tokens_per_second(many, int(served.settings["new_tokens"])).items():
            rows += [
                {"arm": arm, "quantity": "generated tokens/s", "way": WAYS[way], "adapters": count,
                 "value": median.value, "low": median.low, "high": median.high}
                for count, median in sorted(by_count.items())
            ]  # fmt: skip
        held = {int(count): size for count, size in many.held_bytes.items() if size is not None}
        first = min(held, default=0)
        for count, size in held.items():
            copies = held[first] + (count - first) * many.copy_bytes
            rows += [_memory(arm, "memory held, measured", count, size), _memory(arm, "as full copies", count, copies)]
    return pd.DataFrame(rows)


def _memory(arm: str, way: str, count: int, size_bytes: int) -> dict[str, object]:
    gib = size_bytes / 2**30
    return {"arm": arm, "quantity": "memory, GiB", "way": way, "adapters": count, "value": gib, "low": gib, "high": gib}
