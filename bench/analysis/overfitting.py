"""Did a run learn its training examples by heart? The gap between training and held-out loss, and a held-out loss that
rose again.

    >>> found = overfitting(record.train, steps, margin=0.01)
    >>> found.gap, found.rose, found.lowest_step
    (0.41, True, 16)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.analysis.curves import curve_of
from bench.analysis.variance import standard_error
from bench.record import Step, TrainResult

LAST_SHARE, FEWEST_STEPS = 0.1, 10


@dataclass(frozen=True)
class Overfitting:
    """One run; losses in nats per supervised token.

    Attributes:
        last_steps: how many steps `train_loss` is of: the last tenth, at least 10, all where there are fewer.
        train_loss: sum of token losses / supervised tokens of these steps, each taken before its update; None where
            the steps do not tell, or one was not finite.
        train_loss_error: its standard error, from the spread of these steps; None for one step.
        final_loss: held-out, at the last point; None where it was not finite.
        gap: final_loss - train_loss.
        lowest_loss, lowest_step: of the held-out points; None where none was finite.
        rise: final_loss - lowest_loss.
        rose: by more than the margin, or to a loss that is not finite; None where no point was finite.
    """

    last_steps: int
    train_loss: float | None
    train_loss_error: float | None
    final_loss: float | None
    gap: float | None
    lowest_loss: float | None
    lowest_step: int | None
    rise: float | None
    rose: bool | None


def overfitting(train: TrainResult, steps: Sequence[Step], *, margin: float) -> Overfitting | None:
    """What the run's losses tell; None without any held-out loss.

    Args:
        steps: of the run; used when they are complete.
        margin: a rise of no matter, as a share of the lowest held-out loss.
    """
    curve = curve_of(train, steps)
    if curve is None:
        return None
    last_steps, train_loss, error = _train_loss(steps if len(steps) == train.steps else ())
    lowest, lowest_step = curve.lowest
    final = curve.final_loss if np.isfinite(curve.final_loss) else None
    gap = None if final is None or train_loss is None else final - train_loss
    if not np.isfinite(lowest):
        return Overfitting(last_steps, train_loss, error, None, None, None, None, None, None)
    rise = None if final is None else final - lowest
    rose = rise is None or rise > margin * lowest
    return Overfitting(last_steps, train_loss, error, final, gap, lowest, lowest_step, rise, rose)


def _train_loss(steps: Sequence[Step]) -> tuple[int, float | None, float | None]:
    """(steps taken, mean over their supervised tokens, standard error)."""
    count = min(len(steps), max(FEWEST_STEPS, round(LAST_SHARE * len(steps))))
    last = sorted(steps, key=lambda step: step.step)[len(steps) - count :]
    losses = [step.loss for step in last if step.loss is not None]
    if not last or len(losses) < len(last):
        return count, None, None
    values, weights = np.array([losses]), np.array([[float(step.supervised_tokens) for step in last]])
    error = standard_error(values, weights).total
    return count, float(np.average(values, weights=weights)), float(error) if np.isfinite(error) else None
