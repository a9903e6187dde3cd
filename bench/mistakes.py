"""Mistakes in what the user asked for: found before anything runs, and all told at once.

`from_mapping` turns a composed mapping into a checked `RunConfig`; `inconsistencies` lists settings that do not go
together. Every line says what, what was given, what is allowed and how to mend it.

    >>> from_mapping({"model": {...}, "method": {...}, ..., "seed": 0}).method.learning_rate
    0.0002
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bench.config import CUTS_WEIGHTS, DEEPSPEED, RunConfig, roles, suggest
from bench.metrics import normalised_label
from bench.own_metrics import column_name
from bench.trust import shortened

T = TypeVar("T")


class ConfigurationError(Exception):
    """Mistakes in what the user asked for, found before anything ran.

    Attributes:
        problems: one line each: what, what was given, what is allowed, how to mend it.
    """

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))

    def message(self) -> str:
        """The text shown to a person."""
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        return "\n".join([f"Configuration: {head}; nothing was run."] + [f"  - {p}" for p in self.problems])


def refuse(problems: list[str]) -> None:
    """Raise a ConfigurationError if there are any."""
    if problems:
        raise ConfigurationError(problems)


def all_of(*steps: Callable[[], Any]) -> list[Any]:
    """What each of the steps returns.

    Raises:
        ConfigurationError: with the mistakes of all steps, each mistake once.
    """
    results, problems = [], dict[str, None]()
    for step in steps:
        try:
            results.append(step())
        except ConfigurationError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigurationError(list(problems))
    return results


def names_in(setting: str, value: str | None, allowed: Collection[str]) -> frozenset[str]:
    """The names in a command's setting, separated by commas; none where the setting is not given.

    Raises:
        ConfigurationError: unknown names, or an empty list.
    """
    names = [] if value is None else [name.strip() for name in value.split(",")]
    wrong = [name for name in names if name not in allowed]
    if wrong:
        raise ConfigurationError([f"{setting}={name}: no such name{suggest(name, [*allowed])}" for name in wrong])
    return frozenset(names)


def first_mistake(error: Exception) -> str:
    """What is wrong with a file that cannot be read, in one line."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split()) or type(error).__name__
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return shortened(f"{where + ': ' if where else ''}{first['msg']}{more}", 300)


# --- Reading a run ---


def from_mapping(mapping: Mapping[str, Any]) -> RunConfig:
    """Build and check a run description.

    Raises:
        ConfigurationError: with every mistake found, each naming the key, what was given and what is allowed.
    """
    config = checked(RunConfig, mapping)
    if problems := inconsistencies(config):
        raise ConfigurationError(problems)
    return config


def checked(kind: type[T], mapping: Any, name: str = "") -> T:
    """A settings dataclass from a mapping, or one setting from its text.

    Args:
        name: leads the keys in messages ("tune" for tune.factor).

    Raises:
        ConfigurationError: with every mistake found.
    """
    try:
        return TypeAdapter(kind).validate_python(mapping)
    except ValidationError as error:
        explained = [_explain(kind, name, e) for e in error.errors(include_url=False)]
        raise ConfigurationError(explained) from None


def known_keys(path: list[str]) -> list[str]:
    """The settings allowed below a dotted path (a list of its parts); empty where there is no such part."""
    prefix = "".join(f"{part}." for part in path)
    below = [key.removeprefix(prefix) for key in roles() if key.startswith(prefix)]
    return [key for key in below if "." not in key]


_UNION_MEMBERS = ("str", "list[str]", "constrained-int", "literal['auto']")  # as pydantic names what it tried


def _explain(kind: type, name: str, error: Any) -> str:
    """One pydantic error as a line that says what, what was given and what is allowed."""
    location = [str(part) for part in error["loc"] if part not in _UNION_MEMBERS]
    key = ".".join([name, *location] if name else location)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        allowed = known_keys(location[:-1]) if kind is RunConfig else [f.name for f in fields(kind)]
        return f"{key}: no such setting{suggest(location[-1], allowed)}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: missing"
    message = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    if error["type"] == "bool_parsing":
        message = "expected yes or no"
    return f"{key}: {message[0].lower()}{message[1:]}; given {shortened(repr(error['input']), 200)}"


# --- Between fields ---


def inconsistencies(config: RunConfig) -> list[str]:
    """Mistakes between fields, one line each: the key, what was given, what to do."""
    checks = [*_method_checks(config), *_budget_checks(config), *_source_checks(config)]
    return [problem for wrong, problem in [*checks, *_device_checks(config), *_serve_checks(config)] if wrong]


Checks = list[tuple[Any, str]]  # (whether it is wrong, what to say)


def _method_checks(config: RunConfig) -> Checks:
    method, adapter, quantization = config.method, config.method.adapter, config.method.quantization
    init = adapter.init if adapter else "default"
    targets = adapter.target_modules if adapter else "all-linear"
    name = targets.isidentifier() if isinstance(targets, str) else False
    return [
        (method.trains == "adapter" and not adapter,
         "method.adapter: missing; a method with trains=adapter needs rank, alpha and target_modules"),
        (method.trains == "all_weights" and (adapter or quantization),
         "method: trains=all_weights takes neither adapter nor quantization; set both to null"),
        (init == "loftq" and (quantization is None or quantization.scheme != "nf4"),
         "method.adapter.init: loftq starts from what nf4 quantization lost; use it with method=qlora"),
        (adapter and adapter.reduce_intruders is not None and (quantization or adapter.use_dora or init != "default"),
         "method.adapter.reduce_intruders: PEFT reduces plain LoRA over a 16-bit base alone; use it with method=lora"),
        (init in ("pissa", "olora") and quantization,
         f"method.adapter.init: {init} changes the base's weights; a quantized base cannot follow"),
        (method.trains == "nothing" and adapter,
         "method.adapter: trains=nothing has no use for one; set it to null"),
        (adapter and init == "orthogonal" and adapter.rank % 2,
         f"method.adapter.rank: init=orthogonal needs an even one; given {adapter.rank if adapter else 0}"),
        (name, f"method.adapter.target_modules: {targets!r} is read as a pattern of whole names, which no module has; "
         f"for modules called so write [{targets}]"),
        (not targets, "method.adapter.target_modules: empty; name modules, or use all-linear"),
        (isinstance(targets, list) and len(set(targets)) < len(targets),
         f"method.adapter.target_modules: {targets} names one twice"),
        (method.trains != "nothing" and method.learning_rate is None,
         "method.learning_rate: missing; set one, for example 2e-5 (full) or 2e-4 (adapter)"),
        (method.trains != "nothing" and method.shots,
         "method.shots: only the untuned base is prompted with solved examples; set it to 0"),
        (method.retrieval and not method.shots,
         f"method.retrieval: {method.retrieval} has nothing to retrieve with method.shots=0; set how many to show"),
    ]  # fmt: skip


def _budget_checks(config: RunConfig) -> Checks:
    train, budget_gib = config.train, config.hardware.memory_budget_gib
    longest, model = config.model.max_context, config.model.name
    return [
        (budget_gib is not None and train.micro_batch != "auto",
         f"hardware.memory_budget_gib: {budget_gib or 0:g} is read by train.micro_batch=auto, and train.micro_batch is "
         f"{train.micro_batch}; leave one of them out"),
        (train.micro_batch != "auto" and train.batch_size % train.micro_batch,
         f"train.micro_batch: {train.micro_batch} does not divide train.batch_size={train.batch_size}; choose a "
         "divisor, so that every method sees the same examples per step"),
        (train.max_length > longest,
         f"train.max_length: {train.max_length} is beyond the {longest} positions of {model}; lower it or choose a "
         "model with a longer context"),
        (config.task.max_new_tokens >= train.max_length,
         f"task.max_new_tokens: {config.task.max_new_tokens} leaves no room for a prompt in {train.max_length} tokens"),
    ]  # fmt: skip


def _source_checks(config: RunConfig) -> Checks:
    task, suite, paths = config.task, config.suite, config.paths
    return [
        (Path(paths.artifacts).absolute() == Path(paths.results).absolute(),
         f"paths.artifacts: {paths.artifacts} is paths.results too, where new weights would replace a run's records; "
         "give each a folder of its own"),
        (task.source == "files" and not task.train_file,
         "task.train_file: missing; give the path of a .jsonl, .json, .csv or .parquet file, or a folder of these"),
        ((task.prompt is None) != (task.target is None),
         f"task.{'prompt' if task.prompt is None else 'target'}: missing; give both templates, or none of them to have "
         "the layout recognized by the columns"),
        (task.source == "docstrings" and task.prompt is None,
         "task.prompt, task.target: missing; the docstrings need templates"),
        (task.format == "plain" and task.system,
         "task.system: task.format=plain has no system message; write it into task.prompt"),
        (task.source == "hub" and not task.hub_dataset,
         "task.hub_dataset: missing; give the data set's name on the hub"),
        (twice := _repeated(task.metrics, column_name),
         f"task.metrics: {' and '.join(twice)} are scores of one name; rename a function"),
        (alike := _repeated(task.labels or [], normalised_label),
         f"task.labels: {' and '.join(map(repr, alike))} are one label to the metric `label`; keep one"),
        (suite.source == "local" and not suite.path, "suite.path: missing; give the folder of your lm-eval YAML tasks"),
        (suite.source == "lm_eval" and not suite.tasks,
         "suite.tasks: empty; name at least one lm-eval task, or choose suite=none"),
    ]  # fmt: skip


def _repeated(values: list[str], key: Callable[[str], str]) -> list[str]:
    """The first values that have one key."""
    groups: dict[str, list[str]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return next((same for same in groups.values() if len(same) > 1), [])


def _device_checks(config: RunConfig) -> Checks:
    train, optimizer, adapter = config.train, config.method.optimizer, config.method.adapter
    devices, strategy, micro_batch = config.hardware.devices, config.hardware.strategy, config.train.micro_batch
    cuts = ("fsdp", *DEEPSPEED)
    int8 = config.method.quantization is not None and config.method.quantization.scheme == "int8"
    return [
        (devices > 1 and strategy == "none",
         f"hardware.strategy: none with hardware.devices={devices}; choose ddp, fsdp, zero2 or zero3"),
        (devices == 1 and strategy != "none",
         f"hardware.strategy: {strategy} needs hardware.devices of at least 2; given 1"),
        (config.hardware.cpu_offload and strategy not in cuts,
         f"hardware.cpu_offload: {strategy} keeps everything on the device; use it with {', '.join(cuts)}"),
        (devices > 1 and micro_batch == "auto",
         f"train.micro_batch: auto plans for one device, and hardware.devices={devices}; give a number"),
        (devices > 1 and micro_batch != "auto" and train.batch_size % (devices * micro_batch),
         f"hardware.devices: {devices} devices with train.micro_batch={micro_batch} do not divide "
         f"train.batch_size={train.batch_size}; choose train.micro_batch so that their product does"),
        (devices > 1 and train.checkpoint_every_steps is not None,
         f"train.checkpoint_every_steps: one device alone can resume, and hardware.devices={devices}; use null"),
        (devices > 1 and optimizer != "adamw" and strategy != "ddp",
         f"method.optimizer: {optimizer} cannot work on cut state ({strategy}); use adamw, or ddp"),
        (adapter and adapter.reduce_intruders is not None and strategy in CUTS_WEIGHTS,
         f"method.adapter.reduce_intruders: needs whole matrices, which {strategy} cuts; use ddp"),
        (adapter and adapter.loraplus_lr_ratio is not None and strategy not in ("none", "ddp"),
         f"method.adapter.loraplus_lr_ratio: its optimizer is made before {strategy} cuts; use ddp"),
        (strategy in cuts and int8,
         f"method.quantization.scheme: int8 weights cannot be cut ({strategy}); use nf4, or ddp"),
    ]  # fmt: skip


def _serve_checks(config: RunConfig) -> Checks:
    serve, model = config.serve, config.model
    longest = max(serve.prompt_tokens, default=0)
    return [
        (serve.prompt_tokens and longest + serve.new_tokens > model.max_context,
         f"serve.prompt_tokens: {longest} with serve.new_tokens={serve.new_tokens} are beyond the {model.max_context} "
         f"positions of {model.name}; lower one of them"),
        (serve.prompt_tokens and not serve.batch_sizes, "serve.batch_sizes: empty; name at least one, for example [1]"),
        (serve.adapters and not serve.prompt_tokens,
         "serve.adapters: needs serve.prompt_tokens; choose serve=quick or serve=full and override that"),
        (any(max(serve.adapters) % count for count in serve.adapters),
         f"serve.adapters: each of {serve.adapters} must divide the largest, which is the number of requests"),
    ]  # fmt: skip
