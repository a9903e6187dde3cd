"""What was compared in spite of a difference, what was not compared, and which runs had a busy machine.

Exceptions are given for each report anew (`--allow-different`); `results/<sweep>/fairness.json` says which were
given for the report that stands beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.analysis.load import disturbances
from bench.analysis.pairing import Refusal
from bench.analysis.side_by_side import settings_of_arms
from bench.identity import write_atomic
from bench.report.answer import Group
from bench.report.format import UNKNOWN, cell, table

FILE = "fairness.json"


def exceptions_table(group: Group) -> str:
    """One row a difference in spite of which two arms were compared."""
    rows = [
        [cell(e.arm), cell(e.baseline), cell(e.seeds), cell(e.reason.name), cell(e.reason.text)]
        for e in group.findings.exceptions
    ]
    return table(["method", "against", "seeds", "allowed", "what differed"], rows, text_columns=5) if rows else ""


def allowed_flag(group: Group) -> str:
    """The option as it was given; empty without one."""
    allowed = sorted(group.findings.allowed)
    return f"--allow-different={','.join(allowed)}" if allowed else ""


def unused(group: Group) -> list[str]:
    """Names that were allowed to differ and did not, where it mattered."""
    return sorted(group.findings.allowed - {exception.reason.name for exception in group.findings.exceptions})


def refusals_table(group: Group) -> str:
    """One row a reason why a pair of arms was not compared, with the name under which it can be allowed."""
    rows = [
        [
            cell(r.arm),
            cell(r.baseline),
            cell(r.seeds),
            cell(r.reason.text),
            cell(r.reason.name) if r.reason.may_be_allowed else UNKNOWN,
        ]
        for r in group.findings.refusals
    ]
    headers = ["method", "against", "seeds", "reason", "--allow-different="]
    return table(headers, rows, text_columns=5) if rows else ""


def busy_runs(group: Group) -> list[str]:
    """One line a run and stage that shared the machine with others."""
    arms = group.runs.set_index("run_id")["arm"]
    return [
        f"{arms[record.run_id]}, seed {record.seed}, {stage}: {text}"
        for record in group.records
        for stage, text in disturbances(record).items()
    ]


def busy_caveats(group: Group) -> list[str]:
    """What a busy machine means for the answer."""
    arms = group.runs.set_index("run_id")["arm"]
    names = dict.fromkeys(arms[record.run_id] for record in group.records if disturbances(record))
    if not names:
        return []
    return [
        f"Measured while others used the machine: {', '.join(names)} (see Speed). Times and speeds of these are in "
        "doubt, and so is every comparison of them; scores and losses are not."
    ]


def write_fairness(folder: Path, groups: Sequence[Group]) -> None:
    """For programs: for each group what was identical, what differed, what was refused and what allowed."""
    content = [_described(group) for group in groups]
    write_atomic(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _described(group: Group) -> dict[str, object]:
    identical, different = settings_of_arms(group.findings.arms)
    return {
        "group": group.name,
        "allowed_different": sorted(group.findings.allowed),
        "exceptions": [_plain(exception) for exception in group.findings.exceptions],
        "refusals": [_plain(refusal) for refusal in group.findings.refusals],
        "busy": {record.run_id: found for record in group.records if (found := disturbances(record))},
        "different": different,
        "identical": identical,
    }


def _plain(refusal: Refusal) -> dict[str, str]:
    return {
        "arm": refusal.arm,
        "baseline": refusal.baseline,
        "seeds": refusal.seeds,
        "name": refusal.reason.name,
        "reason": refusal.reason.text,
    }
