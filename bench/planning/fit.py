"""Whether a run fits into a device's memory, the largest micro-batch that does, and what to change when it does not.

>>> verdict(total_bytes=30 * 2**30, memory_gib=24)
'does not fit'
>>> remedies(config, PlanConfig(), Machine("cuda", 24.0))[0]
Remedy(change='train.gradient_checkpointing=true', total_bytes=...)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from bench.planning.compose import CONFIG_FOLDER
from bench.planning.predict import Machine, predict
from bench.spec.config import MethodConfig, RunConfig
from bench.spec.plan import PlanConfig

GIB = 2**30
MARGIN = 0.1  # about what the estimate was off by where it could be checked: docs/planner.md
_REMEDIES_SHOWN = 3
_MOST_DEVICES = 64
Verdict = Literal["fits", "marginal", "does not fit", "unknown"]


@dataclass(frozen=True)
class Remedy:
    """A change of settings after which the run fits."""

    change: str  # overrides of the command
    total_bytes: int  # on a device


def verdict(total_bytes: int, memory_gib: float | None) -> Verdict:
    """Marginal: within a tenth of the memory, to either side."""
    if memory_gib is None:
        return "unknown"
    share = total_bytes / (memory_gib * GIB)
    return "fits" if share <= 1 - MARGIN else "marginal" if share <= 1 + MARGIN else "does not fit"


def largest_micro_batch(config: RunConfig, options: PlanConfig, machine: Machine) -> int | None:
    """The largest divisor of `train.batch_size` that fits without being marginal; None when not even 1 does."""
    of_device = config.train.batch_size // options.devices
    for rows in range(of_device, 0, -1):
        if config.train.batch_size % rows == 0 and _fits(_with_train(config, micro_batch=rows), options, machine):
            return rows
    return None


def remedies(config: RunConfig, options: PlanConfig, machine: Machine) -> list[Remedy]:
    """Changes that make the run fit, the mildest first; none when nothing known does."""
    found = []
    for change, changed, with_options in _candidates(config, options, machine):
        total = predict(changed, with_options, machine).total
        if verdict(total, machine.memory_gib) == "fits":
            found.append(Remedy(change, total))
        if len(found) == _REMEDIES_SHOWN:
            break
    return found


def _candidates(
    config: RunConfig, options: PlanConfig, machine: Machine
) -> Iterator[tuple[str, RunConfig, PlanConfig]]:
    """(overrides, the run, the planner's options): what leaves the learning alone, then what does not."""
    lean, words = config, ""
    if config.hardware.attention == "eager":
        lean, words = replace(config, hardware=replace(config.hardware, attention="sdpa")), "hardware.attention=sdpa "
        yield words.strip(), lean, options
    if (rows := largest_micro_batch(lean, options, machine)) is not None and rows < config.train.fitted_micro_batch:
        yield f"{words}train.micro_batch={rows}", _with_train(lean, micro_batch=rows), options
    if not config.train.gradient_checkpointing:
        lean, words = _with_train(lean, gradient_checkpointing=True), f"{words}train.gradient_checkpointing=true "
        yield words.strip(), lean, options
        if (rows := largest_micro_batch(lean, options, machine)) is not None and rows < config.train.fitted_micro_batch:
            yield f"{words}train.micro_batch={rows}", _with_train(lean, micro_batch=rows), options
    if lean.train.fitted_micro_batch > 1:
        lean, words = _with_train(lean, micro_batch=1), f"{words}train.micro_batch=1 "
    if config.method.trains == "all_weights" and config.method.optimizer == "adamw":
        yield f"{words}method.optimizer=adamw_8bit", _with_method(lean, optimizer="adamw_8bit"), options
    if (sharded := _fewest_devices(lean, options, machine)) is not None:
        yield f"{words}plan.devices={sharded.devices} plan.strategy=fsdp", lean, sharded
    for name in _smaller_methods(config.method):
        yield f"{words}method={name}", replace(lean, method=_method(name)), options
    yield from _shorter(lean, words, options)


def _fewest_devices(config: RunConfig, options: PlanConfig, machine: Machine) -> PlanConfig | None:
    """The smallest doubling of the devices on which the run fits, sharded; None when there is none."""
    devices = 2 * options.devices
    while devices * config.train.fitted_micro_batch <= min(_MOST_DEVICES, config.train.batch_size):
        sharded = replace(options, devices=devices, strategy="fsdp")
        if _fits(config, sharded, machine):
            return sharded
        devices *= 2
    return None


def _shorter(config: RunConfig, words: str, options: PlanConfig) -> Iterator[tuple[str, RunConfig, PlanConfig]]:
    length = config.train.max_length // 2
    while length >= 256:
        yield f"{words}train.max_length={length}", _with_train(config, max_length=length), options
        length //= 2


def _smaller_methods(method: MethodConfig) -> list[str]:
    """Presets of conf/method/ that hold less."""
    smaller = ["qlora"] if method.quantization is None else []
    return ["lora", *smaller] if method.trains == "all_weights" else smaller


def _method(name: str) -> MethodConfig:
    content = yaml.safe_load((CONFIG_FOLDER / "method" / f"{name}.yaml").read_text(encoding="utf-8"))
    return TypeAdapter(MethodConfig).validate_python(content)


def _with_train(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, train=replace(config.train, **changes))


def _with_method(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, method=replace(config.method, **changes))


def _fits(config: RunConfig, options: PlanConfig, machine: Machine) -> bool:
    return verdict(predict(config, options, machine).total, machine.memory_gib) == "fits"
