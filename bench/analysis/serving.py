"""What serving a run's result costs, by form: medians with exact intervals, what merging changed, which form to ship.

The interval of a median needs no assumption about the distribution: it reaches from the k-th smallest to the k-th
largest value, k as large as leaves a binomial chance of at least 95% that the median lies between (Conover 1999, 3.2).
Fewer than six values never reach 95%: then it is the whole range, and `covers` says what that is worth.

    >>> served = served_arm(records)
    >>> served.latencies[0].total_seconds.value
    0.41
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from scipy import stats as scipy_stats

from bench.record import Adapters, Generation, PhaseMemory, Record, ServedForm, ServeResult, Way

LEVEL = 0.95
Pair = tuple[str, int]  # run_id, round: what was measured by one process


@dataclass(frozen=True)
class Median:
    """A median of repetitions with its interval."""

    value: float
    low: float
    high: float
    covers: float  # the interval's chance of holding the true median
    count: int


@dataclass(frozen=True)
class Latency:
    """One form at one length of prompt and one batch, over all repetitions, rounds and seeds."""

    form: str
    prompt_tokens: int
    batch_size: int
    first_token_seconds: Median
    total_seconds: Median
    decode_tokens_per_second: Median  # of the whole batch, after its first tokens
    rounds_total_seconds: list[float]  # the median of each round, to see how far two measurements lie apart
    ratio: Median | None  # total seconds / those of `ServedForm.base` in the same repetition; None: it is a base


@dataclass(frozen=True)
class Cost:
    """What one machine answers with a form, requests of one kind one batch after the other."""

    requests_per_second: float
    tokens_per_second: float  # generated
    usd_per_million_tokens: float | None  # generated; None: the machine has no price


def median(values: Iterable[float], level: float = LEVEL) -> Median:
    """The median and its distribution-free interval.

    Raises:
        ValueError: no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    count = len(ordered)
    k = next((k for k in range(count // 2, 0, -1) if _coverage(k, count) >= level), 1)
    value = float(np.median(ordered))
    if count == 1:
        return Median(value, value, value, 0.0, 1)
    return Median(value, ordered[k - 1], ordered[-k], _coverage(k, count), count)


def _coverage(k: int, count: int) -> float:
    """The chance that the median lies between the k-th smallest and the k-th largest of `count` values."""
    return float(1 - 2 * scipy_stats.binom.cdf(k - 1, count, 0.5))


def latencies(records: Sequence[Record]) -> list[Latency]:
    """Every form, length of prompt and batch of one arm's served runs, in the order they were listed in."""
    found = [(record.run_id, g) for record in records if record.serve for g in record.serve.generations]
    totals = {_key(run, g): g.total_seconds for run, g in found}
    bases = {form.form: form.base for record in records if record.serve for form in record.serve.forms}
    new_tokens = next((int(r.serve.settings["new_tokens"]) for r in records if r.serve), 0)
    order = list(bases)
    rows = sorted(found, key=lambda entry: (order.index(entry[1].form), *_cell(entry[1])[1:]))
    result = []
    for (form, prompt, size), members in groupby(rows, key=lambda entry: _cell(entry[1])):
        group = list(members)
        generations = [g for _, g in group]
        rounds = sorted({g.round for g in generations})
        ratios = _ratios(group, bases[form], totals)
        result.append(
            Latency(
                form=form,
                prompt_tokens=prompt,
                batch_size=size,
                first_token_seconds=median(g.first_token_seconds for g in generations),
                total_seconds=median(g.total_seconds for g in generations),
                decode_tokens_per_second=median(_decoding(g, new_tokens) for g in generations),
                rounds_total_seconds=[
                    float(np.median([g.total_seconds for g in generations if g.round == number])) for number in rounds
                ],
                ratio=median(ratios) if ratios else None,
            )
        )
    return result


def _cell(generation: Generation) -> tuple[str, int, int]:
    return generation.form, generation.prompt_tokens, generation.batch_size


def _key(run: str, g: Generation) -> tuple[str, str, int, int, int, int]:
    return run, g.form, g.prompt_tokens, g.batch_size, g.round, g.repetition


def _decoding(generation: Generation, new_tokens: int) -> float:
    return generation.batch_size * (new_tokens - 1) / (generation.total_seconds - generation.first_token_seconds)


def _ratios(
    group: Sequence[tuple[str, Generation]], base: str | None, totals: dict[tuple[str, str, int, int, int, int], float]
) -> list[float]:
    if base is None:
        return []
    pairs = [(g.total_seconds, totals.get((run, base, *_key(run, g)[2:]))) for run, g in group]
    return [own / other for own, other in pairs if other]


def mean_ratios(records: Sequence[Record], form: str, base: str) -> list[float]:
    """One value a repetition: total seconds of a form / those of another, the geometric mean over lengths and batches.

    Paired within the repetition, so that a slow minute of the machine falls on both.
    """
    by_repetition: dict[tuple[str, int, int], list[float]] = {}
    for record in records:
        generations = record.serve.generations if record.serve else []
        totals = {_key(record.run_id, g): g.total_seconds for g in generations}
        for run, g in ((record.run_id, g) for g in generations if g.form == form):
            other = totals.get((run, base, *_key(run, g)[2:]))
            if other:
                by_repetition.setdefault((run, g.round, g.repetition), []).append(math.log(g.total_seconds / other))
    return [math.exp(sum(logs) / len(logs)) for logs in by_repetition.values()]


def cost(latency: Latency, new_tokens: int, price_usd_per_hour: float | None) -> Cost:
    """From the median latency, the machine busy with such requests all the time."""
    seconds = latency.total_seconds.value
    tokens = latency.batch_size * new_tokens
    usd = None if price_usd_per_hour is None else price_usd_per_hour / 3600 * seconds / tokens * 1e6
    return Cost(latency.batch_size / seconds, tokens / seconds, usd)


def price_usd_per_hour(records: Sequence[Record]) -> float | None:
    """Of the machine, as it was stated when the runs were served, or when they were made."""
    prices = [record.serve.price_usd_per_hour for record in records if record.serve]
    prices += [record.config.hardware.price_usd_per_hour for record in records]
    return next((float(price) for price in prices if price is not None), None)


def served_forms(records: Sequence[Record]) -> dict[str, ServedForm]:
    """By name, those of the first served run."""
    first = next((record.serve for record in records if record.serve), None)
    return {form.form: form for form in first.forms} if first else {}


def load_seconds(records: Sequence[Record], form: str) -> list[float]:
    """Every time that a form was loaded."""
    results: list[ServeResult] = [record.serve for record in records if record.serve]
    return [s for result in results for f in result.forms if f.form == form for s in f.load_seconds or ()]


def peak(records: Sequence[Record], phase: str) -> PhaseMemory | None:
    """The highest of the seeds."""
    entries = [m for record in records if record.serve for m in record.serve.memory if m.phase == phase]
    return max((m for m in entries if m.peak_bytes is not None), key=lambda m: m.peak_bytes or 0, default=None)


def held_bytes_per_adapter(many: Adapters) -> float | None:
    """The slope of the memory held over the number of adapters (least squares); None below two known numbers."""
    known = [(int(count), held) for count, held in many.held_bytes.items() if held is not None]
    if len(known) < 2:
        return None
    counts, held = zip(*known, strict=True)
    return float(np.polyfit(counts, held, 1)[0])


def adapter_tokens_per_second(many: Adapters, new_tokens: int) -> dict[Way, dict[int, Median]]:
    """Generated tokens/s of one device by way and number of adapters: a share's speed is that of all shares in turn."""
    found: dict[Way, dict[int, list[float]]] = {}
    for g in many.generations:
        found.setdefault(g.way, {}).setdefault(g.adapters, []).append(g.batch_size * new_tokens / g.seconds)
    return {way: {count: median(values) for count, values in by_count.items()} for way, by_count in found.items()}
