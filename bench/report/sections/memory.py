"""Peak memory: what it is made of, the planner's estimate beside the measurement, and every phase.

>>> section(group).table.headers[:2]
['method', 'peak, GiB']
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from bench.mistakes import ConfigurationError
from bench.planner.advice import Machine, predict
from bench.planner.memory import Terms
from bench.planner.time import PlanConfig
from bench.record import Record
from bench.report.charts import PARTS, Chart, memory_chart
from bench.report.section import Section, Table, count, gib, seeds_table
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
    columns = {"peak": "peak_memory_bytes"} | _COLUMNS
    runs = group.runs.reindex(columns=["arm", *columns.values()]).dropna(subset=["peak_memory_bytes"])
    if runs.empty:
        return None
    parts, says = _parts(group.without_controls()), "Peak memory of each method by its parts."
    chart = Chart("memory", memory_chart(parts), says, parts) if len(parts) else None
    table = seeds_table(runs, [(f"{part}, GiB", column, 2, 2**-30) for part, column in columns.items()])
    phases = Section("Memory by phase", table=_phases(group), fold=True, note="The highest of the seeds. " + _PHASES)
    return Section("Memory", chart=chart, table=table, note=_NOTE, parts=[phases, *_devices(group)])


def _devices(group: Group) -> list[Section]:
    """One row a device of each run that several trained together; none without such a run."""
    rows = [
        [group.arm_of[run.run_id], str(run.seed), str(share.rank), gib(share.peak_bytes),
         count(share.tokens_per_second)]
        for run in group.records if run.train for share in run.train.per_device
    ]  # fmt: skip
    table = Table(["method", "seed", "device", "peak while training, GiB", "tokens/s"], rows)
    return [Section("By device", table=table, note="Speeds of one run's devices add up.")] if rows else []


def _parts(group: Group) -> pd.DataFrame:
    """Columns of `memory_chart`: of each arm the mean over seeds, and the estimate for its first run."""
    rows = []
    for arm in group.arms.dropna(subset=["peak_memory_bytes"]).to_dict("records"):
        found = {"measured": (arm["peak_memory_bytes"], [arm.get(column, np.nan) for column in _COLUMNS.values()])}
        trained = next((record for record in group.by_arm.get(arm["arm"], ()) if record.train), None)
        if trained and (terms := _estimate(trained)):
            found["estimated"] = terms.total, [terms.weights, terms.gradients, terms.optimizer]
        for source, (total, sizes) in found.items():
            shares = zip(PARTS, [*sizes, total - np.nansum(sizes)], strict=True)
            rows += [(arm["arm"], source, part, size / 2**30, total / 2**30) for part, size in shares if size > 0]
    return pd.DataFrame(rows, columns=["arm", "source", "part", "GiB", "total GiB"])


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
    sizes = pd.DataFrame([
        {"arm": arm, "stage": stage, "phase": entry.phase} | {name: getattr(entry, name) for name in _FIELDS}
        for arm, stage, result in group.stages() for entry in result.memory
    ]).astype(dict.fromkeys(_FIELDS, float))  # fmt: skip
    highest = sizes.groupby(["arm", "stage", "phase"], sort=False).max()
    highest = highest.reindex(group.runs["arm"].unique(), level="arm")
    rows = [[*key, *map(gib, found)] for key, *found in highest.itertuples()]
    headers = ["method", "stage", "phase", "peak, GiB", "above start", "reserved", "device (NVML)", "anonymous at end"]
    return Table(headers, rows, text_columns=3)
