"""Turns a suite into lm-eval task objects, ready to run.

The quick suite and minimal-pair files become tasks over in-memory data sets, so that nothing is written. For other
tasks lm-eval loads the data, by `datasets` in its own cache (`main` names its folder).

    >>> list(load_tasks(SuiteConfig(name="quick", source="quick")))
    ['grammar_subject_verb', ..., 'instructions']
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager

from bench.config import SuiteConfig
from bench.mistakes import refuse
from bench.worker.suites import Document, QuickTask, local
from bench.worker.suites.local import check_suite
from bench.worker.suites.quick import MAX_NEW_TOKENS, followed, quick_tasks

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of a loaded model, and of what our tasks leave out
FEWSHOT_SEED = 1234  # lm-eval's default: which solved examples a prompt shows


def load_tasks(suite: SuiteConfig) -> dict[str, Task]:
    """The tasks of a suite by name, groups replaced by their members; few-shot examples and decoding are fixed.

    Raises:
        ConfigurationError: unknown names, or files that cannot be read.
    """
    refuse(check_suite(suite))
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
