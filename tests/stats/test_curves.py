"""Learning curves read by hand: targets, time by the steps, energy, equal tokens and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from made_up import sweep_of
from synthetic import ENVIRONMENT, make_record, make_train

from bench.compose import with_settings
from bench.record import HeldoutPoint, Record, Step, TrainResult
from bench.stats.curves import Curve, curve_of, reach_frame
from bench.stats.frames import groups

Point = tuple[int, float, float]  # step, seconds, held-out loss; a step is 100 tokens
FULL: list[Point] = [(0, 0.0, 4.0), (10, 100.0, 3.0), (20, 200.0, 2.5)]
LORA: list[Point] = [(0, 0.0, 4.0), (10, 50.0, 3.2), (20, 100.0, 2.8)]


def trained(points: Sequence[Point] = FULL, energy: Sequence[float | None] = (), **changed: Any) -> TrainResult:
    """A run that was not compiled."""
    heldout = [HeldoutPoint(step, 100 * step, seconds, loss) for step, seconds, loss in points]
    heldout = [replace(point, energy_wh=wh) for point, wh in zip(heldout, energy or [None] * len(points), strict=True)]
    facts = {"heldout": heldout, "steps": points[-1][0], "train_seconds": points[-1][1], "compile_seconds": None,
             "environment": replace(ENVIRONMENT, compiled="off")} | changed  # fmt: skip
    return replace(make_train("full", 0), **facts)


def curve(train: TrainResult, steps: Sequence[Step] = ()) -> Curve:
    found = curve_of(train, steps)
    assert found
    return found


@pytest.mark.parametrize(
    ("target", "status", "tokens", "seconds"),
    [
        (3.5, "reached", 500.0, 50.0),
        (2.75, "reached", 1500.0, 150.0),
        (3.0, "reached", 1000.0, 100.0),
        (2.5, "reached", 2000.0, 200.0),
        (2.4, "never", math.nan, math.nan),
        (4.0, "at start", 0.0, 0.0),
    ],
)
def test_a_target_is_read_on_the_line_between_two_points(
    target: float, status: str, tokens: float, seconds: float
) -> None:
    own = curve(trained())
    found = own.reach(target)
    assert found[0] == status
    assert (found[1], own.seconds_at(found[1])) == pytest.approx((tokens, seconds), nan_ok=True)


def test_the_first_time_counts_though_the_loss_rises_again() -> None:
    assert curve(trained([(0, 0, 4.0), (5, 50, 2.0), (10, 100, 3.0), (20, 200, 1.0)])).reach(2.5)[1] == 375.0


def test_nothing_is_read_outside_of_the_points() -> None:
    own = curve(trained(FULL[1:]))
    assert (math.isnan(own.loss_at(900.0)), math.isnan(own.loss_at(2100.0))) == (True, True)
    assert own.loss_at(1500.0) == 2.75
    assert curve_of(trained(heldout=[]), []) is None


def test_time_is_that_of_the_steps() -> None:
    """Twenty steps of 100 tokens: the first takes 55 s, since it compiles, the others 5 s."""
    steps = [
        Step(n + 1, 3.0, 1.0, 1e-4, 5.0 if n else 55.0, 100, 20, 120, 55.0 + 5.0 * n, timed=n > 0) for n in range(20)
    ]
    facts = {"train_seconds": 150.0, "compile_seconds": 50.0, "step_seconds_median": 5.0, "environment": ENVIRONMENT}
    train = trained([(0, 0.0, 4.0), (10, 100.0, 3.0), (20, 150.0, 2.5)], **facts)
    own = curve(train, steps)
    assert own.seconds_at(500.0) == 75.0
    without_steps = curve(train, steps[:3])  # not all of them: between the held-out points
    assert without_steps.seconds_at(500.0) == 50.0


@pytest.mark.parametrize(
    ("energy", "total", "expected"),
    [((0.0, 2.0, 3.0), 3.0, 2.5), ((), 4.0, 3.0), ((), None, math.nan)],
)
def test_energy(energy: tuple[float, ...], total: float | None, expected: float) -> None:
    assert curve(trained(energy=energy, energy_wh=total)).energy_at(150.0) == pytest.approx(expected, nan_ok=True)


def run(method: str, points: Sequence[Point], seed: int = 0, **changed: Any) -> Record:
    return replace(make_record(method, seed), train=replace(trained(points), **changed))


def frame_of(*records: Record, target: float | None = None) -> Any:
    (group,) = groups(sweep_of(records))
    return reach_frame(group, target).set_index(["arm", "seed"])


def test_the_default_target_is_the_worst_final_loss() -> None:
    frame = frame_of(run("full", FULL), run("lora", LORA))
    assert frame["target"].tolist() == [2.8, 2.8]
    assert frame.loc[("full", 0), ["tokens", "seconds"]].tolist() == pytest.approx([1400, 140])
    assert frame.loc[("lora", 0), ["status", "tokens", "seconds"]].tolist() == ["reached", 2000.0, 100.0]
    given = frame_of(run("full", FULL), run("lora", LORA), target=2.6)
    assert given["status"].tolist() == ["reached", "never"]


def test_equal_tokens_and_equal_time_are_the_most_that_all_have() -> None:
    frame = frame_of(run("full", FULL), run("lora", LORA))
    assert frame["equal_seconds"].tolist() == [100.0, 100.0]
    assert frame["loss_at_equal_tokens"].tolist() == [2.5, 2.8]
    assert frame["loss_at_equal_seconds"].tolist() == [3.0, 2.8]


def test_runs_that_may_not_be_compared_share_no_target() -> None:
    other = run("lora", LORA)
    other = replace(other, config=with_settings(other.config, {"train.epochs": 3}))
    frame = frame_of(run("full", FULL), other)
    assert frame["set"].tolist() == [0, 1]
    assert frame["target"].tolist() == [2.5, 2.8]


def test_controls_and_untrained_arms_take_no_part() -> None:
    control = run("full", [(0, 0.0, 4.0), (20, 200.0, 9.0)])
    control = replace(control, config=with_settings(control.config, {"method.control": True}))
    frame = frame_of(make_record("base", 0), control, run("lora", LORA))
    assert frame.index.get_level_values("arm").tolist() == ["lora"]
