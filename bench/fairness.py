"""What two runs must agree in to be compared, by name; and what may differ.

The names are those of `allow_different=NAME,...`, which lets runs be compared in spite of a difference.

    >>> requirement_of("train.epochs"), requirement_of("method.learning_rate")
    ('budget', None)
    >>> differing_settings(config_of_lora, config_of_full)
    []
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.config import ConfigurationError, RunConfig, flat, roles, suggest, to_mapping
from bench.identity import MEASURED, names_of_arms, run_id, settings_with_roles

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
        """Whether `allow_different` can name it."""
        return self.name in REQUIREMENTS


def allowed_names(given: str) -> frozenset[str]:
    """The names in the value of `allow_different`, separated by commas.

    Raises:
        ConfigurationError: unknown names, or none.
    """
    names = [name.strip() for name in given.split(",") if name.strip()]
    problems = [
        f"allow_different={name}: nothing of that name must agree{suggest(name, list(REQUIREMENTS))}"
        for name in names
        if name not in REQUIREMENTS
    ]
    if not names:
        problems = [f"allow_different=NAME,...: name what may differ{suggest('', list(REQUIREMENTS))}"]
    if problems:
        raise ConfigurationError(problems)
    return frozenset(names)


def requirement_of(setting: str, *, trained: bool = True) -> str | None:
    """The requirement that a setting ("train.epochs") belongs to; None when runs may differ in it.

    Args:
        trained: False when one of the runs trains nothing: only what concerns evaluation must agree.
    """
    role = roles()[setting]
    concerns_both = role.stage in ("data", "evaluation") and not role.for_training
    return role.requirement if trained or concerns_both else None


def differing_settings(left: RunConfig, right: RunConfig, *, trained: bool = True) -> list[Reason]:
    """The requirements that two runs' configurations do not meet, each with its settings."""
    sides = flat(to_mapping(left)), flat(to_mapping(right))
    found: dict[str, list[str]] = {}
    for setting in {**sides[0], **sides[1]}:
        values = [side.get(setting) for side in sides]
        name = requirement_of(setting, trained=trained)
        if name is not None and values[0] != values[1]:
            found.setdefault(name, []).append(f"{setting} {_shown(values[0])} and {_shown(values[1])}")
    return [Reason(name, f"their settings differ ({_listed(found[name])})") for name in REQUIREMENTS if name in found]


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}..."


def _listed(settings: list[str]) -> str:
    more = len(settings) - _SETTINGS_SHOWN
    return ", ".join(settings[:_SETTINGS_SHOWN]) + (f", and {more} more" if more > 0 else "")


FILE = "fairness-plan.json"  # in results/<sweep>
Settings = dict[str, Any]  # "train.epochs" -> value; a setting that is not set is not there


@dataclass(frozen=True)
class Pair:
    """Two arms side by side."""

    left: str
    right: str
    identical: Settings
    different: dict[str, tuple[Any, Any]]  # None: that arm has no such setting
    reasons: list[Reason]  # against comparing them


@dataclass(frozen=True)
class Group:
    """The arms of one model, task and suite; others are never compared with them."""

    name: str
    seeds: dict[str, list[int]]  # by arm
    identical: Settings  # the same for every arm that it concerns
    different: dict[str, dict[str, Any]]  # setting -> {arm: value}
    pairs: list[Pair]


def groups_of(configs: Sequence[RunConfig]) -> list[Group]:
    """Every pair of arms, by group; a group of one arm has no pairs."""
    members: dict[str, list[RunConfig]] = {}
    for config in configs:
        members.setdefault(" / ".join((config.model.name, config.task.name, config.suite.name)), []).append(config)
    return [_group(name, group) for name, group in members.items()]


def _group(name: str, configs: Sequence[RunConfig]) -> Group:
    described = {run_id(config): config for config in configs}
    names = names_of_arms((run, config.method.name, config) for run, config in described.items())
    arms: dict[str, list[RunConfig]] = {}
    for run, config in described.items():
        arms.setdefault(names[run], []).append(config)
    settings = {arm: _settings(runs[0]) for arm, runs in arms.items()}
    by_setting: dict[str, dict[str, Any]] = {}
    for arm, values in settings.items():
        for setting, value in values.items():
            by_setting.setdefault(setting, {})[arm] = value
    alike = {setting for setting, values in by_setting.items() if _alike(setting, values, len(arms))}
    return Group(
        name=name,
        seeds={arm: [run.seed for run in runs] for arm, runs in arms.items()},
        identical={setting: next(iter(by_setting[setting].values())) for setting in by_setting if setting in alike},
        different={setting: values for setting, values in by_setting.items() if setting not in alike},
        pairs=[_pair(left, right, arms) for left, right in itertools.combinations(arms, 2)],
    )


def _alike(setting: str, values: dict[str, Any], arms: int) -> bool:
    """What an untrained arm has no use for may be missing there; a setting of a method must be in all."""
    complete = len(values) == arms or not setting.startswith("method.")
    return complete and len({repr(value) for value in values.values()}) == 1


def _pair(left: str, right: str, arms: dict[str, list[RunConfig]]) -> Pair:
    first, second = arms[left][0], arms[right][0]
    trained = not (first.untrained or second.untrained)
    sides = [_settings(config, trained=trained) for config in (first, second)]
    keys = dict.fromkeys([*sides[0], *sides[1]])
    values = {key: (sides[0].get(key), sides[1].get(key)) for key in keys}
    reasons = differing_settings(first, second, trained=trained)
    seeds = [{run.seed for run in arms[arm]} for arm in (left, right)]
    if trained and seeds[0] != seeds[1]:
        alone = ", ".join(map(str, sorted(seeds[0] ^ seeds[1])))
        reasons.append(Reason("seed", f"only one of them has seed {alone}"))
    return Pair(
        left,
        right,
        identical={key: a for key, (a, b) in values.items() if a == b},
        different={key: (a, b) for key, (a, b) in values.items() if a != b},
        reasons=reasons,
    )


def _settings(config: RunConfig, *, trained: bool | None = None) -> Settings:
    """What is worth naming of a run: what must agree, what its method sets, and what was fitted to the memory."""
    trained = not config.untrained if trained is None else trained
    return {
        setting: value
        for setting, value, role in settings_with_roles(config)
        if value is not None
        and role.stage in MEASURED
        and setting not in ("seed", "method.name")
        and (
            (setting.startswith("method.") and role.applies(config))
            or requirement_of(setting, trained=trained)
            or (role.requirement is None and trained and role.applies(config))
        )
    }


def to_json(groups: Sequence[Group]) -> str:
    """For a file: what all arms of a group share once, and beside it every pair with the rest."""
    content = [
        {
            "group": group.name,
            "seeds": group.seeds,
            "identical_for_all": group.identical,
            "pairs": [
                {
                    "left": pair.left,
                    "right": pair.right,
                    "identical_too": {k: v for k, v in pair.identical.items() if k not in group.identical},
                    "different": pair.different,
                    "reasons_against": {reason.name: reason.text for reason in pair.reasons},
                }
                for pair in group.pairs
            ],
        }
        for group in groups
    ]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
