"""The report's section on limits: what each method needs, and what the answer would be under other limits.

>>> print(section(group))
| method | memory, GiB | training, min | ...
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.analysis.choice import Contest
from bench.analysis.limits import Case
from bench.analysis.needs import AMOUNTS, Needs, needs_of_arms
from bench.analysis.order import is_control
from bench.analysis.recommend import arms_frame
from bench.analysis.thresholds import QUALITY, segments
from bench.record import Record
from bench.report.answer import Group
from bench.report.format import cell, fenced, mib, table
from bench.report.limit_text import Vocabulary, need_text, segment_rows, unit, vocabulary
from bench.stats.limits import Limits

HEADERS = {
    "memory_bytes": "memory",
    "time_seconds": "training",
    "cost_usd": "cost",
    "forgetting_share": "forgotten [95%]",
    "mergeable": "without adapter",
    "adapters": "on one base",
    QUALITY: "quality tolerance",
}
_YES = {True: "yes", False: "no", None: "not measured"}


def case_of(group: Group, limits: Limits | None = None, seed: int = 0) -> Case:
    """What is known of a group's arms. `seed` is that of the bootstrap."""
    price = limits.price_usd_per_hour if limits else None
    contest = Contest(group.findings, arms_frame(group.runs), rng=np.random.default_rng(seed))
    candidates = {arm: runs for arm, runs in runs_by_arm(group).items() if not is_control(runs[0])}
    return Case(contest, needs_of_arms(candidates, group.findings, price), group.margins)


def runs_by_arm(group: Group) -> dict[str, list[Record]]:
    """Every arm with all its runs, failed ones included."""
    of_run = group.runs.set_index("run_id")["arm"].to_dict()
    of_run |= {record.run_id: arm for arm, records in group.findings.arms.items() for record in records}
    arms: dict[str, list[Record]] = {arm: [] for arm in dict.fromkeys((*group.arms, *group.findings.arms))}
    for record in group.records:
        arms[of_run[record.run_id]].append(record)
    return {arm: records for arm, records in arms.items() if records}


def header(field: str, spoken: Vocabulary) -> str:
    """Of a column."""
    name = HEADERS[field]
    return f"{name}, {unit(field, spoken)}" if unit(field, spoken) else name


def section(group: Group) -> str:
    """Needs, thresholds and the command; empty where nothing was trained."""
    case, spoken = case_of(group), vocabulary()
    trained = [arm for arm, needs in case.needs.items() if needs.trained]
    if not trained:
        return ""
    fields = [field for field in AMOUNTS if any(case.needs[arm].amounts[field] for arm in trained)]
    headers = ["method", *(header(field, spoken) for field in fields), HEADERS["mergeable"], "checkpoint a task, MiB"]
    rows = [[cell(arm), *needs_row(case.needs[arm], fields, spoken)] for arm in trained]
    parts = [table(headers, rows)]
    notes = dict.fromkeys(f"{cell(arm)}: {case.needs[arm].mergeable.text}." for arm in trained)
    parts.append("\n".join(f"- {note}" for note in notes))
    if case.contest.scored:
        parts.append(table(["limit", "if it is", "answer"], _answers(case, fields, spoken), text_columns=3))
    return "\n\n".join(parts)


def needs_row(needs: Needs, fields: Sequence[str], spoken: Vocabulary) -> list[str]:
    """What an arm needs, without its name."""
    amounts = [need_text(needs.amounts[field], field, spoken) for field in fields]
    return [*amounts, _YES[needs.mergeable.holds], mib(needs.checkpoint_bytes)]


def _answers(case: Case, fields: Sequence[str], spoken: Vocabulary) -> list[list[str]]:
    """The answer as a function of each limit alone, a row for each stretch of values that has the same answer."""
    found = []
    for field in [*fields, QUALITY]:
        name = header(field, spoken) if field != QUALITY else f"{HEADERS[field]}, score"
        rows = segment_rows(segments(case, Limits(), field), field, spoken, case)
        found += [[name, cell(value), cell(answer)] for value, answer in rows]
    return found


def command(group: Group) -> str:
    """How to ask with several limits, for folders where sweeps put them."""
    folders = " ".join(f"results/{folder.name}" for folder in group.sweep.folders)
    return fenced(f"python -m bench report {folders} memory_gib=24 time_hours=2 mergeable=yes", "sh")
