"""Settings that are each allowed and do not go together.

>>> list(inconsistencies(config))
['train.micro_batch: 5 does not divide train.batch_size=16; choose a divisor, ...']
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench.spec.devices import problems_with

if TYPE_CHECKING:
    from bench.spec.config import ModelConfig, RunConfig, ServeConfig


def inconsistencies(config: RunConfig) -> Iterator[str]:
    """Mistakes that only show between fields, one line each: the key, what was given, what to do."""
    method, task, suite, train = config.method, config.task, config.suite, config.train
    if method.trains == "adapter" and method.adapter is None:
        yield "method.adapter: missing; a method with trains=adapter needs rank, alpha and target_modules"
    if method.trains == "all_weights" and (method.adapter or method.quantization):
        yield "method: trains=all_weights takes neither adapter nor quantization; set both to null"
    if (adapter := method.adapter) is not None:
        if adapter.init == "loftq" and (method.quantization is None or method.quantization.scheme != "nf4"):
            yield "method.adapter.init: loftq starts from what nf4 quantization lost; use it with method=qlora"
        if adapter.init in ("pissa", "olora") and method.quantization is not None:
            yield f"method.adapter.init: {adapter.init} changes the base's weights; a quantized base cannot follow"
    if method.trains != "nothing" and method.learning_rate is None:
        yield "method.learning_rate: missing; set one, for example 2e-5 (full) or 2e-4 (adapter)"
    if method.trains != "nothing" and method.shots:
        yield "method.shots: only the untuned base is prompted with solved examples; set it to 0"
    if config.hardware.memory_budget_gib is not None and train.micro_batch != "auto":
        yield (
            f"hardware.memory_budget_gib: {config.hardware.memory_budget_gib:g} is read by train.micro_batch=auto, "
            f"and train.micro_batch is {train.micro_batch}; leave one of them out"
        )
    if train.micro_batch != "auto" and train.batch_size % train.micro_batch:
        yield (
            f"train.micro_batch: {train.micro_batch} does not divide train.batch_size={train.batch_size}; "
            "choose a divisor, so that every method sees the same examples per step"
        )
    if train.max_length > config.model.max_context:
        yield (
            f"train.max_length: {train.max_length} is beyond the {config.model.max_context} positions of "
            f"{config.model.name}; lower it or choose a model with a longer context"
        )
    if task.max_new_tokens >= train.max_length:
        yield f"task.max_new_tokens: {task.max_new_tokens} leaves no room for a prompt in {train.max_length} tokens"
    if task.source == "files" and not task.train_file:
        yield "task.train_file: missing; give the path of a .jsonl, .csv or .parquet file"
    if task.source == "hub" and not task.hub_dataset:
        yield "task.hub_dataset: missing; give the data set's name on the hub"
    if "label" in task.metrics and not task.labels:
        yield "task.labels: missing; the metric `label` needs the list of allowed answers"
    if suite.source == "local" and not suite.path:
        yield "suite.path: missing; give the folder of your lm-eval YAML tasks"
    if suite.source == "lm_eval" and not suite.tasks:
        yield "suite.tasks: empty; name at least one lm-eval task, or choose suite=none"
    yield from problems_with(config)
    yield from _of_serving(config.serve, config.model)


def _of_serving(serve: ServeConfig, model: ModelConfig) -> Iterator[str]:
    longest = max(serve.prompt_tokens, default=0)
    if serve.prompt_tokens and longest + serve.new_tokens > model.max_context:
        yield (
            f"serve.prompt_tokens: {longest} with serve.new_tokens={serve.new_tokens} are beyond the "
            f"{model.max_context} positions of {model.name}; lower one of them"
        )
    if serve.prompt_tokens and not serve.batch_sizes:
        yield "serve.batch_sizes: empty; name at least one, for example [1]"
    if serve.adapters and not serve.prompt_tokens:
        yield "serve.adapters: needs serve.prompt_tokens; choose serve=quick or serve=full and override that"
    if any(max(serve.adapters) % count for count in serve.adapters):
        yield f"serve.adapters: each of {serve.adapters} must divide the largest, which is the number of requests"
