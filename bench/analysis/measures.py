"""The quantities that methods are compared by, each as one value per example and run.

A `Measure` says what is compared; its table maps run_id to a frame with the columns value and weight, indexed by
example. `paired_difference` lines two arms up by example and seed and hands the differences to `stats.paired`.

    >>> tables = measure_tables(records, samples, regression)
    >>> tables[Measure("score", "rougeL")]["lora-...-s0-1f2e"]
              value  weight
    example_id
    t17        0.31     1.0
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from bench.analysis.stats import Paired, Resampler, paired
from bench.spec.record import KL_METRIC, Record

OVERALL = "all tasks"
Pairs = Sequence[tuple[str, str]]  # run_ids (method, baseline) of one seed each
Table = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Measure:
    """What is compared. `name` is a metric (score), the split (loss), a task of the suite or a kind of text."""

    kind: Literal["score", "loss", "regression", "divergence"]
    name: str
    higher_is_better: bool = True
    unit: str = "score"  # score (0..1), nats/token, acc, bits_per_byte, ...


def measure_tables(records: Iterable[Record], samples: pd.DataFrame, regression: pd.DataFrame) -> dict[Measure, Table]:
    """Every measure that the runs hold, in the order: scores as configured, test loss, suite overall, suite tasks.

    Args:
        samples, regression: `frame.samples_frame` and `frame.regression_frame` of (at least) these records.
    """
    records = list(records)
    wanted = {record.run_id for record in records}
    tables: dict[Measure, Table] = {}
    samples = samples[samples["run_id"].isin(wanted)]
    for metric in _metrics(records):
        column = f"score_{metric}"
        if column in samples:
            tables[Measure("score", metric)] = _by_run(samples, "example_id", samples[column], None)
    if len(samples):
        tokens = pd.to_numeric(samples["loss_tokens"]).where(lambda count: count > 0)
        loss = pd.to_numeric(samples["loss"], errors="coerce") / tokens
        tables[Measure("loss", "test", False, "nats/token")] = _by_run(samples, "example_id", loss, tokens)
    return tables | _regression_tables(records, regression[regression["run_id"].isin(wanted)])


def _metrics(records: Sequence[Record]) -> list[str]:
    """The task's metrics as configured; the first is the primary one."""
    named = [metric for record in records for metric in record.config.get("task", {}).get("metrics", [])]
    found = [metric for record in records if record.evaluate for metric in record.evaluate.scores]
    return list(dict.fromkeys([*named, *found]))


def _by_run(rows: pd.DataFrame, index: str, value: pd.Series, weight: pd.Series | None) -> Table:
    frame = pd.DataFrame({"run_id": rows["run_id"], index: rows[index], "value": value, "weight": weight})
    if weight is None:
        frame["weight"] = 1.0
    return {str(run): part.set_index(index)[["value", "weight"]] for run, part in frame.groupby("run_id")}


def _regression_tables(records: Sequence[Record], items: pd.DataFrame) -> dict[Measure, Table]:
    tasks = {task.task: task for record in records if record.regression for task in record.regression.tasks}
    if not tasks or items.empty:
        return {}
    items = items.assign(key=items["task"] + "\0" + items["item_id"].astype(str))
    tables: dict[Measure, Table] = {}
    rising = items[items["task"].map(lambda name: name in tasks and tasks[name].higher_is_better)]
    if rising["task"].nunique() > 1:
        # Each task counts alike in the mean, whatever its number of items.
        share = 1 / rising.groupby(["run_id", "task"])["weight"].transform("sum") * rising["weight"]
        tables[Measure("regression", OVERALL, True, "mean")] = _by_run(rising, "key", rising["score"], share)
    for name, task in tasks.items():
        rows = items[items["task"] == name]
        kind: Literal["regression", "divergence"] = "divergence" if task.metric == KL_METRIC else "regression"
        measure = Measure(kind, name, task.higher_is_better, task.metric)
        tables[measure] = _by_run(rows, "key", rows["score"], rows["weight"])
    return tables


def arm_estimate(table: Table, run_ids: Sequence[str], rng: np.random.Generator | Resampler) -> Paired | None:
    """The mean of one arm over its seeds and examples; None when no run of it has values."""
    frames = [table[run_id] for run_id in run_ids if run_id in table]
    if not frames or any(len(frame) == 0 for frame in frames):
        return None
    shared = _shared_index(frames)
    if shared.empty:
        return None
    result = _complete(_matrix(frames, shared, "value"), _matrix(frames, shared, "weight"), rng)
    return None if isinstance(result, str) else result


def paired_difference(table: Table, pairs: Pairs, rng: np.random.Generator | Resampler) -> Paired | str:
    """Mean paired difference, method - baseline.

    Returns:
        The result, or the reason why the values cannot be paired.
    """
    missing = sorted({run for pair in pairs for run in pair if run not in table})
    if missing or not pairs:
        return f"no values of {', '.join(missing) or 'either'}"
    frames = [table[run] for pair in pairs for run in pair]
    if any(not frame.index.is_unique for frame in frames):
        return "an example occurs twice in one run"
    shared = _shared_index(frames)
    largest = max(len(frame) for frame in frames)
    if len(shared) < largest:
        return f"they were tested on different examples ({len(shared)} of {largest} in common)"
    method, baseline = frames[0::2], frames[1::2]
    sides = _matrix(method, shared, "value"), _matrix(baseline, shared, "value")
    # Asked of the scores: equal ROUGE scores differ by 0 as well, and are no right/wrong answers.
    binary = all(bool(np.isin(values, (0.0, 1.0)).all()) for values in sides)
    return _complete(sides[0] - sides[1], _matrix(method, shared, "weight"), rng, binary)


def _complete(
    values: np.ndarray, weights: np.ndarray, rng: np.random.Generator | Resampler, binary: bool = False
) -> Paired | str:
    """Examples without a value in some run (a loss that is not finite) are left out of all."""
    kept = np.isfinite(values).all(axis=0) & np.isfinite(weights).all(axis=0)
    if not kept.any():
        return "no finite values"
    return paired(values[:, kept], weights=weights[:, kept], rng=rng, right_or_wrong=binary)


def _shared_index(frames: Sequence[pd.DataFrame]) -> pd.Index:
    shared = frames[0].index
    for frame in frames[1:]:
        if not frame.index.equals(shared):
            shared = shared.intersection(frame.index)
    return shared


def _matrix(frames: Sequence[pd.DataFrame], index: pd.Index, column: str) -> np.ndarray:
    """Shape (runs, examples)."""
    ordered = (frame if frame.index.equals(index) else frame.loc[index] for frame in frames)
    return np.stack([frame[column].to_numpy(dtype=float) for frame in ordered])


def references_of(samples: pd.DataFrame, runs: Iterable[str]) -> dict[str, pd.Series]:
    """run -> its reference answers by example."""
    rows = samples[samples["run_id"].isin(list(runs))]
    return {str(run): part.set_index("example_id")["reference"] for run, part in rows.groupby("run_id")}


def different_references(left: pd.Series | None, right: pd.Series | None) -> int:
    """How many test examples of two runs carry another reference answer under the same id."""
    if left is None or right is None:
        return 0
    if left.index.equals(right.index):
        return int((left.to_numpy() != right.to_numpy()).sum())
    joined = left.to_frame("left").join(right.to_frame("right"), how="inner")
    return int((joined["left"] != joined["right"]).sum())
