"""The order in which examples are consumed, and their batches.

The order depends on the seed alone, never on the method or the micro-batch. Within each effective batch the
examples are sorted by length, so that micro-batches hold little padding while the batch's content stays as drawn.

    >>> order = training_order(lengths, seed=0, epochs=1, batch_size=16, max_steps=None)
    >>> batch = collate([row, row], pad_id=2)
    >>> batch = pack([row, row])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bench.worker.instruments.tokens import IGNORED


def training_order(
    lengths: Sequence[int], *, seed: int, epochs: int, batch_size: int, max_steps: int | None
) -> list[int]:
    """Indices of the examples in the order of training, over all epochs.

    Every `batch_size` indices are one optimizer step; the last step may be smaller. `max_steps` cuts the list.
    """
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(lengths)) for _ in range(epochs)])
    if max_steps is not None:
        order = order[: max_steps * batch_size]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [int(i) for batch in batches for i in sorted(batch, key=lambda i: (-lengths[i], i))]


def steps_of(order: Sequence[int], batch_size: int) -> int:
    """Optimizer steps that an order makes."""
    return math.ceil(len(order) / batch_size)


def row_length(row: Mapping[str, Any]) -> int:
    """Tokens of prompt and answer."""
    return len(row["prompt_ids"]) + len(row["answer_ids"])


def collate(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-pad rows of prompt_ids and answer_ids; only the answer is labelled. Each tensor is (batch, length)."""
    length = max(row_length(row) for row in rows)
    batch = {
        "input_ids": torch.full((len(rows), length), pad_id),
        "attention_mask": torch.zeros((len(rows), length), dtype=torch.long),
        "labels": torch.full((len(rows), length), IGNORED),
    }
    for i, row in enumerate(rows):
        prompt, answer = row["prompt_ids"], row["answer_ids"]
        end = len(prompt) + len(answer)
        batch["input_ids"][i, :end] = torch.tensor([*prompt, *answer])
        batch["attention_mask"][i, :end] = 1
        batch["labels"][i, len(prompt) : end] = torch.tensor(answer)
    return batch


def pack(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows one after the other in a single row without padding; each tensor is (1, tokens).

    `position_ids` start at 0 with every example. Given these and no attention mask, transformers keeps the examples
    apart in every attention kernel: by a mask (sdpa, eager) or by sequence lengths (flash attention).
    """
    lengths = [row_length(row) for row in rows]
    ids = [token for row in rows for token in [*row["prompt_ids"], *row["answer_ids"]]]
    labels = [label for row in rows for label in [*[IGNORED] * len(row["prompt_ids"]), *row["answer_ids"]]]
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
    }


def unpack(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """A padded batch as it is; a packed one as its examples, each a batch of one row."""
    if "position_ids" not in batch:
        return [batch]
    starts = (batch["position_ids"][0] == 0).nonzero()[1:, 0].tolist()
    ids, labels = (batch[name].tensor_split(starts, dim=1) for name in ("input_ids", "labels"))
    return [
        {"input_ids": i, "labels": label, "attention_mask": torch.ones_like(i)}
        for i, label in zip(ids, labels, strict=True)
    ]
