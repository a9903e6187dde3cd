"""The gate: may the candidate take the baseline's place? Non-inferiority within limits, by the paired engine.

Every limit ends in one of three ways: shown to be kept (one-sided test at 5%), shown to be broken (the same, adjusted
by Holm over all limits and arms, as any alarm stops a release), or not settled. A pass needs every limit shown to be
kept, so its tests need no adjustment (Berger 1982, intersection-union). docs/judge.md says what is paired and what
must be the same.

    >>> [(check.limit, check.verdict) for check in gate(load("results/last"), load("results/next"), limits_of([]))]
    [('quality', 'within'), ('regression', 'within'), ('speed', 'worse'), ('memory', 'within')]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import FiniteFloat
from pydantic.dataclasses import dataclass as checked_dataclass

from bench.fairness import disturbances, reasons_against
from bench.mistakes import ConfigurationError
from bench.record import Record
from bench.stats.compare import other_references
from bench.stats.frames import Group, Sweep, arm_names, groups, peak_memory_bytes
from bench.stats.limits import STRICT, Above0, from_words
from bench.stats.measures import Measure, means_of, measure_tables, primary_measure, suite_measure
from bench.stats.paired import ALPHA, FEWEST_EXAMPLES, Estimate, holm, means

DEFAULTS = {"quality": -0.01, "regression": -1.0, "speed": 0.9, "memory": 1.1}
_UNITS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {  # to the unit of the test, and back
    "quality": (float, float), "regression": (lambda points: points / 100, lambda share: share * 100),
    "speed": (math.log, math.exp),
}  # fmt: skip
SIDES = BASELINE, CANDIDATE = "baseline", "candidate"
_WORST = 5  # examples that are named
_REASONS = 2  # against a comparison, that are told
Verdict = Literal["within", "worse", "not settled", "not comparable", "not measured"]


@checked_dataclass(frozen=True, config=STRICT)
class Bounds:
    """The limits; None: not set."""

    quality: FiniteFloat | None = None  # least change of the first score, in its unit; where lower is better: of -score
    regression: FiniteFloat | None = None  # least change of the regression suite's mean, in points of 100
    speed: Above0 | None = None  # least training speed, as a share of the baseline's
    memory: Above0 | None = None  # largest peak memory of training, likewise


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
    """Those that `name=value` words set; raises `ConfigurationError` with every mistake."""
    return {name: bound for name, bound in asdict(from_words(Bounds, words)).items() if bound is not None}


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
    judged = list[tuple[Check, Estimate | None]]()
    for name, (old, new) in pairs.items():
        if new:
            arm = _Arm(_together((baseline, old), (candidate, new)), frozenset(allowed), asked=bool(limits))
        for limit, bound in (limits or DEFAULTS).items():
            check = Check(name, limit, bound, "not comparable")
            reason = f"the candidate has no such arm (it has {', '.join(news) or 'none'}); choose by arm="
            judged.append(arm.held(check) if new else (replace(check, reason=reason), None))
    tests = [(change, _UNITS[check.limit][0](check.bound)) for check, change in judged if change]
    words = iter(verdicts([change for change, _ in tests], [bound for _, bound in tests]))
    return [_told(check, change, next(words)) if change else check for check, change in judged]


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


class _UntestedError(Exception):
    """What keeps a limit from being tested: a verdict, and the reason."""


class _Arm:
    """Two arms to be compared. `asked`: the limits were named, so that each must be settled."""

    def __init__(self, group: Group, allowed: frozenset[str], asked: bool):
        self._group, self._allowed, self._asked = group, allowed, asked
        self._runs = [[r for r in group.records if r.method == side] for side in SIDES]
        partners = {record.seed: record for record in self._runs[0]}
        self._pairs = [(partners.get(new.seed, self._runs[0][0]), new) for new in self._runs[1]]
        self._same_run = all(_identity(old) == _identity(new) for old, new in self._pairs)

    def held(self, check: Check) -> tuple[Check, Estimate | None]:
        """A check with its verdict; or the test that its verdict follows from, and the doubt and examples beside it."""
        try:
            if check.limit == "memory":
                return self._memory(check), None
            check, change, same = self._speed(check) if check.limit == "speed" else self._scored(check)
        except _UntestedError as problem:
            verdict, reason = problem.args
            asked = verdict == "not measured" and self._asked
            return replace(check, verdict="not comparable" if asked else verdict, reason=reason), None
        if not same:
            return check, change
        zero, reason = _UNITS[check.limit][1](0.0), "the same run, or the same weights with the same answers"
        found = Check(check.arm, check.limit, check.bound, "within", zero, zero, zero, change.examples, reason=reason)
        return found, None

    def _refuse(self, *, trained: bool) -> None:
        """Raise the first reasons against a comparison."""
        reasons = [reason for pair in self._pairs for reason in reasons_against(*pair, trained=trained)]
        texts = [f"{r.text} (allow_different={r.name})" for r in reasons if r.name not in self._allowed]
        count = max(other_references(self._group, old.run_id, new.run_id) for old, new in self._pairs)
        texts += [f"{count} test examples have other reference answers"] if count and not trained else []
        first, more = list(dict.fromkeys(texts))[:_REASONS], len(set(texts)) - _REASONS
        if first:
            raise _UntestedError("not comparable", "; ".join([*first, *([f"and {more} more"] if more > 0 else [])]))

    def _scored(self, check: Check) -> tuple[Check, Estimate, bool]:
        tables = measure_tables(self._group)
        measure = primary_measure(tables) if check.limit == "quality" else suite_measure(tables)
        if measure is None:
            raise _UntestedError("not measured", "neither side has such a score")
        table = tables[measure]
        runs = [[record for record in side if table.has(record)] for side in self._runs]
        if not all(runs):
            raise _UntestedError("not measured", f"the {SIDES[bool(runs[0])]} has no {measure.name}")
        self._refuse(trained=False)
        known = means_of(table, runs)
        if isinstance(known, str):
            raise _UntestedError("not comparable", known)
        change = known.difference(1, 0) if measure.higher_is_better else known.difference(0, 1)
        same = change.identical and all(_weights(old) == _weights(new) for old, new in self._pairs)
        return replace(check, worst=_worst(self._group, measure)), change, self._same_run or same

    def _speed(self, check: Check) -> tuple[Check, Estimate, bool]:
        """By the steps that were timed in every run."""
        steps = self._group.sweep.steps
        steps = steps[steps["timed"].astype(bool) & (steps["seconds"] > 0) & (steps["tokens"] > 0)]
        rates = np.log(steps["tokens"].astype(float) / steps["seconds"].astype(float))
        by_step = steps.assign(rate=rates).pivot_table("rate", "step", "run_id")
        if not all(record.run_id in by_step for side in self._runs for record in side):
            raise _UntestedError("not measured", "a run has no timed step")
        self._refuse(trained=True)
        shared = by_step.dropna()
        if shared.empty:
            raise _UntestedError("not comparable", "no step was timed in every run")
        known = means([shared[[record.run_id for record in side]].to_numpy().T for side in self._runs])
        busy = [text for side in self._runs for r in side if (text := disturbances(r).get("train"))]
        doubt = f"in doubt, as the machine was shared: {busy[0]}" if busy else ""
        return replace(check, reason=doubt), known.difference(1, 0), self._same_run

    def _memory(self, check: Check) -> Check:
        peaks = [[p for r in side if r.train and (p := peak_memory_bytes(r.train))] for side in self._runs]
        if not all(peaks):
            raise _UntestedError("not measured", "no peak of the training phase")
        self._refuse(trained=True)
        share, reason = max(peaks[1]) / max(peaks[0]), "highest of the seeds; a count, not a test"
        return replace(check, verdict="within" if share <= check.bound else "worse", change=share, reason=reason)


def _identity(record: Record) -> tuple[str, str]:
    return record.run_id.partition(" ")[2], record.started_at


def _weights(record: Record) -> object:
    """What is equal only for the same weights over the same base; unequal to all where they are unknown."""
    known = record.train.weights if record.train else None
    return (sorted(known.values()), record.config.content.weights) if known else object()


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


def _told(check: Check, change: Estimate, verdict: Verdict) -> Check:
    """A check with the outcome of its test; its reason until here: why a broken limit may be the machine's fault."""
    (_, shown), reason, settle = _UNITS[check.limit], "", None
    if verdict == "worse" and check.reason:
        verdict, reason = "not settled", check.reason
    elif verdict == "not settled":
        settle = change.examples_to_pass(_UNITS[check.limit][0](check.bound))
        if settle is None:
            reason = "more examples would not settle it, as the seeds scatter too much; more seeds may"
    if change.examples < FEWEST_EXAMPLES:
        reason = f"fewer than {FEWEST_EXAMPLES} {'steps' if check.limit == 'speed' else 'examples'}"
    low, high = map(shown, change.interval(1 - 2 * ALPHA))
    worst = [] if verdict == "within" else check.worst
    return Check(check.arm, check.limit, check.bound, verdict, shown(change.mean), low, high, change.examples, settle,
                 reason, worst)  # fmt: skip
