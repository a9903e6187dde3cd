"""The loss, and the output head on supervised positions only.

Most positions of an SFT batch are prompt and carry no label; their logits cost a third of a usual training step
and are thrown away. A forward pre-hook on the output embedding keeps only the positions that predict a labelled
token, *inside* the model's forward, so that DDP, FSDP, PEFT and checkpointing wrappers stay intact. Value and
gradient equal the plain loss.

    >>> head = SupervisedHead(model)
    >>> losses, rows = head.token_losses(model, batch)   # (supervised,), (supervised,)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from bench.worker import data
from bench.worker.device import Device
from bench.worker.instruments.tokens import IGNORED

Batch = dict[str, torch.Tensor]


class SupervisedHead:
    """Makes a causal language model compute logits for chosen positions only."""

    def __init__(self, model: Any):
        self._keep: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._select)

    def _select(self, head: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if self._keep is None:  # generation, lm-eval: all positions, as the caller asked
            return arguments
        hidden = arguments[0]  # (batch, length, width)
        return (hidden[self._keep].unsqueeze(0), *arguments[1:])  # (1, supervised, width)

    def token_losses(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihoods of the labelled tokens.

        Args:
            batch: input_ids, labels and attention_mask, or position_ids of a packed row, each (batch, length);
                unlabelled positions hold -100.

        Returns:
            (losses in nats, row of the batch that each belongs to), each (supervised,).
        """
        labels = batch["labels"]
        predicts_label = torch.zeros_like(labels, dtype=torch.bool)
        predicts_label[:, :-1] = labels[:, 1:] != IGNORED  # position t predicts token t + 1
        targets = labels[:, 1:][labels[:, 1:] != IGNORED]
        logits = self.logits(model, predicts_label, **{name: batch[name] for name in batch if name != "labels"})
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        return losses, predicts_label.nonzero()[:, 0]

    def logits(self, model: torch.nn.Module, keep: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Logits of the positions where `keep` (batch, length) is true, row by row: (kept, vocabulary)."""
        self._keep = keep
        try:
            logits: torch.Tensor = model(**inputs, use_cache=False).logits[0]
        finally:
            self._keep = None
        return logits


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
    model: Any, head: SupervisedHead, rows: Rows, *, batch_size: int, pad_id: int, device: Device,
    advance: Callable[[int], None] = lambda done: None,
) -> list[tuple[float, int]]:  # fmt: skip
    """(nats summed over the answer, tokens of the answer) of every row, in the rows' order.

    Rows are batched by length, longest first, so that little is padding and a lack of memory shows at once.
    The caller chooses the numerics (autocast, evaluation mode).
    """
    order = sorted(range(len(rows)), key=lambda i: -data.row_length(rows[i]))
    results: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        padded = data.collate([rows[i] for i in chosen], pad_id, data.padding_multiple(device.type))
        batch = {name: tensor.to(device.type) for name, tensor in padded.items()}
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


def finite(value: float | None) -> float | None:
    """The number, or None where it is none or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None
