"""At which value of a limit the answer turns, the other limits held.

An answer can only turn where a limit passes an end of some arm's interval, so it is worked out once between each two
neighbouring ends.

    >>> [(s.start, s.answer.chosen) for s in segments(case, Limits(), "memory_bytes")]
    [(0.0, 'base'), (3071582208.0, 'lora')]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.analysis.limits import Answer, Case, answer_under, margin_under, scored_arms, standing_of
from bench.analysis.needs import AMOUNTS, Needs
from bench.stats.limits import Limits

QUALITY = "quality_tolerance"
NUMBERS = (*AMOUNTS, QUALITY)
_SEVERAL_ADAPTERS = 2  # one base for two tasks needs what one base for a hundred needs: an adapter
_SMALLEST = 1e-9  # of a tolerance, as in `Margins`


@dataclass(frozen=True)
class Segment:
    """One answer for all values of a limit from `start` on and below `end`, in the limit's unit."""

    start: float
    end: float
    answer: Answer


@dataclass(frozen=True)
class Change:
    """Another answer, and the nearest values of one limit that give it.

    Attributes:
        limit: field of `Limits`.
        looser: whether more must be allowed than is; of a yes or no, whether it must be dropped.
        answer: the answer then.
        start, end: the values, as in `Segment`; None where the limit is a yes or no.
    """

    limit: str
    looser: bool
    answer: Answer
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Remedy:
    """Under which limits an arm that does not qualify would, and the answer then.

    Attributes:
        limits: as given, but for `names`: amounts raised to what the arm needs, a yes or no dropped.
    """

    arm: str
    limits: Limits
    names: tuple[str, ...]
    answer: Answer


def with_value(limits: Limits, name: str, value: Any) -> Limits:
    """The limits with another value of one."""
    changed: dict[str, Any] = {name: value} | ({"quality_relative": None} if name == QUALITY else {})
    return replace(limits, **changed)


def segments(case: Case, limits: Limits, name: str) -> list[Segment]:
    """The answer as a function of one limit, from 0 on; neighbouring segments have different answers."""
    starts = sorted({0.0, *(_quality_ends(case, limits) if name == QUALITY else _need_ends(case, name))})
    found: list[Segment] = []
    for start, end in zip(starts, [*starts[1:], math.inf], strict=True):
        answer = answer_under(case, with_value(limits, name, max(start, _SMALLEST)))
        if found and found[-1].answer == answer:
            found[-1] = replace(found[-1], end=end)
        else:
            found.append(Segment(start, end, answer))
    return found


def _need_ends(case: Case, name: str) -> Iterator[float]:
    needs = [case.needs[arm].amounts[name] for arm in case.contest.scored]
    return (end for need in needs if need for end in (need.low, need.high) if 0 < end < math.inf)


def _quality_ends(case: Case, limits: Limits) -> Iterator[float]:
    """Tolerances from which on a shortfall may be, or is shown to be, smaller than the tolerance."""
    contest = case.contest
    sure, maybe = scored_arms(case, limits)
    for candidates in [sure, *([*sure, arm] for arm in maybe)]:
        if candidates and contest.primary:
            best = contest.best(candidates).arm
            shortfalls = [contest.shortfall(arm, best) for arm in candidates if arm != best]
            yield from (math.nextafter(end, math.inf) for ends in shortfalls if ends for end in ends if end > _SMALLEST)


def current(case: Case, limits: Limits, name: str) -> float:
    """The value that a limit has; infinite where it was not given. Of the quality, the tolerance in use."""
    if name != QUALITY:
        value = getattr(limits, name)
        return math.inf if value is None else float(value)
    sure, maybe = scored_arms(case, limits)
    return margin_under(case, sure or maybe, limits) if sure or maybe else 0.0


def changes(case: Case, limits: Limits) -> list[Change]:
    """For each limit alone the nearest other answers, more strictly and more loosely, and the nearest clear ones."""
    now = answer_under(case, limits)
    found = [change for name in NUMBERS for change in _number_changes(case, limits, name, now)]
    several = limits.adapters is not None and limits.adapters > 1
    for name, given, other in (
        ("mergeable", limits.mergeable, not limits.mergeable),
        ("adapters", several, None if several else _SEVERAL_ADAPTERS),
    ):
        answer = answer_under(case, with_value(limits, name, other))
        if answer != now:
            found.append(Change(name, given, answer))
    return found


def _number_changes(case: Case, limits: Limits, name: str, now: Answer) -> Iterator[Change]:
    value = current(case, limits, name)
    if value == math.inf and not any(case.needs[arm].trained and case.needs[arm].amounts[name] for arm in case.needs):
        return  # nothing is known of it, and nobody asked
    parts = segments(case, limits, name)
    here = max(place for place, part in enumerate(parts) if part.start <= value)
    if value == math.inf and parts[-1].answer != now:  # an arm whose need is unknown qualifies only without the limit
        here += 1
    for looser, outward in ((False, parts[:here][::-1]), (True, parts[here + 1 :])):
        clear = [part for part in outward if part.answer.chosen and not part.answer.undecided]
        for part in dict.fromkeys([*outward[:1], *clear[:1]]):
            yield Change(name, looser, part.answer, part.start, part.end)


def remedies(case: Case, limits: Limits) -> list[Remedy]:
    """For each scored arm that does not qualify: the limits under which it would be shown to, and the answer then.

    Arms for which no limit helps, because something that is limited was not measured, are left out.
    """
    found = []
    for arm in case.contest.scored:
        standing = standing_of(case.needs[arm], limits)
        names = tuple(judgement.limit for judgement in standing.of("exceeds", "undecided", "unknown"))
        raised = _raised(case.needs[arm], limits, names) if standing.qualifies is False else None
        if raised is not None:
            found.append(Remedy(arm, raised, names, answer_under(case, raised)))
    return found


def _raised(needs: Needs, limits: Limits, names: Sequence[str]) -> Limits | None:
    """The limits of these names raised to what an arm needs; None where nobody knows how much that is."""
    for name in names:
        if name in AMOUNTS:
            need = needs.amounts[name]
            if need is None or need.high == math.inf:
                return None
            limits = with_value(limits, name, need.high)
        else:
            limits = with_value(limits, name, False if name == "mergeable" else None)
    return limits
