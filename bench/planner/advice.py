"""What runs will take before they run, whether that fits a device, and what to change when it does not.

>>> for plan in plans(["model=llama-3.1-8b", "method=full,lora", "hardware=h100"]):
...     print(plan.method, plan.verdict, plan.peak_memory_bytes, plan.duration.hours)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from bench.checkpoint import read_architecture
from bench.compose import CONFIG_FOLDER, compose_beside
from bench.config import HardwareConfig, MethodConfig, ModelConfig, PathsConfig, RunConfig
from bench.identity import digest, sha256_of
from bench.mistakes import ConfigurationError, all_of
from bench.planner.memory import (
    Batch,
    Device,
    PlannedStep,
    Terms,
    estimate,
)
from bench.planner.tensors import Architecture, Shape, adapter_tensors, base_parameters, trained_parameters
from bench.planner.time import COMPILE_REPAYS_FROM_STEPS, Duration, PlanConfig, duration, peak_interval_bytes

GIB = 2**30
MARGIN = 0.1  # about what the estimate was off by where it could be checked: docs/planner.md
REMEDIES_SHOWN = 3
MOST_DEVICES = 64  # that a remedy proposes
USUAL_MICRO_BATCH = 4  # where the planner cannot tell
SHORTEST = 256  # tokens; shorter examples are no remedy
Verdict = Literal["fits", "tight", "does not fit", "unknown"]
_HERE = PathsConfig()
_NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Machine:
    """What `hardware` leaves open: the kind of device, and its memory in GiB (None: unknown)."""

    device: Device
    memory_gib: float | None


@dataclass(frozen=True)
class Remedy:
    """A change of settings after which the run fits."""

    change: str  # overrides of the command
    peak_memory_bytes: int  # of a device


@dataclass(frozen=True)
class Plan:
    """What one run will take on one kind of device."""

    model: str
    method: str
    hardware: str
    device: Device
    devices: int
    strategy: str
    max_length: int
    micro_batch: int
    gradient_checkpointing: bool
    memory_gib: float | None
    parameters_base: int
    parameters_total: int  # with the adapter
    parameters_trainable: int
    parameters_quantized: int
    gradients_bytes: int  # of all that is trained, whether the highest moment holds them or not
    terms: Terms  # on one device, at the highest moment of a step
    peak_memory_bytes: int  # their sum, which is what a run measures as its `peak_memory_bytes`
    peak_interval_bytes: tuple[int, int] | None  # 90%: `planner.time`; None: not known for device or model
    largest_term: str
    verdict: Verdict
    largest_micro_batch: int | None
    remedies: list[Remedy]
    duration: Duration

    def columns(self) -> dict[str, Any]:
        """The plan in columns of the arms frame, for one device; time and cost as (low, high) or None."""
        speed, hours, kwh = self.duration.tokens_per_second, self.duration.hours, self.duration.kwh
        adapter = self.parameters_total - self.parameters_base
        return {
            "parameters_total": self.parameters_total,
            "parameters_trainable": self.parameters_trainable,
            "parameters_quantized": self.parameters_quantized,
            "trainable_share": self.parameters_trainable / self.parameters_total,
            "checkpoint_bytes": 4 * adapter or 2 * self.parameters_base,  # an adapter in fp32, a model in bf16
            "weights_bytes": self.terms.weights,
            "gradients_bytes": self.gradients_bytes,
            "optimizer_bytes": self.terms.optimizer,
            "peak_memory_bytes": self.peak_memory_bytes,
            "tokens_per_second": speed,
            "train_seconds": hours and (3600 * hours[0], 3600 * hours[1]),
            "energy_wh": kwh and (1000 * kwh[0], 1000 * kwh[1]),
            "cost_usd": self.duration.usd,
        }


def plans(overrides: Sequence[str]) -> list[Plan]:
    """One plan for every run and every memory that the overrides ask for; `plan.NAME=VALUE` sets the planner's own.

    Raises:
        ConfigurationError: with all mistakes.
    """
    return all_of(*(partial(plan_of, *run) for run in planned_runs(overrides)))


def planned_runs(overrides: Sequence[str]) -> list[tuple[RunConfig, PlanConfig, Machine]]:
    """What to plan: every run that the overrides describe, on every device that is compared. Errors as `plans`."""
    options, configs = compose_beside(PlanConfig, "plan", overrides, key=repr)
    return [(config, options, machine) for config in configs for machine in _machines(config, options)]


def plan_of(config: RunConfig, options: PlanConfig, machine: Machine) -> Plan:
    """The plan of one run; its micro-batch, where `auto`, is the one that `auto` is expected to come to."""
    if config.train.micro_batch == "auto":
        budget_gib = config.hardware.memory_budget_gib
        within = machine if budget_gib is None else replace(machine, memory_gib=budget_gib)
        if within.memory_gib is None:
            raise ConfigurationError(["train.micro_batch: auto needs a memory to fit into: plan.memory_gib=..."])
        config = _with(config, "train", micro_batch=largest_micro_batch(config, options, within) or 1)
    step = step_of(config, options, machine)
    terms, base = estimate(step), base_parameters(step.architecture)
    found = verdict(terms.total, machine.memory_gib)
    known, is_counted = machine.memory_gib is not None, isinstance(step.architecture, Shape)
    return Plan(
        model=config.model.name,
        method=config.method.name,
        hardware=config.hardware.name,
        device=machine.device,
        devices=config.hardware.devices,
        strategy=config.hardware.strategy,
        max_length=config.train.max_length,
        micro_batch=config.train.fitted_micro_batch,
        gradient_checkpointing=config.train.gradient_checkpointing,
        memory_gib=machine.memory_gib,
        parameters_base=sum(base.values()),
        parameters_total=sum(base.values()) + sum(adapter_tensors(step.architecture, config.method.adapter)),
        parameters_trainable=trained_parameters(step.architecture, config.method),
        parameters_quantized=base["linear"] if config.method.quantization else 0,
        gradients_bytes=step.static.gradients,
        terms=terms,
        peak_memory_bytes=terms.total,
        peak_interval_bytes=None if is_counted else peak_interval_bytes(terms.total, machine.device),
        largest_term=max(terms.by_name().items(), key=lambda item: item[1])[0],
        verdict=found,
        largest_micro_batch=largest_micro_batch(config, options, machine) if known else None,
        remedies=remedies(config, options, machine) if found in ("tight", "does not fit") else [],
        duration=duration(config, step.architecture, options),
    )


def predict(config: RunConfig, options: PlanConfig, machine: Machine) -> Terms:
    """The peak of a training step on one device, term by term.

    Raises:
        ConfigurationError: an unknown architecture or adapter target.
    """
    return estimate(step_of(config, options, machine))


def step_of(config: RunConfig, options: PlanConfig, machine: Machine) -> PlannedStep:
    """The step to plan for: a micro-batch of the longest examples. Errors as `predict` has them."""
    train, architecture = config.train, architecture_of(config.model, config.paths)
    rows, length, devices = train.fitted_micro_batch, train.max_length, config.hardware.devices
    padded = options.padded and rows > 1
    if train.packing:
        rows, length, padded = 1, rows * length, True
    # A run without a number of steps is taken for a long one, in which compiling pays.
    short = train.max_steps is not None and train.max_steps < COMPILE_REPAYS_FROM_STEPS
    return PlannedStep(
        config,
        architecture,
        Batch(rows, length, round(rows * length * options.supervised_share), padded),
        machine.device,
        compiled=train.compile == "regional" or (train.compile == "auto" and not short),
        accumulates=train.batch_size > train.fitted_micro_batch * devices,
        devices=devices,
        strategy=config.hardware.strategy,
    )


def architecture_of(model: ModelConfig, paths: PathsConfig = _HERE) -> Architecture:
    """The numbers in the model's YAML, else by its `config.json`: in closed form, or as the worker counted them.

    Raises:
        ConfigurationError: there is neither, or it is of a kind without a closed form that was not counted.
    """
    if model.architecture is not None:
        return model.architecture
    if (file := config_file(model, paths)) is None:
        where = f"no config.json in {model.location!r}" if model.source == "folder" else "it is not in the hub's cache"
        how = "give them as conf/model/llama-3.1-8b.yaml does, or choose a model that has them"
        raise ConfigurationError([f"model.architecture: {model.name} has no numbers, and {where}; {how}"])
    try:
        return read_architecture(json.loads(file.read_bytes()))
    except ValueError as error:
        found: Shape | str = str(error)
    with suppress(OSError, ValueError):
        found = TypeAdapter[Shape | str](Shape | str).validate_json(counted_path(file, model, paths).read_bytes())
    if isinstance(found, Shape):
        return found
    raise ConfigurationError([f"model.architecture: {file}: {found}"])


def config_file(model: ModelConfig, paths: PathsConfig) -> Path | None:
    """A model's `config.json`, in its folder or in the hub's cache; None: not there. The network is not asked."""
    found: object = str(Path(model.location) / "config.json") if model.source == "folder" else None
    if model.source == "hub":
        from huggingface_hub import try_to_load_from_cache

        cache = Path(paths.bundle) / "hub" if paths.bundle else None
        found = try_to_load_from_cache(model.location, "config.json", cache, model.revision or "main")
    return Path(found) if isinstance(found, str) and Path(found).exists() else None


def counted_path(file: Path, model: ModelConfig, paths: PathsConfig) -> Path:
    """Where the worker keeps what it counted of the model of a `config.json`: its `Shape`, or why there is none."""
    name = digest([sha256_of(file), model.trust_remote_code, version("transformers")])[:12]
    return Path(paths.cache) / "counted" / f"{name}.json"


def is_uncounted(config: RunConfig) -> bool:
    """Whether the worker may find numbers of the model where the planner knows none."""
    with suppress(ConfigurationError):
        return not architecture_of(config.model, config.paths)
    file = config_file(config.model, config.paths)
    if file is None:
        return config.model.source == "hub"
    return not counted_path(file, config.model, config.paths).exists()


# --- Whether it fits ---


def verdict(peak_memory_bytes: int, memory_gib: float | None) -> Verdict:
    """Tight: within a tenth of the memory, to either side."""
    if memory_gib is None:
        return "unknown"
    share = peak_memory_bytes / (memory_gib * GIB)
    return "fits" if share <= 1 - MARGIN else "tight" if share <= 1 + MARGIN else "does not fit"


def largest_micro_batch(config: RunConfig, options: PlanConfig, machine: Machine) -> int | None:
    """The largest divisor of `train.batch_size` that fits and is not tight; None when not even 1 does."""
    batch_size, devices = config.train.batch_size, config.hardware.devices
    allowed = [rows for rows in sizes(batch_size) if rows * devices <= batch_size]
    fitting = (rows for rows in reversed(allowed) if _fits(_with(config, "train", micro_batch=rows), options, machine))
    return next(fitting, None)


def sizes(batch_size: int) -> list[int]:
    """The micro-batches that leave the effective batch whole: its divisors, rising."""
    return [rows for rows in range(1, batch_size + 1) if batch_size % rows == 0]


def starting_micro_batch(config: RunConfig, longest: int, machine: Machine) -> int:
    """Where train.micro_batch=auto starts: the largest that fits, for examples of at most `longest` tokens.

    Without a known memory or architecture: the usual one.
    """
    with suppress(ConfigurationError):  # an architecture that the planner does not know
        if machine.memory_gib is not None:
            return largest_micro_batch(_with(config, "train", max_length=longest), PlanConfig(), machine) or 1
    return max(rows for rows in sizes(config.train.batch_size) if rows <= USUAL_MICRO_BATCH)


def _fits(config: RunConfig, options: PlanConfig, machine: Machine) -> bool:
    return verdict(predict(config, options, machine).total, machine.memory_gib) == "fits"


def remedies(config: RunConfig, options: PlanConfig, machine: Machine) -> list[Remedy]:
    """Changes that make the run fit, the mildest first; none when nothing known does."""
    found = []
    for change, changed in _candidates(config, options, machine):
        total = predict(changed, options, machine).total
        if verdict(total, machine.memory_gib) == "fits":
            found.append(Remedy(change, total))
        if len(found) == REMEDIES_SHOWN:
            break
    return found


def _candidates(config: RunConfig, options: PlanConfig, machine: Machine) -> Iterator[tuple[str, RunConfig]]:
    """(overrides, the run with them): what leaves the learning alone, then what does not."""
    lean, words = config, ""

    def smaller() -> Iterator[tuple[str, RunConfig]]:
        rows = largest_micro_batch(lean, options, machine)
        if rows is not None and rows < config.train.fitted_micro_batch:
            yield f"{words}train.micro_batch={rows}", _with(lean, "train", micro_batch=rows)

    if config.hardware.attention == "eager":
        lean, words = _with(config, "hardware", attention="sdpa"), "hardware.attention=sdpa "
        yield words.strip(), lean
    yield from smaller()
    if not config.train.gradient_checkpointing:
        lean, words = _with(lean, "train", gradient_checkpointing=True), f"{words}train.gradient_checkpointing=true "
        yield words.strip(), lean
        yield from smaller()
    as_wide = words, lean
    if lean.train.fitted_micro_batch > 1:
        lean, words = _with(lean, "train", micro_batch=1), f"{words}train.micro_batch=1 "
    if config.method.trains == "all_weights" and config.method.optimizer == "adamw":
        yield f"{words}method.optimizer=adamw_8bit", _with(lean, "method", optimizer="adamw_8bit")
    if sharded := _sharded(lean, options, machine):
        yield f"{words}hardware.devices={sharded.hardware.devices} hardware.strategy=fsdp", sharded
    lighter = ["qlora"] if config.method.quantization is None else []  # presets of conf/method/ that hold less
    for name in ["lora", *lighter] if config.method.trains == "all_weights" else lighter:
        of_method = [(text, replace(run, method=preset(name))) for text, run in (as_wide, (words, lean))]
        text, run = next((pair for pair in of_method if _fits(pair[1], options, machine)), of_method[-1])
        yield f"{text}method={name}", run
    length = lean.train.max_length // 2
    while length >= SHORTEST:
        yield f"{words}train.max_length={length}", _with(lean, "train", max_length=length)
        length //= 2


def _sharded(config: RunConfig, options: PlanConfig, machine: Machine) -> RunConfig | None:
    """On the fewest devices on which the run fits, sharded; None: on none."""
    devices = 2 * config.hardware.devices
    while devices <= MOST_DEVICES and config.train.batch_size % (devices * config.train.fitted_micro_batch) == 0:
        sharded = _with(config, "hardware", devices=devices, strategy="fsdp")
        if _fits(sharded, options, machine):
            return sharded
        devices *= 2
    return None


def preset(name: str) -> MethodConfig:
    """The method of `conf/method/NAME.yaml`."""
    content = yaml.safe_load((CONFIG_FOLDER / "method" / f"{name}.yaml").read_text(encoding="utf-8"))
    return TypeAdapter(MethodConfig).validate_python(content | {"learning_rate": None})  # it may depend on the model


def _with(config: RunConfig, part: str, **changes: Any) -> RunConfig:
    """The run with other settings in one part: `train`, `method` or `hardware`."""
    changed: dict[str, Any] = {part: replace(getattr(config, part), **changes)}
    return replace(config, **changed)


# --- Machines and settings ---


def device_kind(hardware: HardwareConfig) -> Device:
    """The kind of device that `hardware.device` means here."""
    if hardware.device != "auto":
        return "cpu" if hardware.device == "cpu" else "cuda"  # xpu and mps: estimated as cuda
    return "cuda" if _NVIDIA.exists() else "cpu"


def _machines(config: RunConfig, options: PlanConfig) -> list[Machine]:
    """The device that `hardware` means, with each memory to be compared."""
    device, memory = device_kind(config.hardware), config.hardware.memory_gib
    if memory is None and device == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    memories: list[float | None] = [*options.memory_gib] if options.memory_gib else [memory]
    return [Machine(device, gib) for gib in memories]
