"""The gate: may the candidate take the baseline's place? Non-inferiority within limits, by the paired engine.

Score and suite are paired by example, speed by optimizer step (as the logarithm of its tokens a second); peak memory
is a count of bytes and is compared as it is. Every limit ends in one of three ways: shown to be kept (one-sided test at
5%), shown to be broken (one-sided test at 5%, adjusted by Holm over all limits and arms, as any alarm stops a release),
or not settled. A pass needs every limit shown to be kept, so its tests need no adjustment (Berger 1982,
intersection-union). A run against itself is within every limit without a test.

How the candidate was trained is its own affair for score and suite: only the evaluation must be the same. Speed and
memory are compared between runs that trained on the same data on the same machine.

    >>> [(check.limit, check.verdict) for check in gate(load("results/last"), load("results/next"), limits_of([]))]
    [('quality', 'within'), ('regression', 'within'), ('speed', 'worse'), ('memory', 'within')]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd

from bench.config import suggest
from bench.fairness import disturbances, reasons_against
from bench.mistakes import ConfigurationError
from bench.record import Record
from bench.stats.compare import other_references
from bench.stats.frames import Group, Sweep, arm_names, groups, peak_memory_bytes
from bench.stats.measures import Measure, means_of, measure_tables, primary_measure, suite_measure
from bench.stats.paired import ALPHA, FEWEST_EXAMPLES, Estimate, Means, holm, means

DEFAULTS = {"quality": -0.01, "regression": -1.0, "speed": 0.9, "memory": 1.1}
MEANING = {
    "quality": "least change of the first score, in its unit; of one for which lower is better its rise counts as loss",
    "regression": "least change of the regression suite's mean, in points of 100",
    "speed": "least training speed, as a share of the baseline's",
    "memory": "largest peak memory of training, as a share of the baseline's",
}
SIDES = BASELINE, CANDIDATE = "baseline", "candidate"
_WORST = 5  # examples that are named
_REASONS = 2  # against a comparison, that are told
Verdict = Literal["within", "worse", "not settled", "not comparable", "not measured"]


@dataclass(frozen=True)
class Worse:
    """An example or item on which the candidate does worse."""

    name: str
    baseline: float
    candidate: float


@dataclass(frozen=True)
class Check:
    """One limit of one arm. Numbers are in the limit's unit: score, points, or a share of the baseline's.

    Attributes:
        change: of the candidate from the baseline, higher is better but for memory; `low` to `high`: its 90% interval,
            whose ends are the one-sided tests at 5%.
        examples: or steps, that were paired; `examples_to_settle`: that would settle it with 80% power, if the change
            is the one seen; None: more would not, or it is settled.
        worst: the examples on which the candidate lost most; empty unless the limit is broken or not settled.
    """

    arm: str
    limit: str
    bound: float
    verdict: Verdict
    change: float | None = None
    low: float | None = None
    high: float | None = None
    examples: int | None = None
    examples_to_settle: int | None = None
    reason: str = ""
    worst: list[Worse] = field(default_factory=list)


def limits_of(words: Sequence[str]) -> dict[str, float]:
    """Read `name=value` words; without any, the defaults.

    Raises:
        ConfigurationError: with every mistake.
    """
    found, problems = dict[str, float](), []
    for text in words:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in DEFAULTS:
            problems.append(f"{text}: the gate has no limit {name!r}{suggest(name, [*DEFAULTS])}")
        elif not math.isfinite(number) or (name in ("speed", "memory") and number <= 0):
            problems.append(f"{text}: expected a number{' above 0' if name in ('speed', 'memory') else ''}, such as "
                            f"{name}={DEFAULTS[name]:g} ({MEANING[name]})")  # fmt: skip
        else:
            found[name] = number
    if problems:
        raise ConfigurationError(problems)
    return found


def exit_code(checks: Sequence[Check]) -> int:
    """0: all within their limits; 1: one is broken; 2: not settled, or not comparable, or nothing was measured."""
    verdicts = {check.verdict for check in checks} - {"not measured"}
    return 1 if "worse" in verdicts else 0 if verdicts == {"within"} else 2


def gate(
    baseline: Sweep,
    candidate: Sweep,
    limits: Mapping[str, float],
    arms: Collection[str] = (),
    allowed: Collection[str] = (),
) -> list[Check]:
    """Hold the candidate's arms to limits on their change from the baseline's arms of the same name.

    One arm on either side: these two, whatever their names. Untrained arms and controls are left out unless named.

    Args:
        limits: by name; each must be settled. Empty: `DEFAULTS`, as far as both sides measured them.
        arms: names of arms; empty: all that were trained.
        allowed: requirements that the runs need not meet (`fairness.REQUIREMENTS`).

    Raises:
        ConfigurationError: the baseline has no such arm.
    """
    olds, news = _arms(baseline, arms), _arms(candidate, arms)
    if not olds:
        there = ", ".join(dict.fromkeys(arm_names(baseline.records).values())) or "no run"
        raise ConfigurationError([f"arm={','.join(arms)}: the baseline has {there}; name the arms to compare by arm="])
    pairs = {name: (old, news.get(name, [])) for name, old in olds.items()}
    if len(olds) == len(news) == 1:
        ((name, old), (other, new)) = (*olds.items(), *news.items())
        pairs = {name if name == other else f"{other} against {name}": (old, new)}
    bounds, judged = dict(limits) or DEFAULTS, list[_Judged]()
    for name, (old, new) in pairs.items():
        if new:
            judged += _Arm(name, _together((baseline, old), (candidate, new)), frozenset(allowed)).checks(bounds)
        else:
            reason = f"the candidate has no such arm (it has {', '.join(news) or 'none'}); choose by arm="
            judged += [
                (Check(name, limit, bound, "not comparable", reason=reason), None) for limit, bound in bounds.items()
            ]
    return _settled(judged, optional=not limits)


def _arms(sweep: Sweep, wanted: Collection[str]) -> dict[str, list[Record]]:
    """Arm -> its runs; led by model, task and suite where the sweep has several of these."""
    names = arm_names(sweep.records)
    several = len({(record.model, record.task, record.suite) for record in sweep.records}) > 1
    found: dict[str, list[Record]] = {}
    for record in sorted(sweep.records, key=lambda record: record.started_at):
        method, name = record.config.method, names[record.run_id]
        if name in wanted or not (wanted or method.control or method.trains == "nothing"):
            place = f"{record.model} / {record.task} / {record.suite} / " if several else ""
            found.setdefault(place + name, []).append(record)
    return found


def _together(*sides: tuple[Sweep, list[Record]]) -> Group:
    """Both arms in one group, under the names "baseline" and "candidate"; the same run may stand on both sides."""
    together, first = Sweep([folder for sweep, _ in sides for folder in sweep.folders]), sides[0][1][0]
    for side, (sweep, records) in zip(SIDES, sides, strict=True):
        for record in records:
            run = f"{side} {record.run_id}"
            named = replace(record, run_id=run, method=side, model=first.model, task=first.task, suite=first.suite)
            together.records.append(named)  # reasons tell where model, task or suite are not the same
            together.step_rows[run] = sweep.step_rows.get(record.run_id, [])
            together.sample_rows[run] = sweep.sample_rows.get(record.run_id, [])
            together.regression_rows[run] = sweep.regression_rows.get(record.run_id, [])
    return groups(together)[0]


@dataclass(frozen=True)
class _Tested:
    """A change with its error, in the unit of the test: `shown` makes that of the limit of it."""

    estimate: Estimate
    bound: float
    shown: Callable[[float], float] = float
    same_run: bool = False
    doubt: str = ""  # why a broken limit may be the machine's fault
    worst: Callable[[], list[Worse]] = list


_Judged = tuple[Check, _Tested | None]  # None: the check's verdict stands


class _Arm:
    """Two arms to be compared, and what keeps them from it."""

    def __init__(self, name: str, group: Group, allowed: frozenset[str]):
        self._name, self._group = name, group
        self._runs = [[r for r in group.records if r.method == side] for side in SIDES]
        partners = {record.seed: record for record in self._runs[0]}
        self._pairs = [(partners.get(new.seed, self._runs[0][0]), new) for new in self._runs[1]]
        self._allowed = allowed
        self._same_run = all(_identity(old) == _identity(new) for old, new in self._pairs)

    def checks(self, bounds: Mapping[str, float]) -> list[_Judged]:
        tables = measure_tables(self._group)
        made: dict[str, Callable[[float], _Tested | Check]] = {
            "quality": lambda bound: self._scored("quality", bound, primary_measure(tables), 1.0),
            "regression": lambda bound: self._scored("regression", bound, suite_measure(tables), 100.0),
            "speed": self._speed,
            "memory": self._memory,
        }
        found = [(limit, bound, made[limit](bound)) for limit, bound in bounds.items()]
        return [
            (one, None) if isinstance(one, Check) else (Check(self._name, limit, bound, "not settled"), one)
            for limit, bound, one in found
        ]

    def _refused(self, limit: str, bound: float, *, trained: bool) -> Check | None:
        """The first reasons against a comparison."""
        reasons = [reason for pair in self._pairs for reason in reasons_against(*pair, trained=trained)]
        texts = [f"{r.text} (allow_different={r.name})" for r in reasons if r.name not in self._allowed]
        count = max(other_references(self._group, old.run_id, new.run_id) for old, new in self._pairs)
        texts += [f"{count} test examples have other reference answers"] if count and not trained else []
        first, more = list(dict.fromkeys(texts))[:_REASONS], len(set(texts)) - _REASONS
        text = "; ".join([*first, *([f"and {more} more"] if more > 0 else [])])
        return Check(self._name, limit, bound, "not comparable", reason=text) if text else None

    def _scored(self, limit: str, bound: float, measure: Measure | None, unit: float) -> _Tested | Check:
        if measure is None:
            return Check(self._name, limit, bound, "not measured", reason="neither side has such a score")
        table = measure_tables(self._group)[measure]
        runs = [[record for record in side if table.has(record)] for side in self._runs]
        if not all(runs):
            missing = SIDES[0] if not runs[0] else SIDES[1]
            return Check(self._name, limit, bound, "not measured", reason=f"the {missing} has no {measure.name}")
        if refused := self._refused(limit, bound, trained=False):
            return refused
        known = means_of(table, runs)
        if isinstance(known, str):
            return Check(self._name, limit, bound, "not comparable", reason=known)
        change = known.difference(1, 0) if measure.higher_is_better else known.difference(0, 1)
        same = change.identical and all(_weights(old) == _weights(new) for old, new in self._pairs)
        worst = partial(_worst, self._group, measure)
        return _Tested(change, bound / unit, lambda value: value * unit, self._same_run or same, worst=worst)

    def _speed(self, bound: float) -> _Tested | Check:
        steps = self._group.sweep.steps
        steps = steps[steps["timed"].astype(bool) & (steps["seconds"] > 0) & (steps["tokens"] > 0)]
        rates = np.log(steps["tokens"].astype(float) / steps["seconds"].astype(float))
        by_step = steps.assign(rate=rates).pivot_table("rate", "step", "run_id")
        if not all(record.run_id in by_step for side in self._runs for record in side):
            return Check(self._name, "speed", bound, "not measured", reason="a run has no timed step")
        if refused := self._refused("speed", bound, trained=True):
            return refused
        known = _means(by_step, self._runs)
        if isinstance(known, str):
            return Check(self._name, "speed", bound, "not comparable", reason=known)
        busy = [text for side in self._runs for r in side if (text := disturbances(r).get("train"))]
        doubt = f"in doubt, as the machine was shared: {busy[0]}" if busy else ""
        return _Tested(known.difference(1, 0), math.log(bound), math.exp, self._same_run, doubt)

    def _memory(self, bound: float) -> Check:
        peaks = [[p for r in side if r.train and (p := peak_memory_bytes(r.train))] for side in self._runs]
        if not all(peaks):
            return Check(self._name, "memory", bound, "not measured", reason="no peak of the training phase")
        if refused := self._refused("memory", bound, trained=True):
            return refused
        share = max(peaks[1]) / max(peaks[0])
        verdict: Verdict = "within" if share <= bound else "worse"
        return Check(self._name, "memory", bound, verdict, share, reason="highest of the seeds; a count, not a test")


def _identity(record: Record) -> tuple[str, str]:
    return record.run_id.partition(" ")[2], record.started_at


def _weights(record: Record) -> object:
    """What is equal only for the same weights over the same base; unequal to all where they are unknown."""
    known = record.train.weights if record.train else None
    return (sorted(known.values()), record.config.content.weights) if known else object()


def _means(by_step: pd.DataFrame, runs: Sequence[Sequence[Record]]) -> Means | str:
    """Of the steps that were timed in every run."""
    shared = by_step.dropna()
    if shared.empty:
        return "no step was timed in every run"
    return means([shared[[record.run_id for record in side]].to_numpy().T for side in runs])


def _worst(group: Group, measure: Measure) -> list[Worse]:
    """Where the candidate lost most; means over seeds."""
    samples, items = group.samples, group.regression
    rows = samples.assign(name=samples["example_id"], value=samples.get(f"score_{measure.name}"))
    if measure.kind == "regression":
        items = items if (items["task"] != measure.name).all() else items[items["task"] == measure.name]
        rows = items.assign(name=items["task"] + " / " + items["item_id"].astype(str), value=items["score"])
    table = rows.astype({"value": float}).pivot_table("value", "name", "method").dropna()
    table["lost"] = (table[BASELINE] - table[CANDIDATE]) * measure.sign
    lost = table[table["lost"] > 0].sort_values("lost", ascending=False, kind="stable").head(_WORST)
    return [Worse(str(name), row[BASELINE], row[CANDIDATE]) for name, row in lost.iterrows()]


def verdicts(estimates: Sequence[Estimate], bounds: Sequence[float]) -> list[Verdict]:
    """within, worse or not settled, of changes for which higher is better; Holm over those that are worse."""
    broken = holm([change.p_beyond(bound, -1) for change, bound in zip(estimates, bounds, strict=True)])
    return [
        "not settled" if change.examples < FEWEST_EXAMPLES
        else "worse" if p < ALPHA
        else "within" if change.p_beyond(bound, 1) < ALPHA
        else "not settled"
        for change, bound, p in zip(estimates, bounds, broken, strict=True)
    ]  # fmt: skip


def _settled(judged: Sequence[_Judged], *, optional: bool) -> list[Check]:
    """The verdicts of all tests, together. A limit that was asked for by name and not measured is not settled."""
    tests = [tested for _, tested in judged if tested is not None and not tested.same_run]
    words = iter(verdicts([tested.estimate for tested in tests], [tested.bound for tested in tests]))
    checks = []
    for check, tested in judged:
        if tested is None:
            asked = check.verdict == "not measured" and not optional
            checks.append(replace(check, verdict="not comparable") if asked else check)
        elif tested.same_run:
            zero, reason = tested.shown(0.0), "the same run, or the same weights with the same answers"
            counted = replace(check, verdict="within", examples=tested.estimate.examples, reason=reason)
            checks.append(replace(counted, change=zero, low=zero, high=zero))
        else:
            checks.append(_told(check, tested, next(words)))
    return checks


def _told(check: Check, tested: _Tested, verdict: Verdict) -> Check:
    """A check with the outcome of its test."""
    change, reason = tested.estimate, ""
    if verdict == "worse" and tested.doubt:
        verdict, reason = "not settled", tested.doubt
    few = change.examples < FEWEST_EXAMPLES
    if few:
        reason = f"fewer than {FEWEST_EXAMPLES} {'steps' if check.limit == 'speed' else 'examples'}"
    low, high = (tested.shown(end) for end in change.interval(1 - 2 * ALPHA))
    settle = change.examples_to_pass(tested.bound) if verdict == "not settled" and not tested.doubt else None
    if verdict == "not settled" and not reason and settle is None:
        reason = "more examples would not settle it, as the seeds scatter too much; more seeds may"
    return replace(
        check,
        verdict=verdict,
        change=tested.shown(change.mean),
        low=low,
        high=high,
        examples=change.examples,
        examples_to_settle=settle,
        reason=reason,
        worst=tested.worst() if verdict != "within" else [],
    )
