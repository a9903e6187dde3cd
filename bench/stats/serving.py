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
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from bench.record import Record, ServeResult
from bench.served import Fidelity, Generation, ServedForm
from bench.stats.compare import margin_of
from bench.stats.frames import Group
from bench.stats.measures import measure_tables, primary_measure
from bench.stats.paired import means

LEVEL = 0.95
_DIFFERENCE = ("difference", "difference_low", "difference_high")
_MADE_OF = re.compile(r"_(nf4|fp4|int8|gguf_\w+|exported)$")  # the end of a form's name, after that which it is made of


def median(values: Iterable[float]) -> tuple[float, float, float]:
    """(the median, the ends of its distribution-free interval); NaN without any value."""
    ordered = sorted(values)
    if not (count := len(ordered)):
        return math.nan, math.nan, math.nan
    covering = (k for k in range(count // 2, 0, -1) if 1 - 2 * scipy_stats.binom.cdf(k - 1, count, 0.5) >= LEVEL)
    k = next(covering, 1)
    return float(np.median(ordered)), ordered[k - 1], ordered[-k]


def _columns(name: str, values: Iterable[float]) -> dict[str, float]:
    """A median with its interval as three columns."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), median(values), strict=True))


def results_of(records: Iterable[Record]) -> list[ServeResult]:
    """Of the runs that were served."""
    return [record.serve for record in records if record.serve]


def served_arms(group: Group) -> dict[str, list[Record]]:
    """Arm -> its runs that were served in any form, in display order."""
    found = {arm: [run for run in runs if run.serve and run.serve.forms] for arm, runs in group.by_arm.items()}
    return {arm: runs for arm, runs in found.items() if runs}


def forms_of(records: Sequence[Record]) -> dict[str, ServedForm]:
    """By name, as the first run that was served in it has it."""
    return {form.form: form for result in reversed(results_of(records)) for form in result.forms}


def timed_answers(records: Sequence[Record]) -> pd.DataFrame:
    """One row a timed answer: run_id, the fields of `Generation`, and decode_tokens_per_second."""
    rows = [asdict(answer) | {"run_id": record.run_id, "new_tokens": int(record.serve.settings["new_tokens"])}
            for record in records if record.serve for answer in record.serve.generations]  # fmt: skip
    numbers = {f.name: float for f in fields(Generation) if f.name.endswith("seconds")}
    frame = pd.DataFrame(rows, columns=[*(f.name for f in fields(Generation)), "run_id", "new_tokens"]).astype(numbers)
    decoding = frame["total_seconds"] - frame["first_token_seconds"]
    return frame.assign(decode_tokens_per_second=frame["batch_size"] * (frame["new_tokens"] - 1) / decoding)


def ratios(timed: pd.DataFrame, form: str, base: str | None) -> pd.Series:
    """Total seconds of a form's answers / those of another form to the same prompts in the same repetition.

    Returns:
        Indexed by run_id, repetition, prompt_tokens and batch_size; without the answers that only one form gave.
    """
    cell = ["run_id", "repetition", "prompt_tokens", "batch_size"]
    own, other = (timed[timed["form"] == name].set_index(cell)["total_seconds"] for name in (form, base))
    return (own / other).dropna()


def latency_ratios(timed: pd.DataFrame, form: str, base: str | None) -> list[float]:
    """`ratios`, the geometric mean over lengths and batches; one a repetition."""
    logs = np.log(ratios(timed, form, base))
    return list(np.exp(logs.groupby(["run_id", "repetition"], sort=False).mean()))


def latency_frame(group: Group) -> pd.DataFrame:
    """One row an arm, form, length of prompt and batch, over all repetitions and seeds.

    Columns: arm, form, prompt_tokens, batch_size, repetitions; first_token_seconds, total_seconds,
    decode_tokens_per_second (of the whole batch, after its first tokens) and ratio (total seconds / those of the form
    without the adapter; NaN: it is a base), each with _low and _high; requests_per_second and usd_per_million_tokens
    (generated), as of a machine that is busy with such requests all the time.
    """
    rows = []
    for arm, records in served_arms(group).items():
        timed, price = timed_answers(records), _price_usd_per_hour(records)
        requests = timed.groupby(["prompt_tokens", "batch_size"])
        for (name, form), ((prompt, batch), of_all) in product(forms_of(records).items(), requests):
            answers = of_all[of_all["form"] == name]
            if answers.empty:
                continue
            row: dict[str, Any] = {"arm": arm, "form": name, "prompt_tokens": prompt, "batch_size": batch}
            row["repetitions"] = len(answers)
            for column in ("first_token_seconds", "total_seconds", "decode_tokens_per_second"):
                row |= _columns(column, answers[column])
            row |= _columns("ratio", ratios(of_all, name, form.base))
            row["requests_per_second"] = row["batch_size"] / row["total_seconds"]
            tokens_per_second = row["requests_per_second"] * answers["new_tokens"].iloc[0]
            rows.append(row | {"usd_per_million_tokens": price / 3600 / tokens_per_second * 1e6})
    return pd.DataFrame(rows)


def _price_usd_per_hour(records: Sequence[Record]) -> float:
    """Of the machine, as it was stated when the runs were served, or when they were made; NaN without any."""
    prices = [result.price_usd_per_hour for result in results_of(records)]
    prices += [record.config.hardware.price_usd_per_hour for record in records]
    return next((float(price) for price in prices if price is not None), math.nan)


# --- Forms ---


@lru_cache(maxsize=32)
def forms_frame(group: Group) -> pd.DataFrame:
    """One row an arm and form.

    Columns: arm, form, is_what, evaluated (whether the run's scores are this form's); disk_bytes, weights_bytes,
    load_seconds, peak_memory_bytes (of loading and serving, the highest of the seeds); score; difference (from the
    evaluated form, paired by example) with low and high (95%), as_good (shown not to be worse), margin; made_of (the
    form before it on the way from training) and change (from that, as difference); logit_difference (from the
    evaluated form, the largest), equal_answers_share; latency_ratio (total seconds / the evaluated form's) with _low
    and _high; ship (the form to ship).
    """
    frames = [_arm_forms(group, arm, records) for arm, records in served_arms(group).items()]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _arm_forms(group: Group, arm: str, records: list[Record]) -> pd.DataFrame:
    compared = [entry for result in results_of(records) for entry in result.fidelity]
    evaluated, timed = compared[0].form if compared else None, timed_answers(records)
    rows = []
    for name, form in forms_of(records).items():
        times = [1.0] if name == evaluated else latency_ratios(timed, form.timed_as, evaluated)
        rows.append(
            {"arm": arm, "form": name, "is_what": form.is_what, "evaluated": name == evaluated,
             "disk_bytes": form.disk_bytes, "weights_bytes": form.weights_bytes}
            | _loading(results_of(records), name)
            | _change(group, records, name, evaluated)
            | _step(group, records, name, evaluated)
            | _fidelity([entry for entry in compared if entry.form == name])
            | _columns("latency_ratio", times)
        )  # fmt: skip
    frame = pd.DataFrame(rows).assign(ship=False)
    good = frame[frame["as_good"].eq(True) & frame["latency_ratio"].notna()].fillna({"logit_difference": 0.0})
    if len(good):
        frame.loc[good.sort_values(["latency_ratio", "logit_difference"], kind="stable").index[0], "ship"] = True
    return frame


def _loading(results: Sequence[ServeResult], form: str) -> dict[str, float]:
    seconds = [s for result in results for f in result.forms if f.form == form for s in f.load_seconds or ()]
    phases = (f"load {form}", f"serve {form}")
    peaks = [m.peak_bytes for result in results for m in result.memory if m.phase in phases and m.peak_bytes]
    return {"load_seconds": median(seconds)[0], "peak_memory_bytes": max(peaks, default=math.nan)}


def _fidelity(entries: Sequence[Fidelity]) -> dict[str, float]:
    """Over seeds: the largest logit difference, and the mean share of equal answers; a lost logit is infinitely off."""
    off = [entry.logits.largest for entry in entries if entry.logits]
    equal = [entry.equal_answers / entry.examples for entry in entries if entry.equal_answers is not None]
    return {
        "logit_difference": max((math.inf if one is None else one for one in off), default=math.nan),
        "equal_answers_share": float(np.mean(equal)) if equal else math.nan,
    }


def _step(group: Group, records: Sequence[Record], form: str, evaluated: str | None) -> dict[str, Any]:
    """The form that one is made of, and what this step changed; none of an untrained or the evaluated form."""
    forms, before = forms_of(records), _MADE_OF.sub("", form)
    if form == evaluated or forms[form].base is None:
        return {"made_of": None}
    before = before if before != form and before in forms else str(evaluated)
    change = _change(group, records, form, before)
    return {"made_of": before} | {name.replace("difference", "change"): change[name] for name in _DIFFERENCE}


def _change(group: Group, records: Sequence[Record], form: str, evaluated: str | None) -> dict[str, Any]:
    """The primary score of a form against the evaluated form's, on the examples that both answered."""
    primary = primary_measure(measure_tables(group))
    unknown: dict[str, Any] = dict.fromkeys(("score", *_DIFFERENCE), math.nan)
    unknown |= {"as_good": True if primary and form == evaluated else None, "margin": math.nan}
    if evaluated is None or primary is None:
        return unknown
    both = [
        {r.run_id: {a.example_id: a.scores.get(primary.name, math.nan)
                    for a in group.sweep.answer_rows.get(r.run_id, ()) if a.form == name} for r in records}
        for name in (form, evaluated)
    ]  # fmt: skip
    runs = [run for run in both[0] if both[0][run] and both[1][run]]  # an export that was judged may be of one seed
    sides = [pd.DataFrame([of[run] for run in runs], dtype=float) for of in both]
    shared = sides[0].columns.intersection(sides[1].columns)
    own, reference = (side[shared].to_numpy() if len(shared) else np.empty((0, 0)) for side in sides)
    if not np.isfinite([own, reference]).all(axis=(0, 1)).any():
        return unknown
    known = means([own, reference])
    change = known.difference(0, 1)
    margin = margin_of(primary, float(known.mean[1]))
    good = bool(form == evaluated or change.identical or change.within(margin)[0])
    return dict(zip(unknown, (float(known.mean[0]), change.mean, *change.interval(), good, margin), strict=True))


# --- Many adapters on one base ---


def adapters_frame(group: Group) -> pd.DataFrame:
    """One row an arm, way and number of adapters.

    Columns: arm, way (mixed, swapped, copies), adapters, tokens_per_second (generated, of one device; a share's speed
    is that of all shares in turn) with _low and _high; of the arm: load_seconds (from a file until it is the active
    adapter), activate_seconds, adapter_bytes, copy_bytes, held_bytes_per_adapter (the slope of the memory held over the
    number of adapters, by least squares).
    """
    rows = []
    for arm, records in served_arms(group).items():
        for result in results_of(records):
            many = result.adapters
            if many is None or not many.generations:
                continue
            held = {int(count): size for count, size in many.held_bytes.items() if size is not None}
            of_arm = {
                "arm": arm,
                "load_seconds": median(many.load_seconds)[0],
                "activate_seconds": median(many.activate_seconds)[0],
                "adapter_bytes": many.adapter_bytes,
                "copy_bytes": many.copy_bytes,
                "held_bytes_per_adapter": np.polyfit([*held], [*held.values()], 1)[0] if len(held) > 1 else math.nan,
            }
            answers = pd.DataFrame([asdict(answer) for answer in many.generations])
            speeds = answers["batch_size"] * int(result.settings["new_tokens"]) / answers["seconds"]
            for (way, count), values in speeds.groupby([answers["way"], answers["adapters"]], sort=False):
                rows.append(of_arm | {"way": way, "adapters": count} | _columns("tokens_per_second", values))
    return pd.DataFrame(rows)
