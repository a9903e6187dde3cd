"""`bench judge`: what was trained elsewhere as arms of a sweep whose training is "loaded from a folder".

Every arm is a run that trains nothing: it is evaluated on the same prompts, examples and suite as the base, one of the
arms too. With several bases each arm is judged over each of them.

>>> [config.method.name for config in judged("smollm2-135m", "{a: out/adapter, x: predictions.jsonl}", [])]
['base', 'a', 'x']
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from bench.compose import choices, compose, quoted
from bench.config import MethodConfig, RunConfig, suggest
from bench.elsewhere import HUB_NAME, kind_of, loaded_problems
from bench.identity import content_of, run_folder, sweep_folder
from bench.mistakes import ConfigurationError, all_of, checked
from bench.sweep.console import Console
from bench.sweep.execute import is_finished, read_record, run_one
from bench.sweep.fetching import prepare_all

if TYPE_CHECKING:
    from bench.stats.gate import Check

_FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]  # of a repository on the hub
_SET_BY_JUDGE = ("method", "model", "serve", "train.micro_batch", "rates")


def judged(base: str | None, arms: str | None, overrides: Sequence[str]) -> list[RunConfig]:
    """Each base, and each arm over it.

    Raises:
        ConfigurationError: with all mistakes: settings, arms that are nothing to judge, damaged files, a wrong base.
    """
    names = [text.partition("=")[0] for text in overrides]
    problems = [f"{name}: judge sets it; leave it out" for name in names if name.partition(".")[0] in _SET_BY_JUDGE]
    problems += [] if base else ["base: missing; give base=MODEL of conf/model, or a folder"]
    if problems:
        raise ConfigurationError(problems)
    places, bases = all_of(lambda: _places(arms), lambda: _bases(str(base).split(","), overrides))
    configs = []
    for one in bases:
        configs += [one, *(_arm(one, name, place, len(bases) > 1) for name, place in places.items())]
    if wrong := [f"arms: {c.method.name}: {problem}" for c in configs for problem in _problems(c)]:
        raise ConfigurationError(list(dict.fromkeys(wrong)))
    return configs


def _bases(names: Sequence[str], overrides: Sequence[str]) -> list[RunConfig]:
    named = [] if any(text.startswith("sweep=") for text in overrides) else ["sweep=judged"]
    tails = [Path(name).name for name in names]

    def composed(name: str) -> RunConfig:
        folder = Path(name).expanduser()
        if name in choices("model"):
            model = [f"model={name}"]
        elif folder.is_dir():
            called = folder.name if tails.count(folder.name) < 2 else f"{folder.parent.name}-{folder.name}"
            model = ["model=folder", f"model.location={folder}", f"model.name={quoted(called)}"]
        else:
            raise ConfigurationError([f"base={name}: no folder, and no such model{suggest(name, choices('model'))}"])
        return compose([*model, "method=base", *named, *overrides], multirun=False)[0]

    found: list[RunConfig] = all_of(*(partial(composed, name) for name in names))
    return found


def _places(arms: str | None) -> dict[str, Path]:
    """Name -> where it is, on this machine."""
    try:
        given = yaml.safe_load(arms or "")
    except yaml.YAMLError:
        given = None
    if not isinstance(given, dict) or not given or not all(isinstance(place, str) for place in given.values()):
        raise ConfigurationError(
            [f'arms={arms}: expected NAME: WHERE in braces, such as arms="{{a: path/to/adapter}}"']
        )
    if taken := {str(name) for name in given} & set(choices("method")):
        raise ConfigurationError(
            [f"arms: {', '.join(sorted(taken))}: a method of its own has this name; choose another"]
        )
    found = all_of(*(partial(_fetched, str(name), place) for name, place in given.items()))
    return dict(zip(map(str, given), found, strict=True))


def _fetched(name: str, place: str) -> Path:
    """A path as it is; a model of the hub after its download."""
    path = Path(place).expanduser()
    if path.exists() or not HUB_NAME.fullmatch(place):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, allow_patterns=_FETCHED))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"{place} is no path here, and the hub does not give it ({reason})"
        raise ConfigurationError([f"arms: {name}: {what}; check the path or the name"]) from error


def _arm(base: RunConfig, name: str, place: Path, several: bool) -> RunConfig:
    """The base's run with what lies in a place."""
    try:
        trains = kind_of(place)
    except ValueError as error:
        raise ConfigurationError([f"arms: {name}: {error}"]) from None
    given = {"name": name, "trains": trains, "loaded_from": str(place), "other_base": several}
    config = replace(base, method=checked(MethodConfig, given, "arms"))
    return replace(config, content=content_of(config))


def _problems(config: RunConfig) -> list[str]:
    """What files tell here; where the base is made or downloaded first, its child tells the rest."""
    if config.method.loaded_from is None:
        return []
    return loaded_problems(config, Path(config.model.location) if config.model.source == "folder" else None)


def run(configs: Sequence[RunConfig], allowed: frozenset[str], console: Console) -> None:
    """Evaluate what is missing. A wrong base that only the loaded weights show fails its own run."""
    pending = [config for config in configs if not is_finished(config)]
    console.plan(list(configs), pending, allowed)
    if pending:
        prepare_all(pending, console)
    for config in pending:
        run_one(config, console)


def drift(configs: Sequence[RunConfig]) -> Iterator[Check]:
    """With several bases: how each arm's score and suite changed from the first base to each other one."""
    from bench.stats.frames import load  # pandas takes a second to import
    from bench.stats.gate import DEFAULTS, gate

    bases = list(dict.fromkeys(config.model.name for config in configs))
    limits = {name: DEFAULTS[name] for name in ("quality", "regression")}
    records = [record for config in configs if (record := read_record(run_folder(config)))]
    if len(bases) < 2 or not records:
        return
    sweep = load(sweep_folder(configs[0]))
    for new in bases[1:]:
        for arm in dict.fromkeys(config.method.name for config in configs):
            old_side, new_side = (
                replace(sweep, records=[r for r in sweep.records if (r.model, r.method) == (base, arm)])
                for base in (bases[0], new)
            )
            if old_side.records and new_side.records:
                for check in gate(old_side, new_side, limits, [arm], ["model", "stream"]):
                    yield replace(check, arm=f"{arm}, {bases[0]} to {new}")
