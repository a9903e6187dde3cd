"""Made-up groups of runs in memory, with scores, answers and costs that a test sets itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from synthetic import make_items, make_record, make_samples

from bench.record import Record, RegressionItem, Sample
from bench.stats.frames import Group, Sweep, groups

Scores = Callable[[Record, int], float]  # of a run and an example's place


def runs(methods: str = "base full lora qlora", seeds: Sequence[int] = (0, 1, 2)) -> list[Record]:
    """Finished runs; the base has one."""
    return [make_record(m, s) for m in methods.split() for s in ((0,) if m == "base" else seeds)]


def sweep_of(
    records: Sequence[Record],
    answers: Mapping[str, str] | None = None,
    scores: Scores | None = None,
    examples: int | None = None,
) -> Sweep:
    """A sweep of these records.

    Args:
        answers: run_id -> the method whose answers it gives; None: its own.
        scores: of the first metric, in the place of the made-up ones.
        examples: test examples of each run; None: 48.
    """
    alike = answers or {}
    sweep = Sweep([Path("results/synthetic")], list(records))
    for record in records:
        method = alike.get(record.run_id, record.method)
        if record.evaluate:
            sweep.sample_rows[record.run_id] = _samples(record, method, scores, examples)
        if record.regression:
            sweep.regression_rows[record.run_id] = _items(method, record.seed)
    return sweep


def _samples(record: Record, method: str, scores: Scores | None, examples: int | None) -> list[Sample]:
    rows = make_samples(method, record.seed)
    if examples is not None:
        rows = [replace(rows[n % len(rows)], example_id=f"example-{n}") for n in range(examples)]
    if scores is None:
        return rows
    return [replace(row, scores=row.scores | {"rougeL": scores(record, n)}) for n, row in enumerate(rows)]


def _items(method: str, seed: int) -> list[RegressionItem]:
    return make_items(method, seed)


def group_of(records: Sequence[Record], allowed: frozenset[str] = frozenset(), **settings: object) -> Group:
    """The one group of a sweep of these records; `settings` are those of `sweep_of`."""
    (group,) = groups(sweep_of(records, **settings), allowed=allowed)  # type: ignore[arg-type]
    return group


def levels(means: Mapping[str, float], noise: float = 0.05, seed_spread: float = 0.0) -> Scores:
    """Scores about a mean by method: examples differ alike for all methods, and a little by run."""
    difficulty = np.random.default_rng(0).normal(0, 0.1, 10_000)

    def score(record: Record, place: int) -> float:
        own = np.random.default_rng([record.seed, place, *record.method.encode()]).normal(0, noise)
        moved = np.random.default_rng([record.seed, *record.method.encode()]).normal(0, seed_spread)
        return float(np.clip(means[record.method] + difficulty[place] + own + moved, 0, 1))

    return score
