"""When a trial of a learning rate is hopeless and ends early."""

from __future__ import annotations

from collections.abc import Sequence

from bench.config import TrialConfig
from bench.record import HeldoutPoint


def hopeless(trial: TrialConfig, points: Sequence[HeldoutPoint]) -> str | None:
    """Why a trial should end now, or None. `points`: its held-out losses so far, from step 0.

    Hopeless is a loss that is not finite, or that fell by less than `trial.hopeless_below` of what the best trial's
    had fallen by at the same step.
    """
    start, now = points[0], points[-1]
    if now.loss is None or start.loss is None:
        return f"held-out loss not finite at step {now.step}"
    losses = dict(trial.best_losses)
    rival_start, rival_now = losses.get(start.step), losses.get(now.step)
    if rival_start is None or rival_now is None:
        return None
    fall, rival_fall = start.loss - now.loss, rival_start - rival_now
    if rival_fall <= 0 or fall >= trial.hopeless_below * rival_fall:
        return None
    return (
        f"held-out loss at step {now.step} fell by {fall:.3f}, less than {trial.hopeless_below:g} of the "
        f"{rival_fall:.3f} by which the best trial's had fallen"
    )
