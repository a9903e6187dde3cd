"""What merging and quantizing changed: each form set against the one that was evaluated.

All forms read the same test examples in the same batches, under the numerics of the evaluation. 4-bit weights are
multiplied as 16-bit ones on a CPU, as the evaluation does it (docs/design.md). Logits are compared where they predict
the reference answers' tokens; answers are greedy.

Two forms that are the same in exact arithmetic differ by rounding, and none of them is the exact one: the adapter
beside its base is rounded too. So every form is also set against the reference computed in fp32, and the reference
against itself in batches of another size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.analysis import metrics
from bench.config import RunConfig
from bench.record import Fidelity, LogitDifference, ServedAnswer
from bench.worker import data, heldout
from bench.worker.device import Device
from bench.worker.generate import generate
from bench.worker.instruments.tokens import IGNORED
from bench.worker.loss import SupervisedHead

POSITIONS = 256  # whose logits are compared: 50 MB of fp32 with a vocabulary of 50,000
LOGIT_BATCH, OTHER_BATCH = 4, 1
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Observed:
    """What a form says of the test examples."""

    logits: torch.Tensor  # (positions, vocabulary), on the CPU
    answers: list[ServedAnswer]
    tokens: list[tuple[int, ...]]  # of the greedy answers


def observe(
    name: str, model: Any, config: RunConfig, tokenizer: Any, rows: Rows, device: Device,
    advance: Callable[[int], None] = lambda done: None,
) -> Observed:  # fmt: skip
    """Logits, losses, greedy answers and scores of a form."""
    size, pad_id = config.hardware.generate_batch, tokenizer.pad_token_id
    head = SupervisedHead(model)
    with heldout.inference(model, device):
        logits = answer_logits(model, head, rows, pad_id, device)
        losses = heldout.example_losses(
            model, head, list(map(dict, rows)), batch_size=size, pad_id=pad_id, device=device
        )
        answers = generate(
            model,
            tokenizer,
            [row["prompt_ids"] for row in rows],
            max_new_tokens=config.task.max_new_tokens,
            batch_size=size,
            device=device,
            advance=advance,
        )
    texts, references = [answer.text for answer in answers], [row["reference"] for row in rows]
    scores = metrics.score_all(config.task.metrics, texts, references, labels=config.task.labels)
    served = [
        ServedAnswer(name, row["example_id"], text, score, nats if math.isfinite(nats) else None, tokens)
        for row, text, score, (nats, tokens) in zip(rows, texts, scores, losses, strict=True)
    ]
    return Observed(logits, served, [answer.ids for answer in answers])


def answer_logits(
    model: Any, head: SupervisedHead, rows: Rows, pad_id: int, device: Device, batch: int = LOGIT_BATCH
) -> torch.Tensor:
    """Logits at the first `POSITIONS` positions that predict the rows' answers: (positions, vocabulary), in fp32."""
    ends = list(itertools.accumulate(len(row["answer_ids"]) for row in rows))
    chosen = rows[: next((i for i, end in enumerate(ends, start=1) if end >= POSITIONS), len(ends))]
    parts = []
    for start in range(0, len(chosen), batch):
        tensors = data.collate(chosen[start : start + batch], pad_id)
        labels = tensors.pop("labels")
        keep = torch.zeros_like(labels, dtype=torch.bool)
        keep[:, :-1] = labels[:, 1:] != IGNORED  # position t predicts token t + 1
        inputs = {key: value.to(device.type) for key, value in tensors.items()}
        parts.append(head.logits(model, keep.to(device.type), **inputs).float().cpu())
    return torch.cat(parts)[:POSITIONS]


def logit_difference(own: torch.Tensor, reference: torch.Tensor) -> LogitDifference:
    """How far two (positions, vocabulary) tensors are apart."""
    apart = (own - reference).abs()
    largest, mean = float(apart.max()), float(apart.double().mean())
    same = float((own.argmax(1) == reference.argmax(1)).double().mean())
    finite = math.isfinite(mean)
    return LogitDifference(len(own), largest if finite else None, mean if finite else None, same)


def compared(own: Observed, reference: Observed, exact: torch.Tensor | None) -> Fidelity:
    """A form set against the reference; set against itself it has no difference.

    Args:
        exact: the reference's logits, computed in fp32; None: unknown.
    """
    count, tokens = len(own.answers), sum(answer.loss_tokens for answer in own.answers)
    losses = [answer.loss for answer in own.answers]
    known = [loss for loss in losses if loss is not None]
    names = own.answers[0].scores
    itself = own is reference
    shares = [agreement(a, b) for a, b in zip(own.tokens, reference.tokens, strict=True)]
    return Fidelity(
        form=own.answers[0].form,
        examples=count,
        scores={name: sum(answer.scores[name] for answer in own.answers) / count for name in names},
        test_loss=sum(known) / tokens if len(known) == count else None,
        logits=None if itself else logit_difference(own.logits, reference.logits),
        exact=None if exact is None else logit_difference(own.logits, exact),
        token_agreement=None if itself else sum(shares) / count,
        equal_answers=None if itself else sum(a == b for a, b in zip(own.tokens, reference.tokens, strict=True)),
    )


def agreement(own: Sequence[int], reference: Sequence[int]) -> float:
    """The share of the longer answer that comes before the first difference; 1 for equal ones.

    >>> agreement([5, 6, 7, 8], [5, 6, 9])
    0.5
    """
    longest = max(len(own), len(reference))
    pairs = enumerate(zip(own, reference, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(own), len(reference)))
    return same / longest if longest else 1.0
