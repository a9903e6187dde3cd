"""The order in which methods are shown, and names for runs that share a method but not its settings.

>>> sorted(["qlora", "base", "mine", "full", "base_4bit"], key=method_order)
['base', 'base_4bit', 'full', 'qlora', 'mine']
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from bench.spec.record import Record

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
    return bool(record.config.get("method", {}).get("trains", "") == "nothing")


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a.b": value}; an empty mapping stays a value.

    >>> flat({"method": {"adapter": {"rank": 16}}, "seed": 0})
    {'method.adapter.rank': 16, 'seed': 0}
    """
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return result


def arm_names(records: Iterable[Record]) -> dict[str, str]:
    """run_id -> the name of its arm: runs of one arm differ in the seed only.

    An arm is called after its method; where settings of one method vary for the same model, task and suite (a
    search of learning rates, two budgets), the name tells them: "lora (learning_rate=0.0002)".
    """
    by_method: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        by_method[record.method, record.model, record.task, record.suite].append(record)
    names: dict[str, str] = {}
    for (method, *_), members in by_method.items():
        settings = {record.run_id: _settings(record) for record in members}
        keys = dict.fromkeys(key for values in settings.values() for key in values)
        varying = [k for k in keys if len({repr(values.get(k)) for values in settings.values()}) > 1]
        for run_id, values in settings.items():
            told = ", ".join(f"{key.rpartition('.')[2]}={values.get(key)}" for key in varying)
            names[run_id] = f"{method} ({told})" if told else method
    return names


def _settings(record: Record) -> dict[str, Any]:
    """What sets one arm apart from another of the same method, model and task."""
    parts = {name: record.config.get(name) for name in ("method", "train", "task", "hardware")}
    flattened = flat({name: part for name, part in parts.items() if part})
    if is_base(record):  # the training budget is nothing to a model that is not trained
        flattened = {key: value for key, value in flattened.items() if not key.startswith("train.")}
    ignored = ("hardware.name", "hardware.stage_timeout_seconds", "hardware.price_usd_per_hour")
    return {key: value for key, value in flattened.items() if key not in ignored}
