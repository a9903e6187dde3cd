"""What arms are compared by: every score, the held-out loss, the regression suite's mean and its tasks.

A `Table` holds one measure of a group: one value an example and run. `means_of` hands the values of some arms to the
engine of `stats.paired`.

    >>> tables = measure_tables(group)
    >>> known = means_of(tables[Measure("score", "rougeL")], [full_runs, lora_runs])
    >>> known.difference(1, 0).interval()
    (-0.026, 0.004)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.metrics import Scale
from bench.record import KL_METRIC, Record
from bench.stats.frames import Group
from bench.stats.paired import Floats, Means, SeedPart, means, seed_part

SUITE_MEAN = "all tasks"
NO_VALUE = np.inf  # in a table: tested, but without a finite value. NaN: not tested


@dataclass(frozen=True)
class Measure:
    """What is compared. `name` is a metric (score), the split (loss), a task of the suite or a kind of text."""

    kind: Literal["score", "loss", "regression", "divergence"]
    name: str
    higher_is_better: bool = True
    unit: str = "score"  # score, nats/token, acc, bits_per_byte, ...
    value_range: tuple[float, float] = (-np.inf, np.inf)  # of one example, as the metric states it

    @property
    def sign(self) -> float:
        """What turns a value so that higher is better."""
        return 1.0 if self.higher_is_better else -1.0


@dataclass(frozen=True, eq=False)
class Table:
    """One measure of a group.

    Attributes:
        values: run_id -> one value an example, shape (examples,); NaN: not tested on it; `NO_VALUE`: no finite value.
        weights: of the examples in the mean, shape (examples,); None: all count alike.
        strata: the task of each example, where the mean is one over tasks; None otherwise.
        value_range: least and most possible value.
        seeds: how much a run's mean moves with its seed, pooled over the trained arms of the group but controls.
    """

    values: dict[str, Floats]
    weights: Floats | None
    strata: NDArray[np.int64] | None
    value_range: tuple[float, float]
    seeds: SeedPart

    def has(self, record: Record) -> bool:
        """Whether the run was tested at all."""
        return not bool(np.isnan(self.values[record.run_id]).all())


def primary_measure(tables: dict[Measure, Table]) -> Measure | None:
    """The task's first metric; None where nothing was scored."""
    return next((measure for measure in tables if measure.kind == "score"), None)


def suite_measure(tables: dict[Measure, Table]) -> Measure | None:
    """What forgetting is told by: the suite's mean; of a suite with one task for which higher is better, that one."""
    rising = [m for m in tables if m.kind == "regression" and m.higher_is_better]
    return next((m for m in rising if m.name == SUITE_MEAN), rising[0] if len(rising) == 1 else None)


@lru_cache(maxsize=32)
def measure_tables(group: Group) -> dict[Measure, Table]:
    """Every measure that the group's runs hold: scores as configured, test loss, the suite's mean, its tasks."""
    samples, items = group.samples, group.regression
    rows_of: dict[Measure, pd.DataFrame] = {}
    evaluated = [record.evaluate for record in group.records if record.evaluate]
    scales = {name: result.scales.get(name, Scale()) for result in evaluated for name in result.scores}
    for name, scale in scales.items():
        if f"score_{name}" in samples:
            measure = Measure("score", name, scale.higher_is_better, value_range=scale.bounds)
            rows_of[measure] = samples.assign(value=samples[f"score_{name}"], weight=1.0)
    if len(samples):
        tokens = pd.to_numeric(samples["loss_tokens"]).where(lambda count: count > 0)
        rows = samples.assign(value=pd.to_numeric(samples["loss"]) / tokens, weight=tokens)[tokens.notna()]
        rows_of[Measure("loss", "test", False, "nats/token")] = rows
    tasks = {task.task: task for record in group.records if record.regression for task in record.regression.tasks}
    items = items[items["task"].isin(list(tasks))].rename(columns={"score": "value"})
    items = items.assign(example_id=items["task"] + "\0" + items["item_id"].astype(str))
    rising = items[items["task"].map({name: task.higher_is_better for name, task in tasks.items()}).astype(bool)]
    if rising["task"].nunique() > 1:  # each task counts alike in the mean, whatever its number of items
        share = rising["weight"] / rising.groupby(["run_id", "task"])["weight"].transform("sum")
        rows_of[Measure("regression", SUITE_MEAN, True, "mean")] = rising.assign(weight=share)
    for name, task in tasks.items():
        kind: Literal["divergence", "regression"] = "divergence" if task.metric == KL_METRIC else "regression"
        rows_of[Measure(kind, name, task.higher_is_better, task.metric)] = items[items["task"] == name]
    return {measure: _table(group, measure, rows) for measure, rows in rows_of.items() if len(rows)}


def _table(group: Group, measure: Measure, rows: pd.DataFrame) -> Table:
    """`rows` holds run_id, example_id, value and weight; of an example that occurs twice the first counts."""
    rows = rows.assign(value=rows["value"].fillna(NO_VALUE)).drop_duplicates(["run_id", "example_id"])
    frame = rows.pivot(index="example_id", columns="run_id", values="value")
    frame = frame.reindex(columns=[record.run_id for record in group.records]).astype(float)
    weights = rows.groupby("example_id")["weight"].mean().reindex(frame.index).to_numpy(dtype=float)
    frame, weights = frame[weights > 0], weights[weights > 0]
    strata = np.unique([str(key).partition("\0")[0] for key in frame.index], return_inverse=True)[1]
    values = {str(run_id): column.to_numpy() for run_id, column in frame.items()}
    of_arms = [runs for runs in group.by_arm.values() if not runs[0].config.untrained | runs[0].config.method.control]
    whole = [[values[r.run_id] for r in runs if not np.isnan(values[r.run_id]).any()] for runs in of_arms]
    alike = len(weights) == 0 or np.ptp(weights) == 0
    finite = rows["value"][np.isfinite(rows["value"])]
    lowest = 0.0 if (finite >= 0).all() else -np.inf
    highest = 1.0 if measure.higher_is_better and (finite <= 1).all() else np.inf
    return Table(
        values=values,
        weights=None if alike else weights,
        strata=strata if measure.name == SUITE_MEAN else None,
        value_range=measure.value_range if measure.kind == "score" else (lowest, highest),
        seeds=seed_part([np.stack(runs) for runs in whole if runs], None if alike else weights),
    )


def means_of(table: Table, arms: Sequence[Sequence[Record]]) -> Means | str:
    """The means of some arms, given by their runs, on the examples that all of them share.

    Returns:
        The means, or the reason why the values cannot be paired.
    """
    missing = [record.run_id for runs in arms for record in runs if not table.has(record)]
    if missing or not arms:
        return f"no values of {', '.join(missing) or 'any run'}"
    values = [np.stack([table.values[record.run_id] for record in runs]) for runs in arms]
    tested = ~np.isnan(np.concatenate(values))
    shared, largest = int(tested.all(axis=0).sum()), int(tested.sum(axis=1).max())
    if shared < largest:
        return f"they were tested on different examples ({shared} of {largest} in common)"
    if not np.isfinite(np.concatenate(values)).all(axis=0).any():
        return "no finite values"
    return means(
        values,
        weights=table.weights,
        strata=table.strata,
        trained=[not runs[0].config.untrained for runs in arms],
        seeds=table.seeds,
        value_range=table.value_range,
    )
