"""Runs a regression suite by lm-eval on a loaded model and keeps every item's score.

What tuning cost elsewhere is the difference between base and tuned on the *same* items, so the items are the result
and each task's value is their weighted mean. Scores move a little with the batch size (padding changes the rounding):
it comes from the suite, and is the same for every run of a comparison. Log-probabilities are computed in fp32: lm-eval
would sum them in the model's bf16, which rounds a sentence of 40 nats to quarters of a nat and makes ties.

Generation is greedy and uses the tokenizer's chat template where there is one; likelihoods are of plain text. The quick
suite and minimal-pair files become tasks over in-memory data sets, so that nothing is written. For other tasks lm-eval
loads the data, by `datasets` in its own cache (`main` names its folder).

    >>> outcome = run_suite(suite, model, tokenizer, max_length=1024)
    >>> outcome.tasks[0]
    RegressionTask(task='grammar_subject_verb', metric='acc', value=0.725, items=80, higher_is_better=True, chance=0.5)
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy
import torch
from lm_eval import evaluator
from lm_eval.api.metrics import mean
from lm_eval.api.registry import get_aggregation
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from bench.config import RunConfig, SuiteConfig
from bench.identity import data_folder
from bench.mistakes import ConfigurationError, refuse
from bench.record import RegressionItem, RegressionResult, RegressionTask
from bench.worker import data, device, models
from bench.worker.check import of_documents, texts_of
from bench.worker.divergence import Outcome, Reference, divergence, general_texts, reference_of, weighted_mean
from bench.worker.evaluate import load_tuned
from bench.worker.loss import finite, inference
from bench.worker.main import Context, write_lines
from bench.worker.scoring import Counter, PrefixScorer
from bench.worker.suites import local
from bench.worker.suites.quick import MAX_NEW_TOKENS, Document, QuickTask, followed, quick_tasks

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of a loaded model, and of what our tasks leave out
FEWSHOT_SEED = 1234  # lm-eval's default: which solved examples a prompt shows
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
    return lm.positions + sum(len(text.token_ids) for text in general_texts(tokenizer, suite)), lm.written, items


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


# --- The tasks of a suite, as lm-eval runs them ---


def load_tasks(suite: SuiteConfig) -> dict[str, Task]:
    """The tasks of a suite by name, groups replaced by their members; few-shot examples and decoding are fixed.

    Raises:
        ConfigurationError: unknown names, or files that cannot be read.
    """
    refuse(local.check_suite(suite))
    tasks = _load(suite)
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(FEWSHOT_SEED)
        # transformers fills unset generation fields from the model's own `generation_config`, so that leaving
        # `do_sample` out may sample. Tasks that ask for sampling are made greedy too: a draw hides small differences.
        if task.OUTPUT_TYPE == "generate_until":
            greedy = {"do_sample": False, "temperature": 0.0, "num_beams": 1, "repetition_penalty": 1.0}
            task.set_config("generation_kwargs", greedy, update=True)
    return tasks


def _load(suite: SuiteConfig) -> dict[str, Task]:
    folder = Path(suite.path or "")
    if suite.source == "none":
        return {}
    if suite.source == "quick" or (suite.source == "local" and local.pair_files(folder)):
        own = quick_tasks() if suite.source == "quick" else local.minimal_pair_tasks(folder)
        return {
            t.name: ConfigurableTask(config=_configuration(t)) for t in own if not suite.tasks or t.name in suite.tasks
        }
    if suite.source == "lm_eval":
        return dict(TaskManager().load(suite.tasks)["tasks"])
    # The defaults are left out: reading them takes seven seconds.
    manager = TaskManager(include_path=folder, include_defaults=False)
    tasks: dict[str, Task] = {}
    for name in suite.tasks or [*manager.all_groups, *manager.all_subtasks]:
        if name not in tasks:  # else a group has brought it
            tasks |= manager.load(name)["tasks"]
    return tasks


def _configuration(task: QuickTask) -> dict[str, Any]:
    """lm-eval's description of one of our own tasks; continuations carry their own leading space."""
    shared = {"task": task.name, "custom_dataset": _in_memory(task.documents), "test_split": "test", "num_fewshot": 0}
    if task.kind == "choice":
        return shared | {
            "output_type": "multiple_choice",
            "doc_to_text": "context",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": "",
            "metric_list": [_metric("acc", "mean", True)],
        }
    if task.kind == "text":
        return shared | {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [_metric("bits_per_byte", "bits_per_byte", False)],
        }
    return shared | {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "rule",
        "generation_kwargs": {"until": [], "max_gen_toks": MAX_NEW_TOKENS},
        "process_results": _judge,
        "metric_list": [_metric("followed", "mean", True)],
    }


def _metric(name: str, aggregation: str, higher_is_better: bool) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


def _in_memory(documents: tuple[Document, ...]) -> Callable[..., dict[str, datasets.Dataset]]:
    return lambda **_: {"test": datasets.Dataset.from_list(list(documents))}


def _judge(document: Document, results: list[str]) -> dict[str, float]:
    return {"followed": float(followed(document["rule"], document["argument"], results[0]))}
