"""Held-out loss: the sum of token losses over the sum of supervised tokens, never a mean of batch means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bench.worker import data
from bench.worker.device import Device
from bench.worker.loss import SupervisedHead

Rows = Sequence[dict[str, Any]]


@contextmanager
def inference(model: torch.nn.Module, device: Device) -> Iterator[None]:
    """Evaluation mode, without gradients, under the numerics of training; training mode is restored."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), device.autocast():
            yield
    finally:
        model.train(was_training)


def example_losses(
    model: Any,
    head: SupervisedHead,
    rows: Rows,
    *,
    batch_size: int,
    pad_id: int,
    device: Device,
    advance: Callable[[int], None] = lambda done: None,
) -> list[tuple[float, int]]:
    """(nats summed over the answer, tokens of the answer) of every row, in the rows' order.

    Rows are batched by length, longest first, so that little is padding and a lack of memory shows at once.
    The caller chooses the numerics (autocast, evaluation mode).
    """
    order = sorted(range(len(rows)), key=lambda i: -data.row_length(rows[i]))
    results: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = {k: v.to(device.type) for k, v in data.collate([rows[i] for i in chosen], pad_id).items()}
        losses, row_of = head.token_losses(model, batch)
        sums = torch.zeros(len(chosen), dtype=torch.float64, device=losses.device)
        sums.index_add_(0, row_of, losses.double())
        counts = torch.bincount(row_of, minlength=len(chosen))
        for i, nats, tokens in zip(chosen, sums.tolist(), counts.tolist(), strict=True):
            results[i] = (nats, tokens)
        advance(start + len(chosen))
    return results


def mean_loss(losses: Sequence[tuple[float, int]]) -> float:
    """Nats per token over all examples together."""
    return sum(nats for nats, _ in losses) / sum(tokens for _, tokens in losses)
