"""The quantities that methods are compared by, each as one value per example and run.

A `Measure` says what is compared; its table maps run_id to `values.Values`. `paired_difference` lines two arms up by
example and seed and hands the differences to `stats.paired`.

    >>> tables = measure_tables(records, samples, regression)
    >>> tables[Measure("score", "rougeL")]["lora-...-s0-1f2e"].value.mean()
    0.31
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from bench.analysis.stats import Paired, Resampler, paired
from bench.analysis.values import Floats, Values, by_run, shared_examples
from bench.record import KL_METRIC, Record

OVERALL = "all tasks"
Pairs = Sequence[tuple[str, str]]  # run_ids (method, baseline) of one seed each
Table = dict[str, Values]


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
            tables[Measure("score", metric)] = by_run(samples, "example_id", samples[column], None)
    if len(samples):
        tokens = pd.to_numeric(samples["loss_tokens"]).where(lambda count: count > 0)
        loss = pd.to_numeric(samples["loss"], errors="coerce") / tokens
        tables[Measure("loss", "test", False, "nats/token")] = by_run(samples, "example_id", loss, tokens)
    return tables | _regression_tables(records, regression[regression["run_id"].isin(wanted)])


def _metrics(records: Sequence[Record]) -> list[str]:
    """The task's metrics as configured; the first is the primary one."""
    named = [metric for record in records for metric in record.config.task.metrics]
    found = [metric for record in records if record.evaluate for metric in record.evaluate.scores]
    return list(dict.fromkeys([*named, *found]))


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
        tables[Measure("regression", OVERALL, True, "mean")] = by_run(rising, "key", rising["score"], share)
    for name, task in tasks.items():
        rows = items[items["task"] == name]
        kind: Literal["regression", "divergence"] = "divergence" if task.metric == KL_METRIC else "regression"
        measure = Measure(kind, name, task.higher_is_better, task.metric)
        tables[measure] = by_run(rows, "key", rows["score"], rows["weight"])
    return tables


def arm_estimate(table: Table, run_ids: Sequence[str], rng: np.random.Generator | Resampler) -> Paired | None:
    """The mean of one arm over its seeds and examples; None when no run of it has values."""
    runs = [table[run_id] for run_id in run_ids if run_id in table]
    if not runs or any(len(run.value) == 0 for run in runs):
        return None
    shared = shared_examples(runs)
    if shared.empty:
        return None
    result = _complete(*_matrices(runs, shared), rng)
    return None if isinstance(result, str) else result


def paired_difference(table: Table, pairs: Pairs, rng: np.random.Generator | Resampler) -> Paired | str:
    """Mean paired difference, method - baseline.

    Returns:
        The result, or the reason why the values cannot be paired.
    """
    missing = sorted({run for pair in pairs for run in pair if run not in table})
    if missing or not pairs:
        return f"no values of {', '.join(missing) or 'either'}"
    runs = [table[run] for pair in pairs for run in pair]
    if any(not run.examples.is_unique for run in runs):
        return "an example occurs twice in one run"
    shared = shared_examples(runs)
    largest = max(len(run.value) for run in runs)
    if len(shared) < largest:
        return f"they were tested on different examples ({len(shared)} of {largest} in common)"
    method, weights = _matrices(runs[0::2], shared)
    baseline, _ = _matrices(runs[1::2], shared)
    # Asked of the scores: equal ROUGE scores differ by 0 as well, and are no right/wrong answers.
    binary = all(bool(np.isin(values, (0.0, 1.0)).all()) for values in (method, baseline))
    return _complete(method - baseline, weights, rng, binary)


def _complete(
    values: Floats, weights: Floats, rng: np.random.Generator | Resampler, binary: bool = False
) -> Paired | str:
    """Examples without a value in some run (a loss that is not finite) are left out of all."""
    kept = np.isfinite(values).all(axis=0) & np.isfinite(weights).all(axis=0)
    if not kept.any():
        return "no finite values"
    return paired(values[:, kept], weights=weights[:, kept], rng=rng, right_or_wrong=binary)


def _matrices(runs: Sequence[Values], examples: pd.Index) -> tuple[Floats, Floats]:
    """Values and weights, each of shape (runs, examples)."""
    ordered = [run.of(examples) for run in runs]
    return np.stack([run.value for run in ordered]), np.stack([run.weight for run in ordered])
