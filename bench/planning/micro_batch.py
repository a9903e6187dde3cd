"""Which micro-batch to probe next, so that few probes find the largest that fits a memory budget.

The search starts at the planner's estimate, looks at the neighbour that decides, then halves what is left.

>>> next_size([1, 2, 4, 8], fits={}, start=4)
4
>>> next_size([1, 2, 4, 8], fits={4: True, 8: False}, start=4) is None
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.planning.fit import GIB, largest_micro_batch
from bench.planning.predict import Machine
from bench.spec.config import RunConfig
from bench.spec.failure import ConfigurationError
from bench.spec.plan import PlanConfig

MOST_PROBES = 4
USUAL = 4  # where the planner cannot tell


def sizes(batch_size: int) -> list[int]:
    """The micro-batches that leave the effective batch whole: its divisors, rising."""
    return [rows for rows in range(1, batch_size + 1) if batch_size % rows == 0]


def first_size(config: RunConfig, longest: int, device: str, budget_bytes: int | None) -> int:
    """Where the search starts: the planner's largest, for examples of at most `longest` tokens."""
    allowed = sizes(config.train.batch_size)
    usual = max(rows for rows in allowed if rows <= USUAL)
    if budget_bytes is None:
        return usual
    exact = replace(config, train=replace(config.train, max_length=longest))
    machine = Machine("cuda" if device == "cuda" else "cpu", budget_bytes / GIB)
    try:
        return largest_micro_batch(exact, PlanConfig(), machine) or allowed[0]
    except ConfigurationError:  # an architecture that the planner does not know
        return usual


def next_size(allowed: Sequence[int], fits: Mapping[int, bool], start: int) -> int | None:
    """The micro-batch to probe next; None when the search is over.

    Args:
        allowed: rising.
        fits: what was probed -> whether it fitted.
    """
    if not fits:
        return start
    below = max((i for i, rows in enumerate(allowed) if fits.get(rows)), default=-1)
    above = min((i for i, rows in enumerate(allowed) if fits.get(rows) is False), default=len(allowed))
    if above - below <= 1 or len(fits) == MOST_PROBES:
        return None
    if len(fits) == 1:
        return allowed[below + 1 if below >= 0 else above - 1]
    if below < 0 and len(fits) == MOST_PROBES - 1:
        return allowed[0]  # the last chance to find any
    return allowed[(below + above) // 2]


def largest_fitting(allowed: Sequence[int], fits: Mapping[int, bool]) -> tuple[int | None, bool]:
    """(the largest that fitted, or None; whether the next larger one is known not to fit)."""
    found = max((rows for rows, fitted in fits.items() if fitted), default=None)
    if found is None:
        return None, fits.get(allowed[0]) is False
    larger = [rows for rows in allowed if rows > found]
    return found, not larger or fits.get(larger[0]) is False
