"""What was identical and what differed between arms: their settings, and what was measured about them.

>>> same, different = settings_of_arms(findings.arms)
>>> different["method.learning_rate"]
{'full': '0.0001', 'lora': '0.0005', 'qlora': '0.0005'}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.analysis.fairness import COMPUTING_PACKAGES, DIGEST_SHOWN, adds_in_fp32, compilation
from bench.analysis.order import is_base
from bench.config import flat, to_mapping
from bench.record import Record

_SKIPPED = ("paths.", "tracking.", "sweep", "method.name", "seed", "trial", "model.architecture")
_OF_ENVIRONMENT = ("device", "device_count", "threads", "cpus", "cpu_governor", "torch", "compute_dtype", "attention")


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
    settings = flat(to_mapping(record.config))
    values = {k: _text(v) for k, v in settings.items() if v is not None and not k.startswith(_SKIPPED)}
    if is_base(record):
        values = {k: v for k, v in values.items() if not k.startswith(("train.", "rates", "learning_rate_source"))}
    measured: dict[str, Any] = {}
    if record.train:
        measured = {
            f"data_stream_sha256 (seed {record.seed})": record.train.data_stream_sha256[:DIGEST_SHOWN],
            "trainable_dtype": record.train.trainable_dtype,
            "micro_batch": record.train.micro_batch if record.fit else None,
            "steps": record.train.steps,
            "compiled": compilation(record.train.environment),
            "adds_in_fp32": adds_in_fp32(record),
        }
    stage = record.train or record.evaluate
    if stage:
        measured |= {name: getattr(stage.environment, name) for name in _OF_ENVIRONMENT}
    packages = record.provenance.get("packages", {})
    measured |= {name: packages.get(name) for name in COMPUTING_PACKAGES}
    measured["commit"] = str(record.provenance.get("git_commit") or "")[:DIGEST_SHOWN] or None
    return values | {f"measured.{name}": str(value) for name, value in measured.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value) or "-"
    return str(value)


def _joined(described: Sequence[Mapping[str, str]]) -> dict[str, str]:
    keys = dict.fromkeys(key for values in described for key in values)
    return {key: " / ".join(dict.fromkeys(v[key] for v in described if key in v)) for key in keys}
