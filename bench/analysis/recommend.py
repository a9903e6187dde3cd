"""From findings and costs to one cautious sentence, and the Pareto set.

The best arm is the one with the highest primary score. The arm to use is the cheapest (peak training memory, then
training time; an untrained model costs nothing) that is shown to be not worse than the best by more than the
margin. Where a cheaper arm is neither shown to be as good nor shown to be worse, the sentence says that the data
cannot decide between the two, and what would.

    >>> recommend(findings, arms_frame(runs), rng=np.random.default_rng(0)).sentence
    'Use qlora: its rougeL of 0.291 [0.270, 0.312] is shown not to be 0.009 or more below that of full (0.297), ...'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.analysis import stats
from bench.analysis.compare import Estimate, Findings, Margins
from bench.analysis.measures import Measure, paired_difference
from bench.analysis.order import is_base
from bench.analysis.pairing import match

_GIB, _MINUTE = 2**30, 60


@dataclass(frozen=True)
class Recommendation:
    """What the data support.

    Attributes:
        sentence: for a person; numbers with their units.
        chosen: the arm to use as far as the data show; None where nothing can be said.
        best: the arm with the highest primary score.
        undecided: cheaper arms that are neither shown to be as good nor shown to be worse.
        caveats: what limits the conclusion, a sentence each.
    """

    sentence: str
    chosen: str | None
    best: str | None
    undecided: list[str]
    caveats: list[str]


def pareto_set(values: pd.DataFrame, *, maximise: Sequence[str], minimise: Sequence[str]) -> list[bool]:
    """For each row: does no other row do at least as well in every column, and better in one?

    Rows with an unknown value are not in the set, and rule no other out.
    """
    signed = np.column_stack([values[c].astype(float) for c in maximise] + [-values[c].astype(float) for c in minimise])
    known = np.isfinite(signed).all(axis=1)
    return [
        bool(known[row]) and not any(_dominates(signed[other], signed[row]) for other in np.flatnonzero(known))
        for row in range(len(signed))
    ]


def _dominates(left: np.ndarray, right: np.ndarray) -> bool:
    return bool((left >= right).all() and (left > right).any())


def arms_frame(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of every number of `frame.runs_frame`, indexed by arm in display order; unknown stays NaN."""
    numbers = [name for name in runs.columns if name != "seed" and pd.api.types.is_numeric_dtype(runs[name])]
    return runs.groupby("arm", sort=False)[numbers].mean()


def recommend(
    findings: Findings, arms: pd.DataFrame, *, rng: np.random.Generator, margins: Margins | None = None
) -> Recommendation:
    """The recommendation on the primary score. `arms` is `arms_frame`."""
    primary = findings.primary
    scored = [e for arm in findings.arms if (e := findings.estimate(primary, arm))]
    if primary is None or not scored:
        return Recommendation("No arm was scored; there is nothing to recommend.", None, None, [], [])
    best = max(scored, key=lambda estimate: estimate.mean)
    if problem := _undecidable(scored):
        return Recommendation(f"The data cannot decide: {problem}.", None, None, [], [])
    margin = (margins or Margins()).of(primary, best.mean)
    as_good, open_results = [best.arm], {}
    for estimate in scored:
        result = _against(findings, primary, estimate.arm, best.arm, rng) if estimate.arm != best.arm else ""
        if isinstance(result, str):
            continue
        if stats.is_not_worse(result, margin):
            as_good.append(estimate.arm)
        elif result.interval()[1] >= 0:  # neither shown to be as good nor shown to be worse
            open_results[estimate.arm] = result
    chosen = min(as_good, key=lambda arm: _cost(findings, arms, arm))
    undecided = [arm for arm in open_results if _cost(findings, arms, arm) < _cost(findings, arms, chosen)]
    reason = _reason(findings, arms, primary, chosen, best.arm, margin)
    sentence = f"Use {chosen}: {reason}"
    if undecided:
        needed = [stats.examples_to_decide(open_results[arm], margin) for arm in undecided]
        still_open = _undecided_clause(undecided, needed, best.examples)
        sentence = f"The data cannot decide between {_listed([chosen, *undecided])}. {chosen}: {reason} {still_open}"
    return Recommendation(sentence, chosen, best.arm, undecided, _caveats(findings, primary, chosen))


def _undecidable(scored: Sequence[Estimate]) -> str:
    """Why no recommendation can be drawn at all; empty when one can."""
    examples = min(estimate.examples for estimate in scored)
    name = scored[0].measure.name
    if examples < stats.FEWEST_EXAMPLES:
        return f"{examples} test example(s) are too few; take some hundreds (at least {stats.FEWEST_EXAMPLES})"
    if all(estimate.mean == 0 for estimate in scored):
        return f"every method scored 0 in {name}"
    return ""


def _undecided_clause(undecided: Sequence[str], needed: Sequence[int | None], examples: int) -> str:
    """What is open, and what would settle it."""
    costs = "costs" if len(undecided) == 1 else "cost"
    enough = [count for count in needed if count is not None and count > examples]
    if None in needed:
        remedy = "more seeds would decide"
    elif enough:
        remedy = f"about {max(enough):,} test examples would decide"
    else:
        remedy = "more seeds or examples would decide"
    return f"{_listed(undecided)} {costs} less and is neither shown to be as good nor to be worse: {remedy}."


def _against(findings: Findings, measure: Measure, arm: str, best: str, rng: np.random.Generator) -> stats.Paired | str:
    """arm - best, over the seeds that both have; a single untrained run stands for every seed."""
    swapped = is_base(findings.arms[best][0]) and len(findings.arms[best]) == 1
    left, right = (arm, best) if swapped or not is_base(findings.arms[arm][0]) else (best, arm)
    no_samples = pd.DataFrame(columns=["run_id", "example_id", "reference"])
    pairs = match(findings.arms[left], findings.arms[right], no_samples, findings.allowed).pairs
    if left == best:
        pairs = [(baseline, method) for method, baseline in pairs]
    return paired_difference(findings.tables[measure], pairs, rng)


def _cost(findings: Findings, arms: pd.DataFrame, arm: str) -> tuple[float, float]:
    """(peak training bytes, training seconds); zero for an untrained arm, infinite where unknown."""
    if is_base(findings.arms[arm][0]):
        return 0.0, 0.0
    return _number(arms, arm, "train_peak_bytes"), _number(arms, arm, "train_seconds")


def _number(arms: pd.DataFrame, arm: str, column: str) -> float:
    if column not in arms or arm not in arms.index:
        return np.inf
    value = float(arms[column].loc[arm])
    return value if np.isfinite(value) else np.inf


def _reason(findings: Findings, arms: pd.DataFrame, primary: Measure, chosen: str, best: str, margin: float) -> str:
    own, top = findings.estimate(primary, chosen), findings.estimate(primary, best)
    if own is None or top is None:
        raise ValueError(f"{chosen} or {best} has no estimate of {primary.name}; only scored arms are recommended")
    score = f"{primary.name} of {own.mean:.3f} [{own.low:.3f}, {own.high:.3f}]"
    if chosen != best:
        text = f"its {score} is shown not to be {margin:.3f} or more below that of {best} ({top.mean:.3f}), the highest"
    elif all(_cost(findings, arms, chosen) <= _cost(findings, arms, arm) for arm in findings.arms):
        text = f"its {score} is the highest, and no method costs less"
    else:
        text = f"its {score} is the highest, and no cheaper method is shown to come within {margin:.3f} of it"
    costs = [_cost_clause(findings, arms, arm) for arm in dict.fromkeys((chosen, best))]
    return f"{text}. It takes {' against '.join(costs)}."


def _cost_clause(findings: Findings, arms: pd.DataFrame, arm: str) -> str:
    if is_base(findings.arms[arm][0]):
        return "no training"
    peak, seconds = _cost(findings, arms, arm)
    memory = f"{peak / _GIB:.2f} GiB" if np.isfinite(peak) else "an unknown peak"
    time = f"{seconds / _MINUTE:.1f} min" if np.isfinite(seconds) else "an unknown time"
    return f"{memory} and {time}"


def _caveats(findings: Findings, primary: Measure, chosen: str) -> list[str]:
    caveats = []
    trained = [arm for arm, runs in findings.arms.items() if not is_base(runs[0])]
    if trained and all(len(findings.arms[arm]) == 1 for arm in trained):
        caveats.append("One seed: another seed may change the order of the methods.")
    estimate = findings.estimate(primary, chosen)
    if estimate and estimate.examples < 100:
        caveats.append(f"Only {estimate.examples} test examples.")
    lost = [
        c for c in findings.comparisons if c.arm == chosen and c.measure.kind == "regression" and c.verdict == "worse"
    ]
    if lost:
        caveats.append(f"{chosen} got worse than {lost[0].baseline} in {_listed([c.measure.name for c in lost])}.")
    return caveats


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
