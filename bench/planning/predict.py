"""From a checked run description to what it will take: no weights, no device, no network.

>>> terms = predict(config, PlanConfig(), Machine("cuda", 80.0))
>>> terms.total / 2**30
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.planning.estimate.activations import Batch
from bench.planning.estimate.numerics import numerics_of
from bench.planning.estimate.peak import estimate
from bench.planning.estimate.sharing import Parallel
from bench.planning.estimate.terms import Terms
from bench.spec.architecture import ArchitectureConfig, read_architecture
from bench.spec.config import ModelConfig, RunConfig, TrainConfig
from bench.spec.failure import ConfigurationError
from bench.spec.plan import PlanConfig

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
