"""Whether the comparison was fair: what differed between the arms, what was identical, and what was refused.

>>> section(group).title
'Fairness'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.fairness import side_by_side
from bench.identity import settings_of
from bench.record import Record
from bench.report.section import Section, Table
from bench.stats.compare import Refusal, compare
from bench.stats.frames import Group

_ENVIRONMENT = ("device", "device_count", "threads", "cpus", "torch", "compute_dtype", "attention", "compiled")
_SHOWN_DIGITS = 8
_UNKNOWABLE = (
    "These arms were evaluated alike: the same prompts by the base's tokenizer and chat template, examples, suite and "
    "machine (of predictions, machine, prompts and decoding are unknown). How they were trained is known as far as "
    "their folders say. It cannot be known whether an arm saw test examples in training, or was trained on the same "
    "data, budget or chat template as another; and a single checkpoint tells nothing of other seeds. So differences "
    "are those of these weights, not of methods."
)


def section(group: Group) -> Section:
    """Folded when nothing was refused."""
    same, different = side_by_side({arm: _described(records) for arm, records in group.by_arm.items()})
    arms = list(group.by_arm)
    rows = [[setting, *(values.get(arm, "-") for arm in arms)] for setting, values in different.items()]
    found = compare(group)
    parts = [
        *_elsewhere(group),
        *_refusals(found.refusals, "Not compared"),
        *_refusals(found.exceptions, "Compared in spite of a difference, as asked"),
        Section("What differed", table=Table(["setting", *arms], rows, text_columns=len(arms) + 1)),
        Section("What was identical", table=Table(["setting", "value"], list(same.items()), text_columns=2), fold=True),
    ]
    lead = "No comparison was refused." if not found.refusals else ""
    return Section("Fairness", lead=lead, parts=parts, fold=not found.refusals)


def _elsewhere(group: Group) -> list[Section]:
    """What is known, and what cannot be, of arms that were trained elsewhere; none where all were trained here."""
    loaded = {arm: runs[0] for arm, runs in group.by_arm.items() if runs[0].config.method.loaded_from}
    if not loaded:
        return []
    what = {"adapter": "an adapter", "all_weights": "a checkpoint", "unknown": "predictions"}
    rows = [["judged", *(what[run.config.method.trains] for run in loaded.values())]]
    for fact in dict.fromkeys(fact for run in loaded.values() for fact in run.elsewhere):
        rows.append([fact, *(run.elsewhere.get(fact) or "unknown" for run in loaded.values())])
    table = Table(["fact (its source)", *loaded], rows, text_columns=len(loaded) + 1)
    return [Section("Trained elsewhere", lead=_UNKNOWABLE, table=table)]


def _refusals(found: Sequence[Refusal], title: str) -> list[Section]:
    """With the name by which a difference may be allowed; none when there is nothing to say."""
    rows = [
        [r.arm, r.baseline, r.seeds, r.reason.text, r.reason.name if r.reason.may_be_allowed else "-"] for r in found
    ]
    headers = ["method", "against", "seeds", "reason", "allow_different="]
    return [Section(title, table=Table(headers, rows, text_columns=5))] if rows else []


def _described(records: Sequence[Record]) -> dict[str, str | None]:
    """What an arm's runs were set to, and what was measured about that; all values where runs differ."""
    texts: dict[str, dict[str, None]] = {}
    for record in records:
        measured: dict[str, Any] = {}
        if train := record.train:
            measured = {name: getattr(train, name) for name in ("trainable_dtype", "steps", "micro_batch")}
            measured[f"data_stream_sha256 (seed {record.seed})"] = train.data_stream_sha256[:_SHOWN_DIGITS]
        if (stage := record.train or record.evaluate) and record.config.method.trains != "unknown":
            measured |= {name: getattr(stage.environment, name) for name in _ENVIRONMENT}
        measured["commit"] = str(record.provenance.get("git_commit") or "")[:_SHOWN_DIGITS] or None
        found = {f"measured.{name}": value for name, value in measured.items() if value is not None}
        for name, value in (settings_of(record.config) | found).items():
            shown = texts.setdefault(name, {})
            if value is not None:
                shown[", ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)] = None
    return {name: " / ".join(shown) or None for name, shown in texts.items()}
