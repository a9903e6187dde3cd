"""What each of several devices did and held, under the tables of speed and memory, whose numbers are of all together.

>>> print(devices_table(group))
| method | strategy | device | tokens/s | peak | weights | gradients | optimizer |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.analysis.frame import phase_memory
from bench.record import DeviceShare, MemoryBreakdown, TrainResult
from bench.report.answer import Group
from bench.report.format import cell, gib, mean_and_range, table

_HEADERS = ["method", "strategy", "device", "tokens/s", "peak", "weights", "gradients", "optimizer"]


def devices_table(group: Group) -> str:
    """One row a device and one for all, of every arm that trained on several: the mean speed, the highest memory."""
    arm_of = dict(zip(group.runs["run_id"], group.runs["arm"], strict=True))
    rows = []
    for arm in group.arms:
        trained = [r.train for r in group.records if r.train and arm_of[r.run_id] == arm]
        several = [result for result in trained if result.per_device]
        if several:
            rows += _rows(arm, several)
    return table(_HEADERS, rows, text_columns=3) if rows else ""


def _rows(arm: str, results: Sequence[TrainResult]) -> list[list[str]]:
    first = [cell(arm), cell(" / ".join(dict.fromkeys(result.strategy for result in results)))]
    rows = []
    for rank in range(max(len(result.per_device) for result in results)):
        shares = [result.per_device[rank] for result in results if rank < len(result.per_device)]
        rows.append([*first, str(rank), *_of_device(shares)])
    speeds = [result.train_tokens_per_second for result in results]
    peaks = [phase_memory(result.memory, "train") for result in results]
    held = _held([result.breakdown for result in results])
    return [*rows, [*first, "all", mean_and_range(speeds, 0), _most([p.peak_bytes for p in peaks if p]), *held]]


def _of_device(shares: Sequence[DeviceShare]) -> list[str]:
    speed = mean_and_range([share.tokens_per_second for share in shares], 0)
    return [speed, _most([share.peak_bytes for share in shares]), *_held([share.breakdown for share in shares])]


def _held(breakdowns: Sequence[MemoryBreakdown | None]) -> list[str]:
    names = ("weights_bytes", "gradients_bytes", "optimizer_bytes")
    return [_most([getattr(breakdown, name) for breakdown in breakdowns if breakdown]) for name in names]


def _most(values: Sequence[Any]) -> str:
    return gib(max((value for value in values if value is not None), default=None))
