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

from bench.planner.memory import CHUNK_ELEMENTS
from bench.worker import data
from bench.worker.device import Device
from bench.worker.instruments.tokens import IGNORED

Batch = dict[str, torch.Tensor]


class SupervisedHead:
    """Makes a causal language model compute logits, or their losses, for chosen positions only.

    Where the model hands on its head's product as it is, `ChunkedLoss` takes the head's place for losses: the logits
    of all positions never exist at once.

    Args:
        whole: compute them at once in any case: there is no short pass to see what the model makes of them.
    """

    def __init__(self, model: Any, *, whole: bool = False):
        self._keep: torch.Tensor | None = None
        self._targets: torch.Tensor | None = None
        self._head = model.get_output_embeddings()
        plain = type(self._head) is torch.nn.Linear and self._head.bias is None  # no adapter on it
        self._in_chunks = plain and not whole and _hands_on(model, self._head)
        self._head.register_forward_pre_hook(self._select)
        self._logits = self._head.forward
        self._head.forward = self._forward

    def _select(self, head: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if self._keep is None:  # generation, lm-eval: all positions, as the caller asked
            return arguments
        hidden = arguments[0]  # (batch, length, width)
        return (hidden[self._keep].unsqueeze(0), *arguments[1:])  # (1, supervised, width)

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._targets is None:
            logits: torch.Tensor = self._logits(hidden)
            return logits
        losses: torch.Tensor = ChunkedLoss.apply(hidden[0], self._head.weight, self._targets)
        return losses.view(1, -1, 1)  # in the place of logits

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
        self._targets = targets if self._in_chunks else None
        try:
            found = self.logits(model, predicts_label, **{name: batch[name] for name in batch if name != "labels"})
        finally:
            self._targets = None
        losses = found.squeeze(1) if self._in_chunks else F.cross_entropy(found.float(), targets, reduction="none")
        return losses, predicts_label.nonzero()[:, 0]

    def logits(self, model: torch.nn.Module, keep: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Logits of the positions where `keep` (batch, length) is true, row by row: (kept, vocabulary)."""
        self._keep = keep
        try:
            logits: torch.Tensor = model(**inputs, use_cache=False).logits.squeeze(0)
        finally:
            self._keep = None
        return logits


def _hands_on(model: Any, head: torch.nn.Module) -> bool:
    """Whether a model's logits are what its head gives: not scaled or capped."""
    seen: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda head, arguments, output: seen.append(output))
    in_16_bit = any(parameter.dtype is torch.bfloat16 for parameter in model.parameters())
    ids = torch.ones(1, 2, dtype=torch.long, device=model.device)
    with torch.no_grad(), torch.autocast(ids.device.type, torch.bfloat16, enabled=in_16_bit):
        logits = model(input_ids=ids, use_cache=False).logits
    hook.remove()
    return logits.data_ptr() == seen[0].data_ptr() and logits.dtype is seen[0].dtype


class ChunkedLoss(torch.autograd.Function):
    """Token losses of `hidden` (positions, width) through `weight` (vocabulary, width) against `targets` (positions,).

    Each chunk's gradients are made in the forward pass, for an upstream gradient of 1 at every position: no logits are
    kept and no product is computed twice. The weight's gradient is summed in fp32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        losses = torch.empty(len(hidden), device=hidden.device)
        of_hidden = torch.empty_like(hidden) if for_hidden else None
        of_weight = torch.zeros(weight.shape, device=weight.device) if for_weight else None
        with torch.autocast(kind, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, len(hidden), size := max(1, CHUNK_ELEMENTS // len(weight))):
                rows = slice(start, start + size)
                inputs, expected = hidden[rows].to(dtype), targets[rows, None]
                logits = (inputs @ matrix.T).float()
                total = logits.logsumexp(1, keepdim=True)
                losses[rows] = (total - logits.gather(1, expected))[:, 0]
                if for_hidden or for_weight:
                    gradient = logits.sub_(total).exp_()
                    gradient.scatter_add_(1, expected, gradient.new_full(expected.shape, -1))
                    gradient = gradient.to(dtype)
                    if of_hidden is not None:
                        of_hidden[rows] = gradient @ matrix
                    if of_weight is not None:
                        of_weight += gradient.T @ inputs
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.weight_dtype = weight.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        of_hidden, of_weight = ctx.saved_tensors
        if of_weight is not None and len(upstream):
            if upstream.stride(0) and bool((upstream != upstream[0]).any()):  # stride 0: of a sum, equal everywhere
                raise RuntimeError("token losses of a trained head can be summed or averaged, not weighted")
            of_weight = (of_weight.mul_(upstream[0])).to(ctx.weight_dtype)
        return None if of_hidden is None else of_hidden * upstream[:, None].to(of_hidden.dtype), of_weight, None


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


def alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits (positions, vocabulary) are equal up to the rounding of bf16."""
    found, expected = found.float(), expected.float()
    spread = expected - expected.mean(dim=-1, keepdim=True)
    return bool((found - expected).norm() <= 0.05 * spread.norm())
