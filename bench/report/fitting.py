"""What `train.micro_batch=auto` came to by method, and which runs were stopped and resumed.

>>> print(section(group).splitlines()[0])
| method | seeds | micro-batch | peak of training | budget | probed |
"""

from __future__ import annotations

from bench.record import Record
from bench.report.answer import Group
from bench.report.format import UNKNOWN, cell, gib, table

_MEANING = (
    "Each method at the planner's largest micro-batch within the budget, halved as often as memory ran out; the "
    "effective batch, the examples and their order are the same."
)


def section(group: Group) -> str:
    """Markdown; empty where every micro-batch was given as a number."""
    arm_of = group.runs.set_index("run_id")["arm"]
    found: dict[tuple[str, int, int | None, str], list[Record]] = {}
    for record in group.records:
        if record.fit is not None:
            fit, tried = record.fit, ", ".join(map(str, record.fit.too_large)) or UNKNOWN
            key = (str(arm_of[record.run_id]), fit.micro_batch, fit.budget_bytes, tried)
            found.setdefault(key, []).append(record)
    rows = [
        [
            cell(arm),
            ", ".join(sorted({str(record.seed) for record in records})),
            str(size),
            gib(_peak_bytes(records)),
            UNKNOWN if budget is None else gib(budget),
            tried,
        ]
        for (arm, size, budget, tried), records in found.items()
    ]
    headers = ["method", "seeds", "micro-batch", "peak of training", "budget", "too large"]
    return "\n\n".join([table(headers, rows, text_columns=2), _MEANING]) if rows else ""


def lead(group: Group) -> str:
    """What stands above the times to a target; empty where every micro-batch was given."""
    arm_of = group.runs.set_index("run_id")["arm"]
    found: dict[str, dict[str, None]] = {}
    for record in group.records:
        if record.fit is not None:
            arm = f"{cell(arm_of[record.run_id])} {record.fit.micro_batch}"
            found.setdefault(gib(record.fit.budget_bytes or 0), {})[arm] = None
    budgets = [f"within {budget} GiB: {', '.join(arms)}" for budget, arms in found.items()]
    return f"Micro-batches fitted to the memory of training, {'; '.join(budgets)}." if budgets else ""


def resumed(group: Group) -> list[str]:
    """A line a run that was stopped and went on from a checkpoint."""
    arm_of = group.runs.set_index("run_id")["arm"]
    return [
        f"{cell(arm_of[record.run_id])}, seed {record.seed}: behind step "
        f"{', '.join(map(str, record.train.resumed_at_steps))} of {record.train.steps}"
        for record in group.records
        if record.train and record.train.resumed_at_steps
    ]


def _peak_bytes(records: list[Record]) -> int | None:
    """The highest of the seeds, as measured in the run itself."""
    phases = [phase for record in records if record.train for phase in record.train.memory if phase.phase == "train"]
    return max((phase.peak_bytes for phase in phases if phase.peak_bytes is not None), default=None)
