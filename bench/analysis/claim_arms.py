"""Which runs a claim speaks of: from "qlora against lora" to fair pairs of runs, matched by seed.

Two arms are set against each other when they differ in what the claim names and in the learning rate, which each
method has its own of. Where a sweep holds several such pairs (ranks, data sizes), each is judged by itself.

    >>> choose(Arm("qlora"), Arm("lora"), group_arms(records), references)
    [Chosen(names=('qlora', 'lora'), left=[...], right=[...])]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.analysis.order import is_base
from bench.analysis.pairing import fair_pairs
from bench.analysis.rate_sweeps import best_of_rates
from bench.analysis.values import References
from bench.record import Record
from bench.stats.claim import Arm, Family

Arms = Mapping[str, Sequence[Record]]
_VARIANTS = {"use_dora": False, "use_rslora": False, "init": "default"}  # of LoRA, as it was published
_SAME_TRAINABLE = 0.05


class NotMeasuredError(Exception):
    """What a check needs is not in the sweep; the text says what, for a person."""


@dataclass(frozen=True)
class Chosen:
    """The runs of one arm, or of two matched by seed (`right` is then as long as `left`)."""

    names: tuple[str, ...]  # of the arms
    left: list[Record]
    right: list[Record]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Run ids by seed."""
        return [(left.run_id, right.run_id) for left, right in zip(self.left, self.right, strict=True)]


def family(record: Record) -> Family | None:
    """The method by what is trained and how the rest is stored, whatever its name; None for few-shot prompting."""
    method = record.config.method
    stored_small = method.quantization is not None
    if is_base(record):
        return None if method.shots else "base_4bit" if stored_small else "base"
    if method.trains == "all_weights":
        return "full"
    return "qlora" if stored_small else "lora"


def matching(arm: Arm, arms: Arms) -> dict[str, list[Record]]:
    """The arms that a claim means by `arm`. LoRA's variants are not meant by "lora".

    Of several, those called after the family itself are meant: `full` before `full_bf16`.

    Raises:
        NotMeasuredError: when there is none.
    """
    found = {name: list(runs) for name, runs in arms.items() if family(runs[0]) == arm.method and _fits(arm, runs[0])}
    plain = {name: runs for name, runs in found.items() if runs[0].method == arm.method}
    if not found:
        raise NotMeasuredError(f"the sweep has no finished run of {described(arm)}")
    return plain or found


def described(arm: Arm) -> str:
    """The arm for a person: `lora with rank 128 or more`."""
    words = [f"{name} {_words(value)}" for name, value in arm.named.items()]
    return arm.method + (f" with {', '.join(words)}" if words else "")


def choose(
    of: Arm, against: Arm | None, arms: Arms, references: References, *, same_trainable: bool = False
) -> list[Chosen]:
    """Every arm, or every fair pair of arms, that the claim is about.

    Raises:
        NotMeasuredError: when there is none, with the reason.
    """
    lefts = best_of_rates(matching(of, arms))
    if against is None:
        return [Chosen((name,), runs, []) for name, runs in lefts.items()]
    rights = best_of_rates(matching(against, arms))
    free = {*of.named, *against.named} | ({"alpha"} if of.rank or against.rank else set())
    alike = [
        (left, right)
        for left in lefts
        for right in rights
        if left != right and _settings(lefts[left][0], rights[right][0], free)
        if not same_trainable or _train_alike(lefts[left][0], rights[right][0])
    ]
    if not alike:
        equally = " and train equally many parameters" if same_trainable else ""
        raise NotMeasuredError(
            f"no run of {described(of)} and of {described(against)} agree in all other settings{equally}"
        )
    chosen: list[Chosen] = []
    refused: dict[str, None] = {}
    for left, right in alike:
        pairs, reasons = fair_pairs(lefts[left], rights[right], references)
        by_id = {record.run_id: record for record in [*lefts[left], *rights[right]]}
        if pairs:
            matched = [(by_id[a], by_id[b]) for a, b in pairs]
            chosen.append(Chosen((left, right), [a for a, _ in matched], [b for _, b in matched]))
        refused |= dict.fromkeys(reason for _, reason in reasons)
    if not chosen:
        raise NotMeasuredError(f"{described(of)} and {described(against)} may not be compared: {'; '.join(refused)}")
    return chosen


def _fits(arm: Arm, record: Record) -> bool:
    method = record.config.method
    parts = [part for part in (method, method.quantization, method.adapter) if part is not None]
    settings = {name: value for part in parts for name, value in asdict(part).items()}
    variants = all(settings.get(name, usual) == usual for name, usual in _VARIANTS.items())
    return variants and all(_equal(wanted, settings.get(name)) for name, wanted in arm.named.items())


def _equal(wanted: Any, given: Any) -> bool:
    if isinstance(wanted, tuple):
        low, high = wanted
        return given is not None and (low is None or given >= low) and (high is None or given <= high)
    if isinstance(wanted, list):
        return isinstance(given, list) and sorted(wanted) == sorted(given)
    return bool(wanted == given)


def _words(value: Any) -> str:
    match value:
        case (low, high) if isinstance(value, tuple):
            if low == 1 and high is None:
                return "any"
            if low == high:
                return f"{low:g}"
            return f"{low:g} or more" if high is None else f"up to {high:g}" if low is None else f"{low:g} to {high:g}"
        case list():
            return " and ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _settings(left: Record, right: Record, free: set[str]) -> bool:
    """Whether the parts that both methods have (adapter, quantization) agree but for `free`."""
    for part in ("adapter", "quantization"):
        sides = [getattr(record.config.method, part) for record in (left, right)]
        if all(sides):
            first, second = ({k: v for k, v in asdict(side).items() if k not in free} for side in sides)
            if first != second:
                return False
    return True


def _train_alike(left: Record, right: Record) -> bool:
    counts = [record.train.parameters_trainable for record in (left, right) if record.train]
    return len(counts) == 2 and abs(counts[0] - counts[1]) <= _SAME_TRAINABLE * max(counts)
