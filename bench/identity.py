"""Names that follow from content: equal descriptions give equal ids, on every machine.

`run_id` names a run's folder. `comparison_key` is equal for runs that may be compared: everything is the same
but the method and the seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import config as devices
from bench.config import RunConfig, to_mapping

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
    mapping = to_mapping(config)
    parts = {
        part: {k: v for k, v in mapping[part].items() if k not in _NOT_TUNED_FOR.get(part, ())}
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


def sweep_folder(config: RunConfig) -> Path:
    """The runs that are reported together."""
    return Path(config.paths.results) / config.sweep


def run_folder(config: RunConfig) -> Path:
    """A run's folder: everything needed to read the run."""
    return sweep_folder(config) / run_id(config)


def artifact_folder(config: RunConfig) -> Path:
    """A run's weights: disposable, never needed to read the run."""
    return Path(config.paths.artifacts) / run_id(config)


def data_folder(config: RunConfig) -> Path:
    """The tokenized data, shared by all runs with the same `data_key`."""
    return Path(config.paths.cache) / "data" / data_key(config)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, even if the machine stops. Text is written as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def flush_to_disk(folder: Path) -> None:
    """Wait until the folder's files are on the disk, so that a marker written next does not outlive them."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors that make a model or an adapter; others beside them (another layout of it) are left out."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    named = [folder / name for name in ("model.safetensors", "adapter_model.safetensors")]
    return [path for path in named if path.exists()] or sorted(folder.glob("*.safetensors"))


def weights_sha256(folder: Path) -> str | None:
    """SHA-256 over a model's weights, file after file by name, in hex; None where there are none."""
    hashed, files = hashlib.sha256(), sorted(weight_files(folder))
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**20):
                hashed.update(block)
    return hashed.hexdigest() if files else None


_NOT_OF_AN_ARM = ("hardware.name", "hardware.stage_timeout_seconds", "hardware.price_usd_per_hour",
                  "hardware.memory_gib", "hardware.bf16_tflops", "hardware.watts",
                  "train.checkpoint_every_steps")  # fmt: skip


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a.b": value}; an empty mapping stays a value."""
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return result


def names_of_arms(runs: Iterable[tuple[str, str, RunConfig]]) -> dict[str, str]:
    """run -> the name of its arm, for (run, method, its configuration) of one model, task and suite.

    An arm is called after its method; where settings of one method vary (a search of learning rates, two budgets),
    the name tells them: "lora (learning_rate=0.0002)". Where two or more vary, and each sweep has its own, the sweep's
    name says it shorter: "lora (monday)".
    """
    by_method: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    sweep_of: dict[str, str] = {}
    for run, method, config in runs:
        by_method[method][run] = _of_an_arm(config)
        sweep_of[run] = config.sweep
    names: dict[str, str] = {}
    for method, settings in by_method.items():
        keys = dict.fromkeys(key for values in settings.values() for key in values)
        varying = [k for k in keys if len({repr(values.get(k)) for values in settings.values()}) > 1]
        told = {
            run: ", ".join(f"{key.rpartition('.')[2]}={values.get(key)}" for key in varying)
            for run, values in settings.items()
        }
        if len(varying) > 1 and _one_to_one((sweep_of[run], text) for run, text in told.items()):
            told = {run: sweep_of[run] for run in told}
        names |= {run: f"{method} ({text})" if text else method for run, text in told.items()}
    return names


def _one_to_one(pairs: Iterable[tuple[str, str]]) -> bool:
    """Whether neither side of a pair occurs with two partners."""
    found = set(pairs)
    return len(found) == len({left for left, _ in found}) == len({right for _, right in found})


def _of_an_arm(config: RunConfig) -> dict[str, Any]:
    """What sets one arm apart from another of the same method, model and task."""
    mapping = to_mapping(config)
    flattened = flat({name: mapping[name] for name in ("method", "train", "task", "hardware")})
    if config.untrained:  # the training budget is nothing to a model that is not trained
        flattened = {key: value for key, value in flattened.items() if not key.startswith("train.")}
    return {k: v for k, v in flattened.items() if k not in _NOT_OF_AN_ARM}
