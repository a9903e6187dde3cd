"""Curves read by hand: when a target is reached, with time by the steps, compiling set apart, and energy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from synthetic import ENVIRONMENT, make_train

from bench.analysis.curves import Line, Reach, curve_of, first_reach
from bench.record import HeldoutPoint, Step, TrainResult

FALLING = ((0, 4.0), (10, 3.0), (20, 2.5))


def trained(*points: tuple[int, float | None], energy: tuple[float | None, ...] = (), **changed: Any) -> TrainResult:
    """A run of 20 steps with 100 tokens and 10 s each, not compiled; (step, loss) of its held-out points."""
    heldout = [HeldoutPoint(step, 100 * step, 10.0 * step, loss) for step, loss in points]
    heldout = [replace(point, energy_wh=wh) for point, wh in zip(heldout, energy or [None] * len(points), strict=True)]
    facts = {"steps": 20, "train_seconds": 200.0, "compile_seconds": None, "step_seconds_median": 10.0,
             "environment": replace(ENVIRONMENT, compiled="off"), "heldout": heldout} | changed  # fmt: skip
    return replace(make_train("full", 0), **facts)


def compiled() -> tuple[TrainResult, list[Step]]:
    """Twenty steps of 100 tokens: the first takes 55 s, since it compiles, the others 5 s."""
    ends = [55.0 + 5.0 * n for n in range(20)]
    steps = [
        Step(n + 1, 3.0, 1.0, 1e-4, 5.0 if n else 55.0, 100, 20, 120, end, timed=n > 0) for n, end in enumerate(ends)
    ]
    points = [HeldoutPoint(0, 0, 0.0, 4.0), HeldoutPoint(10, 1000, 100.0, 3.0), HeldoutPoint(20, 2000, 150.0, 2.5)]
    facts = {"train_seconds": 150.0, "compile_seconds": 50.0, "step_seconds_median": 5.0, "environment": ENVIRONMENT}
    return trained(**facts, heldout=points), steps


def reach(train: TrainResult, target: float, steps: list[Step] | None = None) -> Reach:
    curve = curve_of(train, steps or [])
    assert curve
    return first_reach(curve, target)


@pytest.mark.parametrize(
    ("target", "status", "tokens", "seconds", "between"),
    [
        (3.5, "reached", 500.0, 50.0, (0, 10)),
        (2.75, "reached", 1500.0, 150.0, (10, 20)),
        (3.0, "reached", 1000.0, 100.0, (10, 10)),
        (2.5, "reached", 2000.0, 200.0, (20, 20)),
        (2.4, "never", None, None, None),
        (4.0, "at start", 0.0, 0.0, (0, 0)),
        (9.0, "at start", 0.0, 0.0, (0, 0)),
    ],
)
def test_a_target_is_read_on_the_line_between_two_points(
    target: float, status: str, tokens: float | None, seconds: float | None, between: tuple[int, int] | None
) -> None:
    found = reach(trained(*FALLING), target)
    assert (found.status, found.tokens, found.seconds, found.between_steps) == (status, tokens, seconds, between)
    assert found.seconds_without_compiling == seconds  # nothing was compiled


def test_the_first_time_counts_though_the_loss_rises_again() -> None:
    assert reach(trained((0, 4.0), (5, 2.0), (10, 3.0), (20, 1.0)), 2.5).tokens == 375.0


@pytest.mark.parametrize("points", [((0, 4.0), (10, None), (20, 2.5)), ((20, 2.5),)])
def test_next_to_what_is_not_known_the_target_was_reached_by_then(points: tuple) -> None:
    found = reach(trained(*points), 2.6)
    assert (found.status, found.tokens, found.between_steps) == ("by then", 2000.0, (20, 20))


def test_a_loss_that_is_not_finite_reaches_nothing() -> None:
    assert reach(trained((0, 4.0), (20, None)), 3.9).status == "never"
    assert curve_of(trained(), []) is None


def test_time_is_that_of_the_steps_and_not_linear_while_compiling() -> None:
    train, steps = compiled()
    found = reach(train, 3.5, steps)
    assert (found.tokens, found.seconds, found.seconds_without_compiling) == (500.0, 75.0, 25.0)
    last = reach(train, 2.5, steps)
    assert (last.seconds, last.seconds_without_compiling) == (150.0, 100.0)  # train_seconds - compile_seconds


def test_without_all_steps_time_is_linear_between_points_and_compiling_unknown() -> None:
    train, steps = compiled()
    for known in ([], steps[:7]):
        found = reach(train, 3.5, known)
        assert (found.seconds, found.seconds_without_compiling) == (50.0, None)


def test_energy_is_read_between_the_readings() -> None:
    found = reach(trained(*FALLING, energy=(0.0, 3.0, 4.0), energy_wh=4.0), 2.75)
    assert (found.energy_wh, found.energy_is_estimate) == (3.5, False)


def test_energy_read_at_the_end_alone_gives_an_estimate_but_at_the_end() -> None:
    train = trained(*FALLING, energy_wh=4.0)
    assert [reach(train, 2.75).energy_wh, reach(train, 2.75).energy_is_estimate] == [3.0, True]
    assert [reach(train, 2.5).energy_wh, reach(train, 2.5).energy_is_estimate] == [4.0, False]
    assert [reach(train, 9.0).energy_wh, reach(train, 9.0).energy_is_estimate] == [0.0, False]


@pytest.mark.parametrize("energy", [(), (None, 3.0, None)])
def test_without_a_counter_energy_is_unknown(energy: tuple) -> None:
    found = reach(trained(*FALLING, energy=energy, energy_wh=None), 2.75)
    assert (found.energy_wh, found.energy_is_estimate) == (None, False)


def test_a_line_knows_nothing_outside_or_beside_what_is_not_finite() -> None:
    line = Line(np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 20.0, np.inf, 5.0]))
    assert [line.at(x) for x in (0.9, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.1)] == [
        None, 10.0, 15.0, 20.0, None, None, None, 5.0, None,
    ]  # fmt: skip
    assert Line(line.x[:2], line.y[:2]).inverse().at(15.0) == 1.5
