"""The memory of all processes that trained together: the sum, and what each device held.

Each process measures itself, with the same instruments as a process alone. Their sums stand where a run on one device
has its own numbers; `per_device` tells them apart, and is what must fit on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.config import RunConfig
from bench.record import DeviceShare, MemoryBreakdown, PhaseMemory
from bench.worker.instruments.memory import Memory
from bench.worker.observer import Observer
from bench.worker.team import Team


def memory(team: Team, config: RunConfig, instrument: Memory, observer: Observer) -> dict[str, Any]:
    """The fields of `TrainResult` about memory and devices; every process must call."""
    phases = team.all(instrument.read())
    parts = team.all(instrument.read_parts())
    breakdowns = team.all(observer.breakdown)
    seconds = sum(step.seconds for step in observer.steps if step.timed)
    shares = [
        DeviceShare(
            rank=rank,
            peak_bytes=phases[rank]["train"].peak_bytes,
            tokens_per_second=observer.timed_tokens[rank] / seconds if seconds else None,
            breakdown=breakdowns[rank],
        )
        for rank in range(team.size)
    ]
    return {
        "memory": [summed([held[name] for held in phases]) for name in phases[0]],
        "step_memory": [summed([held[name] for held in parts]) for name in parts[0]],
        "breakdown": _added(breakdowns),
        "devices": team.size,
        "strategy": config.hardware.strategy,
        "per_device": shares if team.size > 1 else [],
    }


def summed(entries: Sequence[PhaseMemory]) -> PhaseMemory:
    """One phase over all processes; what one of them does not know is unknown."""
    values = [asdict(entry) for entry in entries]
    fields = [name for name in values[0] if name != "phase"]
    return PhaseMemory(entries[0].phase, **{name: _total([entry[name] for entry in values]) for name in fields})


def _added(breakdowns: Sequence[MemoryBreakdown | None]) -> MemoryBreakdown | None:
    known = [asdict(breakdown) for breakdown in breakdowns if breakdown is not None]
    if len(known) < len(breakdowns):
        return None
    return MemoryBreakdown(**{name: sum(entry[name] for entry in known) for name in known[0]})


def _total(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
