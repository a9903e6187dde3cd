"""The section on public claims: what each says, what was measured, and the verdict, contradicting ones side by side.

>>> print(section(group, verdicts_of(group, known_claims(problems))))
36 claims: 5 hold, 8 do not hold, ...
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.analysis import stats
from bench.analysis.claims import Part, Verdict, Word, judge
from bench.analysis.measured import Evidence, Measured
from bench.analysis.pairing import group_arms
from bench.analysis.quantities import ONE_RUN_DOUBT
from bench.config import ConfigurationError
from bench.report.answer import Group
from bench.report.format import UNKNOWN, cell, table
from bench.report.load import Problem
from bench.stats.claim import Check, Claim
from bench.stats.claim_files import CLAIMS_FOLDER, read_claims

_TOPICS = {  # by quantity; a claim belongs to the topic of its first check
    "memory": ("peak_memory_gb", "static_bytes_per_parameter", "base_weights_gb", "bits_per_quantized_parameter"),
    "speed": ("tokens_per_second", "step_seconds", "seconds_to_target_loss_at_equal_memory"),
    "size": ("trainable_share", "trainable_parameters", "trainable_dtype", "checkpoint_mb", "cost_usd"),
    "quality": ("score", "test_loss", "best_learning_rate", "gradient_spike_share"),
    "forgetting": ("regression_drop", "instructions_drop"),
}
_FORMS = {
    "value": "{0}",
    "ratio": "{0} / {1}",
    "reduction": "1 - {0} / {1}",
    "difference": "{0} - {1}",
    "relative_difference": "({0} - {1}) / {1}",
}
_DEFINITIONS = (
    "Holds: the 95% interval lies within what the claim expects; does not hold: it lies outside. A claim of equality "
    "holds when the 90% interval lies within its limits (two one-sided tests at 5%). One seed: the interval covers the "
    "steps or examples of that run, not what another run would give; where there is none, the value is taken as right "
    f"to {ONE_RUN_DOUBT:.0%}. All parts of a claim must hold. Each claim is a question of its own: the intervals are "
    "not adjusted for their number. docs/claims.md defines the quantities and how to add claims. Sources:"
)
_SAID: dict[Word, str] = {
    "holds": "hold",
    "does not hold": "do not hold",
    "inconclusive": "are inconclusive",
    "not tested": "were not tested",
}


def known_claims(problems: list[Problem], folder: Path = CLAIMS_FOLDER) -> list[Claim]:
    """The claims of the folder; mistakes in its files are added to `problems`, and no claim is judged then."""
    try:
        return read_claims(folder)
    except ConfigurationError as error:
        step = "Mend it and write the report again; docs/claims.md explains the keys."
        problems += [Problem(f"{folder.parent.name}/{folder.name}", "*.yaml", text, step) for text in error.problems]
        return []


def verdicts_of(group: Group, claims: Sequence[Claim], *, seed: int = 0) -> list[Verdict]:
    """Every claim judged by the group's runs, by topic, each followed by those that contradict it.

    Args:
        seed: of the bootstrap: the same records, the same verdicts.
    """
    finished = [record for record in group.records if record.train or record.evaluate or record.regression]
    evidence = Evidence(
        arms=group_arms(finished),
        steps=group.sweep.step_rows,
        tables=group.findings.tables,
        references=group.findings.references,
        resampler=stats.Resampler(np.random.default_rng(seed)),
        tunings=group.sweep.tunings,
    )
    return judge(side_by_side(claims), evidence)


def side_by_side(claims: Sequence[Claim]) -> list[Claim]:
    """By topic, in the order given, and claims that contradict each other next to each other."""
    topics = {quantity: place for place, names in enumerate(_TOPICS.values()) for quantity in names}
    placed: dict[str, Claim] = {}
    for claim in sorted(claims, key=lambda c: topics.get(c.checks[0].quantity, len(_TOPICS))):
        placed.setdefault(claim.id, claim)
        for other in claims:
            if other.id in opposed(claim, claims):
                placed.setdefault(other.id, other)
    return list(placed.values())


def opposed(claim: Claim, claims: Sequence[Claim]) -> list[str]:
    """The ids of the claims that contradict this one, whichever of the two says so."""
    return [other.id for other in claims if other.id in claim.contradicts or claim.id in other.contradicts]


def section(group: Group, verdicts: Sequence[Verdict]) -> str:
    """Counts, table, definitions and sources; empty when no claim could be tested."""
    if all(verdict.word == "not tested" for verdict in verdicts):
        return ""
    counts = Counter(verdict.word for verdict in verdicts)
    said = ", ".join(f"{counts[word]} {text}" for word, text in _SAID.items() if counts[word])
    stages = [record.train or record.evaluate or record.regression for record in group.records]
    devices = ", ".join(dict.fromkeys(stage.environment.device for stage in stages if stage))
    scope = f"Each verdict is about {group.name} on {devices} with these settings, not about other models or machines."
    sources = "\n".join(f"{number}. {cell(title)}" for title, number in _numbered(verdicts).items())
    parts = [f"{len(verdicts)} claims: {said}. {cell(scope)}", judged_table(verdicts), _DEFINITIONS, sources]
    untested = untested_table(verdicts)
    return "\n\n".join([*parts, "What these runs cannot tell:", untested] if untested else parts)


def judged_table(verdicts: Sequence[Verdict]) -> str:
    """One row a claim that was tested."""
    numbers, rows = _numbered(verdicts), []
    for verdict in (verdict for verdict in verdicts if verdict.word != "not tested"):
        word = verdict.word if verdict.word == "inconclusive" else f"**{verdict.word}**"
        measured = "; ".join(cell(part_text(part)) for part in verdict.parts if part.measured or part.text)
        source = f"({numbers[verdict.claim.source]})"
        says = cell(_says(verdict, verdicts))
        rows.append([cell(verdict.claim.id), says, source, word, measured or UNKNOWN, cell(rests_on(verdict))])
    headers = ["claim", "it says", "source", "verdict", "measured [95%] and expected", "basis and reason"]
    return table(headers, rows, text_columns=len(headers))


def untested_table(verdicts: Sequence[Verdict]) -> str:
    """One row a claim that was not tested, with what it would take; empty without any."""
    numbers = _numbered(verdicts)
    rows = [
        [cell(v.claim.id), cell(_says(v, verdicts)), f"({numbers[v.claim.source]})", cell(rests_on(v))]
        for v in verdicts
        if v.word == "not tested"
    ]
    return table(["claim", "it says", "source", "not tested, because"], rows, text_columns=4) if rows else ""


def _says(verdict: Verdict, verdicts: Sequence[Verdict]) -> str:
    """The claim, with those that contradict it and what became of them."""
    words = {other.claim.id: other.word for other in verdicts}
    against = opposed(verdict.claim, [other.claim for other in verdicts])
    told = ", ".join(f"{other} ({words[other]})" for other in against)
    return f"{verdict.claim.says} Contradicts {told}." if told else verdict.claim.says


def _numbered(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """The sources by title, numbered from 1."""
    titles = dict.fromkeys(verdict.claim.source for verdict in verdicts)
    return {title: number for number, title in enumerate(titles, start=1)}


def rests_on(verdict: Verdict) -> str:
    """Examples, steps and seeds; the reason where nothing was decided; how the claim was read."""
    bases = list(dict.fromkeys(part.measured.basis for part in verdict.parts if part.measured))
    sentences = ["; ".join(bases), verdict.reason, verdict.claim.reading]
    return " ".join(f"{text[0].upper()}{text[1:].rstrip('.')}." for text in sentences if text)


def part_text(part: Part) -> str:
    """`tokens_per_second, 1 - qlora / lora: 0.194 [0.124, 0.251], expected 0.15 to 0.25`."""
    arms = _FORMS[part.check.form].format(*part.arms)
    found = part.text or (measured_text(part.measured) if part.measured else UNKNOWN)
    return f"{part.check.quantity}, {arms}: {found}, expected {expected_text(part.check)}"


def measured_text(measured: Measured) -> str:
    """The value with its 95% interval, where it has one."""
    if measured.interval is None:
        return _number(measured.value)
    return f"{_number(measured.value)} [{', '.join(_number(end) for end in measured.interval)}]"


def expected_text(check: Check) -> str:
    """What the claim expects, in words."""
    if check.one_of is not None:
        return " or ".join(check.one_of)
    if check.above is not None or check.below is not None:
        return f"above {_number(check.above)}" if check.above is not None else f"below {_number(check.below)}"
    low, high = check.expect or (None, None)
    if low is None or high is None:
        return f"at least {_number(low)}" if high is None else f"at most {_number(high)}"
    return f"{_number(low)} to {_number(high)}"


def _number(value: float | None) -> str:
    """Three significant digits; whole numbers from 1000 on; an open end of an interval as such."""
    if value is None or not math.isfinite(value):
        return "open"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
