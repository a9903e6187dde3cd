"""How plans are shown: one row a run, one column a memory, and what to change below.

Memory is in GiB, of one device.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.table import Table

from bench.planner.advice import GIB, Plan
from bench.planner.time import Range

_UNKNOWN = "-"
_GROUPS = {  # column -> terms
    "weights": ("weights",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer",),
    "activations": ("activations",),
    "logits": ("logits",),
    "copies, workspace": ("casts", "workspace"),
    "process, allocator": ("process", "allocator"),
}


def table(plans: Sequence[Plan], *, markdown: bool = False) -> Table:
    """A row for each run; a memory that is compared is a column: its verdict and the largest micro-batch that fits."""
    shown = Table(box=MARKDOWN if markdown else SIMPLE_HEAD, pad_edge=markdown, show_edge=markdown)
    rows = _rows(plans)
    memories = list(dict.fromkeys(plan.memory_gib for plan in plans))
    for header in ["model", "method"]:
        shown.add_column(header, no_wrap=True)
    timed = any(plan.duration.tokens_per_second for plan in plans)
    for header in [*_GROUPS, "GiB"]:
        shown.add_column(header, justify="right")
    for memory in memories:
        shown.add_column("device" if memory is None else f"{memory:.4g} GiB")
    for header in ["tokens/s", "hours", "kWh", "USD"] if timed else []:
        shown.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        first, by_memory = row[0], {plan.memory_gib: plan for plan in row}
        terms, time = first.terms.by_name(), first.duration
        shown.add_row(
            first.model,
            first.method,
            *(_gib(sum(terms[name] for name in names)) for names in _GROUPS.values()),
            _gib(first.total_bytes),
            *(_verdict(by_memory[memory]) if memory in by_memory else _UNKNOWN for memory in memories),
            *([_range(r) for r in (time.tokens_per_second, time.hours, time.kwh, time.usd)] if timed else []),
        )
    return shown


def notes(plans: Sequence[Plan]) -> Iterator[str]:
    """What the table is of, and for each run that does not fit what would make it."""
    first = plans[0]
    how = f"{first.devices} devices, {first.strategy}; " if first.devices > 1 else ""
    lengths = ", ".join(dict.fromkeys(f"{p.micro_batch} x {p.max_length:,}" for p in plans))
    yield f"{how}micro-batch x tokens: {lengths}. In brackets: the largest micro-batch that fits."
    yield "Planned are the longest examples; logits are of plan.supervised_share of their positions (default: all)."
    for plan in plans:
        if plan.verdict in ("fits", "unknown"):
            continue
        where = f"{plan.model} {plan.method}, {plan.memory_gib:g} GiB"
        largest = f"{plan.largest_term} {_gib(plan.terms.by_name()[plan.largest_term])}"
        ways = "; ".join(f"{r.change} ({_gib(r.total_bytes)})" for r in plan.remedies)
        remedy = f"fits with {ways}" if ways else "none of the changes that were tried makes it fit"
        yield f"{where}: {plan.verdict}, {_gib(plan.total_bytes)} GiB, most of it {largest}; {remedy}"


def to_json(plans: Sequence[Plan]) -> str:
    """Everything that is known of each plan."""
    return json.dumps([asdict(plan) for plan in plans], indent=1)


def _rows(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Plans of one run with several memories together."""
    rows: dict[tuple[object, ...], list[Plan]] = {}
    for plan in plans:
        key = (plan.model, plan.method, plan.hardware, plan.max_length, plan.micro_batch, plan.total_bytes)
        rows.setdefault(key, []).append(plan)
    return list(rows.values())


def _verdict(plan: Plan) -> str:
    if plan.verdict == "unknown":
        return _UNKNOWN
    return f"{plan.verdict} ({plan.largest_micro_batch or 'none'})"


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}" if count < 10 * GIB else f"{count / GIB:.1f}"


def _range(values: Range | None) -> str:
    return _UNKNOWN if values is None else "-".join(f"{v:,.0f}" if v >= 100 else f"{v:.2g}" for v in values)
