"""How far the planner's estimates are from what is measured: 90% intervals, taken from runs that others published.

`calibration.yaml` is written by `python -m benchmarks.planner calibrate`; docs/planner.md shows how well the intervals
hold on sources that they were not taken from.

>>> peak_interval_bytes(20 * 2**30, "cuda")
(18350000000, 28340000000)
>>> interval("cuda", "utilization").low
0.24
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

FILE = Path(__file__).with_name("calibration.yaml")
Quantity = Literal["peak_memory", "utilization"]


@dataclass(frozen=True)
class Interval:
    """The middle 90% of what was measured."""

    low: float  # of a peak: measured / estimated; of utilization: of the data sheet's FLOPs, recomputation counted
    high: float
    runs: int  # that it was taken from
    sources: int


@cache
def interval(device: str, quantity: Quantity) -> Interval | None:
    """Of a kind of device; None: nobody measured enough."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    found = content.get(device, {}).get(quantity)
    return None if found is None else Interval(**found)


def peak_interval_bytes(peak_memory_bytes: int, device: str) -> tuple[int, int] | None:
    """Where the measured peak is expected to lie, nine times of ten; None: not known for this kind of device."""
    found = interval(device, "peak_memory")
    return None if found is None else (round(peak_memory_bytes * found.low), round(peak_memory_bytes * found.high))
