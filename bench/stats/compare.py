"""Arms against a baseline: what may be compared, paired differences with intervals, and a verdict in a word each.

Every arm is compared with the base, every trained one with full fine-tuning, and an adapter over a quantized base with
the same over a whole one. Runs are matched by seed; a single untrained run is the partner of every seed. Runs of
different budgets, data, machines or software are never compared silently: the reason is kept in `Findings.refusals`,
and `--allow-different=NAME` is needed to compare them nonetheless.

p-values are adjusted by Holm's method within the families of `FAMILIES`, as the page shows them. The two numbers that
answer the question, the primary score and the suite's mean, are families of their own: more metrics and tasks shown
beside them cost them no power.

    >>> findings = compare(group)
    >>> findings.comparisons[["arm", "baseline", "measure", "difference", "low", "high", "verdict"]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

from bench.fairness import Reason, disturbances, reasons_against
from bench.record import Record
from bench.stats.frames import Group, family, is_untrained
from bench.stats.measures import SUITE_MEAN, Measure, Table, means_of, measure_tables, primary_measure
from bench.stats.paired import Estimate, holm, verdict

FAMILIES = ("primary score", "other scores", "loss", "suite's mean", "suite's tasks", "divergence")


@dataclass(frozen=True)
class Margins:
    """The largest differences that do not matter; what "equivalent" means.

    The defaults are conventions, to be set to what matters to the user: 3% of the baseline's score (0.009 at a
    ROUGE-L of 0.30), 1% of its loss or bits per byte, and 2 points of accuracy in the regression suite.
    """

    score_relative: float = 0.03
    loss_relative: float = 0.01
    accuracy: float = 0.02

    def of(self, measure: Measure, baseline_mean: float) -> float:
        """In the unit of the measure; positive."""
        if measure.kind == "score":
            return max(self.score_relative * abs(baseline_mean), 1e-9)
        if measure.kind == "loss" or not measure.higher_is_better:
            return max(self.loss_relative * abs(baseline_mean), 1e-9)
        return self.accuracy


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
        comparisons: one row a measure and pair of arms: kind, measure, unit, higher_is_better, family (of
            `FAMILIES`), arm, baseline, baseline_mean, difference (arm - baseline), low, high (95%), p, p_holm, test
            ("McNemar" or "t"), margin, verdict (better, worse, equivalent, equal, not settled), seeds, examples,
            examples_to_decide (of an unsettled one; None: more examples cannot), differing (requirements not met, in
            spite of which it was made).
        exceptions: differences in spite of which a comparison was made.
    """

    tables: dict[Measure, Table]
    estimates: pd.DataFrame
    comparisons: pd.DataFrame
    refusals: list[Refusal]
    exceptions: list[Refusal]

    @property
    def primary(self) -> Measure | None:
        """The task's first metric; None where nothing was scored."""
        return primary_measure(self.tables)


@lru_cache(maxsize=32)
def compare(group: Group, margins: Margins | None = None) -> Findings:
    """All comparisons within a group. Failed runs take part with the stages that they finished."""
    tables = measure_tables(group)
    estimates = [
        _row(measure, known.of(0)) | {"arm": arm}
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
        made, unmeasured = _differences(tables, matching.pairs, is_untrained(group.by_arm[baseline][0]))
        rows += [{"arm": arm, "baseline": baseline, "differing": differing} | row for row in made]
        refusals += [Refusal(arm, baseline, "all", Reason("values", text)) for text in unmeasured]
    frame = pd.DataFrame(estimates).rename(columns={"value": "mean"})
    return Findings(tables, frame, _judged(rows, primary_measure(tables), margins or Margins()), refusals, exceptions)


def _row(measure: Measure, estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.interval()
    return {"kind": measure.kind, "measure": measure.name, "unit": measure.unit,
            "higher_is_better": measure.higher_is_better, "value": estimate.mean, "low": low, "high": high,
            "seeds": estimate.seeds, "examples": estimate.examples}  # fmt: skip


def _differences(
    tables: dict[Measure, Table], pairs: Sequence[tuple[Record, Record]], against_base: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Every measure of one pair of arms, and why some could not be compared."""
    sides = [list({record.run_id: record for record in side}.values()) for side in zip(*pairs, strict=True)]
    rows, unmeasured = [], dict[str, list[str]]()
    for measure, table in tables.items():
        if measure.kind == "divergence" and against_base:
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


def _judged(rows: Sequence[dict[str, Any]], primary: Measure | None, margins: Margins) -> pd.DataFrame:
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
        margin = margins.of(measure, row["baseline_mean"])
        word = verdict(result, margin, p=row["p_holm"], higher_is_better=measure.higher_is_better)
        judged.append(_row(measure, result) | row | {
            "test": "t" if result.discordant is None else "McNemar",
            "margin": margin,
            "verdict": word,
            "examples_to_decide": result.examples_to_decide(margin) if word == "not settled" else None,
        })  # fmt: skip
    return pd.DataFrame(judged).rename(columns={"value": "difference"})


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

    untrained = [arm for arm, runs in group.by_arm.items() if is_untrained(runs[0])]
    bases, fulls, loras = plain("base") or untrained[:1], plain("full"), plain("lora")
    pairs = [(arm, bases) for arm in kinds if bases and arm not in bases]
    pairs += [(arm, fulls) for arm in kinds if fulls and arm not in fulls and arm not in untrained]
    return pairs + [(arm, loras) for arm, kind in kinds.items() if loras and kind in ("qlora",)]


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
    partners = {record.seed: record for record in group.by_arm[baseline]}
    others = group.by_arm[baseline]
    single = others[0] if len(others) == 1 and is_untrained(others[0]) else None
    pairs: list[tuple[Record, Record]] = []
    refused: dict[Reason, list[str]] = {}
    excepted: dict[Reason, list[str]] = {}
    for record in group.by_arm[arm]:
        partner = partners.get(record.seed) or single
        if partner is None:
            refused.setdefault(Reason("seed", "the baseline has no run of this seed"), []).append(str(record.seed))
            continue
        reasons = reasons_against(record, partner)
        if count := _other_references(group, record.run_id, partner.run_id):
            reasons.append(Reason("references", f"{count} test examples have other reference answers"))
        standing = [reason for reason in reasons if reason.name not in allowed]
        if not standing:
            pairs.append((record, partner))
        for reason in standing or reasons:
            (refused if standing else excepted).setdefault(reason, []).append(str(record.seed))
    named = [[(", ".join(seeds), reason) for reason, seeds in found.items()] for found in (refused, excepted)]
    return Matching(pairs, named[0], named[1])


@lru_cache(maxsize=32)
def _references(group: Group) -> dict[str, pd.Series]:
    """run_id -> the reference answers of its samples, by example."""
    rows = group.samples.drop_duplicates(["run_id", "example_id"]).set_index("example_id")
    return {str(run): of_run["reference"] for run, of_run in rows.groupby("run_id")}


def _other_references(group: Group, left: str, right: str) -> int:
    """How many test examples of two runs carry another reference answer under the same id."""
    known = _references(group)
    if left not in known or right not in known or known[left].equals(known[right]):
        return 0
    shared = known[left].index.intersection(known[right].index)
    return int((known[left].loc[shared] != known[right].loc[shared]).sum())


# --- May two runs be compared? ---


def speed_doubts(left: Record, right: Record) -> list[str]:
    """Why the speeds of two runs should not be compared, a sentence's worth each; quality may be all the same."""
    doubts = []
    for record in (left, right):
        if text := disturbances(record).get("train"):
            doubts.append(f"{record.run_id} was measured on a busy machine: {text}")
    governors = [record.train.environment.cpu_governor if record.train else None for record in (left, right)]
    if None not in governors and governors[0] != governors[1]:
        doubts.append(f"their processors were governed differently ({governors[0]} and {governors[1]})")
    return doubts
