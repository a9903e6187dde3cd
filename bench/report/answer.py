"""The first screen of a report: what to use, and one row a method.

>>> answer_table(group).splitlines()[0]
'| method | seeds | rougeL | ...'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.compare import Comparison, Findings, Margins, compare
from bench.analysis.measures import OVERALL, Measure
from bench.analysis.order import is_control
from bench.analysis.recommend import Recommendation, arms_frame, recommend
from bench.analysis.targets import CurveComparison, compare_curves
from bench.record import Record
from bench.report.format import UNKNOWN, cell, mean_and_range, number, percent, table, with_interval
from bench.report.load import Sweep


@dataclass(frozen=True)
class Group:
    """The runs of one model, task and suite, which may be compared, with what they show."""

    name: str
    sweep: Sweep
    records: list[Record]
    runs: pd.DataFrame  # of these records, failed ones included
    findings: Findings
    recommendation: Recommendation
    margins: Margins
    target_loss: float | None = None  # held-out, as given for the report; None: each comparison's default

    @property
    def arms(self) -> list[str]:
        """Every arm in display order, failed ones included."""
        return list(dict.fromkeys(self.runs["arm"]))

    @cached_property
    def curves(self) -> list[CurveComparison]:
        """The arms' losses over training, those together that may be compared; of two runs of a seed the later one.

        Controls take no part: a model that was wrecked on purpose would set the target.
        """
        arm_of = self.runs.set_index("run_id")["arm"]
        arms: dict[str, dict[int, Record]] = {arm: {} for arm in self.arms}
        for record in sorted(self.records, key=lambda record: (record.seed, record.started_at)):
            if record.train and not is_control(record):
                arms[str(arm_of[record.run_id])][record.seed] = record
        by_seed = {arm: list(runs.values()) for arm, runs in arms.items()}
        return compare_curves(by_seed, self.sweep.step_rows, target=self.target_loss, allowed=self.findings.allowed)

    def with_arm(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The group's rows of a frame of the sweep, with a column `arm`."""
        arm = self.runs.set_index("run_id")["arm"]
        rows = frame[frame["run_id"].isin(arm.index)]
        return rows.assign(arm=rows["run_id"].map(arm))


def groups_of(
    sweep: Sweep,
    *,
    seed: int = 0,
    margins: Margins | None = None,
    allowed: frozenset[str] = frozenset(),
    target_loss: float | None = None,
    deciding_only: bool = False,
) -> list[Group]:
    """Compare within each model, task and suite. `seed` is that of the bootstrap: the same records, the same report."""
    margins = margins or Margins()
    by_key: dict[tuple[str, str, str], list[Record]] = {}
    for record in sweep.records:
        by_key.setdefault((record.model, record.task, record.suite), []).append(record)
    key_of = {record.run_id: key for key, records in by_key.items() for record in records}
    samples, regression = (_by_group(frame, key_of) for frame in (sweep.samples, sweep.regression))
    groups = []
    for key, records in sorted(by_key.items()):
        findings = compare(
            records,
            samples.get(key, sweep.samples.iloc[:0]),
            regression.get(key, sweep.regression.iloc[:0]),
            rng=np.random.default_rng(seed),
            margins=margins,
            allowed=allowed,
            deciding_only=deciding_only,
        )
        runs = sweep.runs[sweep.runs["run_id"].isin([record.run_id for record in records])]
        advice = recommend(findings, arms_frame(runs), rng=np.random.default_rng(seed), margins=margins)
        groups.append(Group(" / ".join(key), sweep, records, runs, findings, advice, margins, target_loss))
    return groups


def _by_group(frame: pd.DataFrame, key_of: Mapping[str, tuple[str, str, str]]) -> dict[Any, pd.DataFrame]:
    return dict(iter(frame.groupby(frame["run_id"].map(key_of), sort=False)))


def answer_table(group: Group) -> str:
    """One row an arm: score, held-out loss, memory, speed, time, checkpoint, trainable share, regression."""
    primary = group.findings.primary
    headers = ["method", "seeds", primary.name if primary else "score", "held-out loss, nats/token",
               "peak training memory, GiB", "tokens/s", "training, min", "checkpoint, MiB", "trainable",
               "regression change, points"]  # fmt: skip
    rows = [_row(group, arm, primary) for arm in group.arms]
    return table(headers, rows)


def controls_of(group: Group) -> list[str]:
    """The arms that test the harness."""
    return [arm for arm, runs in group.findings.arms.items() if is_control(runs[0])]


def without_controls(group: Group) -> Group:
    """The group as charts show it: a model that was wrecked on purpose would set their scales."""
    controls = controls_of(group)
    if not controls:
        return group
    findings = replace(
        group.findings,
        arms={arm: runs for arm, runs in group.findings.arms.items() if arm not in controls},
        estimates=[e for e in group.findings.estimates if e.arm not in controls],
        comparisons=[c for c in group.findings.comparisons if c.arm not in controls],
    )
    records = [record for record in group.records if not is_control(record)]
    return replace(group, records=records, runs=group.runs[~group.runs["arm"].isin(controls)], findings=findings)


def _row(group: Group, arm: str, primary: Measure | None) -> list[str]:
    runs = group.runs[group.runs["arm"] == arm]
    estimate = group.findings.estimate(primary, arm)
    score = with_interval(estimate.mean, estimate.low, estimate.high) if estimate else UNKNOWN
    finished = int((runs["status"] == "ok").sum())
    seeds = str(finished) if finished == len(runs) else f"{finished} of {len(runs)}"
    return [
        f"**{cell(arm)}**" if arm == group.recommendation.chosen else cell(arm),
        seeds,
        score,
        _loss(runs),
        mean_and_range(column(runs, "train_peak_bytes"), 2, 2**-30),
        mean_and_range(column(runs, "train_tokens_per_second"), 0) + busy_mark(runs, "train"),
        mean_and_range(column(runs, "train_seconds"), 1, 1 / 60) + busy_mark(runs, "train"),
        _size(column(runs, "checkpoint_bytes")),
        percent(mean(column(runs, "trainable_share")), 2),
        _regression(group, arm),
    ]


def busy_mark(runs: pd.DataFrame, *stages: str) -> str:
    """Beside a speed or a time: whether others used the machine in one of the stages."""
    columns = [f"{stage}_busy" for stage in stages]
    return " (busy)" if any(name in runs and runs[name].notna().any() for name in columns) else ""


def _size(sizes_bytes: list[float]) -> str:
    """MiB; tiny checkpoints keep two decimals."""
    small = max(sizes_bytes, default=0.0) < 10 * 2**20
    return mean_and_range(sizes_bytes, 2 if small else 0, 2**-20)


def _loss(runs: pd.DataFrame) -> str:
    before, after = (column(runs, f"heldout_loss_{moment}") for moment in ("before", "after"))
    if mean(before) is None and mean(after) is None:
        return UNKNOWN
    return f"{number(mean(before))} to {mean_and_range(after, 3)}"


def _regression(group: Group, arm: str) -> str:
    change = regression_overall(group.findings.comparisons, arm)
    return with_interval(change.difference, change.low, change.high, 1, 100, sign=True) if change else UNKNOWN


def regression_overall(comparisons: Iterable[Comparison], arm: str) -> Comparison | None:
    """The change of the suite's mean against the first baseline, which is the base."""
    return next((c for c in comparisons if c.arm == arm and c.measure.name == OVERALL), None)


def column(runs: pd.DataFrame, name: str) -> list[float]:
    """The known numbers of a column that may be missing altogether."""
    return [float(value) for value in runs[name].dropna()] if name in runs else []


def mean(values: list[float]) -> float | None:
    """None for no values."""
    return sum(values) / len(values) if values else None
