"""What two runs must agree in to be compared, by name; and what may differ.

The names are those of `--allow-different=NAME[,NAME...]`, which lets runs be compared in spite of a difference.

    >>> requirement_of("train.epochs"), requirement_of("method.learning_rate")
    ('budget', None)
    >>> differing_settings(config_of_lora, config_of_full)
    []
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.spec import devices
from bench.spec.config import suggest
from bench.spec.failure import ConfigurationError
from bench.spec.settings import flat

REQUIREMENTS = {
    "model": "settings of the model, and the revision that was loaded",
    "task": "settings of the task",
    "suite": "settings of the regression suite",
    "budget": "settings of training, and the number of optimizer steps",
    "hardware": "settings of the hardware that have no name of their own here",
    "stream": "the tokens consumed in training, and the prepared data",
    "device": "the device, how many there were, and how they shared a step",
    "threads": "threads of computation, and how many processors the process could use",
    "software": "versions of torch and of the packages that compute",
    "numerics": "compute dtype, attention kernel, compilation, padding, and where an adapter is added",
}
# May differ: the method and its settings, the seed (runs are matched by it), where results go, what was fitted.
_FREE = ("method.", "seed", "sweep", "paths.", "tracking.", "serve.", "rates", "learning_rate_source", "trial",
         "train.micro_batch", "hardware.memory_budget_gib", "train.checkpoint_every_steps", "hardware.name",
         "hardware.stage_timeout_seconds", "hardware.price_usd_per_hour",
         "model.architecture", "hardware.memory_gib", "hardware.bf16_tflops", "hardware.watts")  # fmt: skip
_BY_SETTING = {
    "hardware.device": "device",
    "hardware.devices": "device",
    "hardware.strategy": "device",
    "hardware.cpu_offload": "device",
    "hardware.threads": "threads",
    "hardware.compute_dtype": "numerics",
    "hardware.attention": "numerics",
    "train.compile": "numerics",
    "train.kernels": "numerics",
    "train.packing": "numerics",
}
_NOT_SAID = {f"hardware.{name}": value for name, value in devices.ONE.items()}  # by descriptions older than these
_BY_PART = {"train": "budget"}
_ONLY_TRAINING = ("task.train_", "task.validation_", "task.overflow")
_OF_EVALUATION = ("model.", "task.", "suite.", "hardware.generate_batch", "train.max_length")
_VALUE_CHARACTERS, _SETTINGS_SHOWN = 40, 4


@dataclass(frozen=True)
class Reason:
    """Why two runs may not be compared: the requirement that is not met, and a clause for a person."""

    name: str  # of REQUIREMENTS; another where no exception can be made
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def may_be_allowed(self) -> bool:
        """Whether `--allow-different` can name it."""
        return self.name in REQUIREMENTS


def allowed_names(given: str) -> frozenset[str]:
    """The names in the value of `--allow-different`, separated by commas.

    Raises:
        ConfigurationError: unknown names, or none.
    """
    names = [name.strip() for name in given.split(",") if name.strip()]
    problems = [
        f"--allow-different={name}: nothing of that name must agree{suggest(name, list(REQUIREMENTS))}"
        for name in names
        if name not in REQUIREMENTS
    ]
    if not names:
        problems = [f"--allow-different=NAME[,NAME...]: name what may differ{suggest('', list(REQUIREMENTS))}"]
    if problems:
        raise ConfigurationError(problems)
    return frozenset(names)


def requirement_of(setting: str, *, trained: bool = True) -> str | None:
    """The requirement that a setting ("train.epochs") belongs to; None when runs may differ in it.

    Args:
        trained: False when one of the runs trains nothing: only what concerns evaluation must agree.
    """
    if setting.startswith(_FREE):
        return None
    if not trained and (setting.startswith(_ONLY_TRAINING) or not setting.startswith(_OF_EVALUATION)):
        return None
    part = setting.partition(".")[0]
    return _BY_SETTING.get(setting) or _BY_PART.get(part, part)


def differing_settings(left: Mapping[str, Any], right: Mapping[str, Any], *, trained: bool = True) -> list[Reason]:
    """The requirements that two run descriptions (`config.to_mapping`) do not meet, each with its settings."""
    sides = flat(left), flat(right)
    found: dict[str, list[str]] = {}
    for setting in {**sides[0], **sides[1]}:
        values = [side.get(setting, _NOT_SAID.get(setting)) for side in sides]
        name = requirement_of(setting, trained=trained)
        if name is not None and values[0] != values[1]:
            found.setdefault(name, []).append(f"{setting} {_shown(values[0])} and {_shown(values[1])}")
    order = [*REQUIREMENTS, *found]  # a setting that has no name yet is no reason to be silent
    return [Reason(name, f"their settings differ ({_listed(found[name])})") for name in sorted(found, key=order.index)]


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}..."


def _listed(settings: list[str]) -> str:
    more = len(settings) - _SETTINGS_SHOWN
    return ", ".join(settings[:_SETTINGS_SHOWN]) + (f", and {more} more" if more > 0 else "")
