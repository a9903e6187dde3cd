"""Which arms qualify under given limits, and which of them to use.

What an arm needs is an interval. It meets a limit when the whole interval does, exceeds it when none of it does, and
else the data cannot decide. An arm qualifies when it meets all limits; quality is then held against the best of those
that qualify (`choice.py`).

    >>> answer_under(case, Limits(memory_bytes=3e9))
    Answer(chosen='lora', undecided=())
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.analysis.choice import Choice, Contest
from bench.analysis.findings import Margins
from bench.analysis.needs import AMOUNTS, Fact, Need, Needs
from bench.stats.limits import Limits

Verdict = Literal["meets", "exceeds", "undecided", "unknown"]


@dataclass(frozen=True)
class Case:
    """What is known about the arms of one model, task and suite. `needs`: of every arm, failed ones included."""

    contest: Contest
    needs: Mapping[str, Needs]
    margins: Margins


@dataclass(frozen=True)
class Judgement:
    """One arm against one limit. `margin`: what is left below the limit, or how far it is exceeded, in its unit."""

    limit: str  # field of `Limits`
    verdict: Verdict
    margin: float | None = None


@dataclass(frozen=True)
class Standing:
    """One arm against all limits that were given."""

    judgements: tuple[Judgement, ...]

    @property
    def qualifies(self) -> bool | None:
        """None where the data cannot decide."""
        verdicts = {judgement.verdict for judgement in self.judgements}
        if "exceeds" in verdicts:
            return False
        return True if verdicts <= {"meets"} else None

    def of(self, *verdicts: Verdict) -> list[Judgement]:
        """The judgements of these kinds."""
        return [judgement for judgement in self.judgements if judgement.verdict in verdicts]


@dataclass(frozen=True)
class Answer:
    """What to use under some limits.

    Attributes:
        chosen: None where no arm is known to qualify, or where nothing can be said of the scores.
        undecided: arms that may be the better answer: cheaper ones whose score is left open, and arms that might
            qualify and would change the answer if they did.
    """

    chosen: str | None
    undecided: tuple[str, ...]


def judged(limit: str, need: Need | None, most: float) -> Judgement:
    """A need against the most that is allowed."""
    if need is None:
        return Judgement(limit, "unknown")
    if need.high <= most:
        return Judgement(limit, "meets", most - need.high)
    if need.low > most:
        return Judgement(limit, "exceeds", need.low - most)
    return Judgement(limit, "undecided")


def _judged_fact(limit: str, fact: Fact) -> Judgement:
    verdicts: dict[bool | None, Verdict] = {True: "meets", False: "exceeds", None: "unknown"}
    return Judgement(limit, verdicts[fact.holds])


def standing_of(needs: Needs, limits: Limits) -> Standing:
    """One arm against the limits that were given, in the order of `Limits`."""
    judgements = [
        judged(name, needs.amounts[name], most) for name in AMOUNTS if (most := getattr(limits, name)) is not None
    ]
    if limits.mergeable:
        judgements.append(_judged_fact("mergeable", needs.mergeable))
    if limits.adapters is not None and limits.adapters > 1:
        judgements.append(_judged_fact("adapters", needs.adapter))
    return Standing(tuple(judgements))


def scored_arms(case: Case, limits: Limits) -> tuple[list[str], list[str]]:
    """The scored arms that qualify, and those that may or may not."""
    standings = {arm: standing_of(case.needs[arm], limits).qualifies for arm in case.contest.scored}
    sure = [arm for arm, qualifies in standings.items() if qualifies]
    return sure, [arm for arm, qualifies in standings.items() if qualifies is None]


def margin_under(case: Case, candidates: Sequence[str], limits: Limits) -> float:
    """The tolerance of quality in the unit of the score."""
    best = case.contest.best(candidates)
    return limits.quality_margin(best.mean, case.margins.of(best.measure, best.mean))


def choice_under(case: Case, candidates: Sequence[str], limits: Limits) -> Choice | None:
    """None where there is nothing to choose from, or nothing can be said of the scores."""
    if not candidates or case.contest.undecidable(candidates):
        return None
    return case.contest.choose(candidates, margin_under(case, candidates, limits))


def answer_under(case: Case, limits: Limits) -> Answer:
    """What to use."""
    sure, maybe = scored_arms(case, limits)
    choice = choice_under(case, sure, limits)
    if choice is None:
        return Answer(None, tuple(sure + maybe))
    rivals = [arm for arm in maybe if _answer_of(choice_under(case, [*sure, arm], limits)) != _answer_of(choice)]
    return Answer(choice.chosen, tuple(dict.fromkeys([*choice.undecided, *rivals])))


def _answer_of(choice: Choice | None) -> Answer | None:
    return Answer(choice.chosen, choice.undecided) if choice else None
