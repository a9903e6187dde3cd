"""The rule of an adaptive sweep: which runs come next, which arms are out, and when the answer is sure enough.

A sweep that is looked at after every step, and stopped as soon as it seems sure, is wrong more often than it says. So
peeking is paid for by alpha spending (Lan and DeMets 1983, in equal parts): of the chance to be wrong, `1 - sure`, each
of the looks that the sweep can take may spend its part, a fifth of it on arms that are dropped. Since one
seed tells nothing of how far seeds scatter, no trained arm is chosen or dropped before a second seed was seen.

    >>> first, most = Design(("base", "full", "lora"), 1, 64), Design(("base", "full", "lora"), 5, 500)
    >>> found = settle(look, first, most, Limits(), sure=0.95, budget_seconds=3600)
    >>> found.decided, found.design, found.dropped
    (True, Design(arms=('base', 'lora'), seeds=2, examples=128), {'full': ...})
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from bench.stats.decide import Choice, choose
from bench.stats.evidence import Evidence
from bench.stats.limits import Limits
from bench.stats.paired import Floats

LEAST_SEEDS = 2  # before a trained arm is chosen or dropped, where the sweep has as many
FIRST_EXAMPLES = 60  # test examples of the first look, at least
GROWTH = 4  # times the examples in a step: all are scored anew, which costs a third more than the last step at most
ON_DROPS = 0.2  # share of the chance to be wrong that is spent on arms that are dropped


@dataclass(frozen=True)
class Design:
    """Runs to look at: every arm with the first `seeds` of the sweep's seeds, scored on `examples` test examples."""

    arms: tuple[str, ...]
    seeds: int
    examples: int


Look = Callable[[Design], tuple[Evidence | str, float]]  # run what is missing: what is known then, seconds spent so far


@dataclass(frozen=True)
class Settled:
    """How an adaptive sweep ended.

    Attributes:
        decided: whether the answer is as sure as was asked, every look counted.
        arm: the answer of the last look; None: no arm meets the limits, or nothing can be said.
        sureness: at the last look, as the report says it.
        design: of the last look. `looks`: how many there were. `seconds`: spent.
        dropped: arm -> why it got no more runs, a sentence.
        why: the sweep ended, a sentence.
    """

    decided: bool
    arm: str | None
    sureness: float
    design: Design
    looks: int
    seconds: float
    dropped: dict[str, str] = field(default_factory=dict)
    why: str = ""


def first_design(most: Design) -> Design:
    """One seed, and the test examples divided by `GROWTH` as often as `FIRST_EXAMPLES` are left."""
    times = max(int(math.log(most.examples / FIRST_EXAMPLES, GROWTH)), 0)
    return replace(most, seeds=1, examples=math.ceil(most.examples / GROWTH**times))


def most_looks(first: Design, most: Design) -> int:
    """How often the sweep can be looked at: once a step, each of which adds a seed or examples."""
    return 1 + most.seeds - first.seeds + math.ceil(round(math.log(most.examples / first.examples, GROWTH), 6))


def settle(look: Look, first: Design, most: Design, limits: Limits, sure: float, budget_seconds: float) -> Settled:
    """Take steps until the answer is sure, nothing is left to add, or the next step would exceed the budget.

    Args:
        look: runs a design. The same records must give the same answer; then an interrupted sweep goes on as it would.
        sure: 0..1, for all looks together.
    """
    design, looks, dropped = first, 0, dict[str, str]()
    spend = (1 - sure) / most_looks(first, most)
    while True:
        evidence, seconds = look(design)
        looks, arm, sureness, decided, reach = looks + 1, None, math.nan, False, most
        if not isinstance(evidence, str):
            enough = design.seeds >= min(LEAST_SEEDS, most.seeds)
            choice = choose(evidence, limits)
            arm, sureness = choice.name(evidence), choice.sureness
            lost = {name: f"the chance that it is the right answer is {share:.2%}" for name, share
                    in zip(evidence.arms, chances(evidence, choice), strict=True)
                    if enough and share <= ON_DROPS * spend / len(evidence.arms) and name != arm}  # fmt: skip
            dropped |= {name: f"{name} was dropped: {why}." for name, why in (evidence.out | lost).items()}
            alone = not set(evidence.arms) - {arm, *dropped}
            decided = alone or (enough and 1 - sureness <= (1 - ON_DROPS) * spend)
            reach = most if enough else replace(most, examples=design.examples)  # a second seed comes first
        design = replace(design, arms=tuple(name for name in design.arms if name not in dropped))
        step, why = None, "The answer is sure enough."
        if not decided:
            step, why = next_step(evidence, design, reach, budget_seconds - seconds)
        if step is None:
            return Settled(decided, arm, sureness, design, looks, seconds, dropped, why)
        design = step


def next_step(evidence: Evidence | str, design: Design, most: Design, left_seconds: float) -> tuple[Design | None, str]:
    """(the design whose further runs take away most error for their time, why there is none).

    The sureness follows from the error of a difference between arms. Without evidence, examples come before seeds.
    """
    steps: list[tuple[int, float, Design]] = []  # seeds more, times the examples
    if design.examples < most.examples:
        examples = min(GROWTH * design.examples, most.examples)
        steps.append((0, examples / design.examples, replace(design, examples=examples)))
    if design.seeds < most.seeds:
        steps.append((1, 1.0, replace(design, seeds=design.seeds + 1)))
    if not steps or len(design.arms) < 2:
        return None, "No further run of the sweep would tell the arms apart."
    if isinstance(evidence, str):
        return steps[0][-1], evidence
    kept = evidence.only(design.arms)
    seconds = [kept.seconds(more, factor) for more, factor, _ in steps]
    if min(seconds) > left_seconds:
        minutes = min(seconds) / 60
        return None, f"The budget is spent: the next step would take about {minutes:.0f} minutes."
    gains = [
        math.log(kept.variance(0, 1) / kept.variance(more, factor)) / max(needed, 1e-9) * (needed <= left_seconds)
        for (more, factor, _), needed in zip(steps, seconds, strict=True)
    ]
    return steps[int(np.argmax(gains))][-1], ""


def chances(evidence: Evidence, choice: Choice) -> Floats:
    """Share of the draws in which each arm is worth further runs, shape (arms,).

    An arm that costs more than the chosen one must be better by more than the tolerance; another one must be within
    the tolerance of the best.
    """
    if choice.arm is None:
        return np.ones(len(evidence.arms))
    score = np.where(choice.meets | np.isnan(choice.qualifies), evidence.scores, -np.inf)
    dearer = np.asarray((choice.qualifies >= 0.5) & (choice.expected <= choice.tolerance))
    dearer[choice.cheap] = False
    near = (score >= score.max(axis=1, keepdims=True) - choice.tolerance) & np.isfinite(score)
    return np.asarray(np.where(dearer, score > score[:, [choice.arm]] + choice.tolerance, near).mean(axis=0))
