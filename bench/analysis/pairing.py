"""Which runs are set against which: arms, their baselines, and runs of the same seed.

>>> arms = group_arms(records)
>>> list(arms)
['base', 'full', 'lora', 'qlora']
>>> fair_pairs(arms["lora"], arms["full"], samples)
([('lora-...-s0-1f2e', 'full-...-s0-77aa')], [])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from bench.analysis.fairness import reasons_against
from bench.analysis.measures import different_references
from bench.analysis.order import arm_names, is_base, method_order
from bench.spec.record import Record


@dataclass(frozen=True)
class Refusal:
    """A pair of arms that was not compared, or only for other seeds."""

    arm: str
    baseline: str
    seeds: str
    reason: str


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
    arm: str, candidates: Sequence[str], arms: Mapping[str, Sequence[Record]], samples: pd.DataFrame
) -> tuple[str, list[tuple[str, str]], list[Refusal]]:
    """The first candidate with a fair pair of runs: (its name, its pairs, the pairs refused)."""
    refused: list[Refusal] = []
    for baseline in candidates:
        pairs, reasons = fair_pairs(arms[arm], arms[baseline], samples)
        found = [Refusal(arm, baseline, seeds, reason) for seeds, reason in reasons]
        if pairs:
            return baseline, pairs, found
        refused += found
    return candidates[0], [], refused


def fair_pairs(
    left: Sequence[Record], right: Sequence[Record], samples: pd.DataFrame
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Runs of two arms matched by seed; a single untrained run is the partner of every seed.

    Returns:
        (pairs of run_ids, [(seeds, reason why these were not paired)]).
    """
    partners = {record.seed: record for record in right}
    single = right[0] if len(right) == 1 and is_base(right[0]) else None
    pairs: list[tuple[str, str]] = []
    refused: dict[str, list[str]] = {}
    for record in left:
        partner = partners.get(record.seed) or single
        if partner is None:
            reasons = ["the baseline has no run of this seed"]
        else:
            reasons = reasons_against(record, partner)
            count = different_references(samples, record.run_id, partner.run_id)
            reasons += [f"{count} test examples have other reference answers"] if count else []
            if not reasons:
                pairs.append((record.run_id, partner.run_id))
        for reason in reasons:
            refused.setdefault(reason, []).append(str(record.seed))
    return pairs, [(", ".join(seeds), reason) for reason, seeds in refused.items()]
