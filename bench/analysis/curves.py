"""A run's held-out loss as a curve that can be read between its points: by tokens, by time, and at a target.

Between two held-out points the loss is taken to be linear in the tokens trained on. Time is not linear in tokens, since
compiling takes the first steps: it is that of the optimizer steps (`steps.jsonl`), linear within a step; without
these, linear between held-out points. Nothing is read outside of the points, nor next to a loss that is not finite.

    >>> curve = curve_of(record.train, steps)
    >>> curve.loss.at(100_000)
    2.41
    >>> first_reach(curve, 2.5).seconds
    93.7
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bench.record import HeldoutPoint, Step, TrainResult

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """What is known at some places and taken to be linear between them: x and y of shape (places,), x rising."""

    x: Floats
    y: Floats

    def at(self, x: float) -> float | None:
        """None outside of the places, and next to one whose y is not finite."""
        if not self.x[0] <= x <= self.x[-1]:
            return None
        right = int(np.searchsorted(self.x, x))
        value = float(self.y[right])
        if self.x[right] != x:
            before, share = float(self.y[right - 1]), (x - self.x[right - 1]) / (self.x[right] - self.x[right - 1])
            value = before + float(share) * (value - before)
        return value if math.isfinite(value) else None

    def inverse(self) -> Line:
        """x as a function of y, which must be rising."""
        return Line(self.y, self.x)


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        steps: optimizer steps done at the held-out points.
        loss: tokens trained on -> held-out loss, nats per token; infinite where it was not finite.
        seconds: tokens -> training seconds, compiling included, held-out evaluation excluded.
        seconds_without_compiling: the same with the median timed step in the place of each compiling one; None where
            the steps do not tell.
        energy_wh: training seconds -> watt-hours of training; None without a counter.
        energy_is_estimate: the counter was read at the end alone, and the power is taken to be constant until then.
    """

    steps: list[int]
    loss: Line
    seconds: Line
    seconds_without_compiling: Line | None
    energy_wh: Line | None
    energy_is_estimate: bool

    @property
    def final_loss(self) -> float:
        """Of the last point; infinite where it was not finite."""
        return float(self.loss.y[-1])

    @property
    def lowest(self) -> tuple[float, int]:
        """(the lowest loss of all points, its step); the first of equal ones."""
        place = int(self.loss.y.argmin())
        return float(self.loss.y[place]), self.steps[place]


@dataclass(frozen=True)
class Reach:
    """When a run's held-out loss was first at or below a target; None is unknown, or never.

    Attributes:
        status: reached (read between two points, or at one); at start (before the first step); by then (not later: the
            loss of the point before is missing or not finite); never.
        between_steps: the held-out points it was read between; twice the same when it was read at one.
        energy_is_estimate: `energy_wh` supposes constant power.
    """

    status: Literal["reached", "at start", "by then", "never"]
    tokens: float | None = None
    seconds: float | None = None
    seconds_without_compiling: float | None = None
    energy_wh: float | None = None
    energy_is_estimate: bool = False
    between_steps: tuple[int, int] | None = None


def curve_of(train: TrainResult, steps: Sequence[Step]) -> Curve | None:
    """The run's curve; None without any held-out loss.

    Args:
        steps: of the run; used when they are complete.
    """
    points = sorted(train.heldout, key=lambda point: point.step)
    if not points:
        return None
    tokens = np.array([point.train_tokens for point in points], dtype=float)
    losses = np.array([math.inf if point.loss is None else point.loss for point in points])
    energy, is_estimate = _energy(train, points)
    clock = [(0.0, 0.0)] + [(float(p.train_tokens), p.train_seconds) for p in points if p.train_tokens > 0]
    seconds, without_compiling = _line(clock), None
    if steps and len(steps) == train.steps:
        ordered = sorted(steps, key=lambda step: step.step)
        seen = np.cumsum([0.0] + [step.tokens for step in ordered])
        seconds = Line(seen, np.array([0.0] + [step.elapsed_seconds for step in ordered]))
        own = _seconds_without_compiling(train, ordered)
        without_compiling = None if own is None else Line(seen, np.cumsum([0.0, *own]))
    elif not _compiled(train):
        without_compiling = seconds
    return Curve(
        [p.step for p in points], Line(tokens, losses), seconds, without_compiling, energy, is_estimate
    )  # fmt: skip


def _compiled(train: TrainResult) -> bool:
    return not train.environment.compiled.startswith("off")


def _seconds_without_compiling(train: TrainResult, steps: Sequence[Step]) -> list[float] | None:
    """Of each step; they sum to `train_seconds` - `compile_seconds`."""
    if not _compiled(train) or train.compile_seconds == 0:
        return [step.seconds for step in steps]
    median = train.step_seconds_median
    if train.compile_seconds is None or median is None:
        return None
    return [step.seconds if step.timed else median for step in steps]


def _energy(train: TrainResult, points: Sequence[HeldoutPoint]) -> tuple[Line | None, bool]:
    """(watt-hours by training second, whether constant power is supposed)."""
    readings = [(p.train_seconds, p.energy_wh) for p in points if p.step > 0 and p.energy_wh is not None]
    if readings and len(readings) == sum(p.step > 0 for p in points):
        return _line([(0.0, 0.0), *readings]), False
    if train.energy_wh is not None and train.train_seconds > 0:
        return _line([(0.0, 0.0), (train.train_seconds, train.energy_wh)]), True
    return None, False


def _line(places: Sequence[tuple[float, float]]) -> Line:
    x, y = np.array(places, dtype=float).T
    return Line(x, y)


def first_reach(curve: Curve, target: float) -> Reach:
    """When the held-out loss was first at or below `target`, nats per token."""
    reaching = np.flatnonzero(curve.loss.y <= target)
    if not len(reaching):
        return Reach("never")
    place = int(reaching[0])
    tokens, loss, step = float(curve.loss.x[place]), float(curve.loss.y[place]), curve.steps[place]
    if step == 0:
        return _read(curve, "at start", 0.0, (0, 0))
    before = float(curve.loss.y[place - 1]) if place else math.inf
    if not math.isfinite(before):
        return _read(curve, "by then", tokens, (step, step))
    if loss == target:
        return _read(curve, "reached", tokens, (step, step))
    start = float(curve.loss.x[place - 1])
    between = start + (before - target) / (before - loss) * (tokens - start)
    return _read(curve, "reached", between, (curve.steps[place - 1], step))


def _read(curve: Curve, status: Literal["reached", "at start", "by then"], tokens: float, at: tuple[int, int]) -> Reach:
    seconds = curve.seconds.at(tokens)
    without = curve.seconds_without_compiling
    energy_wh = None if curve.energy_wh is None or seconds is None else curve.energy_wh.at(seconds)
    inside = seconds is not None and 0 < seconds < curve.seconds.y[-1]
    return Reach(status, tokens, seconds, without.at(tokens) if without else None, energy_wh,
                 curve.energy_is_estimate and inside and energy_wh is not None, at)  # fmt: skip
