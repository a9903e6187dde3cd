"""Methods against a baseline: paired differences with intervals, Holm-adjusted p and verdicts in words.

Every arm (a method with its settings) is compared with the base, with full fine-tuning, and qlora with lora. Pairs
that may not be compared are listed with the reason, never left out silently.

    >>> findings = compare(records, samples, regression, rng=np.random.default_rng(0))
    >>> findings.comparisons[0].verdict, findings.refusals
    ('better', [])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from bench.analysis import stats
from bench.analysis.measures import Measure, Table, arm_estimate, measure_tables, paired_difference
from bench.analysis.pairing import Refusal, fair_partner, group_arms, wanted_pairs
from bench.spec.record import Record

ALPHA = 0.05


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
    p_holm: float  # adjusted over its family: the primary score, the other scores, the loss, or the regression suite
    test: str  # "bootstrap", or "McNemar" for right/wrong answers of one seed
    margin: float
    verdict: str  # better, worse, equivalent, inconclusive
    within_margin: bool  # the difference, though perhaps real, is shown to be smaller than the margin
    seeds: int
    examples: int
    detectable: float  # smallest difference that such data show with 80% power
    examples_to_decide: int | None  # of an inconclusive one; None: more examples cannot, or it is decided


@dataclass(frozen=True)
class Findings:
    """What the records of one model, task and suite show."""

    arms: dict[str, list[Record]]  # in display order; by seed
    tables: dict[Measure, Table]
    estimates: list[Estimate] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

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


def compare(
    records: Iterable[Record],
    samples: pd.DataFrame,
    regression: pd.DataFrame,
    *,
    rng: np.random.Generator,
    margins: Margins | None = None,
) -> Findings:
    """All comparisons within records of one model, task and suite.

    Failed runs take part with the stages they finished; runs that finished neither evaluation nor regression are
    left to the list of failures.

    Args:
        samples, regression: `frame.samples_frame`, `frame.regression_frame` of these records.
    """
    records = [record for record in records if record.evaluate or record.regression]
    resampler = stats.Resampler(rng)
    arms = group_arms(records)
    tables = measure_tables(records, samples, regression)
    estimates = [
        Estimate(measure, arm, result.mean, *result.interval(), result.seeds, result.examples)
        for measure, table in tables.items()
        for arm, runs in arms.items()
        if (result := arm_estimate(table, [run.run_id for run in runs], resampler)) is not None
    ]
    contrasts: list[_Contrast] = []
    refusals: list[Refusal] = []
    for arm, baselines in wanted_pairs(arms):
        baseline, pairs, refused = fair_partner(arm, baselines, arms, samples)
        made, unmeasured = _contrasts(arm, baseline, pairs, tables, resampler) if pairs else ([], [])
        contrasts += made
        refusals += refused + unmeasured
    primary = primary_measure(tables)
    return Findings(arms, tables, estimates, _judged(contrasts, primary, margins or Margins()), refusals)


def primary_measure(tables: Mapping[Measure, Table]) -> Measure | None:
    """The task's first metric; None where nothing was scored."""
    return next((measure for measure in tables if measure.kind == "score"), None)


def _contrasts(
    arm: str, baseline: str, pairs: Sequence[tuple[str, str]], tables: Mapping[Measure, Table], rng: stats.Resampler
) -> tuple[list[_Contrast], list[Refusal]]:
    """Every measure of one pair of arms, and the measures that could not be compared, by reason."""
    made: list[_Contrast] = []
    refused: dict[str, list[str]] = {}
    for measure, table in tables.items():
        result = paired_difference(table, pairs, rng)
        if not isinstance(result, str):
            made.append(_Contrast(measure, arm, baseline, _mean(table, pairs), result))
        elif any(method in table for method, _ in pairs):  # else this arm did not measure it at all
            refused.setdefault(result, []).append(measure.name)
    reasons = [f"{reason} ({', '.join(names)})" for reason, names in refused.items()]
    return made, [Refusal(arm, baseline, "all", reason) for reason in reasons]


def _mean(table: Table, pairs: Sequence[tuple[str, str]]) -> float:
    """The baseline's mean over the paired runs."""
    frames = [table[baseline].dropna() for _, baseline in pairs]
    total = sum(frame["weight"].sum() for frame in frames)
    return float(sum((frame["value"] * frame["weight"]).sum() for frame in frames) / total)


@dataclass(frozen=True)
class _Contrast:
    measure: Measure
    arm: str
    baseline: str
    baseline_mean: float
    result: stats.Paired

    @property
    def test(self) -> str:
        # Pooled over seeds, the pairs are not independent, which McNemar's test needs.
        exact = self.result.seeds == 1 and self.result.discordant is not None
        return "McNemar" if exact else "bootstrap"

    @property
    def p(self) -> float:
        if self.test == "McNemar" and self.result.discordant:
            return stats.mcnemar(*self.result.discordant)
        return self.result.p_value()


def _judged(contrasts: Sequence[_Contrast], primary: Measure | None, margins: Margins) -> list[Comparison]:
    """Adjust p within each family, then say the verdicts.

    The primary score is a family of its own, so that showing more metrics beside it costs it no power.
    """
    p_values = [contrast.p for contrast in contrasts]
    families: dict[str, list[int]] = {}
    for place, contrast in enumerate(contrasts):
        family = "primary" if contrast.measure == primary else contrast.measure.kind
        families.setdefault(family, []).append(place)
    adjusted: dict[int, float] = {}
    for places in families.values():
        adjusted |= dict(zip(places, stats.holm([p_values[place] for place in places]), strict=True))
    return [_comparison(c, p_values[place], adjusted[place], margins) for place, c in enumerate(contrasts)]


def _comparison(contrast: _Contrast, p: float, p_holm: float, margins: Margins) -> Comparison:
    measure, result = contrast.measure, contrast.result
    margin = margins.of(measure, contrast.baseline_mean)
    low, high = result.interval()
    word = stats.verdict(result, margin, p=p_holm, higher_is_better=measure.higher_is_better, alpha=ALPHA)
    return Comparison(
        measure=measure,
        arm=contrast.arm,
        baseline=contrast.baseline,
        baseline_mean=contrast.baseline_mean,
        difference=result.mean,
        low=low,
        high=high,
        p=p,
        p_holm=p_holm,
        test=contrast.test,
        margin=margin,
        verdict=word,
        within_margin=stats.is_equivalent(result, margin, ALPHA),
        seeds=result.seeds,
        examples=result.examples,
        detectable=stats.detectable_difference(result),
        examples_to_decide=stats.examples_to_decide(result, margin) if word == "inconclusive" else None,
    )
