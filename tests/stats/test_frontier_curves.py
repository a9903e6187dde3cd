"""Forgetting at equal learning: planted curves, whose difference is known, and curves that never meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up import sweep_of
from synthetic import ENVIRONMENT, make_record

from bench.record import HELDOUT, KL_METRIC, TASK_KL, FrontierResult, Point, PointItem, Record, RegressionTask
from bench.report.charts import svg
from bench.report.sections.frontier import section
from bench.stats.curves import NO_OVERLAP, Path, Paths, equal_learning, forgetting_sentences, frontier_frame
from bench.stats.decide import decide
from bench.stats.frames import Group, groups
from bench.stats.limits import Limits

SHARES, ITEMS, TRIALS = np.array([0.0, 0.1, 0.25, 0.5, 1.0]), 120, 400
FORGETTING_ONE, FORGETTING_OTHER = 0.5, 0.3  # of an item, a nat learned


def planted(
    rng: np.random.Generator, slope: float, most: float, seeds: int, spread: float, of_items: np.ndarray
) -> list[Path]:
    """Runs of an arm that learn about `most` nats; each seed learns and forgets at its own rate."""
    paths = []
    for _ in range(seeds):
        learned = SHARES**0.5 * most * rng.uniform(0.9, 1.1)
        own = slope + rng.normal(0, spread) + of_items + rng.normal(0, 0.3, ITEMS)
        noise = rng.normal(0, 0.15, (len(SHARES), ITEMS)) * (learned > 0)[:, None]
        paths.append(Path(10 * SHARES, learned, learned[:, None] * own + noise))
    return paths


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.2), (5, 0.1)])
def test_the_interval_holds_the_planted_difference_in_95_of_100(seeds: int, spread: float) -> None:
    rng, held = np.random.default_rng(7), 0
    for _ in range(TRIALS):
        of_items = rng.normal(0, 0.4, ITEMS)  # another suite each time; both arms share it
        sides = [
            planted(rng, slope, most, seeds, spread, of_items)
            for slope, most in ((FORGETTING_ONE, 0.7), (FORGETTING_OTHER, 1.5))
        ]
        low, high, found = Paths({}).at_equal_learning(sides)
        assert found
        below, above = found.difference(0, 1).interval()
        held += below <= (FORGETTING_ONE - FORGETTING_OTHER) * (low + high) / 2 <= above
    assert 0.93 <= held / TRIALS <= 0.97


def test_the_range_is_what_all_runs_reached_and_points_that_fell_back_are_left_out() -> None:
    overfitted = Path(np.arange(5.0), np.array([0, 0.2, 0.6, 1.0, 0.9]), np.array([[0.0], [1], [3], [5], [50]]))
    slow = Path(np.arange(3.0), np.array([0, 0.4, 0.8]), np.array([[0.0], [1], [1]]))
    low, high, _ = Paths({}).at_equal_learning([[overfitted], [slow]])
    assert (low, high) == (0.4, 0.8)
    assert overfitted.between(low, high) == pytest.approx([3.0])  # 2 to 4 in a line, through 3 in the middle
    behind = replace(slow, learned=np.array([0, 0.1, 0.2]))
    assert Paths({}).at_equal_learning([[overfitted], [behind]])[2] is None


def measured(record: Record, learned: Sequence[float], slope: float) -> tuple[Record, list[PointItem]]:
    """A run with points along training: two tasks of 60 items, and KL; half the items forget twice as much."""
    rows = []
    for step, gain in zip((0, 4, 8, 16, 32), learned, strict=True):
        rows += [PointItem(step, HELDOUT, f"v{n}", "loss", 3.6 + 0.1 * (n % 3) - gain, 5.0 + n) for n in range(12)]
        for n in range(60):
            lost = slope * gain * (0.5 + n % 2) + 0.02 * ((7 * n + 5 * step + record.seed) % 11 - 5) * (step > 0)
            rows += [PointItem(step, task, f"i{n}", "acc", 0.8 - lost) for task in ("capitals", "addition")]
            rows += [PointItem(step, t, f"t{n}", KL_METRIC, abs(lost), 9.0 + n) for t in ("prose_kl", TASK_KL)]
    values = [RegressionTask(task, "acc", 0.8, 60, True) for task in ("capitals", "addition")]
    return replace(record, frontier=FrontierResult([Point(0, values)], [], {}, ENVIRONMENT)), rows


def group_with(arms: Mapping[str, tuple[Sequence[float], float]]) -> Group:
    sweep, rows = [make_record("base", 0)], {}
    for method, (learned, slope) in arms.items():
        for seed in (0, 1):
            record, of_run = measured(make_record(method, seed), learned, slope)
            sweep.append(record)
            rows[record.run_id] = of_run
    made = sweep_of(sweep)
    made.point_rows.update(rows)
    (group,) = groups(made)
    return group


FULL, LORA = ([0, 0.2, 0.5, 0.9, 1.4], 0.05), ([0, 0.1, 0.2, 0.4, 0.6], 0.09)


def by_measure(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_index("measure")


def test_who_forgets_less_at_the_end_may_forget_more_at_equal_learning() -> None:
    group = group_with({"full": FULL, "lora": LORA})
    ends = frontier_frame(group).query('step == 32 and measure == "suite\'s mean"').set_index("arm")["forgotten"]
    assert ends["lora"] < ends["full"]
    found = by_measure(equal_learning(group))
    assert list(found.index) == ["suite's mean", "KL, general text", "KL, the task's prompts"]
    suite = found.loc["suite's mean"]
    assert (suite["arm"], suite["baseline"], suite["verdict"]) == ("lora", "full", "forgets more")
    assert (suite["from"], suite["to"]) == pytest.approx((0.2, 0.6))
    assert suite["difference"] == pytest.approx(0.04 * 0.4, abs=0.005)
    assert suite["low"] < 0.016 < suite["high"]
    shown = section(group)
    assert shown
    assert shown.chart
    assert shown.table
    assert list(shown.table.rows[0][:3]) == ["suite's mean", "lora - full", "forgets more"]
    assert "forgotten (down: more)" in svg(shown.chart)


def test_curves_that_never_meet_are_not_compared() -> None:
    group = group_with({"full": ([0, 0.7, 0.9, 1.1, 1.4], 0.05), "lora": LORA})
    found = equal_learning(group)
    assert set(found["verdict"]) == {NO_OVERLAP}
    assert found["difference"].isna().all()
    shown = section(group)
    assert shown
    assert shown.table
    assert {row[2] for row in shown.table.rows} == {NO_OVERLAP}


def test_a_limit_on_forgetting_reads_the_frontier() -> None:
    group = group_with({"full": FULL, "lora": LORA})
    said = decide(group, Limits(forgetting_tolerance=4.0)).caveats
    assert [text for text in said if "equal learning" in text] == forgetting_sentences(group, 4.0)[:1]
    stop = next(text for text in said if text.startswith("full would meet the limit on forgetting"))
    assert "after 25% of its steps" in stop
    assert not any("equal learning" in text for text in decide(group).caveats)


def test_without_points_there_is_no_frontier() -> None:
    (group,) = groups(sweep_of([make_record("base", 0), make_record("full", 0)]))
    assert section(group) is None
    assert equal_learning(group).empty


def test_a_point_whose_items_are_cut_short_is_left_out() -> None:
    group = group_with({"full": FULL, "lora": LORA})
    for run, rows in group.sweep.point_rows.items():
        group.sweep.point_rows[run] = rows[:-30]
    left = frontier_frame(group)
    assert set(left.loc[left["measure"] == "suite's mean", "step"]) == {0, 4, 8, 16}
