"""What to use under given limits, in words: which arm, by how much, what the limits cost, and what is left open.

>>> advise(case, Limits(memory_bytes=3e9)).sentence
'Use lora. Its rougeL of 0.261 [0.229, 0.293] is the highest of those that qualify, and ...'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.analysis.choice import Choice
from bench.analysis.limits import (
    Answer,
    Case,
    Judgement,
    answer_under,
    choice_under,
    margin_under,
    scored_arms,
    standing_of,
)
from bench.analysis.recommend import cost_clause, listed, recommend_among
from bench.stats.limits import Limits

LABELS = {
    "memory_bytes": "memory",
    "time_seconds": "training time",
    "cost_usd": "cost",
    "forgetting_share": "forgetting",
    "quality_tolerance": "quality tolerance",
    "mergeable": "merging",
    "adapters": "adapters",
}
NEAR = 0.05  # of a limit: what was measured once may be on the other side of it the next time


@dataclass(frozen=True)
class Advice:
    """A conclusion. `caveats`: what limits it, a sentence each."""

    sentence: str
    answer: Answer
    caveats: list[str]


def advise(case: Case, limits: Limits) -> Advice:
    """What to use under the limits."""
    sure, maybe = scored_arms(case, limits)
    answer = answer_under(case, limits)
    if not case.contest.scored:
        return Advice("No arm was scored; there is nothing to recommend.", answer, [])
    unscored = _unscored(case, limits)
    if not sure:
        return Advice(_none_is_sure(case, limits, maybe), answer, unscored)
    margin = margin_under(case, sure, limits)
    advice = recommend_among(case.contest, sure, margins=case.margins, margin=margin)
    choice = choice_under(case, sure, limits)
    if choice is None:
        return Advice(advice.sentence, answer, unscored)
    sentences = [advice.sentence, _by_how_much(case, choice, sure), _price_of_limits(case, limits, choice, sure)]
    trained = [arm for arm in case.contest.scored if not case.contest.untrained(arm)]
    if trained and not set(trained) & set(sure):
        sentences.insert(0, "No trained method is shown to qualify.")
    rivals = [arm for arm in maybe if arm in answer.undecided]
    if rivals:
        sentences = ["The data cannot decide.", *_rivals(case, limits, rivals, sure), "If not:", *sentences]
    caveats = advice.caveats + _near_a_limit(case, limits, sure) + unscored
    return Advice(" ".join(filter(None, sentences)), answer, caveats)


def _none_is_sure(case: Case, limits: Limits, maybe: Sequence[str]) -> str:
    if not maybe:
        return "No method qualifies."
    doubts = [f"{arm}: {doubts_text(case, limits, arm)}" for arm in maybe]
    return f"The data cannot decide: no method is shown to qualify, and {listed(maybe)} may ({'; '.join(doubts)})."


def _by_how_much(case: Case, choice: Choice, sure: Sequence[str]) -> str:
    """The chosen arm against the best, or the best against the next."""
    others = [arm for arm in sure if arm != choice.chosen]
    if not others:
        return ""
    other = case.contest.best(others).arm if choice.chosen == choice.best else choice.best
    what = "the next best" if choice.chosen == choice.best else "the highest"
    result = case.contest.difference(choice.chosen, other)
    if isinstance(result, str):
        return f"{choice.chosen} was not compared with {other}, {what}: {result}."
    low, high = result.interval()
    side = "above" if result.mean >= 0 else "below"
    unclear = ": not shown to differ" if low <= 0 <= high else ""
    return f"{choice.chosen} is {abs(result.mean):.3f} {side} {other}, {what} [{low:+.3f}, {high:+.3f}]{unclear}."


def _price_of_limits(case: Case, limits: Limits, choice: Choice, sure: Sequence[str]) -> str:
    """What would be used without the limits, and what it would bring."""
    free = choice_under(case, list(case.contest.scored), limits)
    if free is None or free.chosen in sure:
        return ""
    text = f"Without the limits it would be {free.chosen}"
    result = case.contest.difference(free.chosen, choice.chosen)
    if not isinstance(result, str):
        low, high = result.interval()
        text += f": {result.mean:+.3f} [{low:+.3f}, {high:+.3f}] in {case.contest.scored[free.chosen].measure.name}"
        text += f" for {cost_clause(case.contest, free.chosen)}"
    return f"{text}."


def _rivals(case: Case, limits: Limits, rivals: Sequence[str], sure: Sequence[str]) -> list[str]:
    """Arms of which nobody knows whether they qualify, and what they would change, each alone and together."""
    sentences = []
    for arm in rivals:
        doubts, outcome = doubts_text(case, limits, arm), _outcome(case, limits, [*sure, arm])
        sentences.append(f"Whether {arm} qualifies is open ({doubts}); if it alone does, {outcome}.")
    if len(rivals) == 1:
        return [sentences[0].replace("if it alone does", "if it does")]
    return [*sentences, f"If all of these do, {_outcome(case, limits, [*sure, *rivals])}."]


def _outcome(case: Case, limits: Limits, candidates: Sequence[str]) -> str:
    choice = choice_under(case, candidates, limits)
    if choice is None:
        return "nothing can be said"
    between = [choice.chosen, *choice.undecided]
    return f"use {choice.chosen}" if len(between) == 1 else f"it is open between {listed(between)}"


def doubts_text(case: Case, limits: Limits, arm: str) -> str:
    """Why nobody knows whether an arm meets the limits."""
    doubts = standing_of(case.needs[arm], limits).of("undecided", "unknown")
    return ", ".join(_doubt(case, judgement, arm) for judgement in doubts)


def _doubt(case: Case, judgement: Judgement, arm: str) -> str:
    label, needs = LABELS[judgement.limit], case.needs[arm]
    if judgement.limit == "mergeable":
        return "its merged model was not measured"
    if judgement.verdict == "undecided":
        need = needs.amounts[judgement.limit]
        return f"{label} on both sides of the limit" + (f", {need.note}" if need and need.note else "")
    if judgement.limit == "cost_usd" and needs.amounts["time_seconds"]:
        return "cost unknown: give price_usd_per_hour"
    return f"{label} not measured"


def _unscored(case: Case, limits: Limits) -> list[str]:
    """Arms that may qualify, and of whose quality nothing is known."""
    arms = [arm for arm in case.needs if arm not in case.contest.scored]
    left = [arm for arm in arms if standing_of(case.needs[arm], limits).qualifies is not False]
    return [f"Not considered, because not scored: {listed(left)}."] if left else []


def _near_a_limit(case: Case, limits: Limits, arms: Sequence[str]) -> list[str]:
    """Arms that qualify by little with a number that was measured once."""
    found = []
    for arm in arms:
        for judgement in standing_of(case.needs[arm], limits).judgements:
            need = case.needs[arm].amounts.get(judgement.limit)
            if need is None or need.low != need.high or judgement.margin is None:
                continue
            if need.high > 0 and judgement.margin < NEAR * getattr(limits, judgement.limit):
                found.append(
                    f"{arm} is less than {NEAR:.0%} below the limit of {LABELS[judgement.limit]}, by one value."
                )
    return found
