"""Methods at equal tokens, time and memory, and overfitting: answers known by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from synthetic import ENVIRONMENT, MIB, make_record

from bench.analysis.overfitting import overfitting
from bench.analysis.targets import compare_curves
from bench.record import HeldoutPoint, Record, Step

Point = tuple[int, float, float | None]  # step, seconds, held-out loss; a step is 100 tokens
FULL: list[Point] = [(0, 0.0, 4.0), (10, 100.0, 3.0), (20, 200.0, 2.5)]
LORA: list[Point] = [(0, 0.0, 4.0), (10, 50.0, 3.2), (20, 100.0, 2.8)]


def run(method: str, points: Sequence[Point], seed: int = 0, **changed: Any) -> Record:
    """A finished run that was not compiled."""
    record = make_record(method, seed)
    assert record.train
    heldout = [HeldoutPoint(step, 100 * step, seconds, loss) for step, seconds, loss in points]
    facts = {"heldout": heldout, "steps": heldout[-1].step, "train_seconds": heldout[-1].train_seconds,
             "environment": replace(ENVIRONMENT, compiled="off")} | changed  # fmt: skip
    return replace(record, train=replace(record.train, **facts))


def steps_of(losses: Sequence[float | None], tokens: Sequence[int] | None = None) -> list[Step]:
    """Optimizer steps with their losses and supervised tokens."""
    weights = tokens or [20] * len(losses)
    return [
        Step(n, loss, 1.0, 1e-4, 1.0, 100, weight, 120, float(n), True)
        for n, (loss, weight) in enumerate(zip(losses, weights, strict=True), 1)
    ]


def test_the_default_target_is_the_worst_final_loss() -> None:
    (found,) = compare_curves({"full": [run("full", FULL)], "lora": [run("lora", LORA)]}, {})
    assert (found.target, found.target_is_given) == (2.8, False)
    full, lora = (found.runs[arm][0].reach for arm in ("full", "lora"))
    assert full
    assert lora
    assert (full.tokens, full.seconds) == (pytest.approx(1400), pytest.approx(140))
    assert (lora.tokens, lora.seconds, lora.between_steps) == (2000.0, 100.0, (20, 20))


def test_a_given_target_may_never_be_reached() -> None:
    arms = {"full": [run("full", FULL)], "lora": [run("lora", LORA)]}
    (found,) = compare_curves(arms, {}, target=2.6)
    assert [found.runs[arm][0].reach.status for arm in arms] == ["reached", "never"]


def test_equal_tokens_and_equal_time_are_the_most_that_all_have() -> None:
    (found,) = compare_curves({"full": [run("full", FULL)], "lora": [run("lora", LORA)]}, {})
    assert (found.ends.tokens, found.ends.seconds, found.ends.seconds_without_compiling) == (2000.0, 100.0, 100.0)
    full, lora = found.runs["full"][0], found.runs["lora"][0]
    assert (full.at_tokens, full.at_seconds) == (2.5, 3.0)
    assert (lora.at_tokens, lora.at_seconds) == (2.8, 2.8)
    assert full.unknown == ()


def test_more_memory_can_only_lower_the_best_loss() -> None:
    arms = {
        "full": [run("full", FULL), run("full", FULL, seed=1)],
        "lora": [run("lora", [*LORA[:2], (20, 100.0, 3.4)])],
        "qlora": [run("qlora", FULL, memory=[])],
    }
    (found,) = compare_curves(arms, {})
    small, large = found.budgets
    assert (small.peak_bytes, small.arms, small.lowest, small.final) == (
        2552 * MIB, ("lora",), ("lora", 3.2), ("lora", 3.4),
    )  # fmt: skip
    assert (large.peak_bytes, large.arms, large.final) == (4405 * MIB, ("full", "lora"), ("full", 2.5))
    assert found.without_peak == ["qlora"]


def test_runs_of_different_lengths_are_compared_when_that_is_allowed() -> None:
    arms = {"full": [run("full", FULL)], "lora": [run("lora", [*LORA, (30, 150.0, 2.4)])]}
    apart = compare_curves(arms, {})
    assert [list(one.runs) for one in apart] == [["full"], ["lora"]]
    (together,) = compare_curves(arms, {}, allowed=frozenset({"budget"}))
    assert (together.ends.tokens, together.ends.seconds) == (2000.0, 150.0)
    assert together.runs["lora"][0].at_tokens == 2.8
    assert together.runs["full"][0].at_seconds == 2.75


def test_what_is_next_to_a_loss_that_is_not_finite_is_unknown_with_its_reason() -> None:
    ended = [*FULL[:2], (20, 200.0, None)]
    (found,) = compare_curves({"full": [run("full", ended)], "lora": [run("lora", LORA)]}, {})
    full = found.runs["full"][0]
    assert (found.target, full.reach and full.reach.status) == (2.8, "never")
    assert (full.at_tokens, full.at_seconds) == (None, 3.0)
    assert full.unknown == (
        "loss at equal tokens: a held-out loss beside it was not finite",
        "loss at the end: it was not finite",
    )
    assert [budget.final for budget in found.budgets] == [("lora", 2.8), ("lora", 2.8)]


def test_before_the_first_held_out_loss_nothing_is_extrapolated() -> None:
    late = run("full", [(20, 200.0, 2.5)])
    (found,) = compare_curves({"full": [late], "lora": [run("lora", LORA)]}, {})
    assert found.runs["full"][0].at_seconds is None
    assert "loss at equal time: no held-out loss before it" in found.runs["full"][0].unknown


def test_untrained_arms_and_runs_without_held_out_losses_take_no_part() -> None:
    assert compare_curves({"base": [make_record("base", 0)], "full": [run("full", FULL, heldout=[])]}, {}) == []


def test_all_diverged_leaves_no_target() -> None:
    (found,) = compare_curves({"full": [run("full", [(0, 0.0, 4.0), (20, 9.0, None)])]}, {})
    assert (found.target, found.runs["full"][0].reach) == (None, None)


def test_the_gap_weighs_the_last_steps_by_their_tokens() -> None:
    record = run("full", FULL)
    losses = [9.0] * 10 + [2.0] * 9 + [3.0]
    assert record.train
    found = overfitting(record.train, steps_of(losses, [20] * 19 + [180]), margin=0.01)
    assert found
    assert (found.last_steps, found.train_loss) == (10, pytest.approx(2.5))  # (9 * 20 * 2 + 180 * 3) / 360
    assert found.gap == pytest.approx(0.0)
    assert found.train_loss_error
    assert (found.lowest_loss, found.lowest_step, found.rise, found.rose) == (2.5, 20, 0.0, False)


def test_the_error_is_that_of_a_mean() -> None:
    record = run("full", FULL)
    assert record.train
    found = overfitting(record.train, steps_of([9.0] * 10 + [2.0, 3.0] * 5), margin=0.01)
    assert found
    assert found.train_loss_error == pytest.approx((10 / 9 * 0.25 / 10) ** 0.5)  # s / sqrt(n)


@pytest.mark.parametrize(("last", "rose"), [(3.02, False), (3.04, True), (None, True)])
def test_a_loss_that_rose_from_its_lowest_point(last: float | None, rose: bool) -> None:
    record = run("full", [*FULL[:2], (20, 200.0, last)])
    assert record.train
    found = overfitting(record.train, [], margin=0.01)
    assert found
    assert (found.lowest_loss, found.lowest_step, found.rose) == (3.0, 10, rose)
    assert (found.train_loss, found.gap, found.last_steps) == (None, None, 0)


def test_a_training_loss_that_is_not_finite_leaves_the_gap_unknown() -> None:
    record = run("full", FULL)
    assert record.train
    found = overfitting(record.train, steps_of([2.0] * 19 + [None]), margin=0.01)
    assert found
    assert (found.train_loss, found.gap) == (None, None)
