"""The table on overfitting: the gap between training and held-out loss, and whether the held-out loss rose again.

>>> print(table_of(group, group.curves).splitlines()[0])
| method | passes over the data | last steps | training loss | held-out loss | gap | ...
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis.overfitting import Overfitting, overfitting
from bench.analysis.targets import CurveComparison, CurveReading
from bench.record import Record
from bench.report.answer import Group
from bench.report.format import UNKNOWN, cell, mean_and_range, number, table

_TEXT = (
    "Gap: held-out loss at the end - training loss. Training loss: sum of token losses / supervised tokens over the "
    "last tenth of the steps (at least 10), each before its update, with dropout where there is any; of one seed with "
    "the standard error by the spread of these steps. In the first pass over the data training examples are as new as "
    "held-out ones, so that the gap shows how the splits differ; the methods saw the same batches: compare it between "
    "them. Rose: the held-out loss ended above its lowest point by more than {margin:.0%} of it."
)


def overfitting_of(group: Group, reading: CurveReading) -> Overfitting | None:
    """With the group's margin for losses as the rise of no matter."""
    record = reading.record
    steps = group.sweep.step_rows.get(record.run_id, [])
    return overfitting(record.train, steps, margin=group.margins.loss_relative) if record.train else None


def passes(record: Record) -> float | None:
    """Training examples taken / those there are."""
    if record.train is None or record.data is None or not record.data.train_examples:
        return None
    return record.train.examples / record.data.train_examples


def table_of(group: Group, compared: Sequence[CurveComparison]) -> str:
    """One row an arm, and what it means; empty when nothing was trained."""
    rows = [_row(group, arm, runs) for one in compared for arm, runs in one.runs.items()]
    headers = ["method", "passes over the data", "last steps", "training loss", "held-out loss", "gap",
               "lowest held-out loss", "at step", "rose"]  # fmt: skip
    return f"{table(headers, rows)}\n\n{_TEXT.format(margin=group.margins.loss_relative)}" if rows else ""


def _row(group: Group, arm: str, runs: Sequence[CurveReading]) -> list[str]:
    found = [entry for run in runs if (entry := overfitting_of(group, run))]
    error = found[0].train_loss_error if len(found) == 1 else None
    gaps = [entry.gap for entry in found if entry.gap is not None]
    return [
        cell(arm),
        mean_and_range([passes(run.record) for run in runs], 1),
        ", ".join(dict.fromkeys(str(entry.last_steps or UNKNOWN) for entry in found)),
        mean_and_range([entry.train_loss for entry in found], 3),
        mean_and_range([entry.final_loss for entry in found], 3),
        mean_and_range(gaps, 3) + (f" ± {number(error)}" if gaps and error is not None else ""),
        mean_and_range([entry.lowest_loss for entry in found], 3),
        ", ".join(dict.fromkeys(str(e.lowest_step) for e in found if e.lowest_step is not None)) or UNKNOWN,
        _rose(found),
    ]


def _rose(found: Sequence[Overfitting]) -> str:
    told = [entry for entry in found if entry.rose is not None]
    risen = [entry for entry in told if entry.rose]
    if not risen:
        return "no" if told else UNKNOWN
    seeds = "yes" if len(told) == 1 else f"{len(risen)} of {len(told)} seeds"
    rises = [entry.rise for entry in risen if entry.rise is not None]
    return f"{seeds}, by {mean_and_range(rises, 3)}" if rises else f"{seeds}, to a loss that is not finite"
