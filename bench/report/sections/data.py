"""The data: how long the examples are, what carries loss, and what of the test split training has seen already.

The same section is what `python -m bench data` shows.

>>> section(group).title
'Data'
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.record import DataCheck, DataSummary
from bench.report.section import Section, Table, count, percent
from bench.stats.frames import Group

_NOTE = (
    "Same: prompt and answer. Same prompt: but for case and spaces, with another answer. Near: at least 0.8 of the "
    "triples of words and symbols shared. Contaminated: 13 words in a row stand in a training example too. What more "
    "than one example in twenty holds is the prompt's template and counts for neither."
)


def section(group: Group) -> Section | None:
    """None where the records hold no check."""
    records = sorted(group.records, key=lambda record: record.config.method.shots)  # prompts without solved examples
    summary = next((record.data for record in records if record.data and record.data.check), None)
    of_suite = [record.regression.contaminated for record in group.records if record.regression]
    blind = [record.evaluate.blind for record in group.records if record.evaluate]
    return data_section(summary, next(filter(None, of_suite), {}), next(filter(None, blind), {})) if summary else None


def data_section(summary: DataSummary, of_suite: Mapping[str, int], blind: Mapping[str, int]) -> Section | None:
    """The section of one task's data.

    Args:
        of_suite: task of the regression suite -> items that the training split holds a part of.
        blind: metric -> test references that do not get its best score as their own answer.
    """
    check = summary.check
    if check is None:
        return None
    seen = sum(o.same + o.same_prompt + o.near for o in check.overlaps if (o.split, o.of) == ("test", "train"))
    share = f"of {summary.test_examples:,} test examples"
    lead = f"{seen:,} {share} are in the training split too, exactly or nearly, and {check.contaminated:,} share 13 "
    lead += "words in a row with it" + (": their scores may be memory." if seen or check.contaminated else ".")
    rows = [[o.split, o.of, *map(count, (o.same, o.same_prompt, o.near)), "; ".join(o.examples[:3])]
            for o in check.overlaps]  # fmt: skip
    table = Table(["examples of", "in", "same", "same prompt", "near", "first"], rows, text_columns=2)
    items = [*_counts(summary, check), *_warnings(check, of_suite, blind)]
    return Section("Data", lead, table, items=items, parts=[_lengths(summary, check)], note=_NOTE, fold=not seen)


def _counts(summary: DataSummary, check: DataCheck) -> list[str]:
    sizes = (summary.train_examples, summary.validation_examples, summary.test_examples)
    dropped = "; ".join(f"{reason} {number:,}" for reason, number in summary.dropped.items()) or "none"
    there = summary.test_available
    bounded = f"{summary.test_examples:,} of {there or 0:,} test examples (bounded by task.test_examples)."
    return [
        f"Source: {summary.source}. Training, validation and test examples: {', '.join(f'{n:,}' for n in sizes)}.",
        *([bounded] if there else []),
        f"Left out: {dropped}.",
        f"Loss is on {percent(check.supervised_share)} of the training tokens, in "
        f"{check.answers_per_example_mean:.1f} answers an example (at most {check.answers_per_example_max}).",
        f"Training targets: {check.distinct_targets:,} different ones; the commonest, {check.commonest_target!r}, in "
        f"{check.commonest_target_examples:,} examples.",
    ]


def _warnings(check: DataCheck, of_suite: Mapping[str, int], blind: Mapping[str, int]) -> list[str]:
    """What a reader of the scores has to know; a line each."""
    lines = [f"{name}: {count:,} test references do not get its best score as their own answer: it cannot read them."
             for name, count in blind.items()]  # fmt: skip
    if check.contaminated:
        lines.append(f"Contaminated test examples, the first: {', '.join(check.contaminated_examples)}.")
    if check.too_short:
        lines.append(f"{check.too_short:,} test examples have fewer than 8 words, too few to tell.")
    if check.unseen_labels:
        lines.append(f"{check.unseen_labels:,} test examples have a label that no training example has.")
    found = ", ".join(f"{task} {count:,}" for task, count in of_suite.items() if count)
    return [*lines, f"Items of the regression suite that the training split holds a part of: {found or 'none'}."]


def _lengths(summary: DataSummary, check: DataCheck) -> Section:
    total = summary.train_examples + summary.validation_examples + summary.test_examples
    total += sum(count for reason, count in summary.dropped.items() if "train.max_length" in reason)
    edges, held = check.longer_than.items(), [total, *check.longer_than.values()]
    rows = [[f"{edge:,}", count(before - longer), count(longer), percent(longer / total, 1)]
            for before, (edge, longer) in zip(held, edges, strict=False)]  # fmt: skip
    note = "Examples: of at most so many tokens, and more than in the row above. Dropped: by train.max_length=tokens."
    table = Table(["tokens", "examples", "dropped", "share"], rows, text_columns=0)
    return Section("Lengths", table=table, note=note, fold=True)
