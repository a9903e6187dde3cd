"""The processors that this process may use, and how their clock is governed: what a comparison of speed must know."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


def affinity() -> list[int] | None:
    """Numbers of the processors that this process may run on; None where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def ranges(numbers: Iterable[int]) -> str:
    """The kernel's way of writing a set of processors.

    >>> ranges([0, 1, 2, 5])
    '0-2,5'
    """
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def governor(processors: Iterable[int], root: Path = _CPUS) -> str | None:
    """`performance`, `powersave`, ...; several joined by "/"; None where the clock is not ours to see (most VMs)."""
    found = set()
    for number in processors:
        with suppress(OSError):
            found.add((root / f"cpu{number}" / "cpufreq" / "scaling_governor").read_text().strip())
    return "/".join(sorted(found)) or None
