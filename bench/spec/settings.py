"""A run's settings as one flat mapping, and the names of arms that follow from them.

An arm is what a report has a row for: a method with its settings, whatever the seed.

    >>> flat({"method": {"adapter": {"rank": 16}}, "seed": 0})
    {'method.adapter.rank': 16, 'seed': 0}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from bench.spec import devices

_NOT_OF_AN_ARM = ("hardware.name", "hardware.stage_timeout_seconds", "hardware.price_usd_per_hour",
                  "hardware.memory_gib", "hardware.bf16_tflops", "hardware.watts",
                  "train.checkpoint_every_steps")  # fmt: skip


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a.b": value}; an empty mapping stays a value."""
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return result


def is_untrained(config: Mapping[str, Any]) -> bool:
    """Whether a run of this description (`to_mapping`) trains nothing."""
    return bool(config.get("method", {}).get("trains", "") == "nothing")


def names_of_arms(runs: Iterable[tuple[str, str, Mapping[str, Any]]]) -> dict[str, str]:
    """run -> the name of its arm, for (run, method, its description) of one model, task and suite.

    An arm is called after its method; where settings of one method vary (a search of learning rates, two budgets),
    the name tells them: "lora (learning_rate=0.0002)". Where two or more vary, and each sweep has its own, the sweep's
    name says it shorter: "lora (monday)".
    """
    by_method: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    sweep_of: dict[str, str] = {}
    for run, method, config in runs:
        by_method[method][run] = _of_an_arm(config)
        sweep_of[run] = str(config.get("sweep", ""))
    names: dict[str, str] = {}
    for method, settings in by_method.items():
        keys = dict.fromkeys(key for values in settings.values() for key in values)
        varying = [k for k in keys if len({repr(values.get(k)) for values in settings.values()}) > 1]
        told = {
            run: ", ".join(f"{key.rpartition('.')[2]}={values.get(key)}" for key in varying)
            for run, values in settings.items()
        }
        if len(varying) > 1 and _one_to_one((sweep_of[run], text) for run, text in told.items()):
            told = {run: sweep_of[run] for run in told}
        names |= {run: f"{method} ({text})" if text else method for run, text in told.items()}
    return names


def _one_to_one(pairs: Iterable[tuple[str, str]]) -> bool:
    """Whether neither side of a pair occurs with two partners."""
    found = set(pairs)
    return len(found) == len({left for left, _ in found}) == len({right for _, right in found})


def _of_an_arm(config: Mapping[str, Any]) -> dict[str, Any]:
    """What sets one arm apart from another of the same method, model and task."""
    parts = {name: config.get(name) for name in ("method", "train", "task", "hardware")}
    flattened = flat({name: part for name, part in parts.items() if part})
    if is_untrained(config):  # the training budget is nothing to a model that is not trained
        flattened = {key: value for key, value in flattened.items() if not key.startswith("train.")}
    alone = {f"hardware.{name}": value for name, value in devices.ONE.items()}  # which older descriptions do not say
    return {k: v for k, v in (alone | flattened).items() if k not in _NOT_OF_AN_ARM}
