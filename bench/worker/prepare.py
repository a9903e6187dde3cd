"""Stages around the runs: model and data into the cache, every mistake in either found; what an export needs.

prepare   checks, model, data, and what runs share on their device; once for all runs of a sweep that share them
fetch     the same without the run's device: on a login node, or into a folder for a machine without a network
check     what the data hold, for `bench data`
export    the base's tokenizer, hashes of what an exported model depends on, a GGUF file

>>> fetch(context)["data"]["train_examples"]
2000
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from bench.checkpoint import ASKED, Asked
from bench.config import CUTS_WEIGHTS, DEEPSPEED, RunConfig
from bench.identity import data_folder, weights_sha256
from bench.metrics import normalised_label
from bench.mistakes import ConfigurationError, all_of
from bench.own_metrics import is_own
from bench.record import from_json
from bench.worker import data, device, evaluate, methods, models, reach
from bench.worker.check import of_documents, texts_of
from bench.worker.divergence import reference_of
from bench.worker.instruments.memory import release
from bench.worker.main import Context
from bench.worker.probe import keep_speed
from bench.worker.sources import hub
from bench.worker.suites.local import check_suite

_TRIED = 5  # test references that a metric of the user's own is tried on, each as its own answer
_OF_A_TOKENIZER = ("model", "added_tokens", "normalizer", "pre_tokenizer")  # padding and truncation are the caller's


def run(context: Context) -> dict[str, Any]:
    """`fetch`, and what the runs share on their device: a quantized base, the base's predictions on general text."""
    config = context.config
    resolved = device.resolve(config)  # a device that cannot be used is told before anything is downloaded
    source, tokenizer, result = _fetched(context)
    if config.method.quantization is not None:
        context.progress.phase("quantize")
        methods.load_base(config, source, resolved.type, resolved.compute_dtype)  # stored for the runs to come
        release()
        if config.hardware.strategy in CUTS_WEIGHTS:
            methods.load_to_train(config, source, resolved.type, resolved.compute_dtype)  # likewise
            release()
    if config.suite.source != "none" and config.trial is None:
        context.progress.phase("reference")
        with suppress(torch.OutOfMemoryError):  # then the regression stage says so
            reference_of(config, source, tokenizer, resolved)
    if config.trial is None:
        keep_speed(context, source, tokenizer, resolved)
    return result


def fetch(context: Context) -> dict[str, Any]:
    """Model and data into the cache, without the run's device: on a login node.

    Returns:
        data, a summary of them; said, of the model and what the method does to it, a line each.

    Raises:
        ConfigurationError: wrong names, columns, lengths, suite tasks, a model that cannot be used.
    """
    return _fetched(context)[2]


def _fetched(context: Context) -> tuple[str, Any, dict[str, Any]]:
    """(what `from_pretrained` takes, the tokenizer, what `fetch` returns)."""
    config = context.config
    context.progress.phase("check")
    problems = before_download(config)
    if problems:
        raise ConfigurationError(problems)
    context.progress.phase("model")
    source = models.fetch(config.model, context.cache)
    tokenizer = models.load_tokenizer(config.model, source)
    notes = models.check(config, source, tokenizer)
    context.progress.phase("data")
    tokenize = partial(data.prepare, config, tokenizer, data_folder(config))
    said, summary = all_of(partial(reach.said, config, source), tokenize)
    if problems := metric_problems(config):
        raise ConfigurationError(problems)
    if config.suite.source in ("lm_eval", "local") and config.trial is None:  # the other suites bring their items
        from bench.worker.regression import check_tasks  # seconds to import

        context.progress.phase("suite")
        check_tasks(config, context.tables)
    return source, tokenizer, {"data": asdict(summary), "said": notes + said}


def check(context: Context) -> dict[str, Any]:
    """What the data hold and what of them the suite and the metrics see, without the model's weights.

    Examples up to the model's whole context are counted, and those in two splits, where a sweep would refuse them.
    """
    from bench.worker.suites.lm_eval_tasks import load_tasks  # seconds to import

    train, task = context.config.train, context.config.task
    config = replace(
        context.config,
        train=replace(train, max_length=max(train.max_length, context.config.model.max_context)),
        task=replace(task, overflow="drop", overlap="drop"),
    )
    problems = check_suite(config.suite) + (hub.check_columns_without_download(task) if task.source == "hub" else [])
    if problems:
        raise ConfigurationError(problems)
    context.progress.phase("data")
    tokenizer = models.load_tokenizer(config.model, models.locate(config.model, context.cache))
    summary = data.prepare(config, tokenizer, data_folder(config))
    if problems := metric_problems(config):
        raise ConfigurationError(problems)
    context.progress.phase("suite")
    tasks, prepared = load_tasks(config.suite, context.tables), data.load_prepared(data_folder(config))
    documents = {name: list(task.eval_docs)[: config.suite.items_per_task] for name, task in tasks.items()}
    found = of_documents(texts_of(prepared.train), documents)
    return {"data": asdict(summary), "suite": found, "blind": evaluate.blind(config, list(prepared.test))}


def metric_problems(config: RunConfig) -> list[str]:
    """Metrics that cannot score the prepared test references: code of your own is tried on the first of them."""
    prepared, task = data.load_prepared(data_folder(config)), config.task
    references = prepared.test["reference"][:]
    problems = []
    for name in filter(is_own, task.metrics):
        first = [prepared.test[place] for place in range(min(_TRIED, len(references)))]
        try:
            evaluate.score(replace(config, task=replace(task, metrics=[name])), first, references[:_TRIED])
        except ValueError as error:
            problems.append(f"task.metrics: {name}: {error}")
    labels = task.labels or prepared.summary.labels
    if "label" not in task.metrics:
        return problems
    if not labels:
        return [*problems, "task.labels: missing, and the training targets are too many different texts to be labels; "
                "list the allowed answers, or choose another metric"]  # fmt: skip
    allowed = set(map(normalised_label, labels))
    others = Counter(text for text in references if normalised_label(text) not in allowed)
    if others:
        shown = ", ".join(f"{text!r} ({count})" for text, count in others.most_common(5))
        problems.append(
            f"task.labels: {others.total()} test references are none of the {len(labels)} labels, so that no answer to "
            f"them can be right: {shown}; add these, or mend task.target"
        )
    return problems


def export(context: Context) -> dict[str, Any]:
    """For an export: hashes of base and prompt format; tokenizer, and a GGUF file if asked for, in the run's folder."""
    model, asked = context.config.model, from_json(Asked, (context.folder / ASKED).read_bytes())
    context.progress.phase("base")
    source = models.fetch(model, context.cache)
    tokenizer = models.load_tokenizer(model, source)
    tokenizer.save_pretrained(context.folder / "tokenizer")
    made: dict[str, Any] = {}
    if asked.format == "gguf":
        from bench.worker import gguf  # and all that serving needs

        made = gguf.export(context, source, tokenizer, asked)
    context.progress.phase("hashes")
    return made | {
        "weights_sha256": weights_sha256(models.local_folder(model, source)),
        "chat_template_sha256": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what decides which tokens a text becomes, in hex."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        parts = {name: content.get(name) for name in _OF_A_TOKENIZER}
    else:
        parts = {"vocabulary": tokenizer.get_vocab()}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps([parts, special], sort_keys=True).encode()).hexdigest()


def before_download(config: RunConfig) -> list[str]:
    """All problems with the suite's task names, the device, and the data's columns and splits."""
    problems = check_suite(config.suite)
    adapter = config.method.adapter
    if adapter is not None and adapter.init == "loftq" and not torch.cuda.is_available():
        problems.append("method.adapter.init: PEFT computes loftq on CUDA only, and none is visible; use default")
    problems += device_problems(config)
    if config.task.source == "hub":
        problems += hub.check_columns_without_download(config.task)
    return problems


def device_problems(config: RunConfig) -> list[str]:
    """Packages and devices that the strategy needs and this machine lacks."""
    hardware, problems = config.hardware, list[str]()
    if hardware.strategy in DEEPSPEED and importlib.util.find_spec("deepspeed") is None:
        problems.append(
            f"hardware.strategy: {hardware.strategy} needs DeepSpeed, which is not installed; "
            "pip install 'finetune-bench[deepspeed]', or use fsdp"
        )
    if hardware.device != "cpu" and torch.cuda.is_available() and torch.cuda.device_count() < hardware.devices:
        count = torch.cuda.device_count()
        problems.append(f"hardware.devices: {hardware.devices} were asked for, but {count} are visible; lower it")
    return problems
