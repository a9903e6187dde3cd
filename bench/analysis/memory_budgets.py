"""What is the lowest held-out loss within a memory budget? A step function of the budget, one step an arm.

>>> memory_budgets({"full": 4 * GIB, "lora": 3 * GIB}, {"full": [curve_of_full], "lora": [curve_of_lora]})
[Budget(peak_bytes=3221225472, arms=('lora',), lowest=('lora', 2.44), final=('lora', 2.45)), Budget(...)]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.analysis.curves import Curve
from bench.analysis.frame import phase_memory
from bench.record import Record


@dataclass(frozen=True)
class Budget:
    """A budget that some arm just fits, and the best mean over seeds of the held-out loss (arm, nats per token).

    Attributes:
        arms: that fit.
        lowest: of the lowest losses on the way; `final`: of those at the end. None where no arm's is finite.
    """

    peak_bytes: int
    arms: tuple[str, ...]
    lowest: tuple[str, float] | None
    final: tuple[str, float] | None


def train_peak_bytes(records: Sequence[Record]) -> int | None:
    """Peak of the training phase, the highest of the seeds: the arm fits when each run does. None: one is unknown."""
    phases = [phase_memory(record.train.memory, "train") for record in records if record.train]
    peaks = [phase.peak_bytes if phase else None for phase in phases]
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known and len(known) == len(peaks) else None


def memory_budgets(peaks: Mapping[str, int], curves: Mapping[str, Sequence[Curve]]) -> list[Budget]:
    """One budget a peak, rising; more memory can only lower the best loss.

    Args:
        peaks: arm -> bytes.
        curves: arm -> those of its runs.
    """
    lowest = {arm: _mean([curve.lowest[0] for curve in curves[arm]]) for arm in peaks}
    final = {arm: _mean([curve.final_loss for curve in curves[arm]]) for arm in peaks}
    budgets = []
    for limit in sorted(set(peaks.values())):
        fitting = tuple(arm for arm, peak in peaks.items() if peak <= limit)
        budgets.append(Budget(limit, fitting, _best(fitting, lowest), _best(fitting, final)))
    return budgets


def _mean(values: Sequence[float]) -> float:
    """Infinite where a loss was not finite: the arm is then best in nothing."""
    return sum(values) / len(values)


def _best(arms: Sequence[str], losses: Mapping[str, float]) -> tuple[str, float] | None:
    finite = [arm for arm in arms if math.isfinite(losses[arm])]
    best = min(finite, key=lambda arm: losses[arm], default=None)
    return None if best is None else (best, losses[best])
