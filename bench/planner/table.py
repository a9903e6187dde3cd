"""The planner's table, and the sentences below it that say what would make a run fit.

>>> headers, rows = plan_table(plans(["model=llama-3.1-8b", "method=full,lora", "hardware=h100"]))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.planner.advice import GIB, Plan
from bench.planner.time import Range, peak_interval_bytes

UNKNOWN = "-"
WORDS = ("model", "method")  # columns that hold no numbers
TERMS = {name: (name,) for name in ("weights", "gradients", "optimizer", "activations", "logits")} | {
    "copies, workspace": ("casts", "workspace"),
    "process, allocator": ("process", "allocator"),
}  # column -> the planner's terms


def plan_table(plans: Sequence[Plan]) -> tuple[list[str], list[list[str]]]:
    """(headers, a row a run, in GiB of one device); a column a memory: the verdict and the largest micro-batch."""
    rows: dict[tuple[object, ...], dict[float | None, Plan]] = {}
    for plan in plans:  # plans of one run with several memories share a row
        key = (plan.model, plan.method, plan.hardware, plan.max_length, plan.micro_batch, plan.peak_memory_bytes)
        rows.setdefault(key, {})[plan.memory_gib] = plan
    memories = list(dict.fromkeys(plan.memory_gib for plan in plans))
    timed = any(plan.duration.tokens_per_second for plan in plans)
    devices = ["device" if memory is None else f"{memory:.4g} GiB" for memory in memories]
    headers = [*WORDS, *TERMS, "GiB (90%)", *devices, *(["tokens/s", "hours", "kWh", "USD"] if timed else [])]
    table = []
    for by_memory in rows.values():
        first = next(iter(by_memory.values()))
        terms, cost = first.terms.by_name(), first.duration
        parts = [gib(sum(terms[name] for name in names)) for names in TERMS.values()]
        verdicts = [verdict_of(by_memory.get(memory)) for memory in memories]
        costs = [_range(r) for r in (cost.tokens_per_second, cost.hours, cost.kwh, cost.usd)] if timed else []
        table.append([first.model, first.method, *parts, peak_of(first), *verdicts, *costs])
    return headers, table


def plan_notes(plans: Sequence[Plan]) -> Iterator[str]:
    """What the table holds for, and for each run that does not fit the changes that would make it."""
    first = plans[0]
    how = f"{first.devices} devices, {first.strategy}; " if first.devices > 1 else ""
    lengths = ", ".join(dict.fromkeys(f"{p.micro_batch} x {p.max_length:,}" for p in plans))
    yield f"{how}micro-batch x tokens: {lengths}. In brackets: the largest micro-batch that fits."
    yield "Planned for the longest examples; logits for plan.supervised_share of their positions (default: all)."
    if rough := dict.fromkeys(plan.model for plan in plans if _is_counted(plan)):
        yield f"No interval for {', '.join(rough)}: estimates of such models were 10 to 40% too low (docs/planner.md)."
    yield from (plan_note(plan) for plan in plans if plan.verdict in ("tight", "does not fit"))


def _is_counted(plan: Plan) -> bool:
    """Whether the interval of the device does not hold for the model."""
    known = peak_interval_bytes(plan.peak_memory_bytes, plan.device)
    return known is not None and plan.peak_interval_bytes is None


def plan_note(plan: Plan) -> str:
    """Of a run that does not fit, or hardly: what takes most memory, and the changes after which it fits."""
    run = f"{plan.model} {plan.method}, {plan.memory_gib:.4g} GiB"
    largest = f"{plan.largest_term} {gib(plan.terms.by_name()[plan.largest_term])}"
    ways = "; ".join(f"{r.change} ({gib(r.peak_memory_bytes)})" for r in plan.remedies)
    remedy = f"fits with {ways}" if ways else "none of the changes that were tried makes it fit"
    size = f"{gib(plan.peak_memory_bytes)} GiB at {plan.micro_batch} x {plan.max_length:,} tokens"
    return f"{run}: {plan.verdict}, {size}, most of it {largest}; {remedy}"


def verdict_of(plan: Plan | None) -> str:
    """The verdict, and in brackets the largest micro-batch that fits, if one does."""
    if plan is None or plan.verdict == "unknown":
        return UNKNOWN
    return f"{plan.verdict} ({plan.largest_micro_batch})" if plan.largest_micro_batch else plan.verdict


def peak_of(plan: Plan) -> str:
    """GiB of the peak, and where nine of ten lie, if that is known."""
    between = plan.peak_interval_bytes
    return gib(plan.peak_memory_bytes) + (f" ({'-'.join(map(gib, between))})" if between else "")


def gib(count: float) -> str:
    """Bytes in GiB, without a unit."""
    return f"{count / GIB:.2f}" if count < 10 * GIB else f"{count / GIB:.1f}"


def _range(values: Range | None) -> str:
    return UNKNOWN if values is None else "-".join(f"{v:,.0f}" if v >= 100 else f"{v:.2g}" for v in values)
