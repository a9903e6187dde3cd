"""Methods against a baseline: paired differences with intervals, Holm-adjusted p and verdicts in words.

Every arm (a method with its settings) is compared with the base, with full fine-tuning, and qlora with lora. Pairs
that may not be compared are listed with the reason, never left out silently.

    >>> findings = compare(records, samples, regression, rng=np.random.default_rng(0))
    >>> findings.comparisons[0].verdict, findings.refusals
    ('better', [])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bench.analysis import stats
from bench.analysis.findings import Comparison as Comparison
from bench.analysis.findings import Estimate as Estimate
from bench.analysis.findings import Findings as Findings
from bench.analysis.findings import Margins as Margins
from bench.analysis.findings import deciding, primary_measure
from bench.analysis.measures import OVERALL, Measure, Table, arm_estimate, measure_tables, paired_difference
from bench.analysis.order import is_base
from bench.analysis.pairing import NONE_ALLOWED, Refusal, fair_partner, group_arms, wanted_pairs
from bench.analysis.values import references_of
from bench.fairness import Reason
from bench.record import Record

ALPHA = 0.05


def compare(
    records: Iterable[Record],
    samples: pd.DataFrame,
    regression: pd.DataFrame,
    *,
    rng: np.random.Generator,
    margins: Margins | None = None,
    allowed: frozenset[str] = NONE_ALLOWED,
    deciding_only: bool = False,
) -> Findings:
    """All comparisons within records of one model, task and suite.

    Failed runs take part with the stages they finished; runs that finished neither evaluation nor regression are
    left to the list of failures.

    Args:
        samples, regression: `frame.samples_frame`, `frame.regression_frame` of these records.
        allowed: what compared runs may differ in, by name (`agreement.REQUIREMENTS`).
        deciding_only: leave out what a recommendation does not go by (`findings.deciding`): several times faster.
    """
    records = [record for record in records if record.evaluate or record.regression]
    resampler = stats.Resampler(rng)
    arms = group_arms(records)
    tables = measure_tables(records, samples, regression)
    tables = deciding(tables) if deciding_only else tables
    estimates = [
        Estimate(measure, arm, result.mean, *result.interval(), result.seeds, result.examples)
        for measure, table in tables.items()
        for arm, runs in arms.items()
        if (result := arm_estimate(table, [run.run_id for run in runs], resampler)) is not None
    ]
    references = references_of(samples)
    contrasts: list[_Contrast] = []
    refusals: list[Refusal] = []
    exceptions: list[Refusal] = []
    for arm, baselines in wanted_pairs(arms):
        baseline, pairs, refused, excepted = fair_partner(arm, baselines, arms, references, allowed)
        # A divergence from the base is itself a comparison with the base.
        of_pair = {m: t for m, t in tables.items() if m.kind != "divergence" or not is_base(arms[baseline][0])}
        made, unmeasured = _contrasts(arm, baseline, pairs, of_pair, resampler) if pairs else ([], [])
        contrasts += [replace(c, differing=tuple(dict.fromkeys(e.reason.name for e in excepted))) for c in made]
        refusals += refused + unmeasured
        exceptions += excepted
    comparisons = _judged(contrasts, primary_measure(tables), margins or Margins())
    return Findings(arms, tables, estimates, comparisons, refusals, exceptions, references, allowed)


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
    return made, [Refusal(arm, baseline, "all", Reason("values", reason)) for reason in reasons]


def _mean(table: Table, pairs: Sequence[tuple[str, str]]) -> float:
    """The baseline's mean over the paired runs."""
    runs = [table[baseline] for _, baseline in pairs]
    total = sum(float(run.weight[run.known].sum()) for run in runs)
    return sum(float((run.value * run.weight)[run.known].sum()) for run in runs) / total


@dataclass(frozen=True)
class _Contrast:
    measure: Measure
    arm: str
    baseline: str
    baseline_mean: float
    result: stats.Paired
    differing: tuple[str, ...] = ()

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

    @property
    def p_sign_flip(self) -> float | None:
        """Of one seed only: it takes the seeds as given."""
        if self.result.seeds > 1 or self.measure.kind not in ("score", "loss"):
            return None
        return stats.sign_flip(self.result, np.random.default_rng(0))


def _judged(contrasts: Sequence[_Contrast], primary: Measure | None, margins: Margins) -> list[Comparison]:
    """Adjust p within each family, then say the verdicts.

    The two numbers that answer the question, the primary score and the suite's mean, are families of their own: showing
    more metrics and tasks beside them costs them no power.
    """
    p_values = [contrast.p for contrast in contrasts]
    families: dict[str, list[int]] = {}
    for place, contrast in enumerate(contrasts):
        alone = contrast.measure == primary or contrast.measure.name == OVERALL
        families.setdefault(contrast.measure.name if alone else contrast.measure.kind, []).append(place)
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
        p_sign_flip=contrast.p_sign_flip,
        differing=contrast.differing,
    )
