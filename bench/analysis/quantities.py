"""The quantities that public claims are about, measured of an arm or of two arms set against each other.

Counts and bytes of tensors are exact. Other numbers of a run (`run_quantities`) have an interval when there are
several seeds. Speeds have one over the timed steps, scores over the test examples, both over the seeds too.

    >>> measure(check, chosen, evidence)
    Measured(value=0.194, interval=(0.17, 0.22), inner=(0.175, 0.215), basis='17 steps, 1 seed', ...)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from bench.analysis import stats
from bench.analysis.claim_arms import Chosen, NotMeasuredError, described, matching
from bench.analysis.findings import primary_measure
from bench.analysis.load import speed_doubts
from bench.analysis.measured import Evidence, Measured, from_paired, of_difference, reformed
from bench.analysis.measures import OVERALL, Measure, arm_estimate, paired_difference
from bench.analysis.rate_sweeps import best_cell, tried
from bench.analysis.run_quantities import RUN_QUANTITIES, trained
from bench.analysis.serving_quantities import SERVING_QUANTITIES, measure_serving
from bench.record import Record
from bench.stats.claim import Arm, Check, Form

Floats = NDArray[np.float64]
INSTRUCTION_TASKS = ("instructions", "ifeval")
ONE_RUN_DOUBT = 0.10  # a convention: how far another run's memory or cost may lie from the one that was measured
SPIKE_FACTOR, SPIKE_WINDOW = 3.0, 10
UNMEASURED = {  # no record holds these yet
    "seconds_to_target_loss_at_equal_memory": "no run was fitted to the same memory as the others",
}
PAIRED_BY_EXAMPLE = ("score", "test_loss", "regression_drop", "instructions_drop")


def measure(check: Check, chosen: Chosen, evidence: Evidence) -> Measured:
    """The check's quantity of the arm, or of the two arms in the check's form.

    Raises:
        NotMeasuredError: when the records do not hold it.
    """
    if check.quantity in RUN_QUANTITIES:
        return _of_runs(check, chosen)
    if check.quantity in SERVING_QUANTITIES:
        return measure_serving(check, chosen)
    if check.quantity in ("tokens_per_second", "step_seconds"):
        return _of_timed_steps(check, chosen, evidence)
    if check.quantity == "gradient_spike_share":
        return _of_spikes(check, chosen, evidence)
    if check.quantity in PAIRED_BY_EXAMPLE:
        return _of_examples(check, chosen, evidence)
    raise NotMeasuredError(UNMEASURED[check.quantity])


def best_rates(check: Check, evidence: Evidence) -> Measured:
    """The best learning rate of an arm, or the ratio of two; the interval is what the rates tried leave open.

    Raises:
        NotMeasuredError: when fewer than two rates were tried, or searches of several settings.
    """
    best, low, high, count = _best_rate(check.of, evidence) if check.of else (np.nan, np.nan, np.nan, 0)
    basis = f"{count} rates tried"
    if check.against is not None:
        other, other_low, other_high, other_count = _best_rate(check.against, evidence)
        best, low, high = best / other, low / other_high, high / other_low if other_low else np.inf
        basis = f"{count} and {other_count} rates tried"
    return Measured(best, (low, high), (low, high), basis)


def _best_rate(arm: Arm, evidence: Evidence) -> tuple[float, float, float, int]:
    searches = tried(matching(arm, evidence.arms), evidence.tunings)
    if len(searches) != 1:
        found = "no search" if not searches else f"{len(searches)} searches (of several settings)"
        raise NotMeasuredError(f"{found} of the learning rate of {described(arm)}")
    return *best_cell(searches[0]), len(searches[0])


def _of_runs(check: Check, chosen: Chosen) -> Measured:
    """One number a run; over seeds the mean with Student's t."""
    quantity = RUN_QUANTITIES[check.quantity]
    if not quantity.exact:
        _same_micro_batch(chosen)
    left, right = (np.array([quantity.of(run) for run in runs]) for runs in (chosen.left, chosen.right))
    values = _formed(check.form, left, right)
    value, seeds = float(values.mean()), len(values)
    if quantity.exact and np.ptp(values) == 0:
        return Measured(value, None, None, "exact", exact=True)
    if seeds == 1:
        ends = [float(_formed(check.form, left * (1 + sign * ONE_RUN_DOUBT), right)[0]) for sign in (-1, 1)]
        return Measured(value, None, None, "one seed, no interval", doubt=(min(ends), max(ends)))
    error = float(values.std(ddof=1)) / np.sqrt(seeds)
    halves = [float(scipy_stats.t.ppf(level, seeds - 1)) * error for level in (0.975, 0.95)]
    intervals = [(value - half, value + half) for half in halves]
    return Measured(value, intervals[0], intervals[1], f"{seeds} seeds")


def _formed(form: Form, left: Floats, right: Floats) -> Floats:
    if form == "value":
        return left
    if form == "difference":
        return left - right
    if (right == 0).any():
        raise NotMeasuredError("the quantity of the second arm is 0: there is no ratio to it")
    ratio = left / right
    return {"ratio": ratio, "reduction": 1 - ratio, "relative_difference": ratio - 1}[form]


def _same_micro_batch(chosen: Chosen) -> None:
    sizes = {_micro_batch(run) for run in [*chosen.left, *chosen.right]}
    if len(sizes) > 1:
        raise NotMeasuredError(f"the micro-batches differ ({', '.join(map(str, sorted(sizes, key=str)))})")


def _micro_batch(run: Record) -> int | str | None:
    """As it was trained; `auto` comes to another number by method."""
    trained = run.train.micro_batch if run.train else None
    return trained or run.config.train.micro_batch


def _of_timed_steps(check: Check, chosen: Chosen, evidence: Evidence) -> Measured:
    """Speeds as sums over the timed steps that all runs have; two arms took the same tokens at the same step."""
    _same_micro_batch(chosen)
    pairs = zip(chosen.left, chosen.right or chosen.left, strict=True)
    if doubts := dict.fromkeys(text for left, right in pairs for text in speed_doubts(left, right)):
        raise NotMeasuredError("; ".join(doubts))
    runs = [*chosen.left, *chosen.right]
    timed = {run.run_id: {s.step: s for s in evidence.steps.get(run.run_id, ()) if s.timed} for run in runs}
    shared = sorted(set.intersection(*(set(steps) for steps in timed.values())))
    if not shared:
        raise NotMeasuredError("no timed steps")

    def matrix(of: Sequence[Record], name: str) -> Floats:
        return np.array([[getattr(timed[run.run_id][step], name) for step in shared] for run in of], dtype=float)

    seconds, per_second = matrix(chosen.left, "seconds"), check.quantity == "tokens_per_second"
    if not chosen.right:
        if not per_second:
            return from_paired(stats.paired(seconds, rng=evidence.resampler), "steps")
        tokens = matrix(chosen.left, "tokens")
        return from_paired(stats.paired(tokens / seconds, weights=seconds, rng=evidence.resampler), "steps")
    above, below = seconds, matrix(chosen.right, "seconds")
    if per_second:
        above, below = below, above
    ratio = from_paired(stats.paired(above / below, weights=below, rng=evidence.resampler), "steps")
    right = below.mean() if not per_second else matrix(chosen.right, "tokens").sum() / above.sum()
    return reformed(ratio, check.form, float(right))


def _of_spikes(check: Check, chosen: Chosen, evidence: Evidence) -> Measured:
    """Share of steps whose gradient norm is above `SPIKE_FACTOR` times the median of the `SPIKE_WINDOW` before."""
    rows = [[_spikes(run, evidence) for run in runs] for runs in (chosen.left, chosen.right)]
    if len({len(row) for side in rows for row in side}) > 1:
        raise NotMeasuredError("the runs' steps are not equally many")
    sides = [np.array(side, dtype=float) for side in rows]
    if not chosen.right:
        return from_paired(stats.paired(sides[0], rng=evidence.resampler), "steps")
    result = stats.paired(sides[0] - sides[1], rng=evidence.resampler, right_or_wrong=True)
    return of_difference(from_paired(result, "steps"), check.form, float(sides[1].mean()))


def _spikes(run: Record, evidence: Evidence) -> list[bool]:
    trained(run)
    norms = [step.gradient_norm for step in evidence.steps.get(run.run_id, ())]
    if len(norms) <= SPIKE_WINDOW or all(norm is None for norm in norms):
        raise NotMeasuredError(f"{run.method} has no gradient norms of more than {SPIKE_WINDOW} steps")
    known = np.array([np.inf if norm is None else norm for norm in norms])  # null: not finite
    before = np.lib.stride_tricks.sliding_window_view(known[:-1], SPIKE_WINDOW)
    return list(np.isinf(known[SPIKE_WINDOW:]) | (known[SPIKE_WINDOW:] > SPIKE_FACTOR * np.median(before, axis=1)))


def _of_examples(check: Check, chosen: Chosen, evidence: Evidence) -> Measured:
    """Paired by test example or item of the suite. A drop counts what was lost."""
    measure_of = _measure_of(check, evidence)
    table, unit = evidence.tables[measure_of], "items" if measure_of.kind == "regression" else "examples"
    if not chosen.right:
        own = arm_estimate(table, [run.run_id for run in chosen.left], evidence.resampler)
        if own is None:
            raise NotMeasuredError(f"{chosen.names[0]} has no values of {measure_of.name}")
        return from_paired(own, unit)
    difference = paired_difference(table, chosen.pairs, evidence.resampler)
    baseline = arm_estimate(table, [run.run_id for run in chosen.right], evidence.resampler)
    if isinstance(difference, str) or baseline is None:
        raise NotMeasuredError(str(difference))
    sign = -1.0 if check.quantity.endswith("_drop") else 1.0
    return of_difference(from_paired(difference, unit).affine(sign, 0.0), check.form, baseline.mean)


def _measure_of(check: Check, evidence: Evidence) -> Measure:
    tables = evidence.tables
    primary = primary_measure(tables)
    wanted: dict[str, tuple[str, ...]] = {
        "score": (check.metric or (primary.name if primary else ""),),
        "test_loss": ("test",),
        "regression_drop": (OVERALL,),
        "instructions_drop": INSTRUCTION_TASKS,
    }
    kind = {"score": "score", "test_loss": "loss"}.get(check.quantity, "regression")
    found = [m for m in tables if m.kind == kind and m.name in wanted[check.quantity]]
    if not found:
        names = " or ".join(wanted[check.quantity])
        raise NotMeasuredError(f"the sweep measured no {kind} {names}".rstrip())
    return found[0]
