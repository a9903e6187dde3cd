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
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import psutil
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from bench.checkpoint import ASKED, Asked
from bench.config import CUTS_WEIGHTS, DEEPSPEED, RunConfig
from bench.identity import data_folder, weights_sha256, write_atomic
from bench.metrics import normalised_label
from bench.mistakes import all_of, refuse
from bench.own_metrics import is_own
from bench.planner.time import speed_path
from bench.record import Speed, from_json, to_json
from bench.worker import data, device, evaluate, methods, models, reach
from bench.worker.check import of_documents, texts_of
from bench.worker.device import Device, name_of
from bench.worker.divergence import reference_of
from bench.worker.instruments.memory import release
from bench.worker.loss import SupervisedHead, example_losses, inference
from bench.worker.main import Context
from bench.worker.sources import hub
from bench.worker.suites.local import check_suite

_TRIED = 5  # test references that a metric of the user's own is tried on, each as its own answer
_ROWS = 8  # of the test split, whose loss the probe computes
_STEPS, _FEWEST, _SECONDS = 16, 6, 3.0  # of its decoding: most and fewest, and after which time it may end
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
    refuse(before_download(config))
    context.progress.phase("model")
    source = models.fetch(config.model, context.cache)
    tokenizer = models.load_tokenizer(config.model, source)
    notes = models.check(config, source, tokenizer)
    context.progress.phase("data")
    tokenize = partial(data.prepare, config, tokenizer, data_folder(config))
    said, summary = all_of(partial(reach.said, config, source), tokenize)
    refuse(metric_problems(config))
    if config.suite.source in ("lm_eval", "local") and config.trial is None:  # the other suites bring their items
        from bench.worker.regression import check_tasks  # seconds to import

        context.progress.phase("suite")
        check_tasks(config)
    return source, tokenizer, {"data": asdict(summary), "said": notes + said}


def check(context: Context) -> dict[str, Any]:
    """What the data hold and what of them the suite and the metrics see, without the model's weights.

    Examples up to the model's whole context are counted, and those in two splits, where a sweep would refuse them.
    """
    from bench.worker.regression import load_tasks  # seconds to import

    train, task = context.config.train, context.config.task
    config = replace(
        context.config,
        train=replace(train, max_length=max(train.max_length, context.config.model.max_context)),
        task=replace(task, overflow="drop", overlap="drop"),
    )
    refuse(check_suite(config.suite) + (hub.check_columns_without_download(task) if task.source == "hub" else []))
    context.progress.phase("data")
    tokenizer = models.load_tokenizer(config.model, models.locate(config.model, context.cache))
    summary = data.prepare(config, tokenizer, data_folder(config))
    refuse(metric_problems(config))
    context.progress.phase("suite")
    tasks, prepared = load_tasks(config.suite), data.load_prepared(data_folder(config))
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


# --- The probe: how fast the base loads, computes losses and writes answers on the runs' device ---


def keep_speed(context: Context, source: str, tokenizer: Any, resolved: Device) -> None:
    """Probe once a model, task and device, where memory is plenty; kept where `planner.forecast` looks for it.

    A probe that fails costs a sweep its estimate, and nothing else.
    """
    path, config = speed_path(context.config, f"{resolved.type}: {name_of(resolved.type)}"), context.config
    weights_bytes = 4 * (config.model.parameters or 0)  # at most
    is_roomy = resolved.type != "cpu" or weights_bytes < psutil.virtual_memory().available / 2
    if path.exists() or config.hardware.memory_limit_gib is not None or not is_roomy:
        return
    context.progress.phase("probe")
    try:
        write_atomic(path, to_json(probe(context, source, tokenizer, resolved)))
    except Exception:
        traceback.print_exc()  # into the log
    release()


def probe(context: Context, source: str, tokenizer: Any, resolved: Device) -> Speed:
    """Load, the loss of some test examples (the second time), first steps of a batch of answers; count the suite.

    Nothing compiled is measured, and nothing is trained.
    """
    config, test = context.config, list(data.load_prepared(data_folder(context.config)).test)
    started = time.perf_counter()
    model = methods.load_as_stored(config, source, resolved.type, resolved.compute_dtype).eval()
    load_seconds = context.clock.spans_seconds.get("import", 0.0) + time.perf_counter() - started
    rows, head = test[:_ROWS], SupervisedHead(model)
    with inference(model, resolved):
        seconds = 0.0
        for _ in range(2):  # the first call chooses kernels
            resolved.synchronize()
            started = time.perf_counter()
            example_losses(model, head, rows, batch_size=_ROWS, pad_id=tokenizer.pad_token_id, device=resolved)
            resolved.synchronize()
            seconds = time.perf_counter() - started
        new_tokens = config.task.max_new_tokens
        lengths = [len(row["prompt_ids"]) + new_tokens for row in test]
        batches = list(data.batches(lengths, config.hardware.generate_batch))
        prompts = [test[i]["prompt_ids"] for i in batches[len(batches) // 2]]  # neither the longest nor the rest
        answers_seconds = _answers_seconds(model, prompts, new_tokens, tokenizer.pad_token_id, resolved)
    a_position, a_token = seconds / sum(map(data.row_length, rows)), answers_seconds / (len(prompts) * new_tokens)
    if config.suite.source == "none" or config.trial:
        return Speed(load_seconds, a_position, answers_seconds, len(prompts))
    from bench.worker.regression import count_suite, window  # seconds to import

    scored, written, items = count_suite(config.suite, model, tokenizer, window(config))
    suite_seconds = scored * a_position + written * a_token
    return Speed(load_seconds, a_position, answers_seconds, len(prompts), suite_seconds, items)


def _answers_seconds(model: Any, prompts: list[list[int]], new_tokens: int, pad_id: int, resolved: Device) -> float:
    """Of one batch of the longest answers: the first token, and the median of the next few for each other one."""
    ids = pad_sequence([torch.tensor(p) for p in prompts], batch_first=True, padding_value=pad_id, padding_side="left")
    mask = pad_sequence([torch.ones(len(p)) for p in prompts], batch_first=True, padding_side="left").long()
    started, stamps = time.perf_counter(), list[float]()

    def stop(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        resolved.synchronize()
        stamps.append(time.perf_counter() - started)
        done = len(stamps) >= _STEPS or (len(stamps) >= _FEWEST and stamps[-1] > _SECONDS)
        return torch.full((len(input_ids),), done, device=input_ids.device)

    most = min(new_tokens, _STEPS)
    how = GenerationConfig(max_new_tokens=most, min_new_tokens=most, do_sample=False, pad_token_id=pad_id)
    model.generate(
        input_ids=ids.to(resolved.type), attention_mask=mask.to(resolved.type), generation_config=how,
        stopping_criteria=[stop],
    )  # fmt: skip
    later = [after - before for before, after in pairwise(stamps)]
    return stamps[0] + (new_tokens - 1) * (median(later) if later else 0.0)
