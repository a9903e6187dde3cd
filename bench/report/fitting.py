"""What `train.micro_batch=auto` came to by method, and which runs were stopped and resumed.

>>> print(section(group).splitlines()[0])
| method | seeds | micro-batch | peak of training | budget | probed |
"""

from __future__ import annotations

from bench.record import Fit, Probe, Record
from bench.report.answer import Group
from bench.report.format import UNKNOWN, cell, gib, table

_MEANING = (
    "Each method at the largest micro-batch whose peak of training is within the budget; the effective batch, the "
    "examples and their order are the same. Probed: two steps at the longest examples in a process of their own; the "
    "peak of each in brackets."
)
_ABOVE = "Above its budget in the run itself: "
_NOT_LARGEST = "Not shown to be the largest (the search ended after its last probe): "


def section(group: Group) -> str:
    """Markdown; empty where every micro-batch was given as a number."""
    arm_of = group.runs.set_index("run_id")["arm"]
    found: dict[tuple[str, Fit], list[Record]] = {}
    for record in group.records:
        if record.fit is not None:
            found.setdefault((str(arm_of[record.run_id]), _without_origin(record.fit)), []).append(record)
    rows = [
        [
            cell(arm),
            ", ".join(sorted({str(record.seed) for record in records})),
            str(fit.micro_batch),
            gib(_peak_bytes(records)),
            gib(fit.budget_bytes),
            ", ".join(_probed(probe) for probe in fit.probes),
        ]
        for (arm, fit), records in found.items()
    ]
    if not rows:
        return ""
    headers = ["method", "seeds", "micro-batch", "peak of training", "budget", "probed"]
    short = [arm for arm, fit in found if not fit.is_largest]
    above = [arm for (arm, fit), records in found.items() if (_peak_bytes(records) or 0) > fit.budget_bytes]
    notes = [
        text + ", ".join(map(cell, dict.fromkeys(arms))) + "."
        for text, arms in ((_NOT_LARGEST, short), (_ABOVE, above))
        if arms
    ]
    return "\n\n".join([table(headers, rows, text_columns=2), _MEANING, *notes])


def lead(group: Group) -> str:
    """What stands above the times to a target; empty where every micro-batch was given."""
    arm_of = group.runs.set_index("run_id")["arm"]
    found: dict[str, dict[str, None]] = {}
    for record in group.records:
        if record.fit is not None:
            arm = f"{cell(arm_of[record.run_id])} {record.fit.micro_batch}"
            found.setdefault(gib(record.fit.budget_bytes), {})[arm] = None
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


def _without_origin(fit: Fit) -> Fit:
    """Equal for the seeds that one search was made for."""
    return Fit(fit.micro_batch, fit.budget_bytes, fit.probes, fit.is_largest)


def _peak_bytes(records: list[Record]) -> int | None:
    """The highest of the seeds, as measured in the run itself."""
    phases = [phase for record in records if record.train for phase in record.train.memory if phase.phase == "train"]
    return max((phase.peak_bytes for phase in phases if phase.peak_bytes is not None), default=None)


def _probed(probe: Probe) -> str:
    peak = gib(probe.peak_bytes) if probe.peak_bytes is not None else UNKNOWN
    return f"{probe.micro_batch} ({'out of memory' if probe.how == 'oom' else peak})"
