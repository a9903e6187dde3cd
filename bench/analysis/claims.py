"""Verdicts on public claims: holds, does not hold, inconclusive or not tested, from what a sweep measured.

A range or an order holds when the 95% interval lies inside it and does not hold when it lies outside. Equivalence
holds when the 90% interval lies inside (two one-sided tests at 5%), with the claim's own limits as the margin. Each
claim is one question: nothing is adjusted for their number. `measured` tells where a value comes from; a model or a
machine that the claim is not about makes it "not tested", never a stretched verdict.

    >>> judge(claims, evidence)[0].word
    'does not hold'
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.analysis.claim_arms import NotMeasuredError, choose, described
from bench.analysis.measured import Evidence, Interval, Measured
from bench.analysis.quantities import ONE_RUN_DOUBT, PAIRED_BY_EXAMPLE, best_rates, measure
from bench.analysis.run_quantities import base_parameters, trained
from bench.analysis.stats import FEWEST_EXAMPLES
from bench.record import Record
from bench.stats.claim import Arm, Check, Claim, Form, Needs, Range

Word = Literal["holds", "does not hold", "inconclusive", "not tested"]


@dataclass(frozen=True)
class Part:
    """One check of a claim on one arm or pair of arms."""

    check: Check  # an order is taken apart into its pairs
    arms: tuple[str, ...]  # one, or the two that are set against each other
    word: Word
    reason: str  # of an inconclusive one or one not tested; else empty
    measured: Measured | None = None
    text: str = ""  # what was found, where it is a word and not a number


@dataclass(frozen=True)
class Verdict:
    """A claim with what the sweep says about it."""

    claim: Claim
    word: Word
    reason: str
    parts: list[Part]


def judge(claims: Sequence[Claim], evidence: Evidence) -> list[Verdict]:
    """One verdict a claim, in the order given."""
    return [_verdict(claim, evidence) for claim in claims]


def _verdict(claim: Claim, evidence: Evidence) -> Verdict:
    if reason := _unmet(claim.needs, evidence):
        return Verdict(claim, "not tested", reason, [])
    by_check = [_parts(check, evidence) for whole in claim.checks for check in _single(whole)]
    parts = [part for found in by_check for part in found]
    words = [_agreed(found) for found in by_check]
    for word in ("does not hold", "not tested", "inconclusive", "holds"):  # all checks must hold
        if word in words:
            reasons = [p.reason for found, own in zip(by_check, words, strict=True) if own == word for p in found]
            mixed = any(len({part.word for part in found}) > 1 for found in by_check)
            text = "; ".join(dict.fromkeys(filter(None, reasons)))
            return Verdict(claim, word, text or ("it depends on the settings" if mixed else ""), parts)
    raise ValueError(f"{claim.id} has no checks")


def _agreed(parts: Sequence[Part]) -> Word:
    """The word of a check on several arms: theirs, where they agree."""
    words = {part.word for part in parts}
    tested = [word for word in words if word != "not tested"]
    return "inconclusive" if len(tested) > 1 else tested[0] if tested else "not tested"


def _unmet(needs: Needs, evidence: Evidence) -> str:
    """Why these runs say nothing about the claim; empty when they do."""
    runs = [record for records in evidence.arms.values() for record in records]
    if not runs:
        return "no run finished"
    if needs.device is not None and not any(_device(run).startswith(needs.device) for run in runs):
        return f"it is about {needs.device}; these runs were made on {_device(runs[0]).partition(':')[0]}"
    if needs.parameters is None:
        return ""
    for run in runs:
        try:
            count = base_parameters(run)
        except NotMeasuredError:
            continue
        least, most = _ends(needs.parameters)
        wanted, has = _billions(needs.parameters), f"{count / 1e9:.3g} billion"
        return "" if least <= count <= most else f"it is about a model of {wanted} parameters; {run.model} has {has}"
    return "the records do not tell how many parameters the model has"


def _device(record: Record) -> str:
    stage = record.train or record.evaluate or record.regression
    return stage.environment.device if stage else ""


def _billions(bounds: Range) -> str:
    low, high = (None if end is None else f"{end / 1e9:g}" for end in bounds)
    if low is None or high is None:
        return f"{low} billion or more" if high is None else f"up to {high} billion"
    return f"{low} to {high} billion"


def _single(check: Check) -> list[Check]:
    """The check itself, or the pairs of its order: a ratio against 1, for scores and drops a difference against 0."""
    if check.order is None:
        return [check]
    form: Form = "difference" if check.quantity in (*PAIRED_BY_EXAMPLE, "gradient_spike_share") else "ratio"
    limit = 0.0 if form == "difference" else 1.0
    alone = replace(check, order=None, form=form)
    pairs = [(replace(alone, of=Arm(left), against=Arm(right)), sign) for left, sign, right in check.pairs()]
    return [replace(pair, above=limit) if sign == ">" else replace(pair, below=limit) for pair, sign in pairs]


def _parts(check: Check, evidence: Evidence) -> list[Part]:
    """The check on every arm or pair of arms that it is about; one part that is not tested where there is none."""
    if check.of is None:
        raise ValueError(f"{check.quantity}: a check names arms, in of or in order")
    arms = tuple(described(arm) for arm in (check.of, check.against) if arm is not None)
    try:
        if check.quantity == "best_learning_rate":
            return [_judged(check, arms, best_rates(check, evidence))]
        chosen = choose(
            check.of, check.against, evidence.arms, evidence.references, same_trainable=check.same_trainable
        )
    except NotMeasuredError as error:
        return [Part(check, arms, "not tested", str(error))]
    parts = []
    for one in chosen:
        try:
            if check.one_of is not None:
                parts.append(_judged_words(check, one.names, one.left))
            else:
                parts.append(_judged(check, one.names, measure(check, one, evidence)))
        except NotMeasuredError as error:
            parts.append(Part(check, one.names, "not tested", str(error)))
    return parts


def _judged_words(check: Check, arms: tuple[str, ...], runs: Sequence[Record]) -> Part:
    """A quantity that is a word; the only one is the dtype of the trained parameters."""
    found = sorted({trained(run).trainable_dtype for run in runs})
    inside = {dtype in (check.one_of or []) for dtype in found}
    word: Word = "inconclusive" if len(inside) > 1 else "holds" if inside == {True} else "does not hold"
    return Part(check, arms, word, "", text=", ".join(found))


def _judged(check: Check, arms: tuple[str, ...], found: Measured) -> Part:
    part = Part(check, arms, "inconclusive", "", found)
    if found.units is not None and found.units < FEWEST_EXAMPLES:
        return replace(part, reason=f"fewer than {FEWEST_EXAMPLES} to rest on: {found.basis}")
    if check.by != "interval" and found.interval is None and not found.exact:
        return replace(part, reason=f"{found.basis}: nothing can be shown to be equal")
    point = found.doubt or (found.value, found.value)
    inside, outside = _position(check, found.interval or point)
    if check.by != "interval":
        inside, _ = _position(check, found.inner or point)
    if check.by == "no_difference":
        low, high = found.interval or point
        outside = low > 0 or high < 0
    if outside or (found.exact and not inside):  # a count is on one side of a limit, or on it
        return replace(part, word="does not hold")
    if inside:
        return replace(part, word="holds")
    near = f"a single run's value within {ONE_RUN_DOUBT:.0%} of the limit" if found.doubt else ""
    return replace(part, reason=near or "the interval reaches across the limit")


def _position(check: Check, interval: Interval) -> tuple[bool, bool]:
    """(inside, outside) of what is expected. The ends belong to `expect`, but not to `above` and `below`."""
    low, high = interval
    if check.expect is None:
        least, most = _ends((check.above, check.below))
        return least < low and high < most, high < least or low > most
    least, most = _ends(check.expect)
    return least <= low and high <= most, high < least or low > most


def _ends(bounds: Range) -> Interval:
    low, high = bounds
    return -math.inf if low is None else low, math.inf if high is None else high
