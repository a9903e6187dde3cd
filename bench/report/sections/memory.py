"""Peak memory: what it is made of, the planner's estimate beside the measurement, and every phase.

>>> section(group).table.headers[:2]
['method', 'peak, GiB']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from bench.config import ConfigurationError
from bench.planner.advice import Machine, predict
from bench.planner.memory import Terms
from bench.planner.time import PlanConfig
from bench.record import Record
from bench.report.charts import PARTS, Chart, memory_chart
from bench.report.section import Section, Table, gib, number, over_seeds
from bench.stats.frames import Group

_COLUMNS = {"weights": "weights_bytes", "gradients": "gradients_bytes", "optimizer state": "optimizer_bytes"}
_NOTE = (
    "Peak: the most that one device must have, over the phases of the training stage and over the devices; on CUDA "
    "what the allocator reserved and the context, or the process's use by NVML where that is more; on a CPU the "
    "resident set, Python and libraries included. Weights, gradients and optimizer state are summed over the tensors; "
    "the rest is activations, workspace and the process. Paler: what the planner says of the same run before it "
    "starts, for a micro-batch of the longest examples. Several seeds: mean (lowest to highest)."
)


def section(group: Group) -> Section | None:
    """None when nothing was trained."""
    runs = group.runs.dropna(subset=["peak_memory_bytes"]) if "peak_memory_bytes" in group.runs else group.runs.head(0)
    if runs.empty:
        return None
    parts = _parts(group.without_controls())
    chart = (
        Chart("memory", memory_chart(parts), "Peak memory of each method by its parts.", parts) if len(parts) else None
    )
    shown = ["peak_memory_bytes", *_COLUMNS.values()]
    rows = [
        [str(arm), *(over_seeds(found.get(name, ()), 2, 2**-30) for name in shown)]
        for arm, found in runs.groupby("arm", sort=False)
    ]
    table = Table(["method", "peak, GiB", *(f"{part}, GiB" for part in _COLUMNS)], rows)
    phases = Section("Memory by phase", table=_phases(group), fold=True, note="The highest of the seeds. " + _PHASES)
    shares = _devices(group)
    devices = [Section("By device", table=shares, note="Speeds of one run's devices add up.")] if shares.rows else []
    return Section("Memory", chart=chart, table=table, note=_NOTE, parts=[phases, *devices])


def _devices(group: Group) -> Table:
    """One row a device of each run that several trained together."""
    arm_of = dict(zip(group.runs["run_id"], group.runs["arm"], strict=True))
    rows = [
        [
            arm_of[record.run_id],
            str(record.seed),
            str(share.rank),
            gib(share.peak_bytes),
            number(share.tokens_per_second, 0),
        ]
        for record in group.records
        if record.train
        for share in record.train.per_device
    ]
    return Table(["method", "seed", "device", "peak while training, GiB", "tokens/s"], rows)


def _parts(group: Group) -> pd.DataFrame:
    """Columns of `memory_chart`: of each arm the mean over seeds, and the estimate for its first run."""
    rows = []
    for arm in group.arms.dropna(subset=["peak_memory_bytes"]).to_dict("records"):
        known = {part: arm[column] for part, column in _COLUMNS.items() if not pd.isna(arm.get(column))}
        rows += _rows(arm["arm"], "measured", known, arm["peak_memory_bytes"])
        trained = next((record for record in group.by_arm.get(arm["arm"], ()) if record.train), None)
        terms = _estimate(trained) if trained else None
        if terms:
            known = {"weights": terms.weights, "gradients": terms.gradients, "optimizer state": terms.optimizer}
            rows += _rows(arm["arm"], "estimated", known, terms.total)
    return pd.DataFrame(rows)


def _rows(arm: str, source: str, known: Mapping[str, float], total_bytes: float) -> list[dict[str, object]]:
    """One row a part; the rest of the total is the last of `PARTS`."""
    sizes = {**known, next(reversed(PARTS)): total_bytes - sum(known.values())}
    return [
        {"arm": arm, "source": source, "part": part, "GiB": size / 2**30, "total GiB": total_bytes / 2**30}
        for part, size in sizes.items()
        if size > 0
    ]


def _estimate(record: Record) -> Terms | None:
    """What the planner says of the same run before it starts; None where it cannot: an unknown architecture."""
    if record.train is None or record.train.devices > 1:
        return None
    config = record.config
    longest = record.data.tokens_per_example_max if record.data else config.train.max_length
    rows = record.train.micro_batch or config.train.fitted_micro_batch
    train = replace(config.train, max_length=min(config.train.max_length, longest), micro_batch=rows)
    machine = Machine("cuda" if record.train.environment.device.startswith("cuda") else "cpu", None)
    try:
        return predict(replace(config, train=train), PlanConfig(), machine)
    except (ValueError, ConfigurationError):  # pydantic's is a ValueError; so is a micro-batch that nothing fitted
        return None


_PHASES = (
    "Each phase's peak is reset at its start. Peak: allocated on CUDA, resident on a CPU. Above start: without what "
    "was resident before the model was loaded (CPU). Anonymous: without memory-mapped files."
)
_FIELDS = ("peak_bytes", "above_start_bytes", "peak_reserved_bytes", "device_used_bytes", "anonymous_bytes")


def _phases(group: Group) -> Table:
    """One row an arm and phase."""
    sizes: dict[tuple[str, str, str], list[list[int | None]]] = {}
    arm_of = dict(zip(group.runs["run_id"], group.runs["arm"], strict=True))
    for record in group.records:
        for name in ("train", "evaluate", "regression"):
            stage = getattr(record, name)
            for entry in stage.memory if stage else ():
                key = (arm_of[record.run_id], name, entry.phase)
                sizes.setdefault(key, []).append([getattr(entry, field) for field in _FIELDS])
    order = list(dict.fromkeys(group.runs["arm"]))
    rows = []
    for key, found in sorted(sizes.items(), key=lambda item: order.index(item[0][0])):
        columns = ([size for size in column if size is not None] for column in zip(*found, strict=True))
        rows.append([*key, *(gib(max(column, default=None)) for column in columns)])
    headers = ["method", "stage", "phase", "peak, GiB", "above start", "reserved", "device (NVML)", "anonymous at end"]
    return Table(headers, rows, text_columns=3)
