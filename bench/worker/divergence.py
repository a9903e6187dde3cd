"""How far a tuned model's predictions have moved from the untouched base's: KL(base || tuned) on general text.

At each position of the quick suite's prose and code (with every suite), the base's `TOP` likeliest tokens count one by
one and all others as one. Lumping can only lower a divergence, so the number is a lower bound (docs/numbers.md,
`python -m benchmarks.divergence`). The base's predictions are made once and kept:

    cache/references/smollm2-135m-0.1.2-cpu-bfloat16-1f2e3d4c.safetensors

    >>> reference = reference_of(config, source, tokenizer, device)
    >>> outcome = divergence(model, reference, device)
    >>> outcome.tasks[0]
    RegressionTask(task='prose_kl', metric='kl_from_base', value=0.081, items=32, higher_is_better=False, chance=None)
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from bench.config import RunConfig, SuiteConfig
from bench.identity import digest, write_atomic
from bench.record import KL_METRIC, TASK_KL, RegressionItem, RegressionTask
from bench.worker import data
from bench.worker.device import Device
from bench.worker.loss import finite, inference
from bench.worker.models import load_weights, origin
from bench.worker.suites.quick import text_tasks

TOP = 512
_BATCH = 4  # texts; their logits over the whole vocabulary are held at once


@dataclass(frozen=True)
class Text:
    """A text as tokens, with the token that stands before it."""

    task: str
    text_id: str
    token_ids: list[int]
    given: int = 1  # tokens at its beginning that nothing is asked of

    @property
    def positions(self) -> int:
        """Tokens that are predicted."""
        return len(self.token_ids) - self.given


@dataclass(frozen=True)
class Reference:
    """The base's predictions at all positions of all texts, one after the other.

    Attributes:
        top_ids: (positions, TOP), int32; top_log_probabilities: the same shape, fp32, nats.
        rest_log_probability: (positions,), fp32: of all other tokens together.
    """

    texts: list[Text]
    top_ids: torch.Tensor
    top_log_probabilities: torch.Tensor
    rest_log_probability: torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """Every item's score, and each task's weighted mean of them; items in the order of the tasks."""

    tasks: list[RegressionTask]
    items: list[RegressionItem]
    documents: dict[str, list[Any]] = field(default_factory=dict)  # task -> what its items were made from


def general_texts(tokenizer: Any, suite: SuiteConfig) -> list[Text]:
    """The quick suite's prose and code, as many of each as the suite asks of a task.

    Ids are hashes of the content, so that only equal texts are ever paired.
    """
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    texts = []
    for task in text_tasks():
        for content in (document["text"] for document in task.documents[: suite.items_per_task]):
            ids = [first, *tokenizer(content, add_special_tokens=False)["input_ids"]]
            texts.append(Text(f"{task.name}_kl", hashlib.sha256(content.encode()).hexdigest()[:16], ids))
    return texts


def task_texts(rows: Iterable[Mapping[str, Any]]) -> list[Text]:
    """Prepared examples: the task's own prompts, each with its reference answer, at whose tokens one is asked."""
    given = [(row, len(row["prompt_ids"])) for row in rows]
    return [Text(TASK_KL, row["example_id"], [*row["prompt_ids"], *row["answer_ids"]], n) for row, n in given]


def reference_of(config: RunConfig, source: str, tokenizer: Any, device: Device) -> Reference:
    """The base's predictions: from the cache, or made by loading the base.

    Raises:
        torch.OutOfMemoryError: the base does not fit the device in 16 bit.
    """
    texts = general_texts(tokenizer, config.suite)
    path = _stored_path(config, source, texts, device)
    if path is None:  # a folder's weights may change under the same name
        return _made(config, source, texts, device)
    if not path.exists():
        made = vars(_made(config, source, texts, device))
        write_atomic(path, save({name: value for name, value in made.items() if name != "texts"}))
    return Reference(texts, **load_file(path))


def divergence(
    model: Any, reference: Reference, device: Device, advance: Callable[[int], None] = lambda done: None
) -> Outcome:
    """KL(base || model), nats a token, by text. The caller chooses the numerics (`loss.inference`)."""
    starts = list(itertools.accumulate((entry.positions for entry in reference.texts), initial=0))
    values: dict[int, float] = {}
    for place, log_probabilities in _predictions(model, reference.texts, device):
        rows = slice(starts[place], starts[place] + reference.texts[place].positions)
        kept = (reference.top_log_probabilities, reference.rest_log_probability)
        top, rest = (tensor[rows].to(device.type) for tensor in kept)
        values[place] = _kl(top, rest, *_split(log_probabilities, reference.top_ids[rows].to(device.type)))
        advance(len(values))
    items = [
        RegressionItem(entry.task, entry.text_id, KL_METRIC, finite(values[place]), float(entry.positions))
        for place, entry in enumerate(reference.texts)
    ]
    tasks = []
    for name in dict.fromkeys(item.task for item in items):
        own = [item for item in items if item.task == name]
        tasks.append(RegressionTask(name, KL_METRIC, weighted_mean(own), len(own), higher_is_better=False))
    return Outcome(tasks, items)


def weighted_mean(items: Sequence[RegressionItem]) -> float | None:
    """The mean of the items' scores by their weights; None: one of them is not finite."""
    scores = [item.score * item.weight for item in items if item.score is not None]
    return math.fsum(scores) / math.fsum(item.weight for item in items) if len(scores) == len(items) else None


def _stored_path(config: RunConfig, source: str, texts: list[Text], device: Device) -> Path | None:
    name, _ = origin(config, source)
    if name is None:
        return None
    asked = digest([[entry.text_id, entry.token_ids] for entry in texts] + [TOP, _BATCH])[:8]
    dtype = str(device.compute_dtype).removeprefix("torch.")
    return Path(config.paths.cache) / "references" / f"{name}-{device.type}-{dtype}-{asked}.safetensors"


def _made(config: RunConfig, source: str, texts: list[Text], device: Device) -> Reference:
    model = load_weights(config.model, source, dtype=device.compute_dtype, device_map={"": device.type})
    return predictions_of(model, texts, device)


def predictions_of(base: Any, texts: list[Text], device: Device) -> Reference:
    """The base's predictions, of the base that is loaded."""
    kept: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    with inference(base, device):
        for place, log_probabilities in _predictions(base, texts, device):
            ids = log_probabilities.topk(min(TOP, log_probabilities.shape[1]), dim=1).indices
            top, rest = _split(log_probabilities, ids)
            kept[place] = (ids.int().cpu(), top.cpu(), rest.cpu())
    columns = [torch.cat([kept[place][part] for place in range(len(texts))]) for part in range(3)]
    return Reference(texts, *columns)


def _predictions(model: Any, texts: list[Text], device: Device) -> Iterator[tuple[int, torch.Tensor]]:
    """(place of a text, log-probabilities (positions, vocabulary) in fp32); in batches of similar length."""
    order = sorted(range(len(texts)), key=lambda place: -len(texts[place].token_ids))
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        rows = [{"prompt_ids": texts[place].token_ids, "answer_ids": []} for place in chosen]
        batch = {k: v.to(device.type) for k, v in data.collate(rows, pad_id=0).items() if k != "labels"}
        logits = model(**batch, use_cache=False).logits
        for row, place in enumerate(chosen):
            asked = slice(texts[place].given - 1, len(texts[place].token_ids) - 1)
            yield place, torch.log_softmax(logits[row, asked].float(), dim=-1)


def _split(log_probabilities: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities of the named tokens, that of all others together)."""
    top = log_probabilities.gather(1, ids.long())
    rest = log_probabilities.scatter(1, ids.long(), -torch.inf).logsumexp(dim=1)
    return top, rest


def _kl(top: torch.Tensor, rest: torch.Tensor, own_top: torch.Tensor, own_rest: torch.Tensor) -> float:
    """Mean over positions of KL(base || model), in nats."""
    of_rest = torch.where(rest.isneginf(), 0.0, rest.double().exp() * (rest.double() - own_rest.double()))
    of_top = (top.double().exp() * (top.double() - own_top.double())).sum(dim=1)
    return float((of_top + of_rest).mean())
