"""What a comparison of methods found: estimates, paired differences with verdicts, and what was not compared.

>>> findings.comparison(findings.primary, "lora", "full").verdict
'equivalent'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.analysis.measures import OVERALL, Measure, Table
from bench.analysis.pairing import NONE_ALLOWED, Refusal
from bench.analysis.values import References
from bench.record import Record


@dataclass(frozen=True)
class Margins:
    """The largest differences that are of no matter; what "equivalent" means.

    The defaults are conventions, to be set to what matters to the user: 3% of the baseline's score (0.009 at a
    ROUGE-L of 0.30), 1% of its loss or bits per byte, and 2 points of accuracy in the regression suite.
    """

    score_relative: float = 0.03
    loss_relative: float = 0.01
    accuracy: float = 0.02

    def of(self, measure: Measure, baseline_mean: float) -> float:
        """In the unit of the measure; positive."""
        if measure.kind == "score":
            return max(self.score_relative * abs(baseline_mean), 1e-9)
        if measure.kind == "loss" or not measure.higher_is_better:
            return max(self.loss_relative * abs(baseline_mean), 1e-9)
        return self.accuracy


@dataclass(frozen=True)
class Estimate:
    """One arm's own mean with its 95% interval."""

    measure: Measure
    arm: str
    mean: float
    low: float
    high: float
    seeds: int
    examples: int


@dataclass(frozen=True)
class Comparison:
    """One paired difference, arm - baseline, in the unit of the measure."""

    measure: Measure
    arm: str
    baseline: str
    baseline_mean: float
    difference: float
    low: float  # 95% interval of the difference
    high: float
    p: float
    p_holm: float  # over its family: primary score, other scores, losses, suite's mean, its tasks, divergences
    test: str  # "bootstrap", or "McNemar" for right/wrong answers of one seed
    margin: float
    verdict: str  # better, worse, equivalent, inconclusive
    within_margin: bool  # the difference, though perhaps real, is shown to be smaller than the margin
    seeds: int
    examples: int
    detectable: float  # smallest difference that such data show with 80% power
    examples_to_decide: int | None  # of an inconclusive one; None: more examples cannot, or it is decided
    p_sign_flip: float | None = None  # paired permutation, of scores and losses of one seed: beside p, not in its place
    differing: tuple[str, ...] = ()  # requirements not met, in spite of which it was made (--allow-different)


@dataclass(frozen=True)
class Findings:
    """What the records of one model, task and suite show."""

    arms: dict[str, list[Record]]  # in display order; by seed
    tables: dict[Measure, Table]
    estimates: list[Estimate] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    exceptions: list[Refusal] = field(default_factory=list)  # differences in spite of which a comparison was made
    references: References = field(default_factory=dict)  # of the runs' samples
    allowed: frozenset[str] = NONE_ALLOWED  # the names given by --allow-different, used or not

    @property
    def primary(self) -> Measure | None:
        """The task's first metric; None where nothing was scored."""
        return primary_measure(self.tables)

    def estimate(self, measure: Measure | None, arm: str) -> Estimate | None:
        """The arm's own mean, if it has one."""
        return next((e for e in self.estimates if e.measure == measure and e.arm == arm), None)

    def comparison(self, measure: Measure | None, arm: str, baseline: str) -> Comparison | None:
        """The comparison of two arms, if it was made."""
        wanted = (measure, arm, baseline)
        return next((c for c in self.comparisons if (c.measure, c.arm, c.baseline) == wanted), None)


def deciding(tables: Mapping[Measure, Table]) -> dict[Measure, Table]:
    """What a recommendation goes by: the primary score, and what tells forgetting.

    That is the regression suite's mean; of a suite without one, the tasks for which higher is better.
    """
    primary = primary_measure(tables)
    kept = {measure for measure in tables if measure.kind == "regression" and measure.higher_is_better}
    overall = {measure for measure in kept if measure.name == OVERALL}
    return {measure: table for measure, table in tables.items() if measure == primary or measure in (overall or kept)}


def primary_measure(tables: Mapping[Measure, Table]) -> Measure | None:
    """The task's first metric; None where nothing was scored."""
    return next((measure for measure in tables if measure.kind == "score"), None)
