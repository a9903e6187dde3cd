"""How the plan shows what the methods share and where they differ: one small table, and the pairs it forbids.

Identical for all 4 arms: 42 settings. Different:
setting                  base    full     lora      qlora
method.learning_rate     -       5e-05    0.0005    0.0005
method.adapter.*         -       -        8 alike   8 alike
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from bench.planning.pairs import FILE, Group, Pair
from bench.spec.agreement import Reason

_COLUMNS, _PAIRS_SHOWN = 6, 3
_MISSING = "-"


def heading(group: Group) -> str:
    """What is the same."""
    same = f"Identical for all {len(group.seeds)} arms: {len(group.identical)} settings."
    return f"{same} Different:" if group.different else f"{same} None differs."


def table(group: Group) -> Table:
    """One row a setting that differs, one column an arm; of many arms each value with the number that have it."""
    wide = len(group.seeds) > _COLUMNS
    headers = ["setting", "values"] if wide else ["setting", *group.seeds]
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in headers:
        shown.add_column(escape(header), no_wrap=header == "setting", overflow="fold")
    for setting, values in folded(group).items():
        cells = [_counted(values, group)] if wide else [values.get(arm, _MISSING) for arm in group.seeds]
        shown.add_row(*map(escape, [setting, *cells]))
    return shown


def folded(group: Group) -> dict[str, dict[str, str]]:
    """The differing settings as text; those of one part that differ only in being there make one row.

    An adapter of eight equal settings that LoRA and QLoRA have and others lack says nothing in eight rows.
    """
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    rows: dict[str, dict[str, str]] = {}
    for setting, values in group.different.items():
        part = setting.rpartition(".")[0]
        if part.count(".") and len({repr(value) for value in values.values()}) == 1:
            parts.setdefault(f"{part}.*", {})[setting.removeprefix(f"{part}.")] = values
            rows.setdefault(f"{part}.*", {})
        else:
            rows[setting] = {arm: _text(value) for arm, value in values.items()}
    for name, members in parts.items():
        arms = dict.fromkeys(arm for values in members.values() for arm in values)
        rows[name] = {arm: _together({s: v[arm] for s, v in members.items() if arm in v}) for arm in arms}
    return rows


def _together(settings: Mapping[str, Any]) -> str:
    return f"{len(settings)} alike" if len(settings) > 1 else ", ".join(map(_text, settings.values()))


def _counted(values: Mapping[str, str], group: Group) -> str:
    counts = Counter(values.get(arm, _MISSING) for arm in group.seeds)
    return ", ".join(f"{value} ({count} arms)" for value, count in counts.items())


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def verdicts(group: Group, allowed: Collection[str]) -> list[str]:
    """How many pairs may be compared; by reason, those that the report will refuse, wholly or for some seeds."""
    refused: dict[str, list[tuple[Pair, Reason]]] = {}
    for pair in group.pairs:
        for reason in pair.reasons:
            if reason.name not in allowed:
                refused.setdefault(reason.name, []).append((pair, reason))
    spoilt = {(pair.left, pair.right) for found in refused.values() for pair, _ in found}
    lines = [
        f"{len(group.pairs) - len(spoilt)} of {len(group.pairs)} pairs may be compared as planned; their data, device "
        "and software are checked when they have run."
    ]
    return lines + [_refusal(found) for found in refused.values()]


def _refusal(found: Sequence[tuple[Pair, Reason]]) -> str:
    named = [f"{pair.left} and {pair.right}, {reason.text}" for pair, reason in found[:_PAIRS_SHOWN]]
    more = f"; {len(found) - _PAIRS_SHOWN} more in {FILE}" if len(found) > _PAIRS_SHOWN else ""
    reason = found[0][1]
    remedy = f"; --allow-different={reason.name} would" if reason.may_be_allowed else ""
    return f"  {len(found)} will not be compared for {reason.name}: {'; '.join(named)}{more}{remedy}"
