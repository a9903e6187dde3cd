"""What a decision goes by: joint draws of the scores, forgetting and costs of the arms that may be compared.

>>> evidence = evidence_of(group)
>>> evidence.arms, evidence.scores.shape
(['base', 'full', 'lora', 'qlora'], (4000, 4))
>>> evidence.amounts["memory_gib"].mean(axis=0) / 2**30
array([0.  , 4.63, 2.86, 2.83])
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from bench.record import Record
from bench.stats.compare import comparable, match
from bench.stats.frames import Group, family
from bench.stats.limits import COLUMNS
from bench.stats.measures import Measure, Table, means_of, measure_tables, primary_measure, suite_measure
from bench.stats.paired import FEWEST_EXAMPLES, Floats, Means, draws, seed_variance

DRAWS = 4000
COSTS = ("peak_memory_bytes", "train_seconds", "checkpoint_bytes", "cost_usd")
WALL = ("train_wall_seconds", "regression_wall_seconds", "evaluate_wall_seconds")  # of an arm's stages
_RUN_TO_RUN = 0.02  # prior of how far a cost scatters from run to run, relative, worth two degrees of freedom


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of the arms that may be compared with one another, in display order.

    `scores` and `amounts` (by the name of the limit) are draws of shape (draws, arms); scores are turned so that higher
    is better. What an arm can or cannot do ("mergeable", "adapters") is an amount too: 0 it can, infinite it cannot,
    NaN unknown. `floor`: least tolerance, which the task states. `out`: other arms -> why not.
    """

    arms: list[str]
    trained: list[bool]  # by their runs
    free: list[bool]  # nothing was ever trained
    known: Means
    measure: Measure  # of the scores
    scores: Floats
    amounts: dict[str, Floats]
    costs: pd.DataFrame  # `COSTS` and `WALL` of the arms frame, by place; NaN unknown
    floor: float = 0.0
    out: dict[str, str] = field(default_factory=dict)

    @property
    def means(self) -> Floats:
        """The scores as measured, turned so that higher is better, shape (arms,)."""
        return self.measure.sign * self.known.mean

    def variance(self, more_seeds: int, factor: float) -> float:
        """Of a difference between two arms, averaged over them, with so many seeds more and times the examples."""
        known, trained = self.known, np.array(self.trained)
        seeds = int(known.seeds[trained].min()) if trained.any() else 1
        places = [place for place, yes in enumerate(trained) if yes or trained.sum() < 2]
        pairs = itertools.combinations(places, 2)
        items = float(np.mean([((known.influence[a] - known.influence[b]) ** 2).sum() for a, b in pairs])) / 2
        rest, more = min(known.seed_part.rest, 0.9 * items * seeds), seeds + more_seeds
        return (items - rest / seeds + rest / more) / factor + seed_variance(known) * trained.any() / more

    def seconds(self, more_seeds: int, factor: float) -> float:
        """Wall time of so many seeds more and times the examples: with more examples, all runs are scored anew."""
        wall, known = self.costs[list(WALL)].fillna(0).to_numpy(), self.known
        scored = factor * wall[:, -1]
        again = float(known.seeds @ scored) if factor > 1 else 0.0
        return again + more_seeds * float((wall[:, :-1].sum(axis=1) + scored)[self.trained].sum())

    def only(self, arms: Sequence[str]) -> Evidence:
        """What is known of these arms."""
        kept = [place for place, arm in enumerate(self.arms) if arm in arms]
        known = replace(self.known, values=[self.known.values[i] for i in kept], seed_share=self.known.seed_share[kept])
        return replace(
            self, arms=[self.arms[i] for i in kept], trained=[self.trained[i] for i in kept], known=known,
            scores=self.scores[:, kept], amounts={name: drawn[:, kept] for name, drawn in self.amounts.items()},
            costs=self.costs.iloc[kept],
        )  # fmt: skip


@lru_cache(maxsize=64)
def evidence_of(group: Group, price_usd_per_hour: float | None = None, seed: int = 0) -> Evidence | str:
    """What is known of the arms, or why nothing can be decided.

    Args:
        price_usd_per_hour: of the machine; None: as the runs' configurations state it.
    """
    tables = measure_tables(group)
    primary = primary_measure(tables)
    runs, out = _candidates(group, tables[primary]) if primary else ({}, {})
    if primary is None or not runs:
        return "No arm was scored."
    trained = {arm: not of_arm[0].config.untrained for arm, of_arm in runs.items()}
    free = [of_arm[0].config.method.trains == "nothing" for of_arm in runs.values()]
    seeds = [{run.seed for run in runs[arm]} for arm in runs if trained[arm]]
    common = set.intersection(*seeds) if seeds else set[int]()
    if len(common) < 2 or 2 * len(common) < max(map(len, seeds)):  # too few to decide by: each arm by its own
        common = set[int]().union(*seeds)
    runs = {arm: [run for run in runs[arm] if run.seed in common or not trained[arm]] for arm in runs}
    known = means_of(tables[primary], list(runs.values()))
    if isinstance(known, str):
        return f"The scores cannot be paired: {known}."
    if known.examples < FEWEST_EXAMPLES:
        return f"{known.examples} test examples are too few; take some hundreds (at least {FEWEST_EXAMPLES})."
    if not known.mean.any() and primary.higher_is_better:
        return f"Every method scored 0 in {primary.name}."
    rng = np.random.default_rng(seed)
    scores = primary.sign * draws(known, rng, DRAWS, alike=list(trained.values()))
    amounts = {limit: np.where(free, 0.0, _cost_draws(group, list(runs), column, price_usd_per_hour, rng))
               for limit, (column, _) in COLUMNS.items() if limit != "forgetting_tolerance"}  # fmt: skip
    amounts["forgetting_tolerance"] = _forgetting_draws(group, tables, list(runs.values()), rng)
    amounts["mergeable"] = np.tile([_mergeable(of_arm, primary.name) for of_arm in runs.values()], (DRAWS, 1))
    whole = [math.inf if family(of_arm[0]) == "full" else 0.0 for of_arm in runs.values()]
    amounts["adapters"] = np.tile(whole, (DRAWS, 1))
    costs = group.arms.set_index("arm").reindex(index=list(runs), columns=[*COSTS, *WALL]).astype(float)
    floor = max(run.config.task.tolerance_floor for of_arm in runs.values() for run in of_arm)
    return Evidence(list(runs), list(trained.values()), free, known, primary, scores, amounts, costs, floor, out)


def _candidates(group: Group, table: Table) -> tuple[dict[str, list[Record]], dict[str, str]]:
    """Arm -> its scored runs, of the largest set of arms that may all be compared; why the others are not in it."""
    runs: dict[str, list[Record]] = {}
    out: dict[str, str] = {}
    for row in group.arms[~group.arms["control"].astype(bool)].to_dict("records"):
        arm, failed = str(row["arm"]), row["failed"]
        scored = [run for run in group.by_arm.get(arm, ()) if table.has(run)]
        if failed and 2 * failed >= row["runs"]:
            out[arm] = f"{failed} of its {row['runs']} runs failed"
        elif scored:
            runs[arm] = scored
        else:
            out[arm] = "not judged: it has no score"

    def fair(pair: tuple[str, str]) -> bool:
        """By runs and by examples; a single untrained run fits every seed of the other arm."""
        left, right = sorted(pair, key=lambda arm: runs[arm][0].config.untrained)
        paired = means_of(table, [runs[arm] for arm in pair])
        return bool(match(group, left, right).pairs) and not isinstance(paired, str)

    def size(members: list[str]) -> tuple[int, int]:
        return sum(not runs[arm][0].config.untrained for arm in members), len(members)

    fits = set(map(frozenset, filter(fair, itertools.combinations(runs, 2))))
    sets = [comparable(dict.fromkeys([first, *runs]), lambda *pair: frozenset(pair) in fits) for first in runs]
    largest = max(sets, key=size, default=[])
    out |= {arm: "may not be compared with the others (see Fairness)" for arm in runs if arm not in largest}
    return {arm: of_arm for arm, of_arm in runs.items() if arm in largest}, out


def _cost_draws(group: Group, arms: list[str], column: str, price: float | None, rng: np.random.Generator) -> Floats:
    """Draws of what the next run of each arm needs, shape (draws, arms); NaN where unknown."""
    latest = group.runs.sort_values("started_at").drop_duplicates(["arm", "seed"], keep="last")
    if column == "cost_usd" and price is not None and "train_seconds" in latest:
        latest = latest.assign(cost_usd=latest["train_seconds"] / 3600 * price)
    amounts = latest.reindex(columns=["arm", column]).dropna()
    return amount_draws([amounts.loc[amounts["arm"] == arm, column].to_numpy(float) for arm in arms], rng)


def amount_draws(values: Sequence[Floats], rng: np.random.Generator) -> Floats:
    """Draws of what the next run of each arm needs, shape (draws, arms), from one number a run; NaN without any."""
    logs = [np.log(np.maximum(of_arm, 1e-12)) for of_arm in values]
    degrees = 2 + sum(max(len(of_arm) - 1, 0) for of_arm in logs)
    square = 2 * _RUN_TO_RUN**2 + sum(float(((of_arm - of_arm.mean()) ** 2).sum()) for of_arm in logs if len(of_arm))
    result = np.full((DRAWS, len(values)), np.nan)
    for place, of_arm in enumerate(values):
        if len(of_arm):
            scatter = math.sqrt(square / degrees * (1 + 1 / len(of_arm)))
            result[:, place] = of_arm.mean() * np.exp(scatter * rng.standard_t(degrees, DRAWS))
    return result


def _forgetting_draws(
    group: Group, tables: dict[Measure, Table], runs: list[list[Record]], rng: np.random.Generator
) -> Floats:
    """Draws of what the suite's mean lost against the base, as a share; NaN where it was not measured."""
    result = np.full((DRAWS, len(runs)), np.nan)
    measure = suite_measure(tables)
    bases = [of_arm for of_arm in group.by_arm.values()
             if family(of_arm[0]) == "base" and not of_arm[0].config.method.control]  # fmt: skip
    if measure is None or not bases:
        return result
    measured = [place for place, of_arm in enumerate(runs) if all(map(tables[measure].has, of_arm))]
    arms = [bases[0], *(runs[place] for place in measured)]
    known = means_of(tables[measure], arms)
    if not isinstance(known, str) and known.examples >= FEWEST_EXAMPLES:
        alike = [False, *(not of_arm[0].config.untrained for of_arm in arms[1:])]
        drawn = draws(known, rng, DRAWS, alike=alike)
        result[:, measured] = drawn[:, :1] - drawn[:, 1:]
    result[:, [family(of_arm[0]) in ("base", "prompted") for of_arm in runs]] = 0.0  # the same weights
    return result


def _mergeable(runs: list[Record], metric: str) -> float:
    """0: one model without an adapter can be served. NaN: merging into a dequantized base was not scored."""
    scored = [f for r in runs if r.serve for f in r.serve.fidelity if f.form == "merged" and metric in f.scores]
    return 0.0 if scored or family(runs[0]) != "qlora" else math.nan
