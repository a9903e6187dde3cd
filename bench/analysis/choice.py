"""Which of some arms to use: the cheapest that is shown to come close enough to the best of them.

The best arm is the one with the highest primary score. An arm comes close enough when a shortfall of the margin or
more is ruled out, one-sided at 5%; it is out when a shortfall of less than the margin is ruled out; else the data
leave it open. Costs are peak training memory, then training time; an untrained arm costs nothing.

    >>> contest = Contest(findings, arms_frame(runs), rng=np.random.default_rng(0))
    >>> contest.choose(["full", "lora"], margin=0.01).chosen
    'lora'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from bench.analysis import stats
from bench.analysis.findings import Estimate, Findings
from bench.analysis.measures import Measure, paired_difference
from bench.analysis.order import is_base, is_control
from bench.analysis.pairing import match


@dataclass(frozen=True)
class Choice:
    """What the data say about some arms.

    Attributes:
        chosen: the cheapest arm that is shown to come within `margin` of the best.
        best: the arm with the highest primary score.
        margin: in the unit of the score.
        undecided: arms that cost less than `chosen`, and are shown neither to come within the margin nor not to.
    """

    chosen: str
    best: str
    margin: float
    undecided: tuple[str, ...]


class Contest:
    """The scored arms of one model, task and suite but controls, with what they cost. Differences are drawn once."""

    def __init__(self, findings: Findings, arms: pd.DataFrame, *, rng: np.random.Generator):
        """`arms`: means over seeds, indexed by arm (`recommend.arms_frame`)."""
        self.findings = findings
        self._arms = arms
        self._resampler = stats.Resampler(rng)
        self._differences: dict[tuple[str, str], stats.Paired | str] = {}
        self._shortfalls: dict[tuple[str, str], tuple[float, float] | None] = {}

    @property
    def primary(self) -> Measure | None:
        """The task's first metric."""
        return self.findings.primary

    @cached_property
    def scored(self) -> dict[str, Estimate]:
        """The arms that have a primary score, in display order; no controls."""
        arms = [arm for arm, runs in self.findings.arms.items() if not is_control(runs[0])]
        found = {arm: self.findings.estimate(self.primary, arm) for arm in arms}
        return {arm: estimate for arm, estimate in found.items() if estimate}

    def best(self, candidates: Iterable[str]) -> Estimate:
        """The highest score."""
        return max((self.scored[arm] for arm in candidates), key=lambda estimate: estimate.mean)

    def choose(self, candidates: Sequence[str], margin: float) -> Choice:
        """Among scored arms, at least one. Arms that may not be compared with the best are passed over."""
        best = self.best(candidates).arm
        close, open_ones = [best], []
        for arm in candidates:
            shortfall = self.shortfall(arm, best) if arm != best else None
            if shortfall is None:
                continue
            if shortfall[1] < margin:
                close.append(arm)
            elif shortfall[0] < margin:
                open_ones.append(arm)
        chosen = min(close, key=self.cost)
        cheaper = tuple(arm for arm in open_ones if self.cost(arm) < self.cost(chosen))
        return Choice(chosen, best, margin, cheaper)

    def undecidable(self, candidates: Iterable[str]) -> str:
        """Why nothing can be said of these scored arms at all; empty when something can."""
        estimates = [self.scored[arm] for arm in candidates]
        examples = min(estimate.examples for estimate in estimates)
        if examples < stats.FEWEST_EXAMPLES:
            return f"{examples} test example(s) are too few; take some hundreds (at least {stats.FEWEST_EXAMPLES})"
        if all(estimate.mean == 0 for estimate in estimates):
            return f"every method scored 0 in {estimates[0].measure.name}"
        return ""

    def shortfall(self, arm: str, best: str) -> tuple[float, float] | None:
        """By how much `arm` falls short of `best`, at least and at most (each one-sided 5%); None: not comparable."""
        if (arm, best) not in self._shortfalls:
            result = self.difference(arm, best)
            ends: tuple[float, float] | None = None
            if not isinstance(result, str):
                low, high = stats.equivalence_interval(result)
                ends = (-high, -low) if result.examples >= stats.FEWEST_EXAMPLES else (-np.inf, np.inf)
            self._shortfalls[arm, best] = ends
        return self._shortfalls[arm, best]

    def difference(self, arm: str, other: str) -> stats.Paired | str:
        """arm - other in the primary score, over the seeds that both have, or why they cannot be compared.

        A single untrained run stands for every seed.
        """
        if (arm, other) not in self._differences:
            self._differences[arm, other] = self._drawn(arm, other)
        return self._differences[arm, other]

    def _drawn(self, arm: str, other: str) -> stats.Paired | str:
        if self.primary is None:
            return "nothing was scored"
        runs = self.findings.arms
        swapped = is_base(runs[other][0]) and len(runs[other]) == 1
        left, right = (arm, other) if swapped or not is_base(runs[arm][0]) else (other, arm)
        matching = match(runs[left], runs[right], {}, self.findings.allowed)
        if not matching.pairs:
            return "; ".join(reason.text for _, reason in matching.refused)
        pairs = matching.pairs if left == arm else [(method, baseline) for baseline, method in matching.pairs]
        return paired_difference(self.findings.tables[self.primary], pairs, self._resampler)

    def cost(self, arm: str) -> tuple[float, float]:
        """(peak training bytes, training seconds); zero for an untrained arm, infinite where unknown."""
        if self.untrained(arm):
            return 0.0, 0.0
        return self._number(arm, "train_peak_bytes"), self._number(arm, "train_seconds")

    def untrained(self, arm: str) -> bool:
        """Whether nothing was trained."""
        return is_base(self.findings.arms[arm][0])

    def _number(self, arm: str, column: str) -> float:
        if column not in self._arms or arm not in self._arms.index:
            return np.inf
        value = float(self._arms[column].loc[arm])
        return value if np.isfinite(value) else np.inf
