"""From the overrides of `python -m bench plan` to what each run that they describe will take.

>>> for plan in plans(["model=llama-3.1-8b", "method=full,lora", "hardware=h100"]):
...     print(plan.method, plan.verdict, plan.total_bytes)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter
from yaml import YAMLError

from bench.compose import CONFIG_FOLDER, compose
from bench.config import (
    ArchitectureConfig,
    ConfigurationError,
    HardwareConfig,
    MethodConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    read_architecture,
    to_mapping,
)
from bench.identity import canonical_json
from bench.planner.memory import (
    Batch,
    Parallel,
    PlanConfig,
    Terms,
    base_parameters,
    estimate,
    numerics_of,
    plan_config,
    static_bytes,
)
from bench.planner.time import Duration, duration

COMPILE_REPAYS_FROM_STEPS = 20  # as the worker's device module has it


@dataclass(frozen=True)
class Machine:
    """What `hardware` leaves open: the kind of device, and its memory in GiB (None: unknown)."""

    device: Literal["cpu", "cuda"]
    memory_gib: float | None


def architecture_of(model: ModelConfig) -> ArchitectureConfig:
    """The numbers in the model's YAML, else those of the `config.json` in its folder.

    Raises:
        ConfigurationError: neither is there, or it is of a kind that the planner does not know.
    """
    if model.architecture is not None:
        return model.architecture
    file = Path(model.location) / "config.json" if model.source == "folder" else _downloaded(model)
    if file is None or not file.exists():
        where = f"no config.json in {model.location!r}" if model.source == "folder" else "it is not in the hub's cache"
        raise ConfigurationError(
            [
                f"model.architecture: {model.name} has no numbers, and {where}; give them as "
                "conf/model/llama-3.1-8b.yaml does, or choose a model that has them"
            ]
        )
    try:
        return read_architecture(json.loads(file.read_bytes()))
    except ValueError as error:
        raise ConfigurationError([f"model.architecture: {file}: {error}"]) from None


def predict(config: RunConfig, options: PlanConfig, machine: Machine) -> Terms:
    """The peak of a training step on one device, term by term.

    Raises:
        ConfigurationError: an unknown architecture or adapter target, more micro-batches than a step has examples.
    """
    architecture, train = architecture_of(config.model), config.train
    if train.fitted_micro_batch * options.devices > train.batch_size:
        problem = f"plan.devices: {options.devices} micro-batches of {train.fitted_micro_batch} are more than"
        raise ConfigurationError(
            [f"{problem} train.batch_size={train.batch_size}; raise it or lower train.micro_batch"]
        )
    numerics = numerics_of(
        architecture, config.method, train, config.hardware, device=machine.device, compiled=_compiles(train)
    )
    return estimate(
        architecture,
        config.method,
        numerics,
        largest_batch(train, options),
        accumulates=train.batch_size > train.fitted_micro_batch * options.devices,
        parallel=Parallel(options.devices, options.strategy),
    )


def largest_batch(train: TrainConfig, options: PlanConfig) -> Batch:
    """A micro-batch of the longest examples."""
    rows, length = train.fitted_micro_batch, train.max_length
    if train.packing:
        rows, length = 1, rows * length
    return Batch(
        rows=rows,
        length=length,
        supervised=round(rows * length * options.supervised_share),
        padded=train.packing if train.micro_batch == 1 or train.packing else options.padded,
    )


def _compiles(train: TrainConfig) -> bool:
    """What `train.compile=auto` comes to; a run without a number of steps is taken for a long one."""
    short = train.max_steps is not None and train.max_steps < COMPILE_REPAYS_FROM_STEPS
    return train.compile == "regional" or (train.compile == "auto" and not short)


def _downloaded(model: ModelConfig) -> Path | None:
    """The config.json of a hub model that was fetched before; nothing is asked of the network."""
    if model.source != "hub":
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.location, "config.json", revision=model.revision or "main")
    return Path(found) if isinstance(found, str) else None


MOST_PROBES = 4
USUAL = 4  # where the planner cannot tell


def sizes(batch_size: int) -> list[int]:
    """The micro-batches that leave the effective batch whole: its divisors, rising."""
    return [rows for rows in range(1, batch_size + 1) if batch_size % rows == 0]


def first_size(config: RunConfig, longest: int, device: str, budget_bytes: int | None) -> int:
    """Where the search starts: the planner's largest, for examples of at most `longest` tokens."""
    allowed = sizes(config.train.batch_size)
    usual = max(rows for rows in allowed if rows <= USUAL)
    if budget_bytes is None:
        return usual
    exact = replace(config, train=replace(config.train, max_length=longest))
    machine = Machine("cuda" if device == "cuda" else "cpu", budget_bytes / GIB)
    try:
        return largest_micro_batch(exact, PlanConfig(), machine) or allowed[0]
    except ConfigurationError:  # an architecture that the planner does not know
        return usual


def next_size(allowed: Sequence[int], fits: Mapping[int, bool], start: int) -> int | None:
    """The micro-batch to probe next; None when the search is over.

    Args:
        allowed: rising.
        fits: what was probed -> whether it fitted.
    """
    if not fits:
        return start
    below = max((i for i, rows in enumerate(allowed) if fits.get(rows)), default=-1)
    above = min((i for i, rows in enumerate(allowed) if fits.get(rows) is False), default=len(allowed))
    if above - below <= 1 or len(fits) == MOST_PROBES:
        return None
    if len(fits) == 1:
        return allowed[below + 1 if below >= 0 else above - 1]
    if below < 0 and len(fits) == MOST_PROBES - 1:
        return allowed[0]  # the last chance to find any
    return allowed[(below + above) // 2]


def largest_fitting(allowed: Sequence[int], fits: Mapping[int, bool]) -> tuple[int | None, bool]:
    """(the largest that fitted, or None; whether the next larger one is known not to fit)."""
    found = max((rows for rows, fitted in fits.items() if fitted), default=None)
    if found is None:
        return None, fits.get(allowed[0]) is False
    larger = [rows for rows in allowed if rows > found]
    return found, not larger or fits.get(larger[0]) is False


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


_PREFIX = "plan."
_NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Plan:
    """What one run will take on one kind of device."""

    model: str
    method: str
    hardware: str
    device: str  # "cpu" or "cuda"
    devices: int
    strategy: str
    max_length: int
    micro_batch: int
    gradient_checkpointing: bool
    memory_gib: float | None
    parameters_base: int
    parameters_trainable: int
    gradients_bytes: int  # of all that is trained, whether the highest moment holds them or not
    terms: Terms  # on one device, at the highest moment of a step
    total_bytes: int
    largest_term: str
    verdict: Verdict
    largest_micro_batch: int | None
    remedies: list[Remedy]
    duration: Duration


def plans(overrides: Sequence[str]) -> list[Plan]:
    """One plan for every run and every memory that the overrides ask for.

    Raises:
        ConfigurationError: with all mistakes.
    """
    problems: list[str] = []
    options, configs, made = PlanConfig(), list[RunConfig](), list[Plan]()
    try:
        options = plan_config(_plan_mapping([text for text in overrides if text.startswith(_PREFIX)]))
    except ConfigurationError as error:
        problems += error.problems
    try:
        others = [text for text in overrides if not text.startswith(_PREFIX)]
        configs = compose(others, multirun=True, key=lambda config: canonical_json(to_mapping(config)))
    except ConfigurationError as error:
        problems += error.problems
    for config in configs if not problems else []:
        try:
            made += [_plan(config, options, machine) for machine in _machines(config, options)]
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(list(dict.fromkeys(problems)))
    return made


def _plan(config: RunConfig, options: PlanConfig, machine: Machine) -> Plan:
    if options.devices == 1 and config.hardware.strategy != "none":  # as the run itself would share its steps
        options = replace(options, devices=config.hardware.devices, strategy=config.hardware.strategy)
    config = _fitted(config, options, machine)
    architecture = architecture_of(config.model)
    terms = predict(config, options, machine)
    found = verdict(terms.total, machine.memory_gib)
    static = static_bytes(architecture, config.method, config.hardware.compute_dtype)
    known = machine.memory_gib is not None
    return Plan(
        model=config.model.name,
        method=config.method.name,
        hardware=config.hardware.name,
        device=machine.device,
        devices=options.devices,
        strategy=options.strategy,
        max_length=config.train.max_length,
        micro_batch=config.train.fitted_micro_batch,
        gradient_checkpointing=config.train.gradient_checkpointing,
        memory_gib=machine.memory_gib,
        parameters_base=sum(base_parameters(architecture).values()),
        parameters_trainable=static.trainable,
        gradients_bytes=static.gradients,
        terms=terms,
        total_bytes=terms.total,
        largest_term=max(terms.by_name().items(), key=lambda item: item[1])[0],
        verdict=found,
        largest_micro_batch=largest_micro_batch(config, options, machine) if known else None,
        remedies=remedies(config, options, machine) if found in ("marginal", "does not fit") else [],
        duration=duration(config, architecture, options),
    )


def _fitted(config: RunConfig, options: PlanConfig, machine: Machine) -> RunConfig:
    """The run at the micro-batch that `auto` is expected to come to."""
    if config.train.micro_batch != "auto":
        return config
    budget_gib = config.hardware.memory_budget_gib
    within = machine if budget_gib is None else replace(machine, memory_gib=budget_gib)
    if within.memory_gib is None:
        raise ConfigurationError(["train.micro_batch: auto needs a memory to fit into: plan.memory_gib=..."])
    return replace(config, train=replace(config.train, micro_batch=largest_micro_batch(config, options, within) or 1))


def device_kind(hardware: HardwareConfig) -> Literal["cpu", "cuda"]:
    """The kind of device that `hardware.device` means here."""
    if hardware.device != "auto":
        return hardware.device
    return "cuda" if _NVIDIA.exists() else "cpu"


def _machines(config: RunConfig, options: PlanConfig) -> list[Machine]:
    """The device that `hardware` means, with each memory to be compared."""
    device = device_kind(config.hardware)
    memory = config.hardware.memory_gib
    if memory is None and device == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    memories: list[float | None] = [*options.memory_gib] if options.memory_gib else [memory]
    return [Machine(device, gib) for gib in memories]


def _plan_mapping(overrides: list[str]) -> dict[str, Any]:
    try:
        given = OmegaConf.from_dotlist([text.removeprefix(_PREFIX) for text in overrides])
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigurationError([f"plan: {' '.join(str(error).split())}"]) from None
    merged: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(CONFIG_FOLDER / "plan.yaml"), given))
    return {str(key): value for key, value in merged.items()}
