"""Speed and cost: tokens a second, step times, energy, money, and where the wall time went.

>>> section(group).table.headers[:3]
['method', 'tokens/s', 'step, s']
"""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pandas as pd

from bench.fairness import STAGES
from bench.planner.time import PARTS, measured_seconds
from bench.record import Record
from bench.report.charts import Chart, step_time_chart
from bench.report.section import Section, Table, crossed, number, seeds_table
from bench.stats.frames import Group, peak_memory_bytes

_COLUMNS = [  # header, column of the runs frame, decimals, factor
    ("tokens/s", "tokens_per_second", 0, 1.0),
    ("step, s", "step_seconds_median", 3, 1.0),
    ("training, min", "train_seconds", 1, 1 / 60),
    ("compiling, s", "compile_seconds", 1, 1.0),
    ("checkpoint, MiB", "checkpoint_bytes", 0, 2**-20),
    ("trainable, %", "trainable_share", 2, 100.0),
    ("FLOPs used, %", "mfu", 0, 100.0),
    ("energy, Wh", "energy_wh", 2, 1.0),
    ("cost, USD", "cost_usd", 2, 1.0),
    ("generating, tokens/s", "generate_tokens_per_second", 0, 1.0),
]
_NOTE = (
    "Tokens/s: non-padding tokens of the timed steps / their wall seconds; warm-up steps and steps in which the "
    "compiler worked are left out. Step: the median. FLOPs used: those that the method needs / those that a large "
    "matrix product reaches on this device in the same time. Energy: by the hardware's counter, where there is one. "
    "Cost: training hours at hardware.price_usd_per_hour. Several seeds: mean (lowest to highest). In the chart: the "
    "middle half of the steps, a line from the 10th to the 90th percentile, the median."
)

EXPECTED = (*(f"{name}, s" for name in PARTS.values()), "all, s", "peak memory, GiB")
_EXPECTED_NOTE = (
    "Expected / measured (error), mean over seeds. Expected from a probe of this device, else from the planner; load "
    "is what is left of the stages. Peak: planned for the longest examples."
)


def section(group: Group) -> Section | None:
    """None when nothing was trained."""
    table = seeds_table(group.runs[~group.runs["untrained"].astype(bool)], _COLUMNS)
    if not table.rows or len(table.headers) == 1:
        return None
    busy = _busy(group.runs)
    lead = f"In doubt: others used the machine in {len(busy)} of the stages (Shared machine, below)." if busy else ""
    seconds = _step_seconds(group.without_controls())
    drawing = step_time_chart(seconds, list(group.arms["arm"]))
    chart = Chart("step_times", drawing, "Seconds an optimizer step, by method.", seconds) if len(seconds) else None
    wall = Section("Wall time by stage", table=_wall_time(group), fold=True, note="Seconds, mean over seeds.")
    shared = Section("Shared machine", table=Table(("arm", "seed", "stage", "what else ran"), busy, 4), fold=True)
    parts = [*_expected(group), wall, *([shared] if busy else [])]
    return Section("Speed and cost", lead=lead, chart=chart, table=table, note=_NOTE, parts=parts)


def _expected(group: Group) -> list[Section]:
    """What runs were expected to take beside what they took, a row an arm; none where nothing was expected."""
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for arm, records in group.by_arm.items():
        for record in records:
            for name, told, took in _told_and_took(record):
                if told is not None and took:
                    pairs.setdefault((arm, name), []).append((told, took))
    cells = {}
    for key, found in sorted(pairs.items(), key=lambda pair: EXPECTED.index(pair[0][1])):
        told, took = (fmean(side) for side in zip(*found, strict=True))
        cells[key] = f"{told:.3g} / {took:.3g} ({told / took - 1:+.0%})"
    table = crossed("method", cells)
    return [Section("Expected before the start", table=table, fold=True, note=_EXPECTED_NOTE)] if cells else []


def _told_and_took(record: Record) -> list[tuple[str, float | None, float | None]]:
    """Of `EXPECTED`: what was told and measured; none of a run that took over a stage, which was not expected."""
    if record.expected is None or record.reused_stages:
        return []
    told, took = record.expected.seconds, measured_seconds(record)
    parts = [told.get(part) for part in PARTS]
    peaks = [record.expected.peak_memory_bytes, peak_memory_bytes(record.train) if record.train else None]
    expected, peak = (None if size is None else size / 2**30 for size in peaks)
    whole = None if None in told.values() else sum(filter(None, parts))
    return list(
        zip(EXPECTED, [*parts, whole, expected], [*map(took.get, PARTS), sum(took.values()), peak], strict=True)
    )


def _busy(runs: pd.DataFrame) -> list[tuple[str, ...]]:
    """(arm, seed, stage, what else ran) of the stages that shared the machine."""
    columns = [(stage, f"{stage}_busy") for stage in STAGES if f"{stage}_busy" in runs]
    return [(run["arm"], str(run["seed"]), stage, run[column])
            for stage, column in columns for run in runs.dropna(subset=[column]).to_dict("records")]  # fmt: skip


def _step_seconds(group: Group) -> pd.DataFrame:
    """Columns of `step_time_chart`."""
    steps = group.sweep.steps
    steps = steps[steps["run_id"].isin(group.runs["run_id"]) & steps["timed"].astype(bool)]
    by_arm = steps.astype({"seconds": float}).groupby("arm", sort=False)["seconds"]
    names = {0.1: "p10", 0.25: "p25", 0.5: "median", 0.75: "p75", 0.9: "p90", 0.99: "p99"}
    frame = by_arm.quantile(np.array([*names])).unstack().rename(columns=names)
    frame["timed steps"] = by_arm.count()
    return frame.reindex([arm for arm in group.arms["arm"] if arm in frame.index]).rename_axis("arm").reset_index()


def _wall_time(group: Group) -> Table:
    """Seconds of each stage's named spans by arm; one row a stage and span."""
    rows = [(stage, span, arm, seconds) for arm, stage, result in group.stages()
            for span, seconds in result.spans_seconds.items()]  # fmt: skip
    spans = pd.DataFrame(rows, columns=["stage", "span", "arm", "seconds"])
    means = spans.pivot_table("seconds", ["stage", "span"], "arm")
    means = means.reindex(spans.set_index(["stage", "span"]).index.unique(), columns=group.runs["arm"].unique())
    texts = [[*key, *(number(seconds, 1) for seconds in of_arms)] for key, *of_arms in means.itertuples()]
    return Table(["stage", "span", *means], texts, text_columns=2)
