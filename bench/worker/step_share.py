"""What one process did of a training step, and what all did together.

Each times its own step, from a common start: the step took as long as the slowest of them, and the memory is the sum.

    >>> whole = together(StepShare(seconds=0.51, memory_bytes=(held, peak), consumed=[(batch, loss)]), team)
    >>> whole.seconds   # in the first process; elsewhere it is the own share, which nobody reads
    0.53
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from bench.worker.loss import Batch
from bench.worker.shares import in_order
from bench.worker.team import Team


@dataclass(frozen=True)
class StepShare:
    """Of one process, or of all in the order of one process."""

    seconds: float
    memory_bytes: tuple[int | None, int | None]  # (held, peak so far)
    consumed: Sequence[tuple[Batch, float | torch.Tensor]]  # micro-batches with their losses


def together(share: StepShare, team: Team) -> StepShare:
    """The whole step, in the first process."""
    if team.size == 1:
        return share
    sent = [({name: part.cpu() for name, part in batch.items()}, float(loss)) for batch, loss in share.consumed]
    shares = team.to_first(StepShare(share.seconds, share.memory_bytes, sent)) or [share]
    held, peaks = zip(*(one.memory_bytes for one in shares), strict=True)
    micro_batches = in_order([one.consumed for one in shares])
    return StepShare(max(one.seconds for one in shares), (_added(held), _added(peaks)), micro_batches)


def _added(values: Iterable[int | None]) -> int | None:
    """The sum over all processes; None where one does not know."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
