"""The section on time, tokens and energy to a target loss, and on equal tokens, time and memory.

>>> print(section(group).splitlines()[0])
Target: a held-out loss of 2.597 nats per token, the highest final loss of full, lora, qlora.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis.curves import Reach
from bench.analysis.order import is_base, is_control
from bench.analysis.targets import CurveComparison, CurveReading
from bench.record import Record
from bench.report import fitting
from bench.report.answer import Group, busy_mark
from bench.report.format import UNKNOWN, cell, gib, mean_and_range, number, table

_REACHED = (
    "Reached: the first time that the loss on the validation split was at or below the target. Means are over the "
    "seeds that reached it. Between two held-out points the loss is taken to be linear in the tokens; as losses fall "
    "fastest at first, the true moment tends to be earlier. Time: of the optimizer steps, compiling included, held-out "
    "evaluation excluded. Without compiling: where layers were compiled, a median step in the place of each warm-up "
    "step. Energy: by the hardware's counter, read at the held-out points, at constant power between them; (estimate): "
    "read at the end alone. These are values as measured; no difference was tested."
)
_EQUAL = (
    "Held-out loss, nats per token. Equal tokens: the most that every run was trained on. Equal time: when the first "
    "of the runs ended. A run that is read before its end is amid its learning-rate schedule: planned to end there, it "
    "would as a rule have come lower."
)
_MEMORY = (
    "Each budget is the peak training memory of a method, the highest of its seeds. The loss is the best mean over "
    "seeds of the methods that fit: at the lowest held-out point, and at the end."
)


def section(group: Group) -> str:
    """Markdown; empty when nothing was trained."""
    compared = group.curves
    parts = []
    for place, one in enumerate(compared):
        tables = [(_reached_table(group, one), _REACHED), (_equal_table(group, one), _EQUAL), (_memory(one), _MEMORY)]
        parts += [_lead(one), fitting.lead(group) if place == 0 else ""]
        parts += [part for shown, text in tables if shown for part in ([shown, text] if place == 0 else [shown])]
    parts.append("\n".join(f"- {line}" for line in _unknown(group, compared)) if compared else "")
    return "\n\n".join(part for part in parts if part)


def _lead(compared: CurveComparison) -> str:
    names = ", ".join(map(cell, compared.runs))
    if compared.target is None:
        return f"No target: no run of {names} ended with a finite held-out loss."
    source = "as given by --target-loss" if compared.target_is_given else f"the highest final loss of {names}"
    among = f" ({names})" if compared.target_is_given else ""
    return f"Target: a held-out loss of {number(compared.target)} nats per token, {source}{among}."


def _reached_table(group: Group, compared: CurveComparison) -> str:
    """One row an arm; empty without a target."""
    rows = []
    for arm, runs in compared.runs.items():
        found = [run.reach for run in runs if run.reach]
        hit = [reach for reach in found if reach.status != "never"]
        busy = busy_mark(group.runs[group.runs["arm"] == arm], "train") if hit else ""
        estimate = " (estimate)" if any(reach.energy_is_estimate for reach in hit) else ""
        rows.append([
            cell(arm),
            _how(found, runs),
            mean_and_range([reach.tokens for reach in hit], 1, 1e-3),
            mean_and_range([reach.seconds for reach in hit], 2, 1 / 60) + busy,
            mean_and_range([reach.seconds_without_compiling for reach in hit], 2, 1 / 60),
            mean_and_range([reach.energy_wh for reach in hit], 2) + estimate,
            ", ".join(dict.fromkeys(_between(reach) for reach in hit)) or UNKNOWN,
        ])  # fmt: skip
    headers = ["method", "reached", "tokens, thousands", "time, min", "without compiling, min", "energy, Wh",
               "read at step"]  # fmt: skip
    return table(headers, rows, text_columns=2) if compared.target is not None else ""


def _how(found: Sequence[Reach], runs: Sequence[CurveReading]) -> str:
    hit = [reach.status for reach in found if reach.status != "never"]
    if not hit:
        return f"never; lowest {number(min(run.curve.lowest[0] for run in runs))}"
    word = "yes" if len(found) == 1 else f"by {len(hit)} of {len(found)} seeds"
    if set(hit) == {"at start"}:
        return "at start" if len(found) == 1 else f"{word}, at start"
    return word + (", at the latest then" if "by then" in hit else "")


def _between(reach: Reach) -> str:
    first, last = reach.between_steps or (None, None)
    return str(last) if first == last else f"{first} to {last}"


def _equal_table(group: Group, compared: CurveComparison) -> str:
    ends = compared.ends
    headers = [
        "method",
        f"at {ends.tokens / 1e3:.1f} thousand tokens",
        f"at {ends.seconds / 60:.2f} min",
        f"at {number(ends.seconds_without_compiling, 2, 1 / 60)} min without compiling",
        "at the end",
        "lowest",
    ]
    rows = []
    for arm, runs in compared.runs.items():
        busy = busy_mark(group.runs[group.runs["arm"] == arm], "train")
        rows.append([
            cell(arm),
            mean_and_range([run.at_tokens for run in runs], 3),
            mean_and_range([run.at_seconds for run in runs], 3) + busy,
            mean_and_range([run.at_seconds_without_compiling for run in runs], 3) + busy,
            mean_and_range([run.curve.final_loss for run in runs], 3),
            mean_and_range([run.curve.lowest[0] for run in runs], 3),
        ])  # fmt: skip
    return table(headers, rows)


def _memory(compared: CurveComparison) -> str:
    """One row a budget."""

    def best(found: tuple[str, float] | None) -> str:
        return UNKNOWN if found is None else f"{number(found[1])} ({cell(found[0])})"

    rows = [
        [gib(budget.peak_bytes), ", ".join(map(cell, budget.arms)), best(budget.lowest), best(budget.final)]
        for budget in compared.budgets
    ]
    headers = ["memory, GiB", "methods that fit", "lowest held-out loss", "at the end"]
    return table(headers, rows, text_columns=2) if rows else ""


def _unknown(group: Group, compared: Sequence[CurveComparison]) -> list[str]:
    """What these tables lack, and why."""
    arm_of = group.runs.set_index("run_id")["arm"]
    shown = {run.record.run_id: run for one in compared for runs in one.runs.values() for run in runs}
    lines = []
    for record in group.records:
        name = f"{cell(arm_of[record.run_id])}, seed {record.seed}"
        if record.run_id in shown:
            lines += [f"{name}: {reason}." for reason in shown[record.run_id].unknown]
        elif not is_base(record) and not is_control(record):
            lines.append(f"{name}: in none of these tables; {_absence(record)}.")
    for one in compared:
        lines += [f"{cell(arm)}: in no memory budget; its peak memory is not known." for arm in one.without_peak]
    return lines


def _absence(record: Record) -> str:
    if record.train is None:
        return f"its training did not finish ({record.status})"
    return "a later run of this seed counts" if record.train.heldout else "it has no held-out losses"
