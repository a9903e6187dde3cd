"""Which form of a tuned model to ship, from what merging did to its score and how fast each form answers.

A form may be shipped when it is shown not to be worse than the one that was evaluated (non-inferiority, one-sided at
5%, against the margin that the whole report uses). Of these the fastest is advised; of forms with the same layers,
the one whose logits lie nearest to the evaluated form's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.analysis import stats
from bench.analysis.findings import Margins
from bench.analysis.measures import Measure
from bench.analysis.serving import Median, load_seconds, mean_ratios, median, served_forms
from bench.record import Fidelity, Record, ServedAnswer

Answers = Mapping[str, Sequence[ServedAnswer]]  # by run_id


@dataclass(frozen=True)
class Change:
    """A form's score against the evaluated form's, paired by test example and seed."""

    form: str
    score: float
    difference: float
    low: float  # 95%
    high: float
    not_worse: bool  # by the margin or more is ruled out
    examples: int
    seeds: int


@dataclass(frozen=True)
class Advice:
    """Which form to ship, and what it rests on."""

    form: str
    evaluated: str
    latency: Median | None  # its total seconds / the evaluated form's; None: it is that form
    change: Change | None
    refused: list[str]  # forms that are not shown to be as good
    smallest: str | None  # of the forms that may be shipped, the one with the fewest bytes, if another


def evaluated_form(records: Sequence[Record]) -> str | None:
    """The form whose scores the run records; None for an untrained model, or where nothing was compared."""
    return next((r.serve.fidelity[0].form for r in records if r.serve and r.serve.fidelity), None)


def fidelities(records: Sequence[Record]) -> dict[str, list[Fidelity]]:
    """Form -> what was found, one entry a seed."""
    found: dict[str, list[Fidelity]] = {}
    for entry in (entry for record in records if record.serve for entry in record.serve.fidelity):
        found.setdefault(entry.form, []).append(entry)
    return found


def changes(
    records: Sequence[Record], answers: Answers, primary: Measure | None, margins: Margins, rng: stats.Resampler
) -> list[Change]:
    """The primary score of every form against the evaluated form's."""
    reference = evaluated_form(records)
    if reference is None or primary is None:
        return []
    by_form: dict[str, list[dict[str, float]]] = {}
    for record in records:
        of_run: dict[str, dict[str, float]] = {}
        for answer in answers.get(record.run_id, ()):
            of_run.setdefault(answer.form, {})[answer.example_id] = answer.scores.get(primary.name, np.nan)
        for form, scores in of_run.items():
            by_form.setdefault(form, []).append(scores)
    found = []
    for form, runs in by_form.items():
        references = by_form.get(reference, [])
        if form == reference or len(runs) != len(references):
            continue
        shared = sorted(set.intersection(*(set(scores) for scores in [*runs, *references])))
        if not shared:
            continue
        own, other = (np.array([[scores[e] for e in shared] for scores in side]) for side in (runs, references))
        binary = all(bool(np.isin(side, (0.0, 1.0)).all()) for side in (own, other))
        result = stats.paired(own - other, rng=rng, right_or_wrong=binary)
        low, high = result.interval()
        not_worse = stats.is_not_worse(result, margins.of(primary, float(other.mean())))
        found.append(Change(form, float(own.mean()), result.mean, low, high, not_worse, result.examples, result.seeds))
    return found


def advice(records: Sequence[Record], found: Sequence[Change]) -> Advice | None:
    """Which form to ship; None where nothing was compared."""
    reference = evaluated_form(records)
    forms = served_forms(records)
    if reference is None or reference not in forms or not load_seconds(records, reference):
        return None
    by_form = {change.form: change for change in found}
    good = [reference, *(change.form for change in found if change.not_worse and change.form in forms)]
    speed = {form: _speed(records, forms[form].timed_as, reference) for form in good}
    timed = [form for form in good if speed[form] is not None]
    chosen = min(timed, key=lambda form: (speed[form].value, _distance(records, form)))  # type: ignore[union-attr]
    sizes = {form: forms[forms[form].timed_as].disk_bytes for form in timed}
    known = {form: size for form, size in sizes.items() if size is not None}
    smallest = min(known, key=lambda form: (known[form], _distance(records, form)), default=None)
    smaller = smallest if smallest and known.get(chosen) and known[smallest] < known[chosen] else None
    return Advice(
        form=chosen,
        evaluated=reference,
        latency=None if chosen == reference else speed[chosen],
        change=by_form.get(chosen),
        refused=[change.form for change in found if not change.not_worse],
        smallest=smaller,
    )


def _speed(records: Sequence[Record], form: str, reference: str) -> Median | None:
    if form == reference:
        return Median(1.0, 1.0, 1.0, 1.0, 1)
    ratios = mean_ratios(records, form, reference)
    return median(ratios) if ratios else None


def _distance(records: Sequence[Record], form: str) -> float:
    """Mean logit difference to the evaluated form; 0 for that form itself."""
    logits = [entry.logits for entry in fidelities(records).get(form, []) if entry.logits]
    means = [one.mean if one.mean is not None else np.inf for one in logits]
    return float(np.mean(means)) if means else 0.0
