"""What each two methods of a sweep will have in common and in what they will differ, before anything runs.

Fairness as a check: the reasons that will keep two arms from being compared are known before hours of training, as
far as they lie in the settings. The consumed data, the device and the software are checked when the runs are there.

    >>> (group,) = groups_of(compose(["method=full,lora"], multirun=True))
    >>> group.pairs[0].different["method.learning_rate"], group.pairs[0].reasons
    ((0.0001, 0.0005), [])
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.spec.agreement import Reason, differing_settings, requirement_of
from bench.spec.config import RunConfig, to_mapping
from bench.spec.identity import run_id
from bench.spec.settings import flat, is_untrained, names_of_arms

FILE = "fairness-plan.json"  # in results/<sweep>
_FITTED = "train.micro_batch"  # free, but declared
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
    described = {run_id(config): to_mapping(config) for config in configs}
    names = names_of_arms((run, mapping["method"]["name"], mapping) for run, mapping in described.items())
    arms: dict[str, list[dict[str, Any]]] = {}
    for run, mapping in described.items():
        arms.setdefault(names[run], []).append(mapping)
    settings = {arm: _settings(runs[0]) for arm, runs in arms.items()}
    by_setting: dict[str, dict[str, Any]] = {}
    for arm, values in settings.items():
        for setting, value in values.items():
            by_setting.setdefault(setting, {})[arm] = value
    alike = {setting for setting, values in by_setting.items() if _alike(setting, values, len(arms))}
    return Group(
        name=name,
        seeds={arm: [run["seed"] for run in runs] for arm, runs in arms.items()},
        identical={setting: next(iter(by_setting[setting].values())) for setting in by_setting if setting in alike},
        different={setting: values for setting, values in by_setting.items() if setting not in alike},
        pairs=[_pair(left, right, arms) for left, right in itertools.combinations(arms, 2)],
    )


def _alike(setting: str, values: dict[str, Any], arms: int) -> bool:
    """What an untrained arm has no use for may be missing there; a setting of a method must be in all."""
    complete = len(values) == arms or not setting.startswith("method.")
    return complete and len({repr(value) for value in values.values()}) == 1


def _pair(left: str, right: str, arms: dict[str, list[dict[str, Any]]]) -> Pair:
    first, second = arms[left][0], arms[right][0]
    trained = not (is_untrained(first) or is_untrained(second))
    sides = [_settings(mapping, trained=trained) for mapping in (first, second)]
    keys = dict.fromkeys([*sides[0], *sides[1]])
    values = {key: (sides[0].get(key), sides[1].get(key)) for key in keys}
    reasons = differing_settings(first, second, trained=trained)
    seeds = [{run["seed"] for run in arms[arm]} for arm in (left, right)]
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


def _settings(mapping: dict[str, Any], *, trained: bool | None = None) -> Settings:
    """What is worth telling of a run: what must agree, what its method sets, and what was fitted to the memory."""
    trained = not is_untrained(mapping) if trained is None else trained
    return {
        setting: value
        for setting, value in flat(mapping).items()
        if value is not None
        and (
            (setting.startswith("method.") and setting != "method.name")
            or (setting == _FITTED and trained)
            or requirement_of(setting, trained=trained) is not None
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
