"""What serving a run's result costs, by form: the base, the adapter beside it, merged, merged and quantized.

Speeds are medians of repetitions. Their interval needs no assumption about the distribution: it reaches from the k-th
smallest to the k-th largest value, k as large as leaves a binomial chance of at least 95% that the median lies between
(Conover 1999, 3.2); of fewer than six values it is the whole range. Ratios are paired within the repetition, so that a
slow minute of the machine falls on both forms.

A form may be shipped when it is shown not to be worse than the one that was evaluated: non-inferiority, one-sided at
5%, against the margin of the comparisons. Of these the fastest is advised; of equally fast ones that whose logits lie
nearest to the evaluated form's.

    >>> forms_frame(group)[["arm", "form", "disk_bytes", "score", "as_good", "latency_ratio", "ship"]]
    >>> latency_frame(group)[["arm", "form", "batch_size", "total_seconds", "ratio"]]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from bench.record import Adapters, Fidelity, Generation, Record, ServedForm
from bench.stats.compare import Margins
from bench.stats.frames import Group, disturbances
from bench.stats.measures import measure_tables, primary_measure
from bench.stats.paired import ALPHA, FEWEST_EXAMPLES, Floats, means

LEVEL = 0.95
SERVED = ("unmerged_latency_ratio", "merged_latency_ratio", "merged_size_ratio", "merge_logit_difference",
          "adapter_swap_seconds")  # fmt: skip


class NotMeasuredError(Exception):
    """What a claim needs is not in the records; the text says what, for a person."""


@dataclass(frozen=True)
class Median:
    """A median of repetitions with its interval."""

    value: float
    low: float
    high: float
    count: int


def median(values: Iterable[float]) -> Median:
    """The median and its distribution-free interval.

    Raises:
        ValueError: no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    count = len(ordered)
    covering = (k for k in range(count // 2, 0, -1) if 1 - 2 * scipy_stats.binom.cdf(k - 1, count, 0.5) >= LEVEL)
    k = next(covering, 1)
    return Median(float(np.median(ordered)), ordered[k - 1], ordered[-k], count)


def served_arms(group: Group) -> dict[str, list[Record]]:
    """Arm -> its runs that were served, in display order."""
    found = {arm: [run for run in runs if run.serve] for arm, runs in group.by_arm.items()}
    return {arm: runs for arm, runs in found.items() if runs}


def forms_of(records: Sequence[Record]) -> dict[str, ServedForm]:
    """By name, those of the first served run."""
    first = next((record.serve for record in records if record.serve), None)
    return {form.form: form for form in first.forms} if first else {}


def latency_ratios(records: Sequence[Record], form: str, base: str) -> list[float]:
    """Total seconds of a form / those of another, the geometric mean over lengths and batches; one a repetition."""
    by_repetition: dict[tuple[str, int], list[float]] = {}
    for record in records:
        for own, other in _paired(record, form, base):
            key = (record.run_id, own.repetition)
            by_repetition.setdefault(key, []).append(math.log(own.total_seconds / other.total_seconds))
    return [math.exp(sum(logs) / len(logs)) for logs in by_repetition.values()]


def _paired(record: Record, form: str, base: str) -> list[tuple[Generation, Generation]]:
    """Answers of a form beside those of another to the same prompts in the same repetition."""
    found: dict[str, dict[tuple[int, ...], Generation]] = {}
    for g in record.serve.generations if record.serve else []:
        found.setdefault(g.form, {})[g.prompt_tokens, g.batch_size, g.repetition] = g
    others = found.get(base, {})
    return [(own, others[key]) for key, own in found.get(form, {}).items() if key in others]


def latency_frame(group: Group) -> pd.DataFrame:
    """One row an arm, form, length of prompt and batch, over all repetitions and seeds.

    Columns: arm, form, prompt_tokens, batch_size, repetitions; first_token_seconds, total_seconds,
    decode_tokens_per_second (of the whole batch, after its first tokens) and ratio (total seconds / those of the form
    without the adapter; NaN: it is a base), each with _low and _high; requests_per_second and usd_per_million_tokens
    (generated), as of a machine that is busy with such requests all the time.
    """
    rows = []
    for arm, records in served_arms(group).items():
        new_tokens, price = int(_serve(records).settings["new_tokens"]), _price_usd_per_hour(records)
        for name, form in forms_of(records).items():
            cells: dict[tuple[int, int], list[Generation]] = {}
            for g in (g for record in records if record.serve for g in record.serve.generations if g.form == name):
                cells.setdefault((g.prompt_tokens, g.batch_size), []).append(g)
            for (prompt, batch), answers in sorted(cells.items()):
                pairs = [pair for record in records for pair in _paired(record, name, form.base or "")]
                ratios = [own.total_seconds / other.total_seconds for own, other in pairs
                          if (own.prompt_tokens, own.batch_size) == (prompt, batch)]  # fmt: skip
                decoding = [batch * (new_tokens - 1) / (g.total_seconds - g.first_token_seconds) for g in answers]
                total = median(g.total_seconds for g in answers)
                tokens = batch * new_tokens / total.value
                rows.append(
                    {"arm": arm, "form": name, "prompt_tokens": prompt, "batch_size": batch, "repetitions": total.count}
                    | _columns("first_token_seconds", [g.first_token_seconds for g in answers])
                    | _columns("total_seconds", [g.total_seconds for g in answers])
                    | _columns("decode_tokens_per_second", decoding)
                    | _columns("ratio", ratios)
                    | {"requests_per_second": batch / total.value,
                       "usd_per_million_tokens": math.nan if price is None else price / 3600 / tokens * 1e6}
                )  # fmt: skip
    return pd.DataFrame(rows)


def _columns(name: str, values: Sequence[float]) -> dict[str, float]:
    """A median with its interval as three columns."""
    found = median(values) if values else Median(math.nan, math.nan, math.nan, 0)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _serve(records: Sequence[Record]) -> Any:
    return next(record.serve for record in records if record.serve)


def _price_usd_per_hour(records: Sequence[Record]) -> float | None:
    """Of the machine, as it was stated when the runs were served, or when they were made."""
    prices = [record.serve.price_usd_per_hour for record in records if record.serve]
    prices += [record.config.hardware.price_usd_per_hour for record in records]
    return next((float(price) for price in prices if price is not None), None)


# --- Forms ---


def forms_frame(group: Group) -> pd.DataFrame:
    """One row an arm and form.

    Columns: arm, form, is_what, evaluated (whether the run's scores are this form's); disk_bytes, weights_bytes,
    load_seconds, peak_memory_bytes (of loading and serving, the highest of the seeds); score; difference (from the
    evaluated form, paired by example) with low and high (95%), as_good (shown not to be worse); logit_difference and
    logit_difference_mean (from the evaluated form, largest and mean), same_token_share, equal_answers_share;
    latency_ratio (total seconds / the evaluated form's) with _low and _high; ship, smallest (the form to ship, and the
    one of fewest bytes among those as good).
    """
    frames = [_arm_forms(group, arm, records) for arm, records in served_arms(group).items()]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _arm_forms(group: Group, arm: str, records: list[Record]) -> pd.DataFrame:
    found: dict[str, list[Fidelity]] = {}
    for entry in (entry for record in records if record.serve for entry in record.serve.fidelity):
        found.setdefault(entry.form, []).append(entry)
    evaluated = next(iter(found), None)
    rows = []
    for name, form in forms_of(records).items():
        same = name == evaluated
        ratios = [1.0] if same else latency_ratios(records, form.timed_as, evaluated) if evaluated else []
        rows.append(
            {"arm": arm, "form": name, "is_what": form.is_what, "evaluated": same,
             "disk_bytes": form.disk_bytes, "weights_bytes": form.weights_bytes}
            | _loading(records, name)
            | _change(group, records, name, evaluated)
            | _fidelity(found.get(name, []))
            | _columns("latency_ratio", ratios)
        )  # fmt: skip
    frame = pd.DataFrame(rows)
    frame[["ship", "smallest"]] = False
    good = frame[frame["as_good"].eq(True) & frame["latency_ratio"].notna()]
    if len(good):
        distance = good["logit_difference_mean"].fillna(0.0)
        order = good.assign(distance=distance)
        frame.loc[order.sort_values(["latency_ratio", "distance"], kind="stable").index[0], "ship"] = True
        if order["disk_bytes"].notna().any():
            frame.loc[order.sort_values(["disk_bytes", "distance"], kind="stable").index[0], "smallest"] = True
    return frame


def _loading(records: Sequence[Record], form: str) -> dict[str, float]:
    results = [record.serve for record in records if record.serve]
    seconds = [s for result in results for f in result.forms if f.form == form for s in f.load_seconds or ()]
    phases = (f"load {form}", f"serve {form}")
    peaks = [m.peak_bytes for result in results for m in result.memory if m.phase in phases and m.peak_bytes]
    loading = float(np.median(seconds)) if seconds else math.nan
    return {"load_seconds": loading, "peak_memory_bytes": max(peaks, default=math.nan)}


def _fidelity(entries: Sequence[Fidelity]) -> dict[str, float]:
    """Over seeds: of the largest logit difference the largest, of the rest the mean."""
    logits = [entry.logits for entry in entries if entry.logits]
    largest = [math.inf if one.largest is None else one.largest for one in logits]
    mean = [math.inf if one.mean is None else one.mean for one in logits]
    equal = [entry.equal_answers / entry.examples for entry in entries if entry.equal_answers is not None]
    return {
        "logit_difference": max(largest, default=math.nan),
        "logit_difference_mean": _mean(mean),
        "same_token_share": _mean([one.same_token_share for one in logits]),
        "equal_answers_share": _mean(equal),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _change(group: Group, records: Sequence[Record], form: str, evaluated: str | None) -> dict[str, Any]:
    """The primary score of a form against the evaluated form's, on the examples that both answered."""
    unknown = dict.fromkeys(("score", "difference", "difference_low", "difference_high"), math.nan)
    primary = primary_measure(measure_tables(group))
    if evaluated is None or primary is None:
        return unknown | {"as_good": None}
    sides = []
    for name in (form, evaluated):
        answers = [[a for a in group.sweep.answer_rows.get(r.run_id, ()) if a.form == name] for r in records]
        rows = [{a.example_id: a.scores.get(primary.name, math.nan) for a in of_run} for of_run in answers]
        sides.append(pd.DataFrame([row for row in rows if row], dtype=float))
    shared = sides[0].columns.intersection(sides[1].columns)
    own, reference = (side[shared].dropna(axis=1) if len(shared) else side for side in sides)
    if not len(shared) or own.shape != reference.shape or own.empty:
        return unknown | {"as_good": True if form == evaluated else None}
    known = means([own.to_numpy(), reference.to_numpy()])
    change = known.difference(0, 1)
    low, high = change.interval()
    margin = Margins().of(primary, float(known.mean[1]))
    not_worse = change.identical or (change.examples >= FEWEST_EXAMPLES and change.interval(1 - 2 * ALPHA)[0] > -margin)
    values = dict(zip(unknown, (float(known.mean[0]), change.mean, low, high), strict=True))
    return values | {"as_good": bool(form == evaluated or not_worse)}


# --- Many adapters on one base ---


def adapters_frame(group: Group) -> pd.DataFrame:
    """One row an arm, way and number of adapters.

    Columns: arm, way (mixed, swapped, copies), adapters, tokens_per_second (generated, of one device; a share's speed
    is that of all shares in turn) with _low and _high; of the arm: load_seconds (from a file until it is the active
    adapter), activate_seconds, adapter_bytes, copy_bytes, held_bytes_per_adapter.
    """
    rows = []
    for arm, records in served_arms(group).items():
        for many in (record.serve.adapters for record in records if record.serve and record.serve.adapters):
            speeds: dict[tuple[str, int], list[float]] = {}
            new_tokens = int(_serve(records).settings["new_tokens"])
            for g in many.generations:
                speeds.setdefault((g.way, g.adapters), []).append(g.batch_size * new_tokens / g.seconds)
            whole = {
                "load_seconds": float(np.median(many.load_seconds)),
                "activate_seconds": float(np.median(many.activate_seconds)),
                "adapter_bytes": many.adapter_bytes,
                "copy_bytes": many.copy_bytes,
                "held_bytes_per_adapter": held_bytes_per_adapter(many),
            }
            rows += [{"arm": arm, "way": way, "adapters": count} | _columns("tokens_per_second", values) | whole
                     for (way, count), values in speeds.items()]  # fmt: skip
    return pd.DataFrame(rows)


def held_bytes_per_adapter(many: Adapters) -> float:
    """The slope of the memory held over the number of adapters (least squares); NaN below two known numbers."""
    known = [(int(count), held) for count, held in many.held_bytes.items() if held is not None]
    if len(known) < 2:
        return math.nan
    counts, held = zip(*known, strict=True)
    return float(np.polyfit(counts, held, 1)[0])


# --- Quantities of claims ---


def served_draws(
    name: str, records: Sequence[Record], rng: np.random.Generator, count: int
) -> tuple[float, Floats, str]:
    """A quantity of `SERVED` for one arm: its value, draws of it (counts: the value itself), what it rests on.

    unmerged_latency_ratio: total latency with the adapter beside its base / that of this base alone;
    merged_latency_ratio: of the merged 16-bit model / the 16-bit base; merged_size_ratio: bytes on disk of the merged
    model / those of the base that the adapter was trained beside; merge_logit_difference: the largest difference of a
    logit between the merged model and the adapter beside its base; adapter_swap_seconds: from an adapter's file to its
    being the active one.

    Raises:
        NotMeasuredError: the runs were not served so.
    """
    served = [record for record in records if record.serve]
    if not served:
        raise NotMeasuredError(f"{records[0].method} was not served; add serve=full to the command")
    forms = forms_of(served)
    seeds = f"{len(served)} seed{'s' if len(served) > 1 else ''}"
    if name in ("merge_logit_difference", "merged_size_ratio"):
        value = _logits_moved(served) if name == "merge_logit_difference" else _size_ratio(forms, served[0].method)
        return value, np.full(count, value), f"exact, {seeds}"
    if name == "adapter_swap_seconds":
        values = [s for r in served if r.serve and r.serve.adapters for s in r.serve.adapters.load_seconds]
    else:
        form = _form(forms, "merged" if name == "merged_latency_ratio" else "unmerged", served[0].method)
        busy = {f"served on a busy machine: {text}" for r in served if (text := disturbances(r).get("serve"))}
        if busy:
            raise NotMeasuredError("; ".join(sorted(busy)))
        values = latency_ratios(served, form.form, str(form.base))
    if len(values) < 2:
        raise NotMeasuredError(f"no repetitions of {name}" + (" (serve.adapters)" if "swap" in name else ""))
    return float(np.median(values)), median_draws(values, rng, count), f"{len(values)} repetitions, {seeds}"


def median_draws(values: Sequence[float], rng: np.random.Generator, count: int) -> Floats:
    """Draws of the true median of positive values, by the binomial chances that it lies between two of them."""
    edges = np.array([0.0, *sorted(values), np.inf])
    below = rng.binomial(len(values), 0.5, size=count)
    low, high = edges[below], edges[below + 1]
    return np.asarray(np.where(np.isinf(high), high, low + (high - low) * rng.uniform(size=count)))


def _form(forms: dict[str, ServedForm], name: str, method: str) -> ServedForm:
    if name not in forms:
        raise NotMeasuredError(f"{method} was not served {name}")
    return forms[name]


def _logits_moved(records: Sequence[Record]) -> float:
    entries = [f for r in records if r.serve for f in r.serve.fidelity if f.form == "merged"]
    known = [f.logits.largest for f in entries if f.logits and f.logits.largest is not None]
    if not known:
        raise NotMeasuredError("the merged model's logits were not compared (serve.fidelity_examples)")
    return max(known)


def _size_ratio(forms: dict[str, ServedForm], method: str) -> float:
    merged = _form(forms, "merged", method).disk_bytes
    base = forms[str(_form(forms, "unmerged", method).base)].disk_bytes
    if merged is None or not base:
        raise NotMeasuredError("the files of the base were not found on disk")
    return merged / base
