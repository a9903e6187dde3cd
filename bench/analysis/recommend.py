"""From findings and costs to one cautious sentence, and the Pareto set.

What is chosen, and when the data leave it open: `choice.py`. Where a cheaper arm is neither shown to be good enough
nor shown not to be, the sentence says that the data cannot decide between the two, and what would.

    >>> recommend(findings, arms_frame(runs), rng=np.random.default_rng(0)).sentence
    'Use qlora. Its rougeL of 0.291 [0.270, 0.312] is shown not to be 0.009 or more below that of full (0.297), ...'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.analysis import stats
from bench.analysis.choice import Choice, Contest
from bench.analysis.compare import Findings, Margins
from bench.analysis.needs import suite_change
from bench.analysis.order import is_base

_GIB, _MINUTE = 2**30, 60


@dataclass(frozen=True)
class Recommendation:
    """What the data support.

    Attributes:
        headline: the answer in one sentence, for who reads no further.
        reason: why, with numbers and their units; empty where the headline says it all.
        chosen: the arm to use as far as the data show; None where nothing can be said.
        best: the arm with the highest primary score.
        undecided: cheaper arms that are neither shown to be as good nor shown to be worse.
        caveats: what limits the conclusion, a sentence each.
    """

    headline: str
    reason: str
    chosen: str | None
    best: str | None
    undecided: list[str]
    caveats: list[str]

    @property
    def sentence(self) -> str:
        """Headline and reason."""
        return f"{self.headline} {self.reason}".rstrip()


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
    return recommend_among(Contest(findings, arms, rng=rng), margins=margins or Margins())


def recommend_among(
    contest: Contest, candidates: Sequence[str] | None = None, *, margins: Margins, margin: float | None = None
) -> Recommendation:
    """The recommendation among some of the scored arms.

    Args:
        candidates: the arms that qualify; None for all.
        margin: in the unit of the score; None takes that of `margins`.
    """
    primary, those = contest.primary, list(contest.scored if candidates is None else candidates)
    if primary is None or not those:
        return Recommendation("No arm was scored; there is nothing to recommend.", "", None, None, [], [])
    if problem := contest.undecidable(those):
        return Recommendation(f"The data cannot decide: {problem}.", "", None, None, [], [])
    margin = margins.of(primary, contest.best(those).mean) if margin is None else margin
    choice = contest.choose(those, margin)
    headline, reason = f"Use {choice.chosen}.", _reason(contest, choice, those)
    if choice.undecided:
        headline = f"The data cannot decide between {listed([choice.chosen, *choice.undecided])}."
        reason = f"{choice.chosen}: {reason} {_open(contest, choice)}"
    else:
        reason = reason[0].upper() + reason[1:]
    caveats = _caveats(contest, choice.chosen)
    return Recommendation(headline, reason, choice.chosen, choice.best, list(choice.undecided), caveats)


def _open(contest: Contest, choice: Choice) -> str:
    """What is open, and what would settle it."""
    results = [contest.difference(arm, choice.best) for arm in choice.undecided]
    needed = [stats.examples_to_decide(r, choice.margin) for r in results if not isinstance(r, str)]
    enough = [count for count in needed if count is not None and count > contest.scored[choice.best].examples]
    if None in needed:
        remedy = "more seeds would decide"
    elif enough:
        remedy = f"about {max(enough):,} test examples would decide"
    else:
        remedy = "more seeds or examples would decide"
    words = ("costs", "it comes") if len(choice.undecided) == 1 else ("cost", "they come")
    return (
        f"{listed(choice.undecided)} {words[0]} less, and the data do not show whether {words[1]} within "
        f"{choice.margin:.3f} of {choice.best}: {remedy}."
    )


def _reason(contest: Contest, choice: Choice, those: Sequence[str]) -> str:
    chosen, best, margin = choice.chosen, choice.best, choice.margin
    own, top = contest.scored[chosen], contest.scored[best]
    score = f"{own.measure.name} of {own.mean:.3f} [{own.low:.3f}, {own.high:.3f}]"
    limited = len(those) < len(contest.scored)
    whose = " of those that qualify" if limited else ""
    none, no_cheaper = ("none of them", "no cheaper one") if limited else ("no method", "no cheaper method")
    rivals = those if limited else contest.findings.arms
    if limited and len(those) == 1:
        text = f"it alone qualifies, with a {score}"
    elif chosen != best:
        text = f"its {score} is shown not to be {margin:.3f} or more below that of {best} ({top.mean:.3f}), the highest"
        text += whose
    elif all(contest.cost(chosen) <= contest.cost(arm) for arm in rivals):
        text = f"its {score} is the highest{whose}, and {none} costs less"
    else:
        text = f"its {score} is the highest{whose}, and {no_cheaper} is shown to come within {margin:.3f} of it"
    costs = [cost_clause(contest, arm) for arm in dict.fromkeys((chosen, best))]
    return f"{text}. It takes {' against '.join(costs)}."


def cost_clause(contest: Contest, arm: str) -> str:
    """Peak memory and time of training, in words."""
    if contest.untrained(arm):
        return "no training"
    peak, seconds = contest.cost(arm)
    memory = f"{peak / _GIB:.2f} GiB" if np.isfinite(peak) else "an unknown peak"
    time = f"{seconds / _MINUTE:.1f} min" if np.isfinite(seconds) else "an unknown time"
    return f"{memory} and {time}"


def _caveats(contest: Contest, chosen: str) -> list[str]:
    caveats, findings = [], contest.findings
    trained = [arm for arm, runs in findings.arms.items() if not is_base(runs[0])]
    if trained and all(len(findings.arms[arm]) == 1 for arm in trained):
        caveats.append("One seed: another seed may change the order of the methods.")
    estimate = contest.scored[chosen]
    if estimate.examples < 100:
        caveats.append(f"Only {estimate.examples} test examples.")
    change = suite_change(chosen, findings)
    if change and change.high < 0 and change.examples >= stats.FEWEST_EXAMPLES:
        points = f"{-100 * change.difference:.1f} points [{-100 * change.high:.1f}, {-100 * change.low:.1f}]"
        caveats.append(f"{chosen} forgot: the regression suite's mean lost {points} against {change.baseline}.")
    lost: dict[str, list[str]] = {}
    for c in findings.comparisons:
        if c.arm == chosen and c.measure.kind == "regression" and c.verdict == "worse" and c != change:
            lost.setdefault(c.baseline, []).append(c.measure.name)
    caveats += [f"{chosen} got worse than {baseline} in {listed(tasks)}." for baseline, tasks in lost.items()]
    return caveats


def listed(names: Sequence[str], last: str = "and") -> str:
    """'a, b and c'."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
