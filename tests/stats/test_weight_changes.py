"""Changes of the weights by method and layer, and their rank correlation with forgetting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_up import runs, sweep_of

from bench.compose import with_settings
from bench.record import MatrixChange, Record
from bench.report.charts import svg
from bench.report.sections.weights import section
from bench.stats.frames import Group, groups
from bench.stats.weights import by_layer, rank_correlation, with_forgetting


def changes(norm: float) -> list[MatrixChange]:
    """Two layers of two matrices; the second layer changes twice as much."""
    return [
        MatrixChange(f"layers.{layer}.{name}", layer, 8, 8, norm * (1 + layer), 2.0, None, 3, layer)
        for layer in (0, 1)
        for name in ("q_proj", "v_proj")
    ]


def losing(record: Record, points: float) -> Record:
    """A run whose suite's mean lies so far below the base's."""
    assert record.regression
    tasks = [replace(task, value=0.7 - points / 100) for task in record.regression.tasks]
    return replace(record, regression=replace(record.regression, tasks=tasks))


def made() -> Group:
    records = []
    sizes: dict[str, float] = {}
    for place, record in enumerate(runs("base full lora", (0, 1, 2))):
        record = replace(record, config=with_settings(record.config, {"evaluation.weights": True}))
        records.append(losing(record, float(place)))
        sizes[record.run_id] = 0.01 * place
    sweep = sweep_of(records)
    sweep.change_rows.update({run: changes(size) for run, size in sizes.items() if size})
    (group,) = groups(sweep)
    return group


def test_layers_are_means_over_matrices_with_a_band_over_seeds() -> None:
    frame = by_layer(made()).set_index(["quantity", "arm", "layer"])
    row = frame.loc[("relative norm of the change", "full", 1)]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.04, 0.02, 0.06))
    assert "effective rank" not in frame.index.get_level_values("quantity")  # unknown is not drawn


def test_a_quantity_that_rises_with_forgetting_is_correlated() -> None:
    found = with_forgetting(made()).set_index("quantity")
    assert list(found.index) == ["relative norm of the change"]  # the others are the same in all runs
    assert found.loc["relative norm of the change", ["correlation", "runs"]].tolist() == pytest.approx([1.0, 6])


@pytest.mark.parametrize("truth", [0.0, 0.6])
def test_the_interval_of_a_rank_correlation_holds_the_truth(truth: float) -> None:
    """Normal pairs, whose Spearman correlation is known from Pearson's (Pearson 1907)."""
    rng, held, pearson = np.random.default_rng(3), 0, 2 * np.sin(np.pi * truth / 6)
    for _ in range(1000):
        left = rng.normal(size=12)
        right = pearson * left + np.sqrt(1 - pearson**2) * rng.normal(size=12)
        _, low, high = rank_correlation(left, right)
        held += low <= truth <= high
    assert 0.93 <= held / 1000 <= 0.97


def test_the_section_says_what_it_shows() -> None:
    shown = section(made())
    assert shown
    assert shown.chart
    assert "layer" in svg(shown.chart)
    assert "10 leading left singular vectors" in shown.note
    (correlation,) = shown.parts
    assert correlation.table
    assert correlation.table.rows[0][0] == "relative norm of the change"
    (plain,) = groups(sweep_of(runs("base full", (0,))))
    assert section(plain) is None
