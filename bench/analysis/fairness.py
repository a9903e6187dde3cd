"""May two runs be compared? Reasons against it, and a table of what was identical and what differed.

Runs of different budgets, data or machines are never compared silently: the reason is returned and shown.

    >>> reasons_against(lora_seed_0, full_seed_0)
    ['they consumed different data (data_stream_sha256 1f2e3d4c and 99aa88bb)']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.analysis.order import flat, is_base
from bench.spec.record import Environment, Record

_TRAINING_ONLY = ("train_", "validation_", "overflow")  # of the task's settings: nothing to an untrained model
_DIGEST_SHOWN = 8


def reasons_against(left: Record, right: Record) -> list[str]:
    """Why the results of two runs may not be compared, each a clause; empty when they may.

    Trained runs must agree in comparison_key, consumed data, device, torch, compute dtype, attention and
    compilation. A base model consumed no data and has no budget: it must agree in the model, in what of the task
    and suite concerns evaluation, and in the evaluation's environment.
    """
    if is_base(left) or is_base(right):
        return [*_evaluation_settings(left, right), *_evaluation_environment(left, right)]
    reasons = []
    if left.comparison_key != right.comparison_key:
        keys = sorted(_different_keys(left, right))
        shown = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
        reasons.append(f"their settings differ beyond method and seed ({shown or 'comparison_key'})")
    if left.train is None or right.train is None:
        return [*reasons, "one of them has no training result"]
    streams = left.train.data_stream_sha256, right.train.data_stream_sha256
    if streams[0] != streams[1]:
        digests = " and ".join(stream[:_DIGEST_SHOWN] for stream in streams)
        reasons.append(f"they consumed different data (data_stream_sha256 {digests})")
    reasons += _environment(left.train.environment, right.train.environment, "trained")
    return reasons + _evaluation_environment(left, right)


def _different_keys(left: Record, right: Record) -> set[str]:
    ignored = ("method.", "seed", "paths.", "tracking.", "sweep", "train.micro_batch", "hardware.name")
    sides = [{k: v for k, v in flat(record.config).items() if not k.startswith(ignored)} for record in (left, right)]
    return {key for key in {*sides[0], *sides[1]} if sides[0].get(key) != sides[1].get(key)}


def _evaluation_settings(left: Record, right: Record) -> list[str]:
    reasons = []
    for part in ("model", "task", "suite"):
        sides = [_concerning_evaluation(part, record.config.get(part, {})) for record in (left, right)]
        keys = sorted(key for key in {*sides[0], *sides[1]} if sides[0].get(key) != sides[1].get(key))
        if keys:
            reasons.append(f"their {part} settings differ ({', '.join(keys[:4])})")
    return reasons


def _concerning_evaluation(part: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    flattened = flat(settings)
    if part == "task":
        return {key: value for key, value in flattened.items() if not key.startswith(_TRAINING_ONLY)}
    return flattened


def _evaluation_environment(left: Record, right: Record) -> list[str]:
    stages = [record.evaluate or record.regression for record in (left, right)]
    if stages[0] is None or stages[1] is None:
        return []
    return _environment(stages[0].environment, stages[1].environment, "evaluated", compiled=False)


def _environment(left: Environment, right: Environment, verb: str, *, compiled: bool = True) -> list[str]:
    names = ["device", "torch", "compute_dtype", "attention"]
    reasons = [
        f"they were {verb} with different {name} ({getattr(left, name)} and {getattr(right, name)})"
        for name in names
        if getattr(left, name) != getattr(right, name)
    ]
    if compiled and compilation(left) != compilation(right):
        reasons.append(f"they were {verb} with different numerics (compiled: {left.compiled} and {right.compiled})")
    return reasons


def compilation(environment: Environment) -> str:
    """`regional`, `off`, ...: without the reason, which changes no number."""
    return environment.compiled.partition(":")[0].strip()


def settings_of_arms(arms: Mapping[str, Sequence[Record]]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What was identical and what differed, from the settings and what was measured about them.

    Args:
        arms: arm -> its runs, one a seed.

    Returns:
        (setting -> the one value), (setting -> {arm: value}). Values are text; several within an arm are joined by
        " / ". What concerns training is left out of the comparison for an untrained arm.
    """
    by_arm = {name: _joined([_described(record) for record in records]) for name, records in arms.items()}
    settings = dict.fromkeys(key for values in by_arm.values() for key in values)
    same: dict[str, str] = {}
    different: dict[str, dict[str, str]] = {}
    for setting in settings:
        values = {arm: described[setting] for arm, described in by_arm.items() if setting in described}
        if len(set(values.values())) == 1 and (len(values) == len(by_arm) or not setting.startswith("method.")):
            same[setting] = next(iter(values.values()))
        else:
            different[setting] = values
    return same, different


def _described(record: Record) -> dict[str, str]:
    skipped = ("paths.", "tracking.", "sweep", "method.name", "seed")
    settings = flat(record.config)
    values = {k: _text(v) for k, v in settings.items() if v is not None and not k.startswith(skipped)}
    if is_base(record):
        values = {k: v for k, v in values.items() if not k.startswith("train.")}
    if record.train:
        train = record.train
        values |= {
            f"measured.data_stream_sha256 (seed {record.seed})": train.data_stream_sha256[:_DIGEST_SHOWN],
            "measured.trainable_dtype": train.trainable_dtype,
            "measured.steps": str(train.steps),
            "measured.compiled": compilation(train.environment),
        }
    stage = record.train or record.evaluate
    if stage:
        names = ("device", "torch", "compute_dtype", "attention")
        values |= {f"measured.{name}": str(getattr(stage.environment, name)) for name in names}
    return values


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value) or "-"
    return str(value)


def _joined(described: Sequence[Mapping[str, str]]) -> dict[str, str]:
    keys = dict.fromkeys(key for values in described for key in values)
    return {key: " / ".join(dict.fromkeys(v[key] for v in described if key in v)) for key in keys}
