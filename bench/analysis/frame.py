"""Records and their details as tidy DataFrames: one row a run, a step, a held-out point, a sample, an item.

Columns carry their units; what a run does not have is NaN or None, never 0. Detail tables start with the columns
`run_id`, `method`, `seed`, so that they can be grouped without a join.

    >>> frame = runs_frame(records)
    >>> frame.groupby("method")["train_peak_bytes"].mean()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import pandas as pd

from bench.analysis.load import disturbances
from bench.analysis.order import arm_names, method_order
from bench.record import HeldoutPoint, PhaseMemory, Record, RegressionItem, Sample, Step

_RUN = ["run_id", "method", "seed"]
_TRAIN = [
    "data_stream_sha256", "train_tokens_per_second", "supervised_tokens_per_second", "positions_per_second",
    "step_seconds_median", "step_seconds_p90", "step_seconds_p99", "train_seconds", "compile_seconds",
    "parameters_total", "parameters_trainable", "trainable_dtype", "checkpoint_bytes", "checkpoint_dtype",
    "steps", "timed_steps", "examples", "tokens", "supervised_tokens", "positions",
    "needed_flops_per_second", "matmul_peak_flops_per_second", "mfu", "energy_wh",
]  # fmt: skip
# name -> column of the counts that would be ambiguous beside the evaluation's
_TRAIN_COLUMN = {"examples": "train_examples", "tokens": "train_tokens", "positions": "train_positions",
                 "supervised_tokens": "train_supervised_tokens"}  # fmt: skip


def runs_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a run, in display order of the methods, then by model, task and seed.

    Columns: run_id, sweep, method, arm (`order.arm_names`), model, task, suite, seed, status, comparison_key,
    started_at, wall_seconds;
    the fields of `TrainResult` by their own names (its counts as train_examples, train_tokens,
    train_supervised_tokens, train_positions); trainable_share (0..1); cost_usd (train_seconds at
    hardware.price_usd_per_hour, unknown without a price);
    train_peak_bytes and train_peak_above_start_bytes (phase "train"), load_peak_bytes, weights_bytes,
    gradients_bytes, optimizer_bytes, other_bytes (peak - these three; activations, workspace and, on the CPU, the
    process itself), start_bytes (CPU: resident before the model was loaded); heldout_loss_before, heldout_loss_after
    (validation split, nats per token), test_loss (test split, nats per token), score_<metric> (0..1),
    test_examples, cut_at_limit, generate_tokens_per_second, regression_mean (mean value of the suite's
    tasks for which higher is better), regression_tasks; device, torch, compute_dtype, attention, compiled, threads,
    cpus, cpu_governor, other_cpu_cores, stolen_cpu_cores, other_gpu_processes (of training, where there was one);
    train_busy, evaluate_busy, regression_busy, serve_busy (what disturbed the stage, where something did);
    learning_rate; failure_stage, failure_message.
    """
    records = list(records)
    frame = pd.DataFrame([_run_row(record) for record in records])
    if frame.empty:
        return pd.DataFrame(columns=[*_RUN, "arm", "sweep", "model", "task", "suite", "status"])
    frame.insert(3, "arm", frame["run_id"].map(arm_names(records)))
    frame["_order"] = frame["method"].map(method_order)
    return frame.sort_values(["model", "task", "_order", "method", "seed"], ignore_index=True).drop(columns="_order")


def _run_row(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: getattr(record, name)
        for name in ("run_id", "sweep", "method", "model", "task", "suite", "seed", "comparison_key", "started_at")
    }
    row |= {"status": str(record.status), "wall_seconds": record.wall_seconds}
    row["learning_rate"] = record.config.method.learning_rate
    row |= _train_columns(record) | _evaluate_columns(record) | _regression_columns(record) | _environment(record)
    if record.failure:
        row |= {"failure_stage": record.failure.stage, "failure_message": record.failure.message}
    return row


def _train_columns(record: Record) -> dict[str, Any]:
    train = record.train
    if train is None:
        return {}
    row = {_TRAIN_COLUMN.get(name, name): getattr(train, name) for name in _TRAIN}
    price = record.config.hardware.price_usd_per_hour
    row["cost_usd"] = None if price is None else train.train_seconds / 3600 * price
    row["trainable_share"] = train.parameters_trainable / train.parameters_total
    peak = phase_memory(train.memory, "train")
    load = phase_memory(train.memory, "load")
    row["load_peak_bytes"] = load.peak_bytes if load else None
    if peak:
        row |= {"train_peak_bytes": peak.peak_bytes, "train_peak_above_start_bytes": peak.above_start_bytes}
        if peak.peak_bytes is not None and peak.above_start_bytes is not None:
            row["start_bytes"] = peak.peak_bytes - peak.above_start_bytes
    if train.breakdown:
        parts = asdict(train.breakdown)
        row |= parts
        if peak and peak.peak_bytes is not None:
            row["other_bytes"] = peak.peak_bytes - sum(parts.values())
    if train.heldout:
        ordered = sorted(train.heldout, key=lambda point: point.step)
        row["heldout_loss_before"] = ordered[0].loss if ordered[0].step == 0 else None
        row["heldout_loss_after"] = ordered[-1].loss if ordered[-1].step > 0 else None
    return row


def phase_memory(memory: Sequence[PhaseMemory], phase: str) -> PhaseMemory | None:
    """The peak of one phase, or None where the phase was not measured."""
    return next((entry for entry in memory if entry.phase == phase), None)


def _evaluate_columns(record: Record) -> dict[str, Any]:
    result = record.evaluate
    if result is None:
        return {}
    row: dict[str, Any] = {f"score_{metric}": value for metric, value in result.scores.items()}
    row |= {"test_loss": result.heldout_loss, "test_examples": result.examples, "cut_at_limit": result.cut_at_limit}
    row["generate_tokens_per_second"] = result.generate_tokens_per_second
    return row


def _regression_columns(record: Record) -> dict[str, Any]:
    if record.regression is None:
        return {}
    values = [task.value for task in record.regression.tasks if task.higher_is_better]
    return {
        "regression_mean": sum(values) / len(values) if values else None,
        "regression_tasks": len(record.regression.tasks),
    }


def _environment(record: Record) -> dict[str, Any]:
    stage = record.train or record.evaluate or record.regression
    if stage is None:
        return {}
    names = ("device", "torch", "compute_dtype", "attention", "compiled", "threads", "cpus", "cpu_governor",
             "other_cpu_cores", "stolen_cpu_cores", "other_gpu_processes")  # fmt: skip
    busy = {f"{stage}_busy": text for stage, text in disturbances(record).items()}
    return {name: getattr(stage.environment, name) for name in names} | busy


def steps_frame(steps: Mapping[str, Iterable[Step]], records: Iterable[Record]) -> pd.DataFrame:
    """run_id, method, seed and the fields of `Step`; one row an optimizer step."""
    return _details(steps, records, [field.name for field in fields(Step)])


def heldout_frame(records: Iterable[Record]) -> pd.DataFrame:
    """run_id, method, seed and the fields of `HeldoutPoint`; one row a held-out evaluation."""
    records = list(records)
    points = {record.run_id: record.train.heldout for record in records if record.train}
    return _details(points, records, [field.name for field in fields(HeldoutPoint)])


def samples_frame(samples: Mapping[str, Iterable[Sample]], records: Iterable[Record]) -> pd.DataFrame:
    """run_id, method, seed, the fields of `Sample`, and its scores as columns score_<metric>."""
    names = [field.name for field in fields(Sample) if field.name != "scores"]
    frame = _details(samples, records, names)
    scores = pd.DataFrame(
        [{f"score_{k}": v for k, v in sample.scores.items()} for rows in _known(samples, records) for sample in rows]
    )
    return frame.join(scores)


def regression_frame(items: Mapping[str, Iterable[RegressionItem]], records: Iterable[Record]) -> pd.DataFrame:
    """run_id, method, seed and the fields of `RegressionItem`; one row an item."""
    return _details(items, records, [field.name for field in fields(RegressionItem)])


def regression_tasks_frame(records: Iterable[Record]) -> pd.DataFrame:
    """run_id, method, seed, task, metric, value, items, higher_is_better, chance; one row a task of the suite."""
    records = list(records)
    tasks = {record.run_id: record.regression.tasks for record in records if record.regression}
    return _details(tasks, records, ["task", "metric", "value", "items", "higher_is_better", "chance"])


def _known(rows: Mapping[str, Iterable[Any]], records: Iterable[Record]) -> list[list[Any]]:
    return [list(rows.get(record.run_id, ())) for record in records]


def _details(rows: Mapping[str, Iterable[Any]], records: Iterable[Record], names: list[str]) -> pd.DataFrame:
    """Rows of each record in turn, led by what names the run."""
    table = [
        (record.run_id, record.method, record.seed, *(getattr(entry, name) for name in names))
        for record in records
        for entry in rows.get(record.run_id, ())
    ]
    return pd.DataFrame(table, columns=[*_RUN, *names])
