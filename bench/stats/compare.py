"""Arms against a baseline: what may be compared, paired differences with intervals, and a verdict in a word each.

Every arm is compared with the base, every trained one with full fine-tuning, an adapter over a quantized base with the
same over a whole one, and what was trained elsewhere with each other such arm. Runs are matched by seed; a single
untrained run is the partner of every seed. Runs of different budgets, data, machines or software are never compared
silently: the reason is kept in `Findings.refusals`, and allow_different=NAME is needed to compare them nonetheless.

p-values are adjusted by Holm's method within families, as the page shows them. The two numbers that answer the
question, the primary score and the suite's mean, are families of their own: more metrics and tasks cost no power.

    >>> findings = compare(group)
    >>> findings.comparisons[["arm", "baseline", "measure", "difference", "low", "high", "verdict"]]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

from bench.fairness import Reason, reasons_against
from bench.record import Record
from bench.stats.frames import Group, family
from bench.stats.measures import SUITE_MEAN, Measure, Table, means_of, measure_tables, primary_measure
from bench.stats.paired import Estimate, holm, verdict


def margin_of(measure: Measure, baseline_mean: float) -> float:
    """The largest difference that does not matter, in the unit of the measure; what "equivalent" means.

    Conventions: 3% of the baseline's score (0.009 at a ROUGE-L of 0.30), 1% of its loss or bits per byte, and 2 points
    of accuracy in the regression suite.
    """
    if measure.kind == "regression" and measure.higher_is_better:
        return 0.02
    return max((0.03 if measure.kind == "score" else 0.01) * abs(baseline_mean), 1e-9)


@dataclass(frozen=True)
class Refusal:
    """A reason against comparing two arms. As an exception: one in spite of which they were compared."""

    arm: str
    baseline: str
    seeds: str
    reason: Reason


@dataclass(frozen=True, eq=False)
class Findings:
    """What the runs of one model, task and suite show.

    Attributes:
        estimates: one row a measure and arm: kind, measure, unit, arm, mean, low, high (95%), seeds, examples.
        comparisons: one row a measure and pair of arms: kind, measure, unit, higher_is_better, family (primary
            score, other scores, loss, suite's mean, suite's tasks, divergence), arm, baseline, baseline_mean,
            difference (arm - baseline), low, high (95%), p, p_holm, test ("McNemar" or "t"), margin, verdict (better,
            worse, equivalent, equal, not settled), seeds, examples, examples_to_decide (of an unsettled one; None: more
            examples cannot), differing (requirements not met, in spite of which it was made).
        exceptions: differences in spite of which a comparison was made.
    """

    estimates: pd.DataFrame
    comparisons: pd.DataFrame
    refusals: list[Refusal]
    exceptions: list[Refusal]


@lru_cache(maxsize=32)
def compare(group: Group) -> Findings:
    """All comparisons within a group. Failed runs take part with the stages that they finished."""
    tables = measure_tables(group)
    estimates = [
        _row(measure, "mean", known.of(0)) | {"arm": arm}
        for measure, table in tables.items()
        for arm, runs in group.by_arm.items()
        if not isinstance(known := means_of(table, [runs]), str)
    ]
    rows: list[dict[str, Any]] = []
    refusals: list[Refusal] = []
    exceptions: list[Refusal] = []
    for arm, candidates in wanted_pairs(group):
        baseline, matching = _fair_partner(group, arm, candidates)
        refusals += [Refusal(arm, baseline, seeds, reason) for seeds, reason in matching.refused]
        if not matching.pairs:
            continue
        exceptions += [Refusal(arm, baseline, seeds, reason) for seeds, reason in matching.excepted]
        differing = ", ".join(dict.fromkeys(reason.name for _, reason in matching.excepted))
        made, unmeasured = _differences(tables, matching.pairs)
        rows += [{"arm": arm, "baseline": baseline, "differing": differing} | row for row in made]
        refusals += [Refusal(arm, baseline, "all", Reason("values", text)) for text in unmeasured]
    return Findings(pd.DataFrame(estimates), _judged(rows, primary_measure(tables)), refusals, exceptions)


def _row(measure: Measure, name: str, estimate: Estimate) -> dict[str, Any]:
    """A measure's estimate, called `name`, as columns."""
    low, high = estimate.interval()
    return {"kind": measure.kind, "measure": measure.name, "unit": measure.unit,
            "higher_is_better": measure.higher_is_better, name: estimate.mean, "low": low, "high": high,
            "seeds": estimate.seeds, "examples": estimate.examples}  # fmt: skip


def _differences(
    tables: dict[Measure, Table], pairs: Sequence[tuple[Record, Record]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Every measure of one pair of arms, and why some could not be compared."""
    sides = [list({record.run_id: record for record in side}.values()) for side in zip(*pairs, strict=True)]
    rows, unmeasured = [], dict[str, list[str]]()
    for measure, table in tables.items():
        if measure.kind == "divergence" and sides[1][0].config.untrained:
            continue  # a divergence from the base is itself a comparison with the base
        known = means_of(table, sides)
        if not isinstance(known, str):
            rows.append({"of": measure, "result": known.difference(0, 1), "baseline_mean": float(known.mean[1])})
        elif any(map(table.has, sides[0])):  # else this arm did not measure it at all
            unmeasured.setdefault(known, []).append(measure.name)
    return rows, [f"{reason} ({', '.join(names)})" for reason, names in unmeasured.items()]


def _family(measure: Measure, primary: Measure | None) -> str:
    if measure.kind == "score":
        return "primary score" if measure == primary else "other scores"
    if measure.kind == "regression":
        return "suite's mean" if measure.name == SUITE_MEAN else "suite's tasks"
    return measure.kind


def _judged(rows: Sequence[dict[str, Any]], primary: Measure | None) -> pd.DataFrame:
    """Adjust p within each family, then find the words."""
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    frame["family"] = [_family(measure, primary) for measure in frame["of"]]
    frame["p"] = [result.p_value() for result in frame["result"]]
    frame["p_holm"] = frame.groupby("family")["p"].transform(lambda values: holm(list(values)))
    judged = []
    for row in frame.to_dict("records"):
        measure, result = row.pop("of"), row.pop("result")
        margin = margin_of(measure, row["baseline_mean"])
        word = verdict(result, margin, p=row["p_holm"], higher_is_better=measure.higher_is_better)
        judged.append(_row(measure, "difference", result) | row | {
            "test": "t" if result.discordant is None else "McNemar",
            "margin": margin,
            "verdict": word,
            "examples_to_decide": result.examples_to_decide(margin) if word == "not settled" else None,
        })  # fmt: skip
    return pd.DataFrame(judged)


# --- Which runs are set against which ---


@dataclass(frozen=True)
class Matching:
    """Runs of two arms, matched by seed."""

    pairs: list[tuple[Record, Record]]
    refused: list[tuple[str, Reason]]  # (seeds, why these were not paired)
    excepted: list[tuple[str, Reason]]  # (seeds, what was allowed to differ in these pairs)


def wanted_pairs(group: Group) -> list[tuple[str, list[str]]]:
    """(arm, candidate baselines), in display order."""
    kinds = {arm: family(runs[0]) for arm, runs in group.by_arm.items()}
    control = dict(zip(group.arms["arm"], group.arms["control"], strict=True))

    def plain(kind: str) -> list[str]:
        """The arms of the first method of a family: `full` rather than `full_bf16`."""
        arms = [arm for arm, own in kinds.items() if own == kind and not control[arm]]
        return [arm for arm in arms if group.by_arm[arm][0].method == group.by_arm[arms[0]][0].method]

    untrained = [arm for arm, runs in group.by_arm.items() if runs[0].config.untrained]
    bases, fulls, loras = plain("base") or untrained[:1], plain("full"), plain("lora")
    pairs = [(arm, bases) for arm in kinds if bases and arm not in bases]
    pairs += [(arm, fulls) for arm in kinds if fulls and arm not in fulls and arm not in untrained]
    pairs += [(arm, loras) for arm, kind in kinds.items() if loras and kind == "qlora"]
    loaded = [arm for arm, runs in group.by_arm.items() if runs[0].config.method.loaded_from]
    return pairs + [(arm, [other]) for other, arm in itertools.combinations(loaded, 2)]


def _fair_partner(group: Group, arm: str, candidates: Sequence[str]) -> tuple[str, Matching]:
    """The first candidate with a fair pair of runs; where none has one, the first with a pair that is allowed."""
    for allowed in dict.fromkeys((frozenset[str](), group.allowed)):
        refused: list[tuple[str, Reason]] = []
        for baseline in candidates:
            matching = match(group, arm, baseline, allowed)
            if matching.pairs:
                return baseline, match(group, arm, baseline, group.allowed)  # for its other seeds
            refused += matching.refused
    return candidates[0], Matching([], refused, [])


def match(group: Group, arm: str, baseline: str, allowed: frozenset[str] | None = None) -> Matching:
    """Runs of two arms of a group by seed.

    Args:
        allowed: names of requirements that the runs need not meet; None takes the group's.
    """
    allowed = group.allowed if allowed is None else allowed
    others = group.by_arm[baseline]
    partners = {record.seed: record for record in others}
    single = others[0] if len(others) == 1 and others[0].config.untrained else None
    pairs: list[tuple[Record, Record]] = []
    refused: dict[Reason, list[str]] = {}
    excepted: dict[Reason, list[str]] = {}
    for record in group.by_arm[arm]:
        reasons = [Reason("seed", "the baseline has no run of this seed")]
        if partner := partners.get(record.seed) or single:
            reasons = reasons_against(record, partner)
            if count := other_references(group, record.run_id, partner.run_id):
                reasons.append(Reason("references", f"{count} test examples have other reference answers"))
        standing = [reason for reason in reasons if reason.name not in allowed]
        if partner and not standing:
            pairs.append((record, partner))
        for reason in standing or reasons:
            (refused if standing else excepted).setdefault(reason, []).append(str(record.seed))
    named = [[(", ".join(seeds), reason) for reason, seeds in found.items()] for found in (refused, excepted)]
    return Matching(pairs, named[0], named[1])


def comparable(arms: Iterable[str], fair: Callable[[str, str], bool]) -> list[str]:
    """The first of some arms, and each other one that may be compared with all before it."""
    members: list[str] = []
    for arm in arms:
        if all(fair(arm, other) for other in members):
            members.append(arm)
    return members


@lru_cache(maxsize=32)
def _references(group: Group) -> pd.DataFrame:
    """Reference answers of the test split, by example (rows) and run_id (columns)."""
    rows = group.samples.drop_duplicates(["run_id", "example_id"])
    return rows.pivot(index="example_id", columns="run_id", values="reference")


def other_references(group: Group, left: str, right: str) -> int:
    """How many test examples of two runs carry another reference answer under the same id."""
    pair = _references(group).reindex(columns=[left, right]).dropna()
    return int((pair[left] != pair[right]).sum())
