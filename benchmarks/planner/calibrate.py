"""90% intervals of the planner's errors by conformal prediction, and how they hold on sources that they never saw.

The score of a run is log(published / estimated). With n runs the interval goes from the score of rank
floor(0.05 (n + 1)) to that of rank ceil(0.95 (n + 1)), which a further run of the same kind falls into nine times of
ten. Runs of one source are alike, so the check leaves whole sources out: the interval is taken from the others, and
the runs of the one left out are counted in it. Only runs whose work is the harness's own count.

>>> conformal([0.9, 1.0, ...])
(0.86, 1.31)
>>> print(calibrate())
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import ceil, floor
from statistics import median

import yaml
from tabulate import tabulate

from bench.planner.time import CALIBRATION as FILE
from bench.planner.time import Interval, Quantity
from benchmarks.planner.published import published

MISSED = 0.05  # of runs, at each end
HEAD = """\
# 90% intervals, written by `python -m benchmarks.planner calibrate` (docs/planner.md); read by planner/time.py.
"""
Scored = list[tuple[str, float]]  # (source, value) of a run


def conformal(values: Sequence[float]) -> tuple[float, float]:
    """(low, high), between which a further value lies nine times of ten; of too few values all of them."""
    ordered, n = sorted(values), len(values)
    low, high = floor(MISSED * (n + 1)), ceil((1 - MISSED) * (n + 1))
    return ordered[max(low, 1) - 1], ordered[min(high, n) - 1]


def left_out(scored: Scored) -> dict[str, tuple[float, float]]:
    """Source -> the interval that all other sources give."""
    sources = dict.fromkeys(source for source, _ in scored)
    return {source: conformal([value for other, value in scored if other != source]) for source in sources}


def calibrate(write: bool = True) -> str:
    """Take the intervals, write them down, and show the check by source."""
    alike = [run for run in published() if run.is_alike]
    found: dict[Quantity, Scored] = {
        "peak_memory": [(run.row["source"], run.ratio) for run in alike if run.ratio is not None],
        "utilization": [(run.row["source"], run.utilization) for run in alike if run.utilization is not None],
    }
    intervals = {}
    for quantity, scored in found.items():
        low, high = conformal([value for _, value in scored])
        intervals[quantity] = Interval(round(low, 3), round(high, 3), len(scored), len(left_out(scored)))
    if write:
        content = {"cuda": {quantity: asdict(of) for quantity, of in intervals.items()}}
        FILE.write_text(HEAD + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    shares = [run.allocator_share for run in alike if run.loss_in_chunks and run.allocator_share is not None]
    parts = [_checked(quantity, scored, intervals[quantity]) for quantity, scored in found.items()]
    return "\n\n".join([*parts, f"Reserved beyond allocated: median {median(shares):.2f} of {len(shares)} runs."])


def _checked(quantity: Quantity, scored: Scored, of_all: Interval) -> str:
    """One row a source that is left out; then all runs together."""
    headers = [quantity, "runs", "lowest", "median", "highest", "interval of the others", "width", "inside"]
    rows, covered, widths, misses = [], 0, [], []
    for source, (low, high) in left_out(scored).items():
        values = [value for own, value in scored if own == source]
        inside = sum(low <= value <= high for value in values)
        covered += inside
        widths.append(high / low)
        misses += [(max(low / value, value / high), f"{value:.2f} of {source}") for value in values]
        shown = [f"{value:.2f}" for value in (min(values), median(values), max(values))]
        rows.append([source, str(len(values)), *shown, f"{low:.2f} to {high:.2f}", f"x{high / low:.2f}",
                     f"{inside} of {len(values)}"])  # fmt: skip
    n, worst = len(scored), max(misses)
    rows.append(["all", str(n), "", f"{median(value for _, value in scored):.2f}", "",
                 f"{of_all.low:.2f} to {of_all.high:.2f}", f"x{median(widths):.2f} (median)",
                 f"{covered} of {n}: {covered / n:.0%}"])  # fmt: skip
    aligned = ["left", *["right"] * (len(headers) - 1)]
    shown = tabulate(rows, headers, "github", disable_numparse=True, colalign=aligned)
    return f"{shown}\n\nWorst miss: {worst[1]}, a factor of {worst[0]:.2f} outside."
