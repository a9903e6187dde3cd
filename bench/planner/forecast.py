"""What each run of a sweep is expected to take, before anything is downloaded; and which runs cannot fit the device.

>>> found = forecasts(pending, memory_gib=24.0)
>>> refusal(found[0])
['llama-3.1-8b full, 24 GiB: does not fit, 147.9 GiB, most of it optimizer 59.8; fits with ...']
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from bench.config import RunConfig
from bench.identity import data_folder
from bench.mistakes import ConfigurationError
from bench.planner import disk
from bench.planner.advice import Machine, Plan, device_kind, plan_of
from bench.planner.table import UNKNOWN, gib, plan_note, verdict_of
from bench.planner.time import PlanConfig
from bench.record import DataSummary, from_json


@dataclass(frozen=True)
class Forecast:
    """One run before it starts."""

    config: RunConfig
    plan: Plan | None  # None: the planner does not know the architecture, or offloading, or a memory to fit into
    download_bytes: float  # of the model, less what is in the cache


def forecast(config: RunConfig, memory_gib: float | None) -> Forecast:
    """Of one run on a device with so much memory; None: unknown.

    Planned for the longest example where the data are prepared, else for `train.max_length`.
    """
    plan, longest = None, config.train.max_length
    with suppress(OSError, ValueError):
        summary = from_json(DataSummary, (data_folder(config) / "summary.json").read_bytes())
        longest = min(longest, summary.tokens_per_example_max)
    planned = replace(config, train=replace(config.train, max_length=longest))
    if not config.hardware.cpu_offload:
        with suppress(ConfigurationError):
            plan = plan_of(planned, PlanConfig(), Machine(device_kind(config.hardware), memory_gib))
    return Forecast(config, plan, disk.model_need(config).size_bytes)


def forecast_warnings(found: Iterable[Forecast]) -> list[str]:
    """A line for each method that does not fit, or hardly, and may start all the same; with what would make it fit."""
    plans = [f.plan for f in found if f.plan is not None and not refusal(f)]
    return [*dict.fromkeys(plan_note(plan) for plan in plans if plan.verdict in ("tight", "does not fit"))]


def refusal(found: Forecast) -> list[str]:
    """Why the run must not start, with what would mend it: it does not fit a GPU. Empty: it may."""
    plan, guarded = found.plan, found.config.hardware.check_memory
    if plan is None or not guarded or (plan.verdict, plan.device) != ("does not fit", "cuda"):
        return []
    return [f"{plan_note(plan)}; hardware.check_memory=false lets it try"]


def forecast_table(found: Sequence[Forecast]) -> tuple[list[str], list[list[str]]]:
    """(headers, a row a method and model): the peak of one device, whether it fits, and what is downloaded."""
    headers = ["model", "method", "runs", "download, GiB", "memory, GiB", "of", "verdict"]
    rows: dict[tuple[str, ...], int] = {}
    for f in found:
        plan, known = f.plan, f.plan is not None and f.plan.memory_gib is not None
        memory = (
            [gib(plan.peak_memory_bytes), f"{plan.memory_gib:.4g}" if known else UNKNOWN] if plan else [UNKNOWN] * 2
        )
        row = (f.config.model.name, f.config.method.name, gib(f.download_bytes), *memory, verdict_of(plan))
        rows[row] = rows.get(row, 0) + 1
    return headers, [[*row[:2], str(count), *row[2:]] for row, count in rows.items()]
