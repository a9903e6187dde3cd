"""`tables/targets.csv`: one row a run with all that the section on targets and overfitting is made of.

Units are in the names: seconds, bytes, watt-hours; losses are held-out, in nats per token. Unknown is empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from bench.analysis.frame import phase_memory
from bench.analysis.targets import CurveComparison, CurveReading
from bench.report.answer import Group
from bench.report.overfitting import overfitting_of, passes


def target_rows(group: Group) -> list[dict[str, Any]]:
    """Columns: group, compared_with (the arms that share the target and the ends), arm, seed, run_id; target_loss,
    target_is_given; the fields of `curves.Reach` with reach_ before them; those of `targets.Ends` with equal_, each
    with the loss there; train_peak_bytes; the fields of `overfitting.Overfitting`; passes; unknown.
    """
    return [row for compared in group.curves for row in _rows(group, compared)]


def _rows(group: Group, compared: CurveComparison) -> Iterator[dict[str, Any]]:
    for arm, runs in compared.runs.items():
        for run in runs:
            row = {
                "group": group.name,
                "compared_with": ", ".join(compared.runs),
                "arm": arm,
                "seed": run.record.seed,
                "run_id": run.record.run_id,
                "target_loss": compared.target,
                "target_is_given": compared.target_is_given,
            }
            yield row | _reach(run) | _equal(run, compared) | _overfitting(group, run)


def _reach(run: CurveReading) -> dict[str, Any]:
    found = asdict(run.reach) if run.reach else {}
    first, last = found.pop("between_steps", None) or (None, None)
    return {f"reach_{name}": value for name, value in found.items()} | {
        "reach_after_step": first,
        "reach_by_step": last,
    }


def _equal(run: CurveReading, compared: CurveComparison) -> dict[str, Any]:
    train = run.record.train
    peak = phase_memory(train.memory, "train") if train else None
    return {
        "equal_tokens": compared.ends.tokens,
        "loss_at_equal_tokens": run.at_tokens,
        "equal_seconds": compared.ends.seconds,
        "loss_at_equal_seconds": run.at_seconds,
        "equal_seconds_without_compiling": compared.ends.seconds_without_compiling,
        "loss_at_equal_seconds_without_compiling": run.at_seconds_without_compiling,
        "train_peak_bytes": peak.peak_bytes if peak else None,
    }


def _overfitting(group: Group, run: CurveReading) -> dict[str, Any]:
    found = overfitting_of(group, run)
    return (asdict(found) if found else {}) | {"passes": passes(run.record), "unknown": "; ".join(run.unknown)}
