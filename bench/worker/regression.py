"""Runs a regression suite by lm-eval on a loaded model and keeps every item's score.

What tuning cost elsewhere is the difference between base and tuned on the *same* items, so the items are the result
and each task's value is their weighted mean. Scores move a little with the batch size (padding changes the rounding):
it comes from the suite, and is the same for every run of a comparison. Log-probabilities are computed in fp32: lm-eval
would sum them in the model's bf16, which rounds a sentence of 40 nats to quarters of a nat and makes ties.

Generation is greedy and uses the tokenizer's chat template where there is one; likelihoods are of plain text.

    >>> outcome = run_suite(suite, model, tokenizer, cache_folder=Path("cache"), max_length=1024)
    >>> outcome.tasks[0]
    RegressionTask(task='grammar_subject_verb', metric='acc', value=0.725, items=80, higher_is_better=True, chance=0.5)
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from lm_eval import evaluator
from lm_eval.api.metrics import mean
from lm_eval.api.registry import get_aggregation
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save

from bench.config import ConfigurationError, RunConfig, SuiteConfig
from bench.identity import digest, write_atomic
from bench.record import KL_METRIC, RegressionItem, RegressionResult, RegressionTask
from bench.worker import data, device, models
from bench.worker import loss as heldout
from bench.worker.device import Device
from bench.worker.main import Context, load_tuned, write_lines
from bench.worker.models import load_weights, origin
from bench.worker.scoring import PrefixScorer
from bench.worker.suites import quick as text
from bench.worker.suites.lm_eval_tasks import load_tasks, quiet

# The first that a task has is reported. acc_norm corrects for the length of the answers; a bare acc means that the
# task's authors saw no need.
METRIC_PREFERENCE = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "bits_per_byte")
FILTER_PREFERENCE = ("flexible-extract", "strict-match", "none")  # the ability, before the format of the answer
_SEED = 1234


@dataclass(frozen=True)
class SuiteOutcome:
    """What a suite gave: one `RegressionTask` a task, and all items in the order of the tasks."""

    tasks: list[RegressionTask]
    items: list[RegressionItem]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of which items were asked, whatever the scores: equal for runs that can be paired."""
        return digest(sorted([item.task, item.item_id] for item in self.items))


def run_suite(
    suite: SuiteConfig,
    model: Any,
    tokenizer: Any,
    cache_folder: Path,
    max_length: int,
    autocast_dtype: torch.dtype | None = None,
) -> SuiteOutcome:
    """Measure a model on a suite.

    Args:
        suite: which tasks, how many items, and the batch size.
        model: a loaded Hugging Face or PEFT causal model on its device; put into eval mode.
        tokenizer: its tokenizer; must have a padding token or an end-of-text token.
        cache_folder: the only folder written to.
        max_length: positions of the longest window, in tokens; longer texts are scored window by window.
        autocast_dtype: of the numerics that the model was trained with; lm-eval would else switch autocast off.

    Raises:
        ConfigurationError: unknown tasks, or a task without a metric that is a mean over items.
    """
    tasks = load_tasks(suite, cache_folder)
    metrics = _chosen_metrics(tasks)
    model.eval()
    with quiet("lm_eval"):  # it warns that a loaded model was given, which is what we want
        lm = _scorer(model)(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=suite.batch_size,
            max_length=max_length,
            softmax_dtype="float32",
            mixed_precision_dtype=autocast_dtype,
        )
    # lm-eval takes the chat template for a whole call.
    generating = {name: task for name, task in tasks.items() if task.OUTPUT_TYPE == "generate_until"}
    scoring = {name: task for name, task in tasks.items() if name not in generating}
    samples = _evaluate(lm, scoring, suite, chat=False)
    samples |= _evaluate(lm, generating, suite, chat=bool(tokenizer.chat_template))
    return _outcome(tasks, metrics, samples)


def _scorer(model: Any) -> type[HFLM]:
    """Shared prefixes need a mask of our own, which sdpa takes; other kernels get lm-eval's own way."""
    return PrefixScorer if model.config._attn_implementation == "sdpa" else HFLM


def _evaluate(lm: HFLM, tasks: dict[str, Task], suite: SuiteConfig, chat: bool) -> dict[str, Any]:
    """lm-eval's samples and aggregates by task: {name: (samples, {"metric,filter": value})}."""
    if not tasks:
        return {}
    random.seed(_SEED)
    numpy.random.seed(_SEED)
    torch.manual_seed(_SEED)
    # `evaluate` rather than `simple_evaluate`, which lists the machine's packages after each call (seconds).
    result = evaluator.evaluate(
        lm=lm,
        task_dict={"tasks": tasks},
        limit=suite.items_per_task,
        bootstrap_iters=0,  # the intervals are ours, over paired differences
        log_samples=True,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    return {name: (result["samples"][name], result["results"][name]) for name in tasks}


def _chosen_metrics(tasks: dict[str, Task]) -> dict[str, str]:
    """Each task's metric, checked before anything runs."""
    chosen, problems = {}, []
    for name, task in tasks.items():
        paired = [metric for metric, how in task.aggregation().items() if _averages_items(how)]
        preferred = [metric for metric in METRIC_PREFERENCE if metric in paired] + paired
        if preferred:
            chosen[name] = preferred[0]
        else:
            problems.append(
                f"suite.tasks: {name} has no metric that is a mean over items (it has "
                f"{', '.join(task.aggregation()) or 'none'}), so its items cannot be paired; leave it out"
            )
    if problems:
        raise ConfigurationError(problems)
    return chosen


def _averages_items(aggregation: Callable[..., float]) -> bool:
    return aggregation in (mean, get_aggregation("bits_per_byte"))


def _outcome(tasks: dict[str, Task], metrics: dict[str, str], samples: dict[str, Any]) -> SuiteOutcome:
    records, items = [], []
    for name, task in tasks.items():
        logged, aggregates = samples[name]
        metric = metrics[name]
        kept_filter = _chosen_filter({sample["filter"] for sample in logged})
        kept = [sample for sample in logged if sample["filter"] == kept_filter]
        own = [_item(name, metric, sample) for sample in kept]
        value = math.fsum(i.score * i.weight for i in own) / math.fsum(i.weight for i in own)
        expected = float(aggregates[f"{metric},{kept_filter}"])
        if not math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9):
            raise AssertionError(f"{name}: the mean of the items is {value}, lm-eval's {metric} is {expected}")
        better = bool(task.higher_is_better().get(metric, True))
        records.append(RegressionTask(name, metric, value, len(own), better, _chance(task, metric, kept)))
        items.extend(own)
    return SuiteOutcome(records, items)


def _chosen_filter(filters: set[str]) -> str:
    return next((name for name in FILTER_PREFERENCE if name in filters), min(filters))


def _item(task: str, metric: str, sample: dict[str, Any]) -> RegressionItem:
    """One score. The id joins place and content, so that an item is only ever paired with itself."""
    item_id = f"{sample['doc_id']:05d}-{sample['doc_hash'][:12]}"
    if metric == "bits_per_byte":
        nats, byte_count = sample[metric]  # log-likelihood of the text, its length
        return RegressionItem(task, item_id, metric, -nats / (byte_count * math.log(2)), float(byte_count))
    return RegressionItem(task, item_id, metric, float(sample[metric]))


def _chance(task: Task, metric: str, samples: list[dict[str, Any]]) -> float | None:
    """Mean of 1 / choices; None where guessing has no such score (own scoring code, several right answers)."""
    own_scoring = task.get_config("process_results") is not None
    if task.OUTPUT_TYPE != "multiple_choice" or own_scoring or not metric.startswith("acc"):
        return None
    if getattr(task, "multiple_target", 0):
        return None
    return math.fsum(1 / len(task.doc_to_choice(sample["doc"])) for sample in samples) / len(samples)


TOP = 512
_BATCH = 4  # texts; their logits over the whole vocabulary are held at once


@dataclass(frozen=True)
class Text:
    """A text as tokens, with the token that stands before it."""

    task: str
    text_id: str
    token_ids: list[int]

    @property
    def positions(self) -> int:
        """Tokens that are predicted: all but the first."""
        return len(self.token_ids) - 1


@dataclass(frozen=True)
class Reference:
    """What the base predicts, for all positions of all texts, one after the other.

    Attributes:
        top_ids: (positions, TOP), int32; top_log_probabilities: the same shape, fp32, nats.
        rest_log_probability: (positions,), fp32: of all other tokens together.
    """

    texts: list[Text]
    top_ids: torch.Tensor
    top_log_probabilities: torch.Tensor
    rest_log_probability: torch.Tensor


@dataclass(frozen=True)
class Divergence:
    """Means by kind of text, and every text's own."""

    tasks: list[RegressionTask]
    items: list[RegressionItem]


def general_texts(tokenizer: Any) -> list[Text]:
    """The quick suite's prose and code; ids are hashes of the content, so that only equal texts are ever paired."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    texts = []
    for task in text.tasks_text():
        for document in task.documents:
            content = document["text"]
            ids = [first, *tokenizer(content, add_special_tokens=False)["input_ids"]]
            texts.append(Text(f"{task.name}_kl", hashlib.sha256(content.encode()).hexdigest()[:16], ids))
    return texts


def reference_of(config: RunConfig, source: str, tokenizer: Any, device: Device) -> Reference:
    """The base's predictions: from the cache, or made by loading the base.

    Raises:
        torch.OutOfMemoryError: the base does not fit the device in 16 bit.
    """
    texts = general_texts(tokenizer)
    path = _stored_path(config, source, texts, device)
    if path is None:  # a folder's weights may change under the same name
        return _made(config, source, texts, device)
    if not path.exists():
        made = _made(config, source, texts, device)
        tensors = {
            "top_ids": made.top_ids,
            "top_log_probabilities": made.top_log_probabilities,
            "rest_log_probability": made.rest_log_probability,
        }
        write_atomic(path, save(tensors))
    return Reference(texts, **load_file(path))


def divergence(model: Any, reference: Reference, device: Device) -> Divergence:
    """KL(base || model), nats a token, by text. The caller chooses the numerics (`heldout.inference`)."""
    starts = _starts(reference.texts)
    values: dict[int, float] = {}
    for place, log_probabilities in _predictions(model, reference.texts, device):
        rows = slice(starts[place], starts[place] + reference.texts[place].positions)
        own = _split(log_probabilities, reference.top_ids[rows].to(device.type))
        top = reference.top_log_probabilities[rows].to(device.type)
        rest = reference.rest_log_probability[rows].to(device.type)
        values[place] = _kl(top, rest, *own)
    items = [
        RegressionItem(entry.task, entry.text_id, KL_METRIC, values[place], float(entry.positions))
        for place, entry in enumerate(reference.texts)
    ]
    return Divergence([_task(name, items) for name in dict.fromkeys(item.task for item in items)], items)


def _task(name: str, items: Sequence[RegressionItem]) -> RegressionTask:
    own = [item for item in items if item.task == name]
    value = math.fsum(i.score * i.weight for i in own) / math.fsum(i.weight for i in own)
    return RegressionTask(name, KL_METRIC, value, len(own), higher_is_better=False)


def _stored_path(config: RunConfig, source: str, texts: list[Text], device: Device) -> Path | None:
    name, _ = origin(config, source)
    if name is None:
        return None
    asked = digest([[entry.text_id, entry.token_ids] for entry in texts] + [TOP, _BATCH])[:8]
    dtype = str(device.compute_dtype).removeprefix("torch.")
    return Path(config.paths.cache) / "references" / f"{name}-{device.type}-{dtype}-{asked}.safetensors"


def _made(config: RunConfig, source: str, texts: list[Text], device: Device) -> Reference:
    model = load_weights(config.model, source, dtype=device.compute_dtype, device_map={"": device.type})
    kept: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    with heldout.inference(model, device):
        for place, log_probabilities in _predictions(model, texts, device):
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
            yield place, torch.log_softmax(logits[row, : texts[place].positions].float(), dim=-1)


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


def _starts(texts: Sequence[Text]) -> list[int]:
    starts = [0]
    for entry in texts:
        starts.append(starts[-1] + entry.positions)
    return starts


def run(context: Context) -> RegressionResult:
    """Run the regression suite on the tuned (or untouched) model."""
    config = context.config
    reference, unknown = _reference(context)
    model, tokenizer, resolved, memory = load_tuned(context)
    memory.enter("regression")
    context.progress.phase("regression")
    with context.clock.span("regression"), heldout.inference(model, resolved):
        outcome = run_suite(
            config.suite,
            model,
            tokenizer,
            context.tables,
            max_length=min(config.train.max_length, config.model.max_context),
            autocast_dtype=resolved.autocast_dtype,
        )
    tasks, items = outcome.tasks, outcome.items
    if reference is not None:
        memory.enter("divergence")
        context.progress.phase("divergence")
        with context.clock.span("divergence"), heldout.inference(model, resolved):
            moved = divergence(model, reference, resolved)
        tasks, items = tasks + moved.tasks, items + moved.items
    write_lines(context.folder / "regression_items.jsonl.gz", (asdict(item) for item in items))
    return RegressionResult(
        suite=config.suite.name,
        tasks=tasks,
        memory=list(memory.read().values()),
        spans_seconds=context.clock.read(),
        environment=resolved.environment(context.load.read()),
        divergence_unknown=unknown,
    )


def _reference(context: Context) -> tuple[Reference | None, str | None]:
    """(the base's predictions, why there are none); `prepare` has stored them, unless the base is a plain folder."""
    context.progress.phase("reference")
    config = context.config
    resolved = device.resolve(config)
    source = models.locate(config.model, context.cache)
    tokenizer = models.load_tokenizer(config.model, source)
    try:
        with context.clock.span("reference"):
            return reference_of(config, source, tokenizer, resolved), None
    except torch.OutOfMemoryError:
        return None, "the base does not fit this device in 16 bit"
