"""From the overrides of `python -m bench.plan` to what each run that they describe will take.

>>> for plan in plans(["model=llama-3.1-8b", "method=full,lora", "hardware=h100"]):
...     print(plan.method, plan.verdict, plan.total_bytes)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bench.planning.compose import CONFIG_FOLDER, compose
from bench.planning.estimate.duration import Duration, duration
from bench.planning.estimate.parameters import base_parameters
from bench.planning.estimate.static import static_bytes
from bench.planning.estimate.terms import Terms
from bench.planning.fit import GIB, Remedy, Verdict, largest_micro_batch, remedies, verdict
from bench.planning.predict import Machine, architecture_of, predict
from bench.spec.config import HardwareConfig, RunConfig, to_mapping
from bench.spec.failure import ConfigurationError
from bench.spec.identity import canonical_json
from bench.spec.plan import PlanConfig, plan_config

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
