"""Which runs are set against which: arms, their baselines, and runs of the same seed.

>>> arms = group_arms(records)
>>> list(arms)
['base', 'full', 'lora', 'qlora']
>>> match(arms["lora"], arms["full"], references).pairs
[('lora-...-s0-1f2e', 'full-...-s0-77aa')]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.analysis.fairness import reasons_against
from bench.analysis.order import arm_names, is_base, method_order
from bench.analysis.values import References, different_references
from bench.fairness import Reason
from bench.record import Record

NONE_ALLOWED: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Refusal:
    """A reason against comparing two arms. As an exception: one in spite of which they were compared."""

    arm: str
    baseline: str
    seeds: str
    reason: Reason


@dataclass(frozen=True)
class Matching:
    """Runs of two arms, matched by seed."""

    pairs: list[tuple[str, str]]  # run_ids
    refused: list[tuple[str, Reason]]  # (seeds, why these were not paired)
    excepted: list[tuple[str, Reason]]  # (seeds, what was allowed to differ in these pairs)


def group_arms(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Arm -> its runs by seed, arms in display order; of two runs of one seed the later one counts."""
    names = arm_names(records)
    arms: dict[str, dict[int, Record]] = {}
    for record in sorted(records, key=lambda r: (method_order(names[r.run_id]), r.seed, r.started_at)):
        arms.setdefault(names[record.run_id], {})[record.seed] = record
    return {arm: list(by_seed.values()) for arm, by_seed in arms.items()}


def wanted_pairs(arms: Mapping[str, Sequence[Record]]) -> list[tuple[str, list[str]]]:
    """(arm, candidate baselines): all against the base, trained ones against full, qlora against lora."""
    bases = [arm for arm, runs in arms.items() if runs[0].method == "base"]
    bases = bases or [arm for arm, runs in arms.items() if is_base(runs[0])][:1]
    fulls = [arm for arm, runs in arms.items() if runs[0].method == "full"]
    loras = [arm for arm, runs in arms.items() if runs[0].method == "lora"]
    pairs = [(arm, bases) for arm in arms if bases and arm not in bases]
    trained = [arm for arm, runs in arms.items() if not is_base(runs[0])]
    pairs += [(arm, fulls) for arm in trained if fulls and arm not in fulls]
    return pairs + [(arm, loras) for arm in trained if loras and arms[arm][0].method.startswith("qlora")]


def fair_partner(
    arm: str,
    candidates: Sequence[str],
    arms: Mapping[str, Sequence[Record]],
    references: References,
    allowed: frozenset[str] = NONE_ALLOWED,
) -> tuple[str, list[tuple[str, str]], list[Refusal], list[Refusal]]:
    """The first candidate with a fair pair of runs; where none has one, the first with a pair that is allowed.

    Returns:
        (its name, its pairs, the refusals, the exceptions that were used).
    """
    refused: list[Refusal] = []
    for names in dict.fromkeys((NONE_ALLOWED, allowed)):
        refused = []
        for baseline in candidates:
            matching = match(arms[arm], arms[baseline], references, names)
            if matching.pairs and names != allowed:
                matching = match(arms[arm], arms[baseline], references, allowed)  # for the other seeds
            found = [Refusal(arm, baseline, seeds, reason) for seeds, reason in matching.refused]
            if matching.pairs:
                excepted = [Refusal(arm, baseline, seeds, reason) for seeds, reason in matching.excepted]
                return baseline, matching.pairs, found, excepted
            refused += found
    return candidates[0], [], refused, []


def match(
    left: Sequence[Record],
    right: Sequence[Record],
    references: References,
    allowed: frozenset[str] = NONE_ALLOWED,
) -> Matching:
    """Runs of two arms matched by seed; a single untrained run is the partner of every seed.

    Args:
        references: `values.references_of` their samples.
        allowed: names of requirements (`agreement.REQUIREMENTS`) that the runs need not meet.
    """
    partners = {record.seed: record for record in right}
    single = right[0] if len(right) == 1 and is_base(right[0]) else None
    pairs: list[tuple[str, str]] = []
    refused: dict[Reason, list[str]] = {}
    excepted: dict[Reason, list[str]] = {}
    for record in left:
        partner = partners.get(record.seed) or single
        reasons = _reasons(record, partner, references)
        standing = [reason for reason in reasons if reason.name not in allowed]
        if partner is not None and not standing:
            pairs.append((record.run_id, partner.run_id))
        for reason in standing:
            refused.setdefault(reason, []).append(str(record.seed))
        for reason in reasons if not standing else ():
            excepted.setdefault(reason, []).append(str(record.seed))
    return Matching(pairs, _with_seeds(refused), _with_seeds(excepted))


def _reasons(record: Record, partner: Record | None, references: References) -> list[Reason]:
    if partner is None:
        return [Reason("seed", "the baseline has no run of this seed")]
    reasons = reasons_against(record, partner)
    if count := different_references(references.get(record.run_id), references.get(partner.run_id)):
        reasons.append(Reason("references", f"{count} test examples have other reference answers"))
    return reasons


def _with_seeds(reasons: Mapping[Reason, Sequence[str]]) -> list[tuple[str, Reason]]:
    return [(", ".join(seeds), reason) for reason, seeds in reasons.items()]


def fair_pairs(
    left: Sequence[Record], right: Sequence[Record], references: References
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """`match` without exceptions: (pairs of run_ids, [(seeds, reason why these were not paired)])."""
    matching = match(left, right, references)
    return matching.pairs, [(seeds, reason.text) for seeds, reason in matching.refused]
