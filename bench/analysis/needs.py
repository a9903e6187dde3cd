"""What each arm needs of what a user may limit, and what can be done with the model it makes.

A need is an interval: from the lowest seed to the highest, or the 95% interval where one was drawn. So one rule
(`limits.judged`) holds them all against a limit. Unknown is None.

    >>> needs_of_arms({"full": full_runs, "lora": lora_runs}, findings)["lora"].amounts["memory_bytes"]
    Need(low=3071582208.0, high=3071582208.0, value=3071582208.0, note='')
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.analysis.findings import Comparison, Findings
from bench.analysis.load import disturbances
from bench.analysis.measures import OVERALL, Measure
from bench.analysis.order import is_base
from bench.analysis.stats import FEWEST_EXAMPLES
from bench.record import PhaseMemory, Record, Status

_MERGED = "merged"  # a form of `ServeResult`: into the base as it was trained on, dequantized where it was quantized
AMOUNTS = ("memory_bytes", "time_seconds", "cost_usd", "forgetting_share")  # fields of `Limits`


@dataclass(frozen=True)
class Need:
    """Between `low` and `high`, as far as the data show; `value` is the mean over seeds, None where there is none."""

    low: float
    high: float  # infinite: nobody knows how much more
    value: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Fact:
    """Whether something can be done; None where the data do not say."""

    holds: bool | None
    text: str


@dataclass(frozen=True)
class Needs:
    """Of one arm. `amounts`: by the name of the limit (`AMOUNTS`)."""

    trained: bool
    amounts: Mapping[str, Need | None]
    mergeable: Fact
    adapter: Fact
    checkpoint_bytes: float | None  # mean over seeds


def needs_of_arms(
    arms: Mapping[str, Sequence[Record]], findings: Findings, price_usd_per_hour: float | None = None
) -> dict[str, Needs]:
    """What each arm needs.

    Args:
        arms: arm -> all its runs, failed ones included.
        price_usd_per_hour: in the place of the one in the runs' hardware settings.
    """
    return {arm: _needs(arm, runs, findings, price_usd_per_hour) for arm, runs in arms.items()}


def _needs(arm: str, runs: Sequence[Record], findings: Findings, price: float | None) -> Needs:
    trained = not is_base(runs[0])
    untrained = Need(0.0, 0.0, 0.0, "no training")
    amounts = {
        "memory_bytes": _over_seeds(map(memory_need, runs)) if trained else untrained,
        "time_seconds": _over_seeds(map(_time, runs)) if trained else untrained,
        "cost_usd": _over_seeds(_cost(run, price) for run in runs) if trained else untrained,
        "forgetting_share": _forgetting(arm, runs[0], findings),
    }
    sizes = [run.train.checkpoint_bytes for run in runs if run.train and run.train.checkpoint_bytes is not None]
    mergeable, adapter = _mergeable(runs, findings.primary), _adapter(runs[0])
    return Needs(trained, amounts, mergeable, adapter, sum(sizes) / len(sizes) if sizes else None)


def _over_seeds(found: Iterable[Need | None]) -> Need | None:
    needs = [need for need in found if need is not None]
    if not needs:
        return None
    values = [need.value for need in needs if need.value is not None]
    notes = dict.fromkeys(need.note for need in needs if need.note)
    mean = sum(values) / len(values) if values else None
    return Need(min(n.low for n in needs), max(n.high for n in needs), mean, "; ".join(notes))


def memory_need(record: Record) -> Need | None:
    """The highest of the training stage's phases; of CUDA's three counts of one phase the highest.

    A run that ended for want of memory needs more than it was last seen to hold.
    """
    if record.train is None:
        if record.status is not Status.OOM or record.failure is None or record.failure.stage != "train":
            return None
        return Need(float(record.failure.last_known_peak_bytes or 0), math.inf, None, "ran out of memory")
    peaks = {entry.phase: _highest(entry) for entry in record.train.memory}
    if peaks.get("train") is None:
        return None
    highest = float(max(peak for peak in peaks.values() if peak is not None))
    return Need(highest, highest, highest)


def _highest(entry: PhaseMemory) -> int | None:
    counts = (entry.peak_bytes, entry.peak_reserved_bytes, entry.device_used_bytes)
    return max((count for count in counts if count is not None), default=None)


def _time(record: Record) -> Need | None:
    if record.train is None:
        return None
    seconds = record.train.train_seconds
    if "train" in disturbances(record):  # alone it would have been faster, nobody knows by how much
        return Need(0.0, seconds, seconds, "measured on a busy machine")
    return Need(seconds, seconds, seconds)


def _cost(record: Record, price: float | None) -> Need | None:
    price = record.config.hardware.price_usd_per_hour if price is None else price
    time = _time(record)
    if price is None or time is None:
        return None
    low, high = (seconds / 3600 * price for seconds in (time.low, time.high))
    return Need(low, high, high, time.note)


def _forgetting(arm: str, run: Record, findings: Findings) -> Need | None:
    """Loss of the suite's mean against the base, with its 95% interval; negative where something was gained."""
    change = suite_change(arm, findings)
    if change is None:
        as_it_was = is_base(run) and not run.config.method.quantization
        return Need(0.0, 0.0, 0.0, "the base itself") if as_it_was else None
    if change.examples < FEWEST_EXAMPLES:
        return Need(-math.inf, math.inf, -change.difference, f"only {change.examples} items")
    return Need(-change.high, -change.low, -change.difference)


def suite_change(arm: str, findings: Findings) -> Comparison | None:
    """The change of the suite's mean against the untrained base; of a suite with one such task, that task's."""
    changes = [
        c
        for c in findings.comparisons
        if c.arm == arm
        and c.measure.kind == "regression"
        and c.measure.higher_is_better
        and is_base(findings.arms[c.baseline][0])
    ]
    overall = [c for c in changes if c.measure.name == OVERALL]
    told = overall or changes
    return told[0] if len(told) == 1 else None


def _adapter(record: Record) -> Fact:
    method = record.config.method
    if method.trains == "adapter":
        return Fact(True, "an adapter a task")
    return Fact(True, "no task has weights of its own") if is_base(record) else Fact(False, "a whole model a task")


def _mergeable(runs: Sequence[Record], primary: Measure | None) -> Fact:
    """A merged adapter is a sum in the base's precision, and 4-bit weights cannot hold it."""
    method = runs[0].config.method
    if method.trains != "adapter":
        return Fact(True, "there is no adapter")
    bits = "32-bit" if method.weights_dtype == "float32" else "16-bit"
    measured = _merged(runs, primary) if primary else ""
    if not method.quantization:
        return Fact(True, f"merges into its {bits} base; {measured or 'what merging changes was not measured'}")
    text = f"merges only into a {bits} copy of its base, which is another model than was trained"
    return Fact(True if measured else None, f"{text}; {measured or 'how it scores was not measured'}")


def _merged(runs: Sequence[Record], primary: Measure) -> str:
    """The primary score of the merged model beside that of the evaluated one, on the same examples; empty: unknown."""
    results = [run.serve.fidelity for run in runs if run.serve]
    pairs = [(found, fidelity[0]) for fidelity in results for found in fidelity if found.form == _MERGED]
    scores = [(p[0].scores.get(primary.name), p[1].scores.get(primary.name)) for p in pairs]
    known = [(merged, whole) for merged, whole in scores if merged is not None and whole is not None]
    if not known:
        return ""
    merged, whole = (sum(side) / len(known) for side in zip(*known, strict=True))
    examples, equal = sum(found.examples for found, _ in pairs), sum(found.equal_answers or 0 for found, _ in pairs)
    text = f"merged it scored {merged:.3f} in {primary.name}, as evaluated {whole:.3f}"
    return f"{text}, and {equal} of {examples} answers were equal"
