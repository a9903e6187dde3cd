"""The section on serving: which form to ship, what each costs in time, memory and money, and what merging changed.

>>> print(section(group))
**lora: ship `merged` (the original base with the adapter merged, 16-bit).** ...
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.analysis import serving, shipping, stats
from bench.analysis.load import disturbances
from bench.analysis.shipping import Advice, Change
from bench.record import Record
from bench.report.answer import Group
from bench.report.format import UNKNOWN, cell, mib, number, with_interval
from bench.report.serving_tables import (
    adapters_table,
    cost_table,
    fidelity_table,
    forms_table,
    latency_table,
    median_text,
)

_FEW = (
    "Intervals of medians need no assumption about the distribution; with fewer than six values they are the whole "
    "range, which covers the median with less than 95%"
)


def section(group: Group, *, seed: int = 0) -> str:
    """Advice and tables of every served arm; empty when none was served.

    Args:
        seed: of the bootstrap: the same records, the same report.
    """
    arms = served_arms(group)
    if not arms:
        return ""
    rng = stats.Resampler(np.random.default_rng(seed))
    changed = {arm: _changes(group, records, rng) for arm, records in arms.items()}
    parts = [
        "\n".join(f"- {line}" for arm, records in arms.items() for line in advice_lines(arm, records, changed[arm])),
        "### Forms: size, memory, loading" + _suffix(group),
        forms_table(arms),
        "In memory: the tensors, quantization constants included. Peaks: reset when a form is loaded and when it is "
        "served; on a CPU the resident set of the process, mapped files included. Loading: from disk (its files in the "
        "system's cache) until one token was read.",
        "### Latency" + _suffix(group),
        latency_table(arms),
        f"Medians, 95% intervals in brackets. {_FEW}. Every answer has {_new_tokens(arms)} tokens. First token: from "
        "the call, prompt included. Decoding: tokens/s of the whole batch after its first tokens. By round: the "
        "median total of each process that measured it. Against its base: total / that of the form without the "
        "adapter, paired by repetition.",
        *_fidelity_parts(group, arms, changed),
        "### What it costs to run" + _suffix(group),
        cost_table(arms),
        "From the median latency, such requests following one another without a pause. USD: generated tokens at "
        "`hardware.price_usd_per_hour`; - where no price is set.",
        *_adapter_parts(group, arms),
    ]
    return "\n\n".join(part for part in parts if part)


def served_arms(group: Group) -> dict[str, list[Record]]:
    """Arm -> its runs that were served, in display order."""
    arm_of = group.runs.set_index("run_id")["arm"]
    found = {arm: [r for r in group.records if r.serve and arm_of[r.run_id] == arm] for arm in group.arms}
    return {arm: records for arm, records in found.items() if records}


def _suffix(group: Group) -> str:
    several = len({(r.model, r.task, r.suite) for r in group.sweep.records}) > 1
    return f": {cell(group.name)}" if several else ""


def _new_tokens(arms: dict[str, list[Record]]) -> str:
    counts = {str(r.serve.settings["new_tokens"]) for records in arms.values() for r in records if r.serve}
    return " or ".join(sorted(counts))


def _changes(group: Group, records: Sequence[Record], rng: stats.Resampler) -> list[Change]:
    return shipping.changes(records, group.sweep.answer_rows, group.findings.primary, group.margins, rng)


def advice_lines(arm: str, records: Sequence[Record], changed: Sequence[Change]) -> list[str]:
    """Which form to ship, in a sentence or two, and what limits it; empty for an untrained model."""
    found = shipping.advice(records, changed)
    if found is None:
        return []
    forms = serving.served_forms(records)
    lines = [f"**{cell(arm)}: ship `{found.form}`** ({cell(forms[found.form].is_what)}). {_why(found)}"]
    if found.smallest is not None:
        size = forms[forms[found.smallest].timed_as].disk_bytes
        lines.append(f"{cell(arm)}: where memory is short, `{found.smallest}` is as good: {mib(size)} MiB on disk.")
    if found.refused:
        names = ", ".join(f"`{form}`" for form in found.refused)
        lines.append(f"{cell(arm)}: not shown to be as good as what was evaluated: {names}.")
    lines += [f"{cell(r.run_id)}: served on a busy machine: {cell(text)}." for r in records if (text := _busy(r))]
    lines += [f"{cell(arm)}: {cell(what)} not measured: {cell(why)}." for r in records for what, why in _skipped(r)]
    equal = [
        (r.serve.answers_as_evaluated, r.serve.fidelity[0].examples) for r in records if r.serve and r.serve.fidelity
    ]
    if any(count is not None and count < examples for count, examples in equal):
        told = ", ".join(f"{count} of {examples}" for count, examples in equal)
        whole = all(r.evaluate and r.serve and r.serve.fidelity[0].examples == r.evaluate.examples for r in records)
        why = "" if whole else " (answered in other batches, which round otherwise)"
        lines.append(f"{cell(arm)}: answers of `{found.evaluated}` equal to those of the evaluation: {told}{why}.")
    return lines


def _why(found: Advice) -> str:
    if found.change is None:
        return "It is the form that was evaluated; no other is shown to be as good and faster."
    change = found.change
    difference = with_interval(change.difference, change.low, change.high, sign=True)
    seconds = f" in {median_text(found.latency, 2)} of the time" if found.latency else ""
    return f"It answers{seconds} of `{found.evaluated}`, at a score {difference} from it."


def _busy(record: Record) -> str | None:
    return disturbances(record).get("serve")


def _skipped(record: Record) -> list[tuple[str, str]]:
    return list(record.serve.skipped.items()) if record.serve else []


def _fidelity_parts(group: Group, arms: dict[str, list[Record]], changed: dict[str, list[Change]]) -> list[str]:
    found = fidelity_table(arms, changed)
    if not found:
        return []
    metric = group.findings.primary.name if group.findings.primary else "score"
    roundings = [
        f"{cell(arm)} {number(r.serve.rounding.largest)} ({number(r.serve.rounding.mean, 4)})"
        for arm, records in arms.items()
        for r in records
        if r.serve and r.serve.rounding
    ]
    return [
        "### What merging and quantizing changed" + _suffix(group),
        found,
        f"Against the form that was evaluated (the first of each method), on the same test examples. {cell(metric)}: "
        "its mean; the difference is paired by example and seed, with its 95% interval by bootstrap. As good: worse by "
        "the report's margin or more is ruled out. Logits moved: from the evaluated form's, where they predict the "
        "reference answers. Off exact: from the evaluated form's computed in fp32 throughout; its own distance is that "
        "of its rounding. Rounding alone moves its logits, largest (mean), by batches of another size: "
        f"{'; '.join(roundings) or UNKNOWN}. Same token: share of those positions with the same likeliest token. "
        "Agreement: the share of a greedy answer before it first differs, mean over examples.",
    ]


def _adapter_parts(group: Group, arms: dict[str, list[Record]]) -> list[str]:
    found = adapters_table(arms)
    if not found:
        return []
    return [
        "### Many adapters on one base" + _suffix(group),
        found,
        "Loading: from its file until it is the active adapter. Activating: of one in memory. In memory: its tensors; "
        "measured: the slope of the memory held over the number of adapters. A full copy: the tensors of the merged "
        "16-bit model. The plot shows how fast requests for all of them are answered.",
    ]
