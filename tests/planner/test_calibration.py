"""The planner's intervals: conformal by hand, on exchangeable draws, and as they are shipped."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from bench.planner.advice import plans
from bench.planner.time import CALIBRATION as FILE
from bench.planner.time import PlanConfig, interval, peak_interval_bytes
from benchmarks.planner import calibrate
from benchmarks.planner.published import published


def test_ranks_by_hand() -> None:
    values = [n / 100 for n in range(1, 100)]  # 99 values: the 5th from either end
    assert calibrate.conformal(values[::-1]) == (0.05, 0.95)
    assert calibrate.conformal([2.0, 1.0, 3.0]) == (1.0, 3.0)  # too few: all of them


def test_nine_of_ten_new_values_lie_inside() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(2000):
        *seen, new = np.exp(rng.standard_t(3, 61))
        low, high = calibrate.conformal(seen)
        inside.append(low <= new <= high)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)


def test_a_source_is_judged_by_the_others_alone() -> None:
    scored = [("a", 1.0), ("a", 2.0), ("b", 3.0), ("c", 4.0)]
    assert calibrate.left_out(scored) == {"a": (3.0, 4.0), "b": (1.0, 4.0), "c": (1.0, 3.0)}


def test_what_is_shipped_is_what_the_benchmark_writes(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(calibrate, "FILE", tmp_path / "calibration.yaml")
    shown = calibrate.calibrate()
    assert yaml.safe_load((tmp_path / "calibration.yaml").read_text()) == yaml.safe_load(FILE.read_text())
    assert shown.count(" inside |") == 2


def test_runs_whose_work_differs_are_not_counted() -> None:
    found = list(published())
    alike = [run for run in found if run.is_alike]
    assert len(found) == 99
    assert {run.row["source"] for run in found if not run.is_alike} == {"fms", "torchtune", "litgpt", "nemo"}
    assert 0.6 < min(run.ratio for run in alike if run.ratio) < max(run.ratio for run in alike if run.ratio) < 2.1


def test_a_plan_has_its_interval_and_the_speed_its_range() -> None:
    (plan,) = plans(["model=llama-3.1-8b", "method=lora", "hardware=h100"])
    found, share = interval("cuda", "peak_memory"), interval("cuda", "utilization")
    assert found is not None
    assert share is not None
    low, high = plan.peak_interval_bytes or (0, 0)
    assert (low, high) == (round(plan.peak_memory_bytes * found.low), round(plan.peak_memory_bytes * found.high))
    slow, fast = plan.duration.tokens_per_second or (0, 0)
    assert fast / slow == pytest.approx(share.high / share.low)
    assert PlanConfig(utilization=(0.1, 0.2)).utilization_range == (0.1, 0.2)


def test_of_other_devices_nothing_is_claimed() -> None:
    assert peak_interval_bytes(2**30, "abacus") is None
