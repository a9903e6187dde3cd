"""Whether the comparison was fair: what differed between the arms, what was identical, and what was refused.

>>> section(group).title
'Fairness'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.config import flat, to_mapping
from bench.record import Record
from bench.report.section import Section, Table
from bench.stats.compare import Refusal, compare
from bench.stats.frames import Group, is_untrained

_SKIPPED = ("paths.", "tracking.", "sweep", "method.name", "seed", "trial", "model.architecture")
_ONLY_TRAINING = ("train.", "rates", "learning_rate_source")
_ENVIRONMENT = ("device", "device_count", "threads", "cpus", "torch", "compute_dtype", "attention", "compiled")
_SHOWN_DIGITS = 8


def section(group: Group) -> Section:
    """Folded when nothing was refused."""
    same, different = _side_by_side(group)
    arms = list(group.by_arm)
    rows = [[setting, *(values.get(arm, "-") for arm in arms)] for setting, values in different.items()]
    found = compare(group)
    parts = [
        *_refusals(found.refusals, "Not compared"),
        *_refusals(found.exceptions, "Compared in spite of a difference, as asked"),
        Section("What differed", table=Table(["setting", *arms], rows, text_columns=len(arms) + 1)),
        Section("What was identical", table=Table(["setting", "value"], list(same.items()), text_columns=2), fold=True),
    ]
    lead = "No comparison was refused." if not found.refusals else ""
    return Section("Fairness", lead=lead, parts=parts, fold=not found.refusals)


def _refusals(found: Sequence[Refusal], title: str) -> list[Section]:
    """With the name by which a difference may be allowed; none when there is nothing to say."""
    rows = [
        [r.arm, r.baseline, r.seeds, r.reason.text, r.reason.name if r.reason.may_be_allowed else "-"] for r in found
    ]
    headers = ["method", "against", "seeds", "reason", "allow-different="]
    return [Section(title, table=Table(headers, rows, text_columns=5))] if rows else []


def _side_by_side(group: Group) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """(setting -> its one value, setting -> {arm: value}); several values within an arm are listed."""
    by_arm = {arm: _joined([_described(record) for record in records]) for arm, records in group.by_arm.items()}
    same: dict[str, str] = {}
    different: dict[str, dict[str, str]] = {}
    for setting in dict.fromkeys(key for values in by_arm.values() for key in values):
        values = {arm: described[setting] for arm, described in by_arm.items() if setting in described}
        alike = len(set(values.values())) == 1 and (len(values) == len(by_arm) or not setting.startswith("method."))
        if alike:
            same[setting] = next(iter(values.values()))
        else:
            different[setting] = values
    return same, different


def _described(record: Record) -> dict[str, str]:
    """What a run was set to, and what was measured about that."""
    skipped = _SKIPPED + _ONLY_TRAINING if is_untrained(record) else _SKIPPED
    found: dict[str, Any] = {k: v for k, v in flat(to_mapping(record.config)).items() if not k.startswith(skipped)}
    measured: dict[str, Any] = {}
    if train := record.train:
        measured = {"trainable_dtype": train.trainable_dtype, "steps": train.steps, "micro_batch": train.micro_batch}
        measured[f"data_stream_sha256 (seed {record.seed})"] = train.data_stream_sha256[:_SHOWN_DIGITS]
    if stage := record.train or record.evaluate:
        measured |= {name: getattr(stage.environment, name) for name in _ENVIRONMENT}
    measured["commit"] = str(record.provenance.get("git_commit") or "")[:_SHOWN_DIGITS] or None
    found |= {f"measured.{name}": value for name, value in measured.items()}
    return {name: _text(value) for name, value in found.items() if value is not None}


def _text(value: Any) -> str:
    return (", ".join(map(str, value)) or "-") if isinstance(value, list | tuple) else str(value)


def _joined(described: list[dict[str, str]]) -> Mapping[str, str]:
    keys = dict.fromkeys(key for values in described for key in values)
    return {key: " / ".join(dict.fromkeys(values[key] for values in described if key in values)) for key in keys}
