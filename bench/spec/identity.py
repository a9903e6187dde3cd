"""Names that follow from content: equal descriptions give equal ids, on every machine.

`run_id` names a run's folder. `comparison_key` is equal for runs that may be compared: everything is the same
but the method and the seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from bench.spec import devices
from bench.spec.config import RunConfig, to_mapping

# Where results go, and where the learning rate came from, does not change what is measured.
_NOT_IDENTITY = ("tracking", "paths", "sweep", "rates", "learning_rate_source", "serve")
# Of hardware; the last three are read by the planner alone.
_NOT_MEASURED = ("name", "stage_timeout_seconds", "price_usd_per_hour", "memory_gib", "bf16_tflops", "watts")
_NOT_TUNED_FOR = {  # settings that leave the best learning rate what it is
    "model": ("architecture",),
    "method": ("learning_rate", "control"),
    "task": ("metrics", "max_new_tokens"),
    "train": ("micro_batch", "heldout_points", "untimed_steps", "gradient_checkpointing", "compile", "packing",
              "kernels", "checkpoint_every_steps"),
}  # fmt: skip


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _measured(config: RunConfig) -> dict[str, Any]:
    mapping = to_mapping(config)
    adapter = mapping["method"]["adapter"]
    if adapter is not None and adapter["loraplus_lr_ratio"] is None:
        del adapter["loraplus_lr_ratio"]  # newer than the first records, which keep their names
    if mapping["method"]["trains"] != "all_weights":
        del mapping["method"]["dither"]  # likewise
    del mapping["method"]["control"]  # what a run is for does not change what is measured
    for name in _NOT_IDENTITY:
        del mapping[name]
    for name in _NOT_MEASURED:
        del mapping["hardware"][name]
    for name, alone in devices.ONE.items():
        if mapping["hardware"][name] == alone or mapping["method"]["trains"] == "nothing":
            del mapping["hardware"][name]  # newer than the first records, which keep their names
    del mapping["model"]["architecture"]  # the planner's; a run reads it from the weights
    del mapping["train"]["checkpoint_every_steps"]  # a resumed run ends as one that was never stopped
    if mapping["hardware"]["memory_budget_gib"] is None:
        del mapping["hardware"]["memory_budget_gib"]  # newer than the first records, which keep their names
    if (trial := mapping.pop("trial")) is not None:
        mapping["trial"] = trial["hopeless_below"]  # no ordinary run; which trial was best so far is not its identity
    return mapping


def run_id(config: RunConfig) -> str:
    """`method-model-task-sSEED-HASH`; the untuned base does not depend on the seed or the training budget.

    >>> run_id(config)
    'lora-smollm2-135m-docstrings-s0-1f2e3d4c'
    """
    mapping = _measured(config)
    seed = f"s{config.seed}"
    if config.method.trains == "nothing" and not config.method.shots:
        max_length = mapping["train"]["max_length"]
        mapping |= {"seed": 0, "train": {"max_length": max_length}}
        seed = "s-"
    parts = [config.method.name, config.model.name, config.task.name, seed, digest(mapping)[:8]]
    return "-".join(part.replace("/", "_") for part in parts)


def comparison_key(config: RunConfig) -> str:
    """Equal for runs that differ only in method and seed (12 hex digits).

    The micro-batch is left out, and the memory that it was fitted into: it may differ by method when each is fitted,
    and changes neither the examples of a step nor their order.
    """
    mapping = _measured(config)
    del mapping["method"], mapping["seed"], mapping["train"]["micro_batch"]
    mapping["hardware"].pop("memory_budget_gib", None)
    return digest(mapping)[:12]


def fit_key(config: RunConfig) -> str:
    """Equal for runs that one search of the largest micro-batch holds for: all but seed, learning rate and suite."""
    mapping = _measured(config)
    for name in ("seed", "suite", "trial"):
        mapping.pop(name, None)
    del mapping["method"]["learning_rate"]
    return digest(mapping)[:12]


def tuning_key(config: RunConfig) -> str:
    """Equal for runs that one search of the learning rate holds for: same model, method, task and budget."""
    return tuning_key_of(to_mapping(config))


def tuning_key_of(mapping: Mapping[str, Any]) -> str:
    """`tuning_key` from a record's `config`."""
    parts = {
        part: {k: v for k, v in mapping.get(part, {}).items() if k not in _NOT_TUNED_FOR.get(part, ())}
        for part in ("model", "method", "task", "train")
    }
    return digest(parts)[:12]


def data_key(config: RunConfig) -> str:
    """Names the prepared, tokenized data: what of model, task and length decides the tokens."""
    mapping = _measured(config)
    tokenizer = {k: mapping["model"][k] for k in ("source", "location", "revision", "chat_template")}
    shots = config.method.shots
    # Which solved examples are shown follows from the seed; whether they fit, from the model's context.
    shown = {"shots": shots, "seed": config.seed, "max_context": config.model.max_context} if shots else {}
    relevant = {"tokenizer": tokenizer, "task": mapping["task"], "shown": shown}
    return digest(relevant | {"max_length": config.train.max_length})[:12]
