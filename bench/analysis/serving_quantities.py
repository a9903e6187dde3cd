"""Quantities of public claims about serving: latency ratios, what merging changes, sizes, swapping adapters.

>>> measure_serving(Check("unmerged_latency_ratio", of=Arm("lora"), expect=(None, 1.05)), chosen)
Measured(value=1.62, interval=(1.55, 1.70), ..., basis='10 repetitions, 1 seed', units=10)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.analysis.claim_arms import Chosen, NotMeasuredError
from bench.analysis.load import disturbances
from bench.analysis.measured import Measured
from bench.analysis.serving import mean_ratios, median, served_forms
from bench.analysis.shipping import fidelities
from bench.record import Record, ServedForm
from bench.stats.claim import Check


def measure_serving(check: Check, chosen: Chosen) -> Measured:
    """The check's quantity of one arm.

    Raises:
        NotMeasuredError: the runs were not served, or set two arms against each other, which these quantities do not.
    """
    if chosen.right:
        raise NotMeasuredError("quantities of serving are ratios within one arm; leave out against and form")
    served = [record for record in chosen.left if record.serve is not None]
    if not served:
        raise NotMeasuredError(f"{chosen.names[0]} was not served; add serve=full to the command")
    return SERVING_QUANTITIES[check.quantity](served)


def _unmerged_latency_ratio(records: Sequence[Record]) -> Measured:
    """Total latency with the adapter beside its base / that of this base alone."""
    form = _form(records, "unmerged", "an adapter beside its base")
    return _latency(records, form.form, str(form.base))


def _merged_latency_ratio(records: Sequence[Record]) -> Measured:
    """Total latency of the merged 16-bit model / that of the 16-bit base."""
    return _latency(records, _merged(records).form, str(_merged(records).base))


def _latency(records: Sequence[Record], form: str, base: str) -> Measured:
    found = {record.run_id: disturbances(record).get("serve") for record in records}
    busy = [f"{run} was served on a busy machine: {text}" for run, text in found.items() if text]
    if busy:
        raise NotMeasuredError("; ".join(busy))
    return _of_repetitions(mean_ratios(records, form, base), records)


def _merge_logit_difference(records: Sequence[Record]) -> Measured:
    """The largest difference of a logit between the merged 16-bit model and the adapter beside its base."""
    name = _merged(records).form
    values = [entry.logits.largest for entry in fidelities(records).get(name, []) if entry.logits]
    known = [value for value in values if value is not None]
    if not known:
        raise NotMeasuredError("the merged model's logits were not compared (serve.fidelity_examples)")
    return Measured(max(known), None, None, f"largest of {_seeds(records)}", exact=True)


def _merged_size_ratio(records: Sequence[Record]) -> Measured:
    """Bytes on disk of the merged 16-bit model / those of the base that the adapter was trained beside."""
    forms = served_forms(records)
    beside = _form(records, "unmerged", "an adapter beside its base")
    sizes = [forms[name].disk_bytes for name in (_merged(records).form, str(beside.base))]
    if sizes[0] is None or not sizes[1]:
        raise NotMeasuredError("the files of the base were not found on disk")
    return Measured(sizes[0] / sizes[1], None, None, "exact", exact=True)


def _adapter_swap_seconds(records: Sequence[Record]) -> Measured:
    """From an adapter's file to its being the active one on a loaded base."""
    found = [s for r in records if r.serve and r.serve.adapters for s in r.serve.adapters.load_seconds]
    if not found:
        raise NotMeasuredError("no adapters were swapped (serve.adapters)")
    return _of_repetitions(found, records)


SERVING_QUANTITIES: dict[str, Callable[[Sequence[Record]], Measured]] = {
    "unmerged_latency_ratio": _unmerged_latency_ratio,
    "merged_latency_ratio": _merged_latency_ratio,
    "merge_logit_difference": _merge_logit_difference,
    "merged_size_ratio": _merged_size_ratio,
    "adapter_swap_seconds": _adapter_swap_seconds,
}


def _of_repetitions(values: Iterable[float], records: Sequence[Record]) -> Measured:
    """The median with its distribution-free intervals."""
    values = list(values)
    if not values:
        raise NotMeasuredError("no repetition measured both forms")
    wide, narrow = median(values), median(values, level=0.90)
    basis = f"{len(values)} repetition{'s' if len(values) > 1 else ''}, {_seeds(records)}"
    return Measured(wide.value, (wide.low, wide.high), (narrow.low, narrow.high), basis, len(values))


def _seeds(records: Sequence[Record]) -> str:
    return "1 seed" if len(records) == 1 else f"{len(records)} seeds"


def _merged(records: Sequence[Record]) -> ServedForm:
    return _form(records, "merged", "a merged adapter")


def _form(records: Sequence[Record], name: str, what: str) -> ServedForm:
    form = served_forms(records).get(name)
    if form is None:
        raise NotMeasuredError(f"{records[0].method} was not served as {what}")
    return form
