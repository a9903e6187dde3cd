"""Limits, needs and thresholds as text: in the units of the words that set them, and rounded so that they still hold.

>>> spoken = vocabulary(["memory_gb"])
>>> threshold(Change("memory_bytes", True, answer, 3.0715e9, math.inf), spoken)
'memory_gb=3.08 or more'
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import groupby

from bench.analysis.limits import Answer, Case, Judgement
from bench.analysis.needs import AMOUNTS, Need, Needs
from bench.analysis.recommend import listed
from bench.analysis.thresholds import Change, Remedy, Segment
from bench.report.format import UNKNOWN, known, number, with_interval
from bench.stats.limits import GB, WORDS, Limits

Vocabulary = Mapping[str, str]  # field of `Limits` -> the word that sets it
_DEFAULT = (
    "memory_gib",
    "time_minutes",
    "cost_usd",
    "quality_tolerance",
    "forgetting_tolerance",
    "mergeable",
    "adapters",
)
_DIGITS = 3
_NONE = "none"


def vocabulary(given: Iterable[str] = ()) -> Vocabulary:
    """The words to speak in: those that were given, else the report's units."""
    return {WORDS[name].sets: name for name in (*_DEFAULT, *given)}


def unit(field: str, spoken: Vocabulary) -> str:
    """As a person reads it."""
    return WORDS[spoken[field]].unit


def amount(value: float | None, field: str, spoken: Vocabulary) -> str:
    """A value in the unit of its word, without the unit."""
    if value is None or not known(value):
        return UNKNOWN
    scaled = value / WORDS[spoken[field]].scale
    if field == "forgetting_share":
        return number(scaled, 1)
    return f"{scaled:,.{_places(scaled, _DIGITS)}f}"


def need_text(need: Need | None, field: str, spoken: Vocabulary) -> str:
    """What an arm needs, with the lowest and the highest seed, or the interval."""
    if need is None:
        return UNKNOWN
    if need.low == need.high == 0:
        return _NONE
    if field == "forgetting_share":
        return with_interval(need.value, need.low, need.high, 1, 1 / WORDS[spoken[field]].scale)
    low, high, value = (amount(end, field, spoken) for end in (need.low, need.high, need.value))
    if need.high == math.inf:
        return f"more than {low} (out of memory)"
    if low == high:
        return value
    return f"at most {high} (busy)" if need.low == 0 else f"{value} ({low} to {high})"


def verdict_text(judgement: Judgement, needs: Needs, limits: Limits, spoken: Vocabulary) -> str:
    """One cell: what is needed, and whether that is within the limit."""
    field, verdict = judgement.limit, judgement.verdict
    if field not in needs.amounts:
        word = {"meets": "yes", "exceeds": "no"}.get(verdict, "cannot decide")
        size = _storage(needs, limits) if field == "adapters" else ""
        return f"{word}{size}"
    text, margin = need_text(needs.amounts[field], field, spoken), amount(judgement.margin, field, spoken)
    if verdict == "unknown":
        return "not known"
    if text == _NONE:
        return text
    told = {"meets": f"meets, {margin} left", "exceeds": f"exceeds by {margin}"}
    return f"{text}: {told.get(verdict, 'cannot decide')}"


def _storage(needs: Needs, limits: Limits) -> str:
    if needs.checkpoint_bytes is None or limits.adapters is None:
        return ""
    return f": {limits.adapters} checkpoints, {limits.adapters * needs.checkpoint_bytes / GB:.3g} GB"


def answer_text(answer: Answer, case: Case) -> str:
    """What to use, in a few words."""
    names = [_named(arm, case) for arm in (*([answer.chosen] if answer.chosen else []), *answer.undecided)]
    if not names:
        return "none qualifies"
    if not answer.chosen:
        return f"cannot decide (none is shown to qualify; {listed(names)} may)"
    return names[0] if len(names) == 1 else f"cannot decide between {listed(names)}"


def _named(arm: str, case: Case) -> str:
    return f"{arm} (untrained)" if case.contest.untrained(arm) else arm


def threshold(change: Change, spoken: Vocabulary) -> str:
    """The words under which the answer changes; what is printed can be given as it is."""
    word = spoken[change.limit]
    if change.start is None or change.end is None:
        given = {"mergeable": "mergeable=yes", "adapters": "adapters=2 or more"}[change.limit]
        return f"without {word}" if change.looser else given
    low, high = rounded(change.start, change.end, change.limit, spoken)
    if change.end == math.inf:
        return f"{word}={low} or more" if change.looser else f"any {word}"
    if change.start == 0:
        return f"{word}={high} or less"
    return f"{word}={low}" if low == high else f"{word}={low} to {high}"


def rounded(start: float, end: float, field: str, spoken: Vocabulary) -> tuple[str, str]:
    """The lowest and the highest short number within [start, end), in the unit of the word."""
    scale = WORDS[spoken[field]].scale
    low, high = start / scale, end / scale
    for digits in range(_DIGITS, 17):
        ends = _up(low, digits), _down(high, digits)
        if float(ends[0]) * scale >= start and float(ends[0]) * scale < end and float(ends[0]) <= float(ends[1]):
            return ends
    return repr(low), repr(low)


def _places(value: float, digits: int) -> int:
    """Decimals that show so many digits."""
    return max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0


def _up(value: float, digits: int) -> str:
    """The next number of so many digits from `value` on."""
    if value <= 0:
        return "0"
    places = _places(value, digits)
    return f"{math.ceil(value * 10**places) / 10**places:.{places}f}"


def _down(value: float, digits: int) -> str:
    """The number of so many digits before `value`."""
    if value == math.inf:
        return "inf"
    places = _places(value, digits)
    return f"{(math.ceil(value * 10**places) - 1) / 10**places:.{places}f}"


def segment_rows(parts: list[Segment], field: str, spoken: Vocabulary, case: Case) -> list[tuple[str, str]]:
    """The answer as a function of one limit: [('below 2.87', 'base (untrained)'), ('from 2.87', 'lora')].

    Neighbours that leave it open between the same methods, whichever scores highest among those that qualify, are one.
    """
    groups = [list(same) for _, same in groupby(parts, lambda part: _arms(part.answer))]
    starts = [rounded(same[0].start, same[0].end, field, spoken)[0] for same in groups]
    first = f"below {starts[1]}" if len(groups) > 1 else "whatever it is"
    ranges = [first, *(f"from {start}" for start in starts[1:])]
    return [(value, answer_text(same[-1].answer, case)) for value, same in zip(ranges, groups, strict=True)]


def _arms(answer: Answer) -> tuple[bool, frozenset[str | None]]:
    """Whether one is shown to qualify, and all that are in question."""
    return answer.chosen is not None, frozenset((answer.chosen, *answer.undecided))


def remedy_text(remedy: Remedy, now: Answer, spoken: Vocabulary, case: Case) -> str:
    """Under which limits an arm would qualify, and what that would change."""
    wanted = []
    for field in remedy.names:
        if field in AMOUNTS:
            least, _ = rounded(getattr(remedy.limits, field), math.inf, field, spoken)
            wanted.append(f"{spoken[field]}={least}")
        else:
            wanted.append(f"{spoken[field]} left out")
    then = "the answer would stay" if remedy.answer == now else f"then: {answer_text(remedy.answer, case)}"
    return f"{remedy.arm}: {listed(wanted)}; {then}"


def limits_text(limits: Limits, words: Iterable[str], default_tolerance: float) -> str:
    """The limits as they were given, and the default of the tolerance, a share of the best's score."""
    text = ", ".join(words) or "none"
    if limits.quality_tolerance is None and limits.quality_relative is None:
        text += f"; quality_tolerance={default_tolerance:.3g}% by default"
    return text
