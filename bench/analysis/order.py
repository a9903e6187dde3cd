"""The order in which methods are shown, and names for runs that share a method but not its settings.

>>> sorted(["qlora", "base", "mine", "full", "base_4bit"], key=method_order)
['base', 'base_4bit', 'full', 'qlora', 'mine']
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from bench.config import RunConfig
from bench.identity import names_of_arms
from bench.record import Record

_FIRST = ("base", "full", "lora", "qlora")


def method_order(name: str) -> tuple[int, str]:
    """Sorting key: base, base_*, full, full_*, lora, lora_*, qlora, qlora_*, then others by name."""
    for place, family in enumerate(_FIRST):
        if name == family:
            return 2 * place, name
        if name.startswith((f"{family}_", f"{family}-", f"{family} ")):
            return 2 * place + 1, name
    return 2 * len(_FIRST), name


def is_base(record: Record) -> bool:
    """Whether nothing was trained."""
    return record.config.untrained


def is_control(record: Record) -> bool:
    """Whether the run tests the harness itself and is no candidate (`method.control`)."""
    return record.config.method.control


def arm_names(records: Iterable[Record]) -> dict[str, str]:
    """run_id -> the name of its arm, told apart within its model, task and suite (`settings.names_of_arms`)."""
    groups: dict[tuple[str, str, str], list[tuple[str, str, RunConfig]]] = defaultdict(list)
    for record in records:
        groups[record.model, record.task, record.suite].append((record.run_id, record.method, record.config))
    return {run: name for members in groups.values() for run, name in names_of_arms(members).items()}
