"""The decision: which arm to use under a user's limits, how sure that is, and what would make it surer.

The arms' scores, forgetting and costs are drawn jointly from what the runs show (`paired.draws`). Of the arms that meet
the limits, each with a probability of at least a half, the answer is the cheapest whose expected shortfall from the
best of them is within the tolerance. Cheapest: the arms within a tenth (or the noise) of the least memory, of these the
least time, then the fewest bytes to keep. Sure is the share of draws in which that arm meets the limits and falls short
of the best that meets them there by no more than the tolerance. The base is a candidate that costs nothing to train;
controls never are.

    >>> decision = decide(load("results/reference"), limits_from_words(["memory_gib=24", "mergeable=yes"]))
    >>> decision.sentence, decision.sureness
    ('Use lora.', 0.65)
    >>> sureness_against(group, "memory_gib")[["value", "arm", "sureness"]]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.fairness import program_caveats
from bench.record import Record
from bench.stats.compare import match
from bench.stats.frames import Group, Sweep, family, groups, is_control, is_untrained
from bench.stats.limits import COLUMNS, Limits
from bench.stats.measures import Measure, Table, means_of, measure_tables, primary_measure, suite_measure
from bench.stats.paired import FEWEST_EXAMPLES, Floats, Means, draws, seed_variance

TOLERANCE = 0.05  # of the best score
SURE = 0.95
TIE = 0.10  # costs that differ by less are alike
DRAWS = 4000
_RUN_TO_RUN = 0.02  # prior of how far a cost scatters from run to run, relative, worth two degrees of freedom
_COSTS = ("peak_memory_bytes", "train_seconds", "checkpoint_bytes", "cost_usd")
_MORE_SEEDS, _MORE_EXAMPLES = (0, 1, 2, 4, 7, 12, 17), (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32)


@dataclass(frozen=True)
class Decision:
    """What to use.

    Attributes:
        arm: None where no arm meets the limits, or nothing can be said.
        sureness: 0..1; None without an arm or without a rival.
        sentence: the answer, for who reads no further; `reason`: why, with numbers.
        measure: of the score. `tolerance`: shortfall that does not matter, in its unit.
        arms: one row an arm but controls: arm, score, low, high (95%), qualifies (probability to meet the limits; NaN:
            unknown), expected_shortfall, probability_best, within (probability of a shortfall within the tolerance),
            peak_memory_bytes, train_seconds, checkpoint_bytes, cost_usd, forgetting (share of the suite's mean lost),
            chosen, why_not.
        cost_if_wrong: expected shortfall where it exceeds the tolerance, in the score's unit.
        to_be_sure: {"examples", "seeds", "minutes"}: test examples and seeds, both in all, that would make it 95% sure
            if the true scores are those seen, in the fewest further minutes; None where it is, or none within reach
            would. The same in words, a sentence: `surer`.
        caveats: what limits the answer, a sentence each.
    """

    arm: str | None
    sureness: float | None
    sentence: str
    reason: str
    tolerance: float
    arms: pd.DataFrame
    cost_if_wrong: float | None = None
    to_be_sure: dict[str, float | None] | None = None
    caveats: list[str] = field(default_factory=list)
    measure: Measure | None = None
    surer: str = ""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of the arms that may be compared with one another, in display order.

    `scores` and `amounts` (by the name of the limit) are draws of shape (draws, arms); scores are turned so that higher
    is better. What an arm can or cannot do ("mergeable", "adapters") is an amount too: 0 it can, infinite it cannot,
    NaN unknown. `floor`: least tolerance, which the task states. `out`: other arms -> why not.
    """

    arms: list[str]
    trained: list[bool]
    known: Means
    sign: float
    scores: Floats
    amounts: dict[str, Floats]
    costs: pd.DataFrame  # the arms frame's rows, by place
    floor: float = 0.0
    out: dict[str, str] = field(default_factory=dict)


def decide(
    what: Group | Sweep, limits: Limits | None = None, tolerance: float | None = None, seed: int = 0
) -> Decision:
    """Which arm to use.

    Args:
        what: a group, or a sweep of one model, task and suite.
        tolerance: shortfall that does not matter, in the score's unit; None: the limits', else 5% of the best score.
        seed: of the draws; the same records and seed give the same decision.

    Raises:
        ValueError: when a sweep has several groups, or none.
    """
    if isinstance(what, Sweep):
        found = groups(what)
        if len(found) != 1:
            names = "; ".join(group.name for group in found) or "none"
            raise ValueError(f"decide() takes one model, task and suite; this sweep has {len(found)}: {names}. "
                             "Use [decide(group) for group in bench.stats.frames.groups(sweep)].")  # fmt: skip
        what = found[0]
    limits = limits or Limits()
    return _decision(what, limits if tolerance is None else replace(limits, quality_tolerance=tolerance), seed)


@lru_cache(maxsize=64)
def _decision(group: Group, limits: Limits, seed: int) -> Decision:
    primary = primary_measure(measure_tables(group))
    evidence = _evidence(group, limits.price_usd_per_hour, seed)
    if isinstance(evidence, str) or primary is None:
        return Decision(None, None, "Nothing can be decided.", str(evidence), math.nan, _unjudged(group, str(evidence)))
    choice = choose(evidence, limits)
    frame = _arms_table(group, evidence, choice, limits)
    found = Decision(None, None, "No method meets the limits.", "", choice.tolerance, frame,
                     caveats=_caveats(group, evidence, choice), measure=primary)  # fmt: skip
    if choice.arm is None:
        return replace(found, reason=_nearest(evidence, limits))
    arm = evidence.arms[choice.arm]
    use = "Use" if evidence.trained[choice.arm] else "Do not tune: use"
    found = replace(found, arm=arm, sentence=f"{use} {arm}.")
    if len(evidence.arms) == 1:
        return replace(found, reason=f"Only {arm} was run and scored: it has no rival.")
    found = replace(found, sureness=choice.sureness, reason=_reason(evidence, choice, primary))
    wrong = choice.shortfall[:, choice.arm][choice.shortfall[:, choice.arm] > choice.tolerance]
    if len(wrong):
        found = replace(found, cost_if_wrong=float(wrong.mean()))
    if choice.sureness < SURE:
        more = _to_be_sure(group, evidence, limits)
        found = replace(found, to_be_sure=more, surer=_surer(evidence, choice, more))
    return found


def sureness_against(
    group: Group, limit: str, values: Sequence[float] | None = None, limits: Limits | None = None, seed: int = 0
) -> pd.DataFrame:
    """The answer as a function of one limit, or of the tolerance: for the chart "What would change the answer".

    Args:
        limit: memory_gib, time_hours, cost_usd, forgetting_tolerance, or quality_tolerance (in the score's unit).
        values: None takes some that span what the arms need.
        limits: the others, held.

    Returns:
        limit, value, arm (None: no arm meets it), sureness; one row a value. Empty where the amount is unknown.
    """
    limits = limits or Limits()
    evidence = _evidence(group, limits.price_usd_per_hour, seed)
    empty = pd.DataFrame(columns=["limit", "value", "arm", "sureness"])
    if isinstance(evidence, str):
        return empty
    if values is None:
        short, unit = evidence.scores.max(axis=1, keepdims=True) - evidence.scores, COLUMNS.get(limit, ("", 1.0))[1]
        needs = (short if limit == "quality_tolerance" else evidence.amounts[limit]).mean(axis=0) / unit
        needs = needs[np.isfinite(needs) & (needs > 0)]
        if not len(needs):
            return empty
        lowest = 0 if limit == "quality_tolerance" else 0.8 * needs.min()
        values = list(np.linspace(lowest, 1.2 * needs.max(), 49))
    rows = []
    for value in map(float, values):
        changed: dict[str, Any] = {limit: value}
        choice = choose(evidence, replace(limits, **changed))
        arm = None if choice.arm is None else evidence.arms[choice.arm]
        rows.append((limit, value, arm, choice.sureness if arm else math.nan))
    return pd.DataFrame(rows, columns=empty.columns)


# --- What is known ---


@lru_cache(maxsize=64)
def _evidence(group: Group, price_usd_per_hour: float | None, seed: int) -> Evidence | str:
    """What is known of the arms, or why nothing can be decided."""
    tables = measure_tables(group)
    primary = primary_measure(tables)
    if primary is None:
        return "No arm was scored."
    table = tables[primary]
    candidates, out = _candidates(group, table)
    arms = _comparable(group, table, candidates, out)
    if not arms:
        return "No arm was scored."
    seeds = [{run.seed for run in candidates[arm]} for arm in arms if not is_untrained(candidates[arm][0])]
    common = set.intersection(*seeds) if seeds else set[int]()
    if len(common) < 2 or 2 * len(common) < max(map(len, seeds)):  # too few to decide by: each arm by its own
        common = set[int]().union(*seeds)
    runs = [[run for run in candidates[arm] if run.seed in common or is_untrained(run)] for arm in arms]
    known = means_of(table, runs)
    if isinstance(known, str):
        return f"The scores cannot be paired: {known}."
    if known.examples < FEWEST_EXAMPLES:
        return f"{known.examples} test examples are too few; take some hundreds (at least {FEWEST_EXAMPLES})."
    if not known.mean.any() and primary.higher_is_better:
        return f"Every method scored 0 in {primary.name}."
    rng = np.random.default_rng(seed)
    sign = 1.0 if primary.higher_is_better else -1.0
    trained = [not is_untrained(of_arm[0]) for of_arm in runs]
    scores = sign * draws(known, rng, DRAWS, alike=trained)
    costs = group.arms.set_index("arm").reindex(arms)
    amounts = {
        limit: _cost_draws(group, arms, trained, column, price_usd_per_hour, rng)
        for limit, (column, _) in COLUMNS.items() if limit != "forgetting_tolerance"
    }  # fmt: skip
    amounts["forgetting_tolerance"] = _forgetting_draws(group, tables, arms, runs, rng)
    amounts["mergeable"] = np.tile([_mergeable(of_arm, primary.name) for of_arm in runs], (DRAWS, 1))
    amounts["adapters"] = np.tile([math.inf if family(r[0]) == "full" else 0.0 for r in runs], (DRAWS, 1))
    floor = max((run.config.task.tolerance_floor for of_arm in runs for run in of_arm), default=0.0)
    return Evidence(arms, trained, known, sign, scores, amounts, costs, floor, out)


def _candidates(group: Group, table: Table) -> tuple[dict[str, list[Record]], dict[str, str]]:
    """Arms with their scored runs, and why the other arms are none."""
    candidates: dict[str, list[Record]] = {}
    out: dict[str, str] = {}
    for row in group.arms.to_dict("records"):
        arm = str(row["arm"])
        runs = [r for r in group.by_arm.get(arm, []) if table.has(r)]
        if row["control"]:
            continue
        if row["failed"] and 2 * row["failed"] >= row["runs"]:
            out[arm] = f"{row['failed']} of its {row['runs']} runs failed"
        elif not runs:
            out[arm] = "not judged: it has no score"
        else:
            candidates[arm] = runs
    return candidates, out


def _comparable(group: Group, table: Table, candidates: dict[str, list[Record]], out: dict[str, str]) -> list[str]:
    """The largest set of arms that may all be compared; `out` is told why the others are not in it."""
    fair = {(a, a): True for a in candidates}
    for a, b in itertools.combinations(candidates, 2):
        left, right = (b, a) if is_untrained(candidates[a][0]) else (a, b)  # a single untrained run fits every seed
        paired = match(group, left, right).pairs and not isinstance(
            means_of(table, [candidates[a], candidates[b]]), str
        )
        fair[a, b] = fair[b, a] = bool(paired)
    sets = []
    for first in candidates:
        members = [first]
        for arm in candidates:
            if arm != first and all(fair[arm, other] for other in members):
                members.append(arm)
        sets.append(members)
    trained = [sum(not is_untrained(candidates[arm][0]) for arm in members) for members in sets]
    best = max(range(len(sets)), key=lambda i: (trained[i], len(sets[i])), default=None)
    chosen = [] if best is None else [arm for arm in candidates if arm in sets[best]]
    out.update({arm: "may not be compared with the others (see Fairness)" for arm in candidates if arm not in chosen})
    return chosen


def _cost_draws(
    group: Group, arms: list[str], trained: list[bool], column: str, price: float | None, rng: np.random.Generator
) -> Floats:
    """Draws of what the next run of each arm needs, shape (draws, arms); 0 untrained, NaN where unknown."""
    latest = group.runs.sort_values("started_at").drop_duplicates(["arm", "seed"], keep="last")
    if column == "cost_usd" and price is not None and "train_seconds" in latest:
        latest = latest.assign(cost_usd=latest["train_seconds"] / 3600 * price)
    values = [latest.loc[latest["arm"] == arm, column].dropna().to_numpy(float) if column in latest else np.array([])
              for arm in arms]  # fmt: skip
    drawn = amount_draws(values, rng)
    drawn[:, ~np.array(trained)] = 0.0
    return drawn


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
    group: Group, tables: dict[Measure, Table], arms: list[str], runs: list[list[Record]], rng: np.random.Generator
) -> Floats:
    """Draws of what the suite's mean lost against the base, as a share; NaN where it was not measured."""
    result = np.full((DRAWS, len(arms)), np.nan)
    measure = suite_measure(tables)
    bases = [arm for arm, of_arm in group.by_arm.items() if family(of_arm[0]) == "base" and not is_control(of_arm[0])]
    if measure is None or not bases:
        return result
    table, base = tables[measure], group.by_arm[bases[0]]
    measured = [place for place, of_arm in enumerate(runs) if all(map(table.has, of_arm))]
    known = means_of(table, [base, *(runs[i] for i in measured)])
    if not isinstance(known, str) and known.examples >= FEWEST_EXAMPLES:
        trained = [False, *(not is_untrained(runs[i][0]) for i in measured)]
        drawn = draws(known, rng, DRAWS, alike=trained)
        result[:, measured] = drawn[:, :1] - drawn[:, 1:]
    for place, of_arm in enumerate(runs):
        if family(of_arm[0]) in ("base", "prompted"):  # the same weights
            result[:, place] = 0.0
    return result


def _mergeable(runs: list[Record], metric: str) -> float:
    """0: one model without an adapter can be served. NaN: merging into a dequantized base was not scored."""
    scored = [f for r in runs if r.serve for f in r.serve.fidelity if f.form == "merged" and metric in f.scores]
    return 0.0 if scored or family(runs[0]) != "qlora" else math.nan


# --- The rule ---


@dataclass(frozen=True)
class Choice:
    """`qualifies`: probability by arm, NaN unknown; `meets`: by draw and arm; `shortfall`: from the best of those that
    qualify, by draw and arm; `expected`: its mean. `arm`: place of the chosen one."""

    arm: int | None
    tolerance: float
    qualifies: Floats
    meets: NDArray[np.bool_]
    shortfall: Floats
    expected: Floats
    cheap: list[int]
    sureness: float = math.nan


def choose(evidence: Evidence, limits: Limits) -> Choice:
    """Apply the rule of the module's docstring."""
    qualifies, meets = _meets(evidence, limits)
    eligible = np.flatnonzero(np.nan_to_num(qualifies) >= 0.5)
    pool = eligible if len(eligible) else np.arange(len(evidence.arms))
    best = evidence.scores[:, pool].max(axis=1, keepdims=True)
    shortfall = np.maximum(best - evidence.scores, 0.0)
    expected = shortfall.mean(axis=0)
    means = evidence.sign * evidence.known.mean[pool]
    tolerance = _tolerance(limits.quality_tolerance, abs(float(means.max())), evidence.floor)
    if not len(eligible):
        return Choice(None, tolerance, qualifies, meets, shortfall, expected, [])
    close = [int(i) for i in eligible if expected[i] <= tolerance] or [int(eligible[expected[eligible].argmin()])]
    cheap = _cheapest(evidence, close)
    arm = min(cheap, key=lambda i: expected[i])
    # The rivals of a draw are the arms that meet the limits in it, and those of which that is not known.
    rivals = np.where(meets | np.isnan(qualifies), evidence.scores, -np.inf).max(axis=1)
    sureness = float((meets[:, arm] & (rivals - evidence.scores[:, arm] <= tolerance)).mean())
    return Choice(arm, tolerance, qualifies, meets, shortfall, expected, cheap, sureness)


def _tolerance(given: float | str | None, best: float, floor: float) -> float:
    """In the score's unit; `given`: as in `Limits`, a share of the best score as a text such as 3%."""
    if given is None:
        return max(TOLERANCE * best, floor)
    return best * float(given.removesuffix("%")) / 100 if isinstance(given, str) else float(given)


def _asked(limits: Limits) -> dict[str, float]:
    """The limits that were set, in the units of the draws."""
    asked = {name: getattr(limits, name) for name in COLUMNS if getattr(limits, name) is not None}
    can = {"mergeable": limits.mergeable, "adapters": (limits.adapters or 1) > 1}
    amounts = {name: most * COLUMNS[name][1] for name, most in asked.items()}
    return amounts | {name: 0.0 for name, wanted in can.items() if wanted}


def _meets(evidence: Evidence, limits: Limits) -> tuple[Floats, NDArray[np.bool_]]:
    """Probability to meet all limits by arm, NaN where an amount is unknown; whether they are met, by draw and arm."""
    possible = np.ones(evidence.scores.shape, dtype=bool)  # met, as far as the amounts are known
    unknown = np.zeros(len(evidence.arms), dtype=bool)
    for name, most in _asked(limits).items():
        drawn = evidence.amounts[name]
        unknown |= np.isnan(drawn).any(axis=0)
        possible &= ~(drawn > most)
    unknown &= possible.any(axis=0)  # one limit that is certainly missed decides, whatever is unknown beside it
    return np.where(unknown, np.nan, possible.mean(axis=0)), possible & ~unknown


def _cheapest(evidence: Evidence, among: list[int]) -> list[int]:
    """The arms that cost alike: within a tenth, or the noise, of the least memory, then of the least time and bytes."""
    for column, limit in (
        ("peak_memory_bytes", "memory_gib"),
        ("train_seconds", "time_hours"),
        ("checkpoint_bytes", ""),
    ):
        needed = evidence.costs[column] if column in evidence.costs else pd.Series(np.nan, evidence.arms)
        amount = {i: float(needed.iloc[i]) if evidence.trained[i] else 0.0 for i in among}
        known = {i: value for i, value in amount.items() if math.isfinite(value)}
        if not known:
            continue
        least = min(known, key=lambda i: known[i])
        among = [i for i in known if known[i] <= known[least] * (1 + TIE) or _within_noise(evidence, limit, i, least)]
    return among


def _within_noise(evidence: Evidence, limit: str, arm: int, least: int) -> bool:
    """Whether two costs differ by less than twice the error of their difference."""
    if limit not in evidence.amounts:
        return False
    drawn = evidence.amounts[limit][:, [arm, least]]
    seeds = evidence.known.seeds[[arm, least]]
    error = float(np.sqrt((drawn.var(axis=0) / (seeds + 1)).sum()))  # draws are of a next run: error of a mean
    return bool(abs(drawn[:, 0].mean() - drawn[:, 1].mean()) <= 2 * error)


def _to_be_sure(group: Group, evidence: Evidence, limits: Limits) -> dict[str, float | None] | None:
    """The cheapest numbers of seeds and examples that would make the answer 95% sure, were the scores seen the true.

    The errors of the draws shrink as the variance of a difference of two arms would.
    """
    known, trained = evidence.known, np.array(evidence.trained)
    of_arms = group.arms.set_index("arm").reindex(evidence.arms)
    wall = {stage: float(of_arms.get(f"{stage}_wall_seconds", pd.Series(np.nan, evidence.arms))[trained].sum())
            for stage in ("train", "evaluate")}  # fmt: skip
    seeds = int(known.seeds[trained].min()) if trained.any() else 1
    pairs = known.variance[trained][:, trained] if trained.sum() > 1 else known.variance
    items = float(pairs[~np.eye(len(pairs), dtype=bool)].mean()) / 2
    of_seeds, rest = seed_variance(known) * trained.any(), min(known.seed_part.rest, 0.9 * items * seeds)

    def variance(more: int, factor: float) -> float:
        return (items - rest / seeds + rest / (seeds + more)) / factor + of_seeds / (seeds + more)

    def seconds(more: int, factor: float) -> float:
        return more * (wall["train"] + factor * wall["evaluate"]) + seeds * (factor - 1) * wall["evaluate"]

    errors = evidence.scores - evidence.scores.mean(axis=0)
    plans = list(itertools.product(_MORE_SEEDS, _MORE_EXAMPLES))[1:]
    for more, factor in sorted(plans, key=lambda p: (seconds(*p), p[0] + p[1])):
        shrunk = math.sqrt(variance(more, factor) / variance(0, 1))
        imagined = replace(evidence, scores=evidence.sign * known.mean + shrunk * errors)
        if choose(imagined, limits).sureness >= SURE:
            minutes = seconds(more, factor) / 60
            return {"examples": math.ceil(known.examples * factor), "seeds": seeds + more,
                    "minutes": minutes if math.isfinite(minutes) else None}  # fmt: skip
    return None


# --- Words and tables ---


def _arms_table(group: Group, evidence: Evidence, choice: Choice, limits: Limits) -> pd.DataFrame:
    places, known = range(len(evidence.arms)), evidence.known
    intervals = [known.of(place).interval() for place in places]
    frame = pd.DataFrame({
        "arm": evidence.arms, "score": known.mean, "low": [low for low, _ in intervals],
        "high": [high for _, high in intervals], "qualifies": choice.qualifies, "expected_shortfall": choice.expected,
        "probability_best": (evidence.scores == evidence.scores.max(axis=1, keepdims=True)).mean(axis=0),
        "within": (choice.shortfall <= choice.tolerance).mean(axis=0),
        **{name: evidence.costs.get(name, pd.Series(math.nan, evidence.arms)).to_numpy() for name in _COSTS},
        "forgetting": evidence.amounts["forgetting_tolerance"].mean(axis=0),
        "chosen": [place == choice.arm for place in places],
        "why_not": ["" if place == choice.arm else _why_not(evidence, choice, limits, place) for place in places],
    })  # fmt: skip
    return pd.concat([frame, _unjudged(group, evidence.out)], ignore_index=True)


def _unjudged(group: Group, why: dict[str, str] | str) -> pd.DataFrame:
    """Rows of the arms without a judgement."""
    arms = group.arms[~group.arms["control"].astype(bool)]
    arms = arms[arms["arm"].isin(list(why))] if isinstance(why, dict) else arms
    empty = ["low", "high", "qualifies", "expected_shortfall", "probability_best", "within", "forgetting"]
    reasons = arms["arm"].map(why) if isinstance(why, dict) else why
    return arms.reindex(columns=["arm", "score", *_COSTS, *empty]).assign(chosen=False, why_not=reasons)


def _why_not(evidence: Evidence, choice: Choice, limits: Limits, place: int) -> str:
    """Why an arm is not the answer, as a clause."""
    if not choice.qualifies[place] >= 0.5:
        return _excess(evidence, limits, place)[1]
    if choice.expected[place] > choice.tolerance:
        return f"expected to fall {choice.expected[place]:.3f} short of the best"
    if choice.arm is not None and place in choice.cheap:
        return "costs as much, and its score is lower"
    return "costs more"


def _excess(evidence: Evidence, limits: Limits, place: int) -> tuple[float, str]:
    """By how much an arm misses the limits, relative to them, and the worst of its misses as a clause."""
    misses = []
    lacks = {"mergeable": "cannot be merged", "adapters": "needs a whole model a task"}
    for name, most in _asked(limits).items():
        needed = float(np.median(evidence.amounts[name][:, place]))
        if math.isnan(needed):
            text = "how it scores when merged was not measured" if name in lacks else f"{name}: not measured"
            misses.append((math.inf, text))
        elif name in lacks and needed > most:
            misses.append((math.inf, lacks[name]))
        elif needed > most:
            unit, of = COLUMNS[name][1], {f.name: f.metadata["unit"] for f in fields(Limits)}[name]
            text = f"needs {needed / unit:.2f} {of} where {most / unit:g} are allowed"
            misses.append((needed / max(most, 1e-9) - 1, text))
    return max(misses, default=(0.0, "probably misses the limits together"))


def _nearest(evidence: Evidence, limits: Limits) -> str:
    misses = [_excess(evidence, limits, place) for place in range(len(evidence.arms))]
    place = min(range(len(misses)), key=lambda i: misses[i][0])
    return f"Nearest is {evidence.arms[place]}: it {misses[place][1]}."


def _reason(evidence: Evidence, choice: Choice, measure: Measure) -> str:
    assert choice.arm is not None
    pool = [i for i in range(len(evidence.arms)) if np.nan_to_num(choice.qualifies[i]) >= 0.5]
    top = max(pool, key=lambda i: evidence.sign * evidence.known.mean[i])
    own, short = evidence.known.mean[choice.arm], choice.expected[choice.arm]
    beside = ", of those that meet the limits" if len(pool) < len(evidence.arms) else ""
    if top == choice.arm:
        first = f"Its {measure.name} of {own:.3f} is the best{beside}"
        cheaper = "and nothing cheaper is expected to come within" if short > 0 else "within"
        first += f", {cheaper} {choice.tolerance:.3f} of the best" if len(pool) > 1 else ""
    else:
        within = "within" if short <= choice.tolerance else "more than"
        first = (f"Its {measure.name} of {own:.3f} is expected to fall {short:.3f} short of the best{beside}, "
                 f"{within} the tolerance of {choice.tolerance:.3f}")  # fmt: skip
    costs = [f"{evidence.arms[i]} {_cost(evidence, i)}" for i in dict.fromkeys((choice.arm, top))]
    return f"{first}; {'; '.join(costs)}."


def _surer(evidence: Evidence, choice: Choice, more: dict[str, float | None] | None) -> str:
    """What would make the answer 95% sure, or why nothing within reach would."""
    other = "Whether two methods differ at all is another question, which may take fewer (Quality: examples to settle)."
    if more is not None:
        time = "" if more["minutes"] is None else f" (about {more['minutes']:,.0f} minutes more)"
        need = f"About {more['examples']:,} test examples and {more['seeds']} seeds in all{time}"
        return f"{need} would make the answer 95% sure. {other}"
    assert choice.arm is not None
    examples, seeds = evidence.known.examples * _MORE_EXAMPLES[-1], int(evidence.known.seeds.max()) + _MORE_SEEDS[-1]
    return (f"Not even {examples:,} test examples and {seeds} seeds would make it 95% sure that "
            f"{evidence.arms[choice.arm]} falls short by no more than {choice.tolerance:.3f}: what was seen lies too "
            f"close to that. {other}")  # fmt: skip


def _cost(evidence: Evidence, place: int) -> str:
    if not evidence.trained[place]:
        return "needs no training"
    known = [(evidence.costs[name].iloc[place] / unit, word) for name, unit, word in
             (("peak_memory_bytes", 2**30, "GiB"), ("train_seconds", 60, "min")) if name in evidence.costs]  # fmt: skip
    return "needs " + (
        " and ".join(f"{value:.2f} {word}" for value, word in known if math.isfinite(value)) or "an unknown"
    )


def _caveats(group: Group, evidence: Evidence, choice: Choice) -> list[str]:
    caveats = []
    single = [arm for arm, seeds, trained in zip(evidence.arms, evidence.known.seeds, evidence.trained, strict=True)
              if seeds == 1 and trained]  # fmt: skip
    if single:
        caveats.append(f"One seed of {', '.join(single)}: another seed may turn the order; the sureness counts that in "
                       "by what seeds usually change.")  # fmt: skip
    if evidence.known.examples < 100:
        caveats.append(f"Only {evidence.known.examples} test examples.")
    if choice.arm is not None:
        lost = 100 * evidence.amounts["forgetting_tolerance"][:, choice.arm]
        low, high = np.percentile(lost, (2.5, 97.5))
        if low > 0:
            caveats.append(f"{evidence.arms[choice.arm]} forgot: the regression suite's mean lost {lost.mean():.1f} "
                           f"points [{low:.1f}, {high:.1f}] against the base.")  # fmt: skip
    caveats += program_caveats({arm: group.by_arm[arm] for arm in evidence.arms if arm in group.by_arm})
    caveats += [f"{arm}: {why}." for arm, why in evidence.out.items()]
    failed = group.arms[(group.arms["failed"] > 0) & group.arms["arm"].isin(evidence.arms)]
    caveats += [f"{row.arm}: {row.failed} of its {row.runs} runs failed." for row in failed.itertuples()]
    return caveats
