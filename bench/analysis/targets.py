"""Which method gets where, and when: a target loss, and the loss at equal tokens, equal time and equal memory.

Only runs that may be compared (`fairness.reasons_against`) share a target and a common end. The target is the highest
final loss among them, which every run whose loss ended finite reaches, or one that is given. Equal tokens and equal
time are the most that all of them have: nothing is extrapolated. `curves` says how a curve is read between points.

    >>> (compared,) = compare_curves(arms, steps)
    >>> compared.target, compared.runs["lora"][0].reach.seconds
    (2.597, 71.2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.analysis.curves import Curve, Line, Reach, curve_of, first_reach
from bench.analysis.fairness import reasons_against
from bench.analysis.memory_budgets import Budget, memory_budgets, train_peak_bytes
from bench.record import Record, Step

Arms = Mapping[str, Sequence[Record]]


@dataclass(frozen=True)
class Ends:
    """Where curves are read to be equal: what the run has that has the least. Compiling is unknown where one's is."""

    tokens: float
    seconds: float
    seconds_without_compiling: float | None


@dataclass(frozen=True)
class CurveReading:
    """One run; held-out losses in nats per token.

    Attributes:
        reach: None without a target: no run ended with a finite loss.
        at_tokens, at_seconds, at_seconds_without_compiling: the loss at the common end in these terms.
        unknown: what is None, and why; for a person.
    """

    record: Record
    curve: Curve
    reach: Reach | None
    at_tokens: float | None
    at_seconds: float | None
    at_seconds_without_compiling: float | None
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class CurveComparison:
    """Arms that may be compared.

    Attributes:
        runs: arm -> its runs by seed.
        target: held-out loss, nats per token.
        budgets: by rising memory.
        without_peak: arms whose peak memory is unknown, which are in no budget.
    """

    runs: dict[str, list[CurveReading]]
    target: float | None
    target_is_given: bool
    ends: Ends
    budgets: list[Budget]
    without_peak: list[str]


def compare_curves(
    arms: Arms,
    steps: Mapping[str, Sequence[Step]],
    *,
    target: float | None = None,
    allowed: frozenset[str] = frozenset(),
) -> list[CurveComparison]:
    """The arms that have held-out losses, those together that may be compared; untrained ones take no part.

    Args:
        arms: arm -> its runs, one a seed.
        steps: by run_id.
        target: held-out loss, nats per token; None takes the default of those compared.
        allowed: what compared runs may differ in, by name (`agreement.REQUIREMENTS`).
    """
    curves = {
        record.run_id: curve
        for records in arms.values()
        for record in records
        if record.train and (curve := curve_of(record.train, steps.get(record.run_id, ())))
    }
    trained = {arm: [r for r in records if r.run_id in curves] for arm, records in arms.items()}
    sets = _comparable({arm: records for arm, records in trained.items() if records}, allowed)
    return [_compared(members, curves, target) for members in sets]


def _comparable(arms: Arms, allowed: frozenset[str]) -> list[dict[str, Sequence[Record]]]:
    """Each arm joins the first set in which it may be compared with every member, by a seed that both have."""
    sets: list[dict[str, Sequence[Record]]] = []
    for arm, records in arms.items():
        for members in sets:
            if all(_fair(records, others, allowed) for others in members.values()):
                members[arm] = records
                break
        else:
            sets.append({arm: records})
    return sets


def _fair(left: Sequence[Record], right: Sequence[Record], allowed: frozenset[str]) -> bool:
    partners = {record.seed: record for record in right}
    pairs = [(record, partners[record.seed]) for record in left if record.seed in partners]
    return any({reason.name for reason in reasons_against(*pair)} <= allowed for pair in pairs)


def _compared(arms: Arms, curves: Mapping[str, Curve], target: float | None) -> CurveComparison:
    shown = {arm: [curves[record.run_id] for record in records] for arm, records in arms.items()}
    every = [curve for own in shown.values() for curve in own]
    goal = default_target(every) if target is None else target
    ends = _ends(every)
    runs = {arm: [_reading(record, curves[record.run_id], goal, ends) for record in own] for arm, own in arms.items()}
    peaks = {arm: peak for arm, own in arms.items() if (peak := train_peak_bytes(own)) is not None}
    budgets = memory_budgets(peaks, shown)
    return CurveComparison(runs, goal, target is not None, ends, budgets, [arm for arm in arms if arm not in peaks])


def default_target(curves: Sequence[Curve]) -> float | None:
    """The highest final loss of all; None where none is finite."""
    return max((curve.final_loss for curve in curves if math.isfinite(curve.final_loss)), default=None)


def _ends(curves: Sequence[Curve]) -> Ends:
    clocks = [curve.seconds_without_compiling for curve in curves]
    known = [float(clock.y[-1]) for clock in clocks if clock is not None]
    return Ends(
        min(float(curve.loss.x[-1]) for curve in curves),
        min(float(curve.seconds.y[-1]) for curve in curves),
        min(known) if len(known) == len(clocks) else None,
    )


def _reading(record: Record, curve: Curve, target: float | None, ends: Ends) -> CurveReading:
    at_tokens = curve.loss.at(ends.tokens)
    at_seconds = _at_time(curve, curve.seconds, ends.seconds)
    without_compiling = _at_time(curve, curve.seconds_without_compiling, ends.seconds_without_compiling)
    found = {
        "loss at equal tokens": at_tokens,
        "loss at equal time": at_seconds,
        "loss at equal time without compiling": without_compiling,
    }
    beside = "a held-out loss beside it was not finite" if math.inf in curve.loss.y else "no held-out loss before it"
    unknown = {name: beside for name, value in found.items() if value is None}
    if ends.seconds_without_compiling is None:
        own = curve.seconds_without_compiling is None
        unknown["loss at equal time without compiling"] = (
            "the record does not tell what each step took" if own else "that time is unknown of another run"
        )
    if not math.isfinite(curve.final_loss):
        unknown["loss at the end"] = "it was not finite"
    reach = None if target is None else first_reach(curve, target)
    reasons = tuple(f"{name}: {reason}" for name, reason in unknown.items())
    return CurveReading(record, curve, reach, at_tokens, at_seconds, without_compiling, reasons)


def _at_time(curve: Curve, clock: Line | None, seconds: float | None) -> float | None:
    tokens = clock.inverse().at(seconds) if clock is not None and seconds is not None else None
    return None if tokens is None else curve.loss.at(tokens)
