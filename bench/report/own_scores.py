"""A run's own scores with their intervals over the test examples, for its card.

>>> own_scores(Path("results/default/lora-..."))
{'rougeL': ScoreInterval(value=0.261, low=0.229, high=0.293)}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.analysis.stats import Resampler, paired
from bench.record import Sample, ScoreInterval, ServedAnswer
from bench.report.load import load


def own_scores(run: Path, form: str | None = None, *, seed: int = 0) -> dict[str, ScoreInterval]:
    """By metric; the intervals are those of the report (bootstrap over the examples, 95%).

    Args:
        form: of serving; None: the run as it was evaluated.
        seed: of the bootstrap: the same run, the same card.
    """
    sweep = load(run.parent)
    rows: Sequence[Sample | ServedAnswer] = sweep.sample_rows.get(run.name, [])
    if form is not None:
        rows = [answer for answer in sweep.answer_rows.get(run.name, []) if answer.form == form]
    rng = Resampler(np.random.default_rng(seed))
    found: dict[str, ScoreInterval] = {}
    for name in rows[0].scores if rows else ():
        estimate = paired(np.array([[row.scores[name] for row in rows]]), rng=rng, right_or_wrong=False)
        found[name] = ScoreInterval(estimate.mean, *estimate.interval())
    return found
