"""Learning curves: when each run reached a target loss; what was forgotten at equal learning.

Between two held-out points the loss is taken to be linear in the tokens trained on; time is that of the optimizer steps
where all are known. Nothing is read outside of the points. Only runs that may be compared share a target (given, or the
highest final loss among them) and a common end (the fewest tokens and the shortest time among them).

A run's `Path` leads through learning (how far its held-out loss fell below the base's) and forgetting, at points along
training. Two methods are compared over the range of learning that all their runs reached by training, from the highest
first point to the lowest best one: a method that learned less has forgotten less for free. A point that had learned
less than one before it is left out. The interval is that of `stats.paired` over seeds and items.

    >>> reach_frame(group)[["arm", "seed", "status", "tokens", "seconds", "loss_at_equal_tokens"]]
    >>> equal_learning(group)[["arm", "baseline", "measure", "difference", "low", "high", "verdict"]]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from bench.fairness import reasons_against
from bench.record import HELDOUT, KL_METRIC, TASK_KL, PointItem, Record, Step, TrainResult
from bench.stats.compare import comparable, margin_of, match, wanted_pairs
from bench.stats.frames import Group
from bench.stats.measures import SUITE_MEAN, Measure
from bench.stats.paired import Estimate, Floats, Means, SeedPart, holm, means, verdict

_COLUMNS = ["arm", "seed", "run_id", "set", "target", "status", "tokens", "seconds", "energy_wh", "final_loss",
            "loss_at_equal_tokens", "loss_at_equal_seconds", "equal_tokens", "equal_seconds"]  # fmt: skip
Runs = dict[str, dict[int, tuple[Record, "Curve"]]]  # arm -> seed -> its run


@dataclass(frozen=True)
class Curve:
    """One run; every array rises in tokens.

    Attributes:
        tokens, loss: trained on, and held-out (nats a token) at the held-out points, shape (points,).
        clock: tokens and training seconds at the places where the time is known, shape (2, places).
        energy: training seconds and watt-hours, shape (2, places); NaN without a counter. Of a counter that was read
            at the end alone the power is taken to be constant.
    """

    tokens: Floats
    loss: Floats
    clock: Floats
    energy: Floats

    def loss_at(self, tokens: float) -> float:
        """NaN outside of the points."""
        return _read(tokens, self.tokens, self.loss)

    def seconds_at(self, tokens: float) -> float:
        """Training seconds; NaN where unknown."""
        return _read(tokens, *self.clock)

    def energy_at(self, seconds: float) -> float:
        """Watt-hours until then; NaN where unknown."""
        return _read(seconds, *self.energy)

    def reach(self, target: float) -> tuple[str, float]:
        """When the loss was first at or below a target: (reached, at start or never; tokens, NaN for never)."""
        below = np.flatnonzero(self.loss <= target)
        if not len(below):
            return "never", math.nan
        place = int(below[0])
        if place == 0:
            return "at start", float(self.tokens[0])
        before = float(self.loss[place - 1])
        share = (before - target) / (before - float(self.loss[place]))
        return "reached", float(self.tokens[place - 1] + share * (self.tokens[place] - self.tokens[place - 1]))


def _read(at: float, places: Floats, values: Floats) -> float:
    """Linear between the places; NaN outside of them."""
    return float(np.interp(at, places, values, math.nan, math.nan))


def curve_of(train: TrainResult, steps: Sequence[Step]) -> Curve | None:
    """The run's curve; None without any held-out loss.

    Args:
        steps: of the run; its time is read from them when they are complete.
    """
    points = sorted(train.heldout, key=lambda point: point.step)
    if not points:
        return None
    if steps and len(steps) == train.steps:
        ordered = sorted(steps, key=lambda step: step.step)
        rows = [[step.tokens for step in ordered], [step.elapsed_seconds for step in ordered]]
        clock = np.insert(np.array(rows, dtype=float), 0, 0.0, axis=1)
        clock[0] = clock[0].cumsum()
    else:
        places = [(0.0, 0.0), *((p.train_tokens, p.train_seconds) for p in points if p.train_tokens > 0)]
        clock = np.array(places, dtype=float).T
    readings = [(p.train_seconds, p.energy_wh) for p in points if p.step > 0 and p.energy_wh is not None]
    if len(readings) < sum(p.step > 0 for p in points):
        readings = [] if train.energy_wh is None else [(train.train_seconds, train.energy_wh)]
    return Curve(
        tokens=np.array([point.train_tokens for point in points], dtype=float),
        loss=np.array([point.loss for point in points], dtype=float),
        clock=clock,
        energy=np.array([(0.0, 0.0), *readings] if readings else [(0.0, math.nan)]).T,
    )


def _curves(group: Group) -> Runs:
    """Every trained run but controls with its curve; of two runs of a seed the later one."""
    runs: Runs = {arm: {} for arm in group.arms["arm"]}
    for record in sorted(group.records, key=lambda record: record.started_at):
        curve = curve_of(record.train, group.sweep.step_rows.get(record.run_id, ())) if record.train else None
        if curve and not record.config.method.control:
            runs[group.arm_of[record.run_id]][record.seed] = record, curve
    return runs


def reach_frame(group: Group, target: float | None = None) -> pd.DataFrame:
    """One row a trained run but controls, those together that may be compared (`set` numbers these sets).

    Args:
        target: held-out loss, nats a token; None: the group's, else each set's default.

    Columns:
        arm, seed, run_id, set, target, status (`Curve.reach`), tokens, seconds, energy_wh (until the target),
        final_loss, loss_at_equal_tokens, loss_at_equal_seconds (at equal_tokens, equal_seconds).
        Losses in nats a token; NaN where unknown.
    """
    target = group.target_loss if target is None else target
    runs = _curves(group)

    def fair(arm: str, other: str) -> bool:
        """By a seed that both have."""
        pairs = [(runs[arm][seed][0], runs[other][seed][0]) for seed in runs[arm].keys() & runs[other].keys()]
        return any({reason.name for reason in reasons_against(*pair)} <= group.allowed for pair in pairs)

    rows: list[tuple[Any, ...]] = []
    left, place = [arm for arm, of_seed in runs.items() if of_seed], 0
    while left:
        members = comparable(left, fair)
        found = [(arm, seed, *runs[arm][seed]) for arm in members for seed in sorted(runs[arm])]
        goal = max(float(curve.loss[-1]) for *_, curve in found) if target is None else target
        tokens_end = min(float(curve.tokens[-1]) for *_, curve in found)
        seconds_end = min(float(curve.clock[1, -1]) for *_, curve in found)
        for arm, seed, record, curve in found:
            status, tokens = curve.reach(goal)
            seconds = curve.seconds_at(tokens)
            rows.append(
                (arm, seed, record.run_id, place, goal, status, tokens, seconds, curve.energy_at(seconds),
                 float(curve.loss[-1]), curve.loss_at(tokens_end),
                 curve.loss_at(_read(seconds_end, curve.clock[1], curve.clock[0])), tokens_end, seconds_end)
            )  # fmt: skip
        left, place = [arm for arm in left if arm not in members], place + 1
    return pd.DataFrame(rows, columns=_COLUMNS)


# --- Forgetting at equal learning ---

SUITE, ON_TASK = "suite's mean", "KL, the task's prompts"
FORGETTING = (SUITE, "KL, general text", ON_TASK)  # what is forgotten
NO_OVERLAP = "no overlap"
_WORDS = {"better": "forgets less", "worse": "forgets more"}


@dataclass(frozen=True, eq=False)
class Path:
    """One run at points along training, in their order; the first is the untouched base.

    Attributes:
        steps, learned: optimizer steps done, and nats a token below the base's held-out loss, shape (points,).
        forgotten: by item, higher is worse: shape (points, items).
    """

    steps: Floats
    learned: Floats
    forgotten: Floats

    @property
    def rising(self) -> list[int]:
        """The trained points that had learned more than all trained points before them."""
        before = np.maximum.accumulate(np.insert(self.learned[1:], 0, -np.inf))[:-1]
        return [int(place) + 1 for place in np.flatnonzero(self.learned[1:] > before)]

    def between(self, low: float, high: float) -> Floats:
        """Each item's forgetting, averaged over a range of learning within that of the rising points."""
        learned = self.learned[self.rising]
        places = np.array([low, *learned[(learned > low) & (learned < high)], high])
        shares = np.stack([np.interp(places, learned, one) for one in np.eye(len(learned))], axis=1)
        weights = np.trapezoid(shares, places, axis=0) / (high - low)
        return np.asarray(weights @ self.forgotten[self.rising])


@dataclass(frozen=True, eq=False)
class Paths:
    """The paths of a group for one kind of forgetting: arm -> seed -> path; items are those of `weights`.

    Attributes:
        weights, strata: as in `paired.means`.
    """

    of_arm: dict[str, dict[int, Path]]
    weights: Floats | None = None
    strata: Any = None

    def means(self, values: Sequence[Floats], seeds: SeedPart | None = None) -> Means | None:
        """Of arms, each of shape (seeds, items); None where they share no item. `seeds` as in `paired.means`."""
        shared = np.isfinite(np.concatenate(values)).all(axis=0).any()
        return means(values, weights=self.weights, strata=self.strata, seeds=seeds) if shared else None

    def at_equal_learning(self, sides: Sequence[Sequence[Path]]) -> tuple[float, float, Means | None]:
        """(range of learning that all runs reached, the means of the arms over it; None: there is no such range)."""
        learned = [path.learned[path.rising] for side in sides for path in side]
        if any(len(of_run) == 0 for of_run in learned):
            return math.nan, math.nan, None
        low, high = max(float(of_run[0]) for of_run in learned), min(float(of_run[-1]) for of_run in learned)
        if not low < high:
            return low, high, None
        return low, high, self.means([np.stack([path.between(low, high) for path in side]) for side in sides])


@lru_cache(maxsize=32)
def paths(group: Group, name: str) -> Paths:
    """Every trained run but controls that was measured along training, for one kind of forgetting."""
    runs = {(arm, record.seed): pd.DataFrame(rows, columns=list(PointItem.__annotations__))
            for arm, records in group.by_arm.items() for record in records
            if (rows := group.sweep.point_rows.get(record.run_id)) and not record.config.method.control}  # fmt: skip
    forgotten = {run: _forgotten(frame, group, name) for run, frame in runs.items()}
    every = pd.concat(forgotten.values()) if forgotten else pd.DataFrame()
    if every.empty:
        return Paths({})
    items = every["weight"].groupby(level=["task", "item_id"]).mean()
    task = pd.factorize(items.index.get_level_values("task"))[0]
    of_arm: dict[str, dict[int, Path]] = {}
    for (arm, seed), frame in runs.items():
        of_arm.setdefault(arm, {})[seed] = _path(frame, forgotten[arm, seed], items.index)
    of_suite = name == SUITE
    weights = 1 / np.bincount(task)[task] if of_suite else items.to_numpy(dtype=float)
    return Paths(of_arm, weights, task if of_suite and task.max() else None)


def _forgotten(rows: pd.DataFrame, group: Group, name: str) -> pd.DataFrame:
    """task, item_id (index), step, value (forgotten; NaN: not finite) and weight of the items that show it."""
    kl = rows["metric"] == KL_METRIC
    if name != SUITE:
        own = rows[kl & ((rows["task"] == TASK_KL) == (name == ON_TASK))]
        return own.assign(value=own["score"].astype(float)).set_index(["task", "item_id"])
    results = (record.frontier for record in group.records if record.frontier)
    rising = {task.task for found in results for task in found.points[0].values if task.higher_is_better}
    own = rows[~kl & rows["task"].isin(rising - {HELDOUT})].set_index(["task", "item_id"])
    base = own.loc[own["step"] == 0, "score"].astype(float)
    return own.assign(value=base.reindex(own.index) - own["score"].astype(float))


def _path(rows: pd.DataFrame, forgotten: pd.DataFrame, index: pd.Index) -> Path:
    heldout = rows[(rows["task"] == HELDOUT) & (rows["metric"] == "loss")]
    sums = (heldout["score"].astype(float) * heldout["weight"]).groupby(heldout["step"]).sum(min_count=1)
    loss = (sums / heldout["weight"].groupby(heldout["step"]).sum()).dropna()
    table = forgotten.set_index("step", append=True)["value"].unstack("step")
    whole = table.count() == table.count().max()  # the last point of a file that ends early is not
    steps = [step for step in loss.index if whole.get(step, False)]
    learned = float(loss.get(0, np.nan)) - loss[steps].to_numpy(dtype=float)
    return Path(np.array(steps, dtype=float), learned, table.reindex(index)[steps].to_numpy(dtype=float).T)


def frontier_frame(group: Group) -> pd.DataFrame:
    """arm, measure, step, learned, forgotten, low, high; one row a point of an arm.

    The interval (95%) is over items, at the seeds at hand: two seeds alone would make it as wide as the chart.
    """
    rows = []
    for name in FORGETTING:
        known = paths(group, name)
        for arm, of_seed in known.of_arm.items():
            by_step: dict[float, list[tuple[float, Floats]]] = {}
            for path in of_seed.values():
                for step, learned, values in zip(path.steps, path.learned, path.forgotten, strict=True):
                    by_step.setdefault(step, []).append((learned, values))
            for step, runs in by_step.items():
                if found := known.means([np.stack([values for _, values in runs])], SeedPart()):
                    mean, learned = float(found.mean[0]), float(np.mean([learned for learned, _ in runs]))
                    low, high = found.of(0).interval() if step else (mean, mean)
                    rows.append((arm, name, int(step), learned, mean, low, high))
    return pd.DataFrame(rows, columns=["arm", "measure", "step", "learned", "forgotten", "low", "high"])


@lru_cache(maxsize=32)
def equal_learning(group: Group) -> pd.DataFrame:
    """Forgetting of trained arms at equal learning: one row a kind of forgetting and pair of arms.

    Columns: arm, baseline, measure, from, to (the range of learning), difference (arm - baseline; above 0: the arm
    forgets more), low, high (95%), seeds, items, verdict ("forgets less", "forgets more", "equivalent", "equal",
    "not settled", `NO_OVERLAP`; by Holm over the pairs).
    """
    rows: list[dict[str, Any]] = []
    for name in FORGETTING:
        measure = Measure("regression", SUITE_MEAN) if name == SUITE else Measure("divergence", name, False)
        known, own = paths(group, name), list[tuple[dict[str, Any], Estimate | None, float]]()
        for arm, baseline in _pairs(group, list(known.of_arm)):
            seeds = [(left.seed, right.seed) for left, right in match(group, arm, baseline).pairs]
            sides = [[known.of_arm[side][seed] for seed in of_side if seed in known.of_arm[side]]
                     for side, of_side in zip((arm, baseline), zip(*seeds, strict=True), strict=False)]  # fmt: skip
            if len(sides) < 2 or not all(sides):
                continue
            start, end, found = known.at_equal_learning(sides)
            row = {"arm": arm, "baseline": baseline, "measure": name, "from": start, "to": end, "verdict": NO_OVERLAP}
            estimate = found.difference(0, 1) if found else None
            own.append((row | {"seeds": len(sides[0])}, estimate, margin_of(measure, found.mean[1]) if found else 0.0))
        adjusted = iter(holm([estimate.p_value() for _, estimate, _ in own if estimate]))
        for row, estimate, margin in own:
            if estimate:
                word = verdict(estimate, margin, p=next(adjusted), higher_is_better=False)
                row |= {"verdict": _WORDS.get(word, word), "difference": estimate.mean, "items": estimate.examples}
                row["low"], row["high"] = estimate.interval()
            rows.append(row)
    columns = ["arm", "baseline", "measure", "from", "to", "difference", "low", "high", "seeds", "items", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def _pairs(group: Group, arms: Sequence[str]) -> list[tuple[str, str]]:
    """Each arm with the trained one that it is compared with elsewhere; where there is none, with the first."""
    found = [(arm, next((other for other in candidates if other in arms), "")) for arm, candidates in
             wanted_pairs(group) if arm in arms]  # fmt: skip
    return [pair for pair in found if pair[1]] or [(arm, arms[0]) for arm in arms[1:]]


def forgetting_sentences(group: Group, allowed_points: float) -> list[str]:
    """What the frontier says under a limit on forgetting: at equal learning, and of arms that would have to stop early.

    Args:
        allowed_points: that the suite's mean may lose, of 100.
    """
    frame, said = equal_learning(group), list[str]()
    for row in frame[(frame["measure"] == SUITE) & (frame["verdict"] != NO_OVERLAP)].to_dict("records"):
        middle, low, high = (100 * row[key] for key in ("difference", "low", "high"))
        more = f"{abs(middle):.1f} points {'more' if middle > 0 else 'less'} than {row['baseline']}"
        said.append(f"At equal learning {row['arm']} forgets {more} [{low:+.1f}, {high:+.1f}].")
    points = frontier_frame(group)
    for arm, path in points[points["measure"] == SUITE].groupby("arm", sort=False):
        *before, last = path.sort_values("step").to_dict("records")
        within = [point for point in before[1:] if 100 * point["forgotten"] <= allowed_points]
        if within and 100 * last["forgotten"] > allowed_points:
            stop = max(within, key=lambda point: point["learned"])
            said.append(
                f"{arm!s} would meet the limit on forgetting after {stop['step'] / last['step']:.0%} of its steps, "
                f"with a held-out loss {stop['learned']:.3f} nats below the base's (at its end {last['learned']:.3f})."
            )
    return said
