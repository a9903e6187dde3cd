"""The answer under given limits, as paragraphs and tables of plain text.

>>> answer_of(group, Limits(memory_bytes=3e9), ["memory_gb=3"]).paragraphs[1]
'Use lora. Its rougeL of 0.261 [0.229, 0.293] is the highest of those that qualify, ...'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.analysis.advice import advise
from bench.analysis.limits import Case, choice_under, scored_arms, standing_of
from bench.analysis.rates import warnings
from bench.analysis.thresholds import changes, remedies
from bench.report.answer import Group
from bench.report.fairness import busy_caveats
from bench.report.format import UNKNOWN, with_interval
from bench.report.limit_text import (
    Vocabulary,
    answer_text,
    limits_text,
    remedy_text,
    threshold,
    verdict_text,
    vocabulary,
)
from bench.report.limits import case_of, header, runs_by_arm
from bench.stats.limits import Limits

_QUALIFIES = {True: "yes", False: "no", None: "cannot decide"}
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # headers, rows


@dataclass(frozen=True)
class Told:
    """In the order in which it is read; each text is a line of its own."""

    paragraphs: list[str]
    caveats: list[str]
    measured_on: str
    tables: list[Table]
    closing: list[str]


def answer_of(group: Group, limits: Limits, words: Sequence[str]) -> Told:
    """What to use, who qualifies, what would change the answer. `words`: the limits as they were given."""
    case, spoken = case_of(group, limits), vocabulary(word.partition("=")[0].strip() for word in words)
    advice = advise(case, limits)
    caveats = [*advice.caveats, *busy_caveats(group), *warnings(runs_by_arm(group), group.sweep.tunings)]
    devices = dict.fromkeys(str(device) for device in group.runs.get("device", []) if device == device and device)
    paragraphs = [
        f"Limits: {limits_text(limits, words, 100 * group.margins.score_relative)}.",
        "",
        advice.sentence,
    ]
    limited = [needs for needs in case.needs.values() if standing_of(needs, limits).judgements]
    tables = [_standings(case, limits, spoken)] if limited else []
    tables += [_quality(case, limits)] if case.contest.scored else []
    measured_on = f"Memory, time and cost are of {' and '.join(devices) or 'an unknown device'}."
    return Told(paragraphs, [f"- {caveat}" for caveat in caveats], measured_on, tables, _closing(case, limits, spoken))


def _standings(case: Case, limits: Limits, spoken: Vocabulary) -> Table:
    """One row an arm: whether it qualifies, and each limit."""
    standings = {arm: standing_of(needs, limits) for arm, needs in case.needs.items()}
    fields = [judgement.limit for judgement in next(iter(standings.values())).judgements]
    headers = ["method", "qualifies", *(header(field, spoken) for field in fields)]
    rows = [
        [
            arm,
            _QUALIFIES[standing.qualifies],
            *(verdict_text(judgement, case.needs[arm], limits, spoken) for judgement in standing.judgements),
        ]
        for arm, standing in standings.items()
    ]
    return headers, rows


def _quality(case: Case, limits: Limits) -> Table:
    """One row a scored arm, the highest first: its score, and its difference from the best that qualifies."""
    sure, maybe = scored_arms(case, limits)
    choice = choice_under(case, sure, limits)
    against = f"against {choice.best}, the best that qualifies [95%]" if choice else "difference"
    within = f"within {choice.margin:.3f} of it" if choice else "within the tolerance"
    qualifies = {arm: (_QUALIFIES[True] if arm in sure else _QUALIFIES[None]) for arm in (*sure, *maybe)}
    ranked = sorted(case.contest.scored.values(), key=lambda estimate: -estimate.mean)
    name = ranked[0].measure.name
    rows = []
    for estimate in ranked:
        arm = estimate.arm
        compared = _compared(case, arm, choice.best, choice.margin) if choice else (UNKNOWN, UNKNOWN)
        score = with_interval(estimate.mean, estimate.low, estimate.high)
        rows.append([arm, qualifies.get(arm, _QUALIFIES[False]), score, *compared])
    return ["method", "qualifies", f"{name} [95%]", against, within], rows


def _compared(case: Case, arm: str, best: str, margin: float) -> tuple[str, str]:
    """The difference from the best, and whether it is within the tolerance."""
    if arm == best:
        return "", "yes"
    result, shortfall = case.contest.difference(arm, best), case.contest.shortfall(arm, best)
    if isinstance(result, str) or shortfall is None:
        return f"not compared: {result}", UNKNOWN
    word = "yes" if shortfall[1] < margin else "cannot decide" if shortfall[0] < margin else "no"
    return with_interval(result.mean, *result.interval(), sign=True), word


def _closing(case: Case, limits: Limits, spoken: Vocabulary) -> list[str]:
    """What would change the answer, and what would let the others qualify."""
    found = changes(case, limits)
    now = advise(case, limits).answer
    lines = [f"- {threshold(change, spoken)}: {answer_text(change.answer, case)}" for change in found]
    head = "What would change the answer, each alone:" if lines else "No other value of one limit changes the answer."
    wanted = [f"- {remedy_text(remedy, now, spoken, case)}" for remedy in remedies(case, limits)]
    notes = [
        f"- {arm}: {needs.mergeable.text}." for arm, needs in case.needs.items() if limits.mergeable and needs.trained
    ]
    return [
        head,
        *lines,
        *(["", "What does not qualify, and what it would take:", *wanted] if wanted else []),
        *(["", "Merging:", *notes] if notes else []),
    ]
