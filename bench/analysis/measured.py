"""A measured quantity with what is known of its error, and what it is measured from.

>>> Measured(0.81, (0.78, 0.84), (0.785, 0.835), "17 steps, 1 seed").affine(-1, 1).interval   # 1 - ratio
(0.16, 0.22)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.analysis import stats
from bench.analysis.claim_arms import Arms, NotMeasuredError
from bench.analysis.measures import Measure, Table
from bench.analysis.values import References
from bench.record import Step, Tuning
from bench.stats.claim import Form

Interval = tuple[float, float]


@dataclass(frozen=True)
class Evidence:
    """What the runs of one model, task and suite offer."""

    arms: Arms  # of all runs that finished a stage (`pairing.group_arms`)
    steps: Mapping[str, Sequence[Step]]  # by run_id
    tables: Mapping[Measure, Table]  # `measures.measure_tables`
    references: References  # `values.references_of`
    resampler: stats.Resampler
    tunings: Sequence[Tuning] = ()


@dataclass(frozen=True)
class Measured:
    """A value with what is known of its error.

    Attributes:
        interval: at 95%; None for a count, and for one run of what only further runs could tell the spread of.
        inner: at 90%, which two one-sided tests at 5% compare with a margin.
        basis: what it rests on, for a person.
        units: how many examples or steps; None where that says nothing.
        exact: a count, the same whenever it is taken again.
        doubt: the range that a single run's value is taken to lie in, where nothing tells its spread.
    """

    value: float
    interval: Interval | None
    inner: Interval | None
    basis: str
    units: int | None = None
    exact: bool = False
    doubt: Interval | None = None

    def affine(self, scale: float, shift: float) -> Measured:
        """scale * value + shift, with its intervals."""
        moved = [
            None if ends is None else (min(scale * e + shift for e in ends), max(scale * e + shift for e in ends))
            for ends in (self.interval, self.inner)
        ]
        return replace(self, value=scale * self.value + shift, interval=moved[0], inner=moved[1])


def from_paired(result: stats.Paired, unit: str) -> Measured:
    seeds = "1 seed" if result.seeds == 1 else f"{result.seeds} seeds"
    basis = f"{result.examples} {unit}, {seeds}"
    return Measured(result.mean, result.interval(), stats.equivalence_interval(result), basis, result.examples)


def reformed(ratio: Measured, form: Form, baseline: float) -> Measured:
    """A ratio in another form."""
    scale, shift = {
        "ratio": (1.0, 0.0),
        "reduction": (-1.0, 1.0),
        "relative_difference": (1.0, -1.0),
        "difference": (baseline, -baseline),
    }[form]
    return ratio.affine(scale, shift)


def of_difference(difference: Measured, form: Form, baseline: float) -> Measured:
    """A difference in another form; the baseline's mean is taken as known, as the margins of the comparisons do."""
    if form == "difference":
        return difference
    if baseline == 0:
        raise NotMeasuredError("the second arm's mean is 0: there is no ratio to it")
    return reformed(difference.affine(1 / abs(baseline), 1.0), form, abs(baseline))
