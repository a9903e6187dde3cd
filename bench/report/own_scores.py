"""A run's own scores with their intervals over the test examples, for its card.

>>> own_scores(Path("results/default/lora-..."))
{'rougeL': ScoreInterval(value=0.261, low=0.229, high=0.293)}
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.analysis.measures import arm_estimate, measure_tables
from bench.analysis.stats import Resampler
from bench.report.load import load
from bench.spec.manifest import ScoreInterval


def own_scores(run: Path, *, seed: int = 0) -> dict[str, ScoreInterval]:
    """By metric; the intervals are those of the report (bootstrap over the examples, 95%).

    Args:
        seed: of the bootstrap: the same run, the same card.
    """
    sweep = load(run.parent)
    records = [record for record in sweep.records if record.run_id == run.name]
    tables = measure_tables(records, sweep.samples, sweep.regression)
    rng = Resampler(np.random.default_rng(seed))
    found: dict[str, ScoreInterval] = {}
    for measure, table in tables.items():
        estimate = arm_estimate(table, [run.name], rng) if measure.kind == "score" else None
        if estimate is not None:
            found[measure.name] = ScoreInterval(estimate.mean, *estimate.interval())
    return found
