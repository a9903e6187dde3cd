"""Runs a regression suite by lm-eval on a loaded model and keeps every item's score.

What tuning cost elsewhere is the difference between base and tuned on the *same* items, so the items are the result
and each task's value is their weighted mean. Scores move a little with the batch size (padding changes the rounding):
it comes from the suite, and is the same for every run of a comparison. Log-probabilities are computed in fp32: lm-eval
would sum them in the model's bf16, which rounds a sentence of 40 nats to quarters of a nat and makes ties.

Generation is greedy and uses the tokenizer's chat template where there is one; likelihoods are of plain text.

    >>> outcome = run_suite(suite, model, tokenizer, max_length=1024)
    >>> outcome.tasks[0]
    RegressionTask(task='grammar_subject_verb', metric='acc', value=0.725, items=80, higher_is_better=True, chance=0.5)
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy
import torch
from lm_eval import evaluator
from lm_eval.api.metrics import mean
from lm_eval.api.registry import get_aggregation
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from bench.config import RunConfig, SuiteConfig
from bench.identity import data_folder
from bench.mistakes import ConfigurationError
from bench.record import RegressionItem, RegressionResult, RegressionTask
from bench.worker import data, device, models
from bench.worker.check import of_documents, texts_of
from bench.worker.divergence import Outcome, Reference, divergence, general_texts, reference_of, weighted_mean
from bench.worker.evaluate import load_tuned
from bench.worker.loss import finite, inference
from bench.worker.main import Context, write_lines
from bench.worker.scoring import Counter, PrefixScorer
from bench.worker.suites.lm_eval_tasks import load_tasks

# The first that a task has is reported. acc_norm corrects for the length of the answers; a bare acc means that the
# task's authors saw no need.
METRIC_PREFERENCE = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "bits_per_byte")
FILTER_PREFERENCE = ("flexible-extract", "strict-match", "none")  # the ability, before the format of the answer
_SEED = 1234
WINDOW = 4096  # tokens, of models that have so many: IFEval writes 1,280, and GSM8K shows five solved examples


def run(context: Context) -> RegressionResult:
    """Run the regression suite on the tuned (or untouched) model."""
    config = context.config
    reference, unknown = _reference(context)
    model, tokenizer, resolved, memory = load_tuned(context)
    memory.enter("regression")
    context.progress.phase("regression")
    with context.clock.span("regression"), inference(model, resolved):
        how: dict[str, Any] = {"autocast_dtype": resolved.autocast_dtype, "advance": context.progress.advance}
        outcome = run_suite(config.suite, model, tokenizer, window(config), **how)
    tasks, items = outcome.tasks, outcome.items
    if reference is not None:
        memory.enter("divergence")
        context.progress.phase("divergence", len(reference.texts))
        with context.clock.span("divergence"), inference(model, resolved):
            moved = divergence(model, reference, resolved, context.progress.advance)
        tasks, items = tasks + moved.tasks, items + moved.items
    write_lines(context.folder / "regression_items.jsonl.gz", (asdict(item) for item in items))
    return RegressionResult(
        suite=config.suite.name,
        tasks=tasks,
        memory=list(memory.read().values()),
        spans_seconds=context.clock.read(),
        environment=resolved.environment(context.load.read()),
        divergence_unknown=unknown,
        contaminated=of_documents(texts_of(data.load_prepared(data_folder(config)).train), outcome.documents),
    )


def window(config: RunConfig) -> int:
    """Positions that the suite's prompts and answers have: no matter of how long the training examples are."""
    return min(WINDOW, config.model.max_context)


def check_tasks(config: RunConfig) -> None:
    """Load the suite before anything is trained, which downloads its data.

    Raises:
        ConfigurationError: what would stop it hours later: unknown tasks, no metric, answers longer than the window.
    """
    tasks, positions = load_tasks(config.suite), window(config)
    _chosen_metrics(tasks)
    writing = {n: t.get_config("generation_kwargs") for n, t in tasks.items() if t.OUTPUT_TYPE == "generate_until"}
    answers = {name: normalize_gen_kwargs(asked)["max_gen_toks"] for name, asked in writing.items()}
    if too_long := {name: tokens for name, tokens in answers.items() if tokens >= positions}:
        listed = ", ".join(f"{name} writes {tokens}" for name, tokens in too_long.items())
        raise ConfigurationError(
            [
                f"suite.tasks: {listed} tokens, which leaves no room for a prompt in the {positions} positions of "
                f"{config.model.name}; leave them out, or choose a model with a longer context"
            ]
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


def run_suite(
    suite: SuiteConfig, model: Any, tokenizer: Any, max_length: int,
    autocast_dtype: torch.dtype | None = None, advance: Callable[..., None] = lambda done, total: None,
) -> Outcome:  # fmt: skip
    """Measure a model on a suite.

    Args:
        model: a Hugging Face or PEFT causal model on its device; put into evaluation mode.
        tokenizer: must have a padding token or an end-of-text token.
        max_length: positions of the longest window, in tokens; longer texts are scored window by window.
        autocast_dtype: of the numerics that the model was trained with; lm-eval would else switch autocast off.
        advance: is told how many requests are scored, and of how many.

    Raises:
        ConfigurationError: unknown tasks, or a task without a metric that is a mean over items.
    """
    tasks = load_tasks(suite)
    metrics = _chosen_metrics(tasks)
    model.eval()
    how: dict[str, Any] = {"softmax_dtype": "float32", "mixed_precision_dtype": autocast_dtype}
    how |= {"tokenizer": tokenizer, "max_length": max_length, "batch_size": suite.batch_size}
    lm = PrefixScorer(pretrained=model, **how)
    lm.advance = advance
    return _outcome(tasks, metrics, _samples(lm, tasks, suite, tokenizer))


def count_suite(suite: SuiteConfig, model: Any, tokenizer: Any, max_length: int) -> tuple[int, int, int]:
    """(tokens that a suite and the divergence score, tokens that its answers may have, items of its largest task)."""
    tasks = load_tasks(suite)
    lm = Counter(pretrained=model, tokenizer=tokenizer, batch_size=suite.batch_size, max_length=max_length)
    samples = _samples(lm, tasks, suite, tokenizer)
    items = max(len({sample["doc_id"] for sample in logged}) for logged, _ in samples.values())
    return lm.positions + sum(len(text.token_ids) for text in general_texts(tokenizer)), lm.written, items


def _samples(lm: HFLM, tasks: dict[str, Task], suite: SuiteConfig, tokenizer: Any) -> dict[str, Any]:
    """`_evaluate` on all tasks: lm-eval takes the chat template for a whole call."""
    generating = {name: task for name, task in tasks.items() if task.OUTPUT_TYPE == "generate_until"}
    scoring = {name: task for name, task in tasks.items() if name not in generating}
    samples = _evaluate(lm, scoring, suite, chat=False)
    return samples | _evaluate(lm, generating, suite, chat=bool(tokenizer.chat_template))


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
    averages: tuple[Callable[..., float], ...] = (mean, get_aggregation("bits_per_byte"))
    for name, task in tasks.items():
        paired = [metric for metric, how in task.aggregation().items() if how in averages]
        if paired:
            chosen[name] = next((metric for metric in METRIC_PREFERENCE if metric in paired), paired[0])
        else:
            problems.append(
                f"suite.tasks: {name} has no metric that is a mean over items (it has "
                f"{', '.join(task.aggregation()) or 'none'}), so its items cannot be paired; leave it out"
            )
    if problems:
        raise ConfigurationError(problems)
    return chosen


def _outcome(tasks: dict[str, Task], metrics: dict[str, str], samples: dict[str, Any]) -> Outcome:
    records, items, documents = [], [], {}
    for name, task in tasks.items():
        metric, (logged, aggregates) = metrics[name], samples[name]
        filters = {sample["filter"] for sample in logged}
        kept_filter = next((name for name in FILTER_PREFERENCE if name in filters), min(filters))
        kept = [sample for sample in logged if sample["filter"] == kept_filter]
        own = [_item(name, metric, sample) for sample in kept]
        value = weighted_mean(own)
        expected = float(aggregates[f"{metric},{kept_filter}"])
        if value is not None and not math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9):
            raise AssertionError(f"{name}: the mean of the items is {value}, lm-eval's {metric} is {expected}")
        better = bool(task.higher_is_better().get(metric, True))
        of, chance = len(task.eval_docs), _chance(task, metric, kept)
        records.append(RegressionTask(name, metric, value, len(own), better, chance, of))
        items.extend(own)
        documents[name] = [sample["doc"] for sample in kept]
    return Outcome(records, items, documents)


def _item(task: str, metric: str, sample: dict[str, Any]) -> RegressionItem:
    """One score. The id joins place and content, so that an item is only ever paired with itself."""
    item_id = f"{sample['doc_id']:05d}-{sample['doc_hash'][:12]}"
    if metric == "bits_per_byte":
        nats, byte_count = sample[metric]  # log-likelihood of the text, its length
        bits = -nats / (byte_count * math.log(2))
        return RegressionItem(task, item_id, metric, finite(bits), float(byte_count))
    return RegressionItem(task, item_id, metric, finite(float(sample[metric])))


def _chance(task: Task, metric: str, samples: list[dict[str, Any]]) -> float | None:
    """Mean of 1 / choices; None where guessing has no such score (own scoring code, several right answers)."""
    own_scoring = task.get_config("process_results") is not None
    if task.OUTPUT_TYPE != "multiple_choice" or own_scoring or not metric.startswith("acc"):
        return None
    if getattr(task, "multiple_target", 0):
        return None
    return math.fsum(1 / len(task.doc_to_choice(sample["doc"])) for sample in samples) / len(samples)
