"""What each run of a sweep is expected to take, before anything is downloaded; which runs cannot fit; both as tables.

>>> found = [forecast(config, 24.0, "cuda: NVIDIA GeForce RTX 4090") for config in pending]
>>> refusal(found[0].config, found[0].plan)
['llama-3.1-8b full, 24 GiB: does not fit, 150.7 GiB at 8 x 2,048 tokens, most of it optimizer 59.8; fits with ...']
>>> found[1].seconds
{'load': 24.1, 'train': 127.2, 'heldout': 43.3, 'generation': 35.2, 'suite': None, 'frontier': 0.0, 'weights': 0.0}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean
from typing import Any

from bench.config import RunConfig
from bench.mistakes import ConfigurationError
from bench.planner import disk
from bench.planner.advice import GIB, Machine, Plan, architecture_of, device_kind, plan_of
from bench.planner.time import (
    PARTS,
    WHEN_ASKED,
    Counts,
    PlanConfig,
    Range,
    counts_of,
    example_flops,
    forward_costs,
    not_asked,
    peak_interval_bytes,
    planned_seconds,
    prepared,
    probed,
    probed_seconds,
)
from bench.record import Expected, Speed

UNKNOWN = "-"
WORDS = ("model", "method")  # columns that hold no numbers
TERMS = {name: (name,) for name in ("weights", "gradients", "optimizer", "activations", "logits")} | {
    "copies, workspace": ("casts", "workspace"),
    "process, allocator": ("process", "allocator"),
}  # column -> the planner's terms
_SHORT_SECONDS = 60.0  # evaluation of a test run may take longer than its training


@dataclass(frozen=True)
class Forecast:
    """One run before it starts."""

    config: RunConfig
    plan: Plan | None  # None: the planner does not know the architecture, or offloading, or a memory to fit into
    download_bytes: float  # of the model, less what is in the cache
    counts: Counts
    seconds: dict[str, float | None]  # by part of `PARTS`
    suite_items: int | None = None  # of the suite's largest task; None: not known

    @property
    def total_seconds(self) -> float | None:
        """Of the run; None where one of its parts is not known."""
        known = [seconds for seconds in self.seconds.values() if seconds is not None]
        return sum(known) if len(known) == len(PARTS) else None

    def to_record(self) -> Expected:
        """As it is kept, beside what is measured then."""
        peak = None if self.plan is None or self.config.untrained else self.plan.peak_memory_bytes
        return Expected(self.seconds, peak, round(self.download_bytes))


def plan_before(config: RunConfig, memory_gib: float | None) -> Plan | None:
    """The plan of a run on a device with so much memory (None: unknown), for the longest of its prepared examples.

    Without prepared data, for `train.max_length`. None: an architecture that the planner does not know, offloading, or
    no memory for train.micro_batch=auto to fit into.
    """
    if config.hardware.cpu_offload:
        return None
    data, longest = prepared(config), config.train.max_length
    longest = min(longest, data.tokens_per_example_max) if data else longest
    planned = replace(config, train=replace(config.train, max_length=longest))
    with suppress(ConfigurationError):
        return plan_of(planned, PlanConfig(), Machine(device_kind(config.hardware), memory_gib))
    return None


def forecast(config: RunConfig, memory_gib: float | None, device: str | None) -> Forecast:
    """Of one run on a device, named as `Environment.device` has it; None: unknown.

    Times are a probe's; else training and held-out losses by the planner.
    """
    counts, speed = counts_of(config, prepared(config)), probed(config, device)
    seconds: dict[str, float | None] = dict.fromkeys(PARTS)
    seconds |= _by_probe(config, counts, speed) if speed else _by_planner(config, counts)
    items = config.suite.items_per_task or (speed.suite_items if speed else None)
    download_bytes = disk.model_need(config).size_bytes
    plan = plan_before(config, memory_gib)
    return Forecast(config, plan, download_bytes, counts, seconds | not_asked(config, counts), items)


def _by_probe(config: RunConfig, counts: Counts, speed: Speed) -> dict[str, float | None]:
    """Seconds by part at the speed that a probe measured; training at its FLOPs a second."""
    seconds = probed_seconds(config, counts, speed)
    with suppress(ConfigurationError):
        architecture = architecture_of(config.model, config.paths)
        length = counts.tokens_per_example
        flops = example_flops(forward_costs(architecture, length), counts) / length  # a token
        rate = flops / speed.forward_seconds_per_token
        seconds["train"], _ = planned_seconds(config, architecture, counts, rate)
    return seconds


def _by_planner(config: RunConfig, counts: Counts) -> dict[str, float | None]:
    """Training and held-out losses at the middle of what published runs reach of a data sheet; empty: no data sheet."""
    if (tflops := config.hardware.bf16_tflops) is not None:
        low, high = PlanConfig().utilization_range
        with suppress(ConfigurationError):
            architecture, rate = architecture_of(config.model, config.paths), sqrt(low * high) * tflops * 1e12
            train, heldout = planned_seconds(config, architecture, counts, rate)
            return {"train": train, "heldout": heldout}
    return {}


def forecast_warnings(found: Iterable[Forecast]) -> list[str]:
    """A line for each method that does not fit, or hardly, and may start all the same; with what would make it fit."""
    plans = [f.plan for f in found if f.plan is not None and not refusal(f.config, f.plan)]
    return [*dict.fromkeys(plan_note(plan) for plan in plans if plan.verdict in ("tight", "does not fit"))]


def refusal(config: RunConfig, plan: Plan | None) -> list[str]:
    """Why the run must not start, with what would mend it: it does not fit a GPU. Empty: it may."""
    if plan is None or not config.hardware.check_memory or (plan.verdict, plan.device) != ("does not fit", "cuda"):
        return []
    return [f"{plan_note(plan)}; hardware.check_memory=false lets it try"]


def forecast_table(found: Sequence[Forecast]) -> tuple[list[str], list[list[str]]]:
    """(headers, a row a method and model): the peak of one device, whether it fits, and what is downloaded."""
    headers = ["model", "method", "runs", "download, GiB", "memory, GiB (90%)", "of", "verdict (largest micro-batch)"]
    rows: dict[tuple[str, ...], int] = {}
    for f in found:
        plan, known = f.plan, f.plan is not None and f.plan.memory_gib is not None
        memory = [peak_of(plan), f"{plan.memory_gib:.4g}" if known else UNKNOWN] if plan else [UNKNOWN] * 2
        row = (f.config.model.name, f.config.method.name, gib(f.download_bytes), *memory, verdict_of(plan))
        rows[row] = rows.get(row, 0) + 1
    return headers, [[*row[:2], str(count), *row[2:]] for row, count in rows.items()]


def time_table(found: Sequence[Forecast]) -> tuple[list[str], list[list[str]]]:
    """(headers, a row a method and model, in minutes of one run); the last column: of all its runs."""
    parts = [part for part in PARTS if part not in WHEN_ASKED or any(f.seconds[part] != 0 for f in found)]
    rows = [
        [*key, *(_minutes([f.seconds[part] for f in group], mean=True) for part in parts),
         *(_minutes([f.total_seconds for f in group], mean=mean) for mean in (True, False))]
        for key, group in _grouped(found, lambda config: (config.model.name, config.method.name)).items()
    ]  # fmt: skip
    return ["model", "method", *(f"{PARTS[part]}, min" for part in parts), "a run", "all"], rows


def _grouped(found: Sequence[Forecast], key: Callable[[RunConfig], tuple[str, ...]]) -> dict[Any, list[Forecast]]:
    groups: dict[tuple[str, ...], list[Forecast]] = {}
    for f in found:
        groups.setdefault(key(f.config), []).append(f)
    return groups


def time_notes(found: Sequence[Forecast]) -> list[str]:
    """What the times hold for, and when the last run is expected to end."""
    lines = []
    if not all(f.counts.exact for f in found):
        lines.append("Times before the data are there: at most, for examples of train.max_length tokens.")
    totals = [f.total_seconds for f in found]
    if all(total is not None for total in totals):
        lines.append(f"Expected in all: {_minutes(totals)} min.")
    return lines + bounds(found)


def bounds(found: Sequence[Forecast]) -> list[str]:
    """A line for each model, task and suite whose evaluation is expected to take longer than training.

    It names the numbers of items at which both would take about as long. They are proposed and never set: a comparison
    needs the same items in every run, today and tomorrow.
    """
    lines, trained = [], [f for f in found if f.seconds["train"]]
    for (model, task, _), group in _grouped(trained, lambda c: (c.model.name, c.task.name, c.suite.name)).items():
        train, answers, suite = (fmean(f.seconds[p] or 0 for f in group) for p in ("train", "generation", "suite"))
        if answers + suite <= max(train, _SHORT_SECONDS):
            continue
        share, first = train / (answers + suite), group[0]
        items = {"task.test_examples": first.counts.test, "suite.items_per_task": first.suite_items if suite else None}
        ways = " ".join(f"{name}={max(1, int(n * share))}" for name, n in items.items() if n)
        lines.append(
            f"{model}, {task}: answers and suite are expected to take {(answers + suite) / 60:.1f} min a run, training "
            f"{train / 60:.1f}; about as long with {ways or 'a smaller suite'}"
        )
    return lines


def _minutes(seconds: Sequence[float | None], *, mean: bool = False) -> str:
    known = [of_run for of_run in seconds if of_run is not None]
    if len(known) < len(seconds) or not known:
        return UNKNOWN
    minutes = sum(known) / 60 / (len(known) if mean else 1)
    return f"{minutes:.1f}" if minutes < 100 else f"{minutes:,.0f}"


# --- The planner's table ---


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
