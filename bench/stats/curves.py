"""Learning curves: when each run reached a target loss, and its loss at equal tokens and equal time.

Between two held-out points the loss is taken to be linear in the tokens trained on. Time is not linear in tokens, since
compiling takes the first steps: it is that of the optimizer steps where all are known, linear within a step; else
linear between held-out points. Nothing is read outside of the points, nor next to a loss that is not finite.

Only runs that may be compared share a target and a common end. The target is given, or the highest final loss among
them, which every run with a finite one reaches. The common end: the fewest tokens and the shortest time among the runs.

    >>> frame = reach_frame(group)
    >>> frame[["arm", "seed", "status", "tokens", "seconds", "loss_at_equal_tokens"]]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.fairness import reasons_against
from bench.record import Record, Step, TrainResult
from bench.stats.compare import comparable
from bench.stats.frames import Group
from bench.stats.paired import Floats

_COLUMNS = ["arm", "seed", "run_id", "set", "target", "status", "tokens", "seconds", "seconds_without_compiling",
            "energy_wh", "final_loss", "loss_at_equal_tokens", "loss_at_equal_seconds", "equal_tokens",
            "equal_seconds"]  # fmt: skip
Runs = dict[str, dict[int, tuple[Record, "Curve"]]]  # arm -> seed -> its run


@dataclass(frozen=True)
class Curve:
    """One run; every array rises in tokens.

    Attributes:
        tokens, loss: trained on, and held-out (nats a token, infinite where it was not finite) at the held-out points,
            shape (points,).
        clock: tokens, training seconds, and seconds with the median step in the place of each compiling one (NaN:
            unknown), at the places where the time is known, shape (3, places).
        energy: training seconds and watt-hours, shape (2, places); NaN without a counter. Of a counter that was read
            at the end alone the power is taken to be constant.
    """

    tokens: Floats
    loss: Floats
    clock: Floats
    energy: Floats

    def loss_at(self, tokens: float) -> float:
        """NaN outside of the points, and next to a loss that is not finite."""
        if not self.tokens[0] <= tokens <= self.tokens[-1]:
            return math.nan
        beside = [np.searchsorted(self.tokens, tokens, "right") - 1, np.searchsorted(self.tokens, tokens)]
        finite = np.isfinite(self.loss[beside]).all()
        return float(np.interp(tokens, self.tokens, self.loss)) if finite else math.nan

    def seconds_at(self, tokens: float, compiling: bool = True) -> float:
        """Training seconds, with or without what compiling took; NaN where unknown."""
        return _read(tokens, self.clock[0], self.clock[1 if compiling else 2])

    def energy_at(self, seconds: float) -> float:
        """Watt-hours until then; NaN where unknown."""
        return _read(seconds, *self.energy)

    def reach(self, target: float) -> tuple[str, float]:
        """When the loss was first at or below a target: (status, tokens; NaN for never).

        reached (between two points, or at one); at start (before the first step); by then (not later: the loss of the
        point before is missing or not finite); never.
        """
        below = np.flatnonzero(self.loss <= target)
        if not len(below):
            return "never", math.nan
        place = int(below[0])
        if self.tokens[place] == 0:
            return "at start", 0.0
        before = float(self.loss[place - 1]) if place else math.inf
        if not math.isfinite(before):
            return "by then", float(self.tokens[place])
        share = (before - target) / (before - float(self.loss[place]))
        return "reached", float(self.tokens[place - 1] + share * (self.tokens[place] - self.tokens[place - 1]))


def _read(at: float, places: Floats, values: Floats) -> float:
    """Linear between the places; NaN outside of them."""
    return float(np.interp(at, places, values, math.nan, math.nan))


def curve_of(train: TrainResult, steps: Sequence[Step]) -> Curve | None:
    """The run's curve; None without any held-out loss.

    Args:
        steps: of the run; its time is read from them when they are complete.
    """
    points = sorted(train.heldout, key=lambda point: point.step)
    if not points:
        return None
    compiled = not train.environment.compiled.startswith("off") and train.compile_seconds != 0
    if steps and len(steps) == train.steps:
        ordered = sorted(steps, key=lambda step: step.step)
        median = train.step_seconds_median if train.compile_seconds is not None else None
        own = [median if compiled and not step.timed else step.seconds for step in ordered]  # None becomes NaN
        rows = [[step.tokens for step in ordered], [step.elapsed_seconds for step in ordered], own]
        clock = np.insert(np.array(rows, dtype=float), 0, 0.0, axis=1)
        clock[0], clock[2] = clock[0].cumsum(), clock[2].cumsum()
    else:
        places = [(0.0, 0.0), *((p.train_tokens, p.train_seconds) for p in points if p.train_tokens > 0)]
        tokens, seconds = np.array(places, dtype=float).T
        clock = np.stack([tokens, seconds, seconds * (math.nan if compiled else 1.0)])
    readings = [(p.train_seconds, p.energy_wh) for p in points if p.step > 0 and p.energy_wh is not None]
    if len(readings) < sum(p.step > 0 for p in points):
        readings = [] if train.energy_wh is None else [(train.train_seconds, train.energy_wh)]
    return Curve(
        tokens=np.array([point.train_tokens for point in points], dtype=float),
        loss=np.array([math.inf if point.loss is None else point.loss for point in points]),
        clock=clock,
        energy=np.array([(0.0, 0.0), *readings] if readings else [(0.0, math.nan)]).T,
    )


def _curves(group: Group) -> Runs:
    """Every trained run but controls with its curve; of two runs of a seed the later one."""
    runs: Runs = {arm: {} for arm in group.arms["arm"]}
    for record in sorted(group.records, key=lambda record: record.started_at):
        curve = curve_of(record.train, group.sweep.step_rows.get(record.run_id, ())) if record.train else None
        if curve and not record.config.method.control:
            runs[group.arm_of[record.run_id]][record.seed] = record, curve
    return runs


def reach_frame(group: Group, target: float | None = None) -> pd.DataFrame:
    """One row a trained run but controls, those together that may be compared (`set` numbers these sets).

    Args:
        target: held-out loss, nats a token; None: the group's, else each set's default.

    Columns:
        arm, seed, run_id, set, target, status (`Curve.reach`), tokens, seconds, seconds_without_compiling, energy_wh
        (until the target), final_loss, loss_at_equal_tokens, loss_at_equal_seconds (at equal_tokens, equal_seconds).
        Losses in nats a token; NaN where unknown, infinite where not finite.
    """
    target = group.target_loss if target is None else target
    runs = _curves(group)

    def fair(arm: str, other: str) -> bool:
        """By a seed that both have."""
        pairs = [(runs[arm][seed][0], runs[other][seed][0]) for seed in runs[arm].keys() & runs[other].keys()]
        return any({reason.name for reason in reasons_against(*pair)} <= group.allowed for pair in pairs)

    rows: list[tuple[Any, ...]] = []
    left, place = [arm for arm, of_seed in runs.items() if of_seed], 0
    while left:
        members = comparable(left, fair)
        found = [(arm, seed, *runs[arm][seed]) for arm in members for seed in sorted(runs[arm])]
        finals = [float(curve.loss[-1]) for *_, curve in found if math.isfinite(curve.loss[-1])]
        goal = max(finals, default=math.nan) if target is None else target
        tokens_end = min(float(curve.tokens[-1]) for *_, curve in found)
        seconds_end = min(float(curve.clock[1, -1]) for *_, curve in found)
        for arm, seed, record, curve in found:
            status, tokens = curve.reach(goal)
            seconds = curve.seconds_at(tokens)
            rows.append(
                (arm, seed, record.run_id, place, goal, status, tokens, seconds,
                 curve.seconds_at(tokens, compiling=False), curve.energy_at(seconds), float(curve.loss[-1]),
                 curve.loss_at(tokens_end), curve.loss_at(_read(seconds_end, curve.clock[1], curve.clock[0])),
                 tokens_end, seconds_end)
            )  # fmt: skip
        left, place = [arm for arm in left if arm not in members], place + 1
    return pd.DataFrame(rows, columns=_COLUMNS)
