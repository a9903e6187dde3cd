"""`bench tune`: the search of each method's own learning rate, by the loss on the validation split.

A trial trains in a child process of its own, as a run of the sweep does, and measures the held-out loss. It never
reads the test split and keeps no weights. The chosen rates go to results/tune/<sweep>/rates.yaml, which a sweep reads
with rates=FILE. The same command again runs only what is missing.

>>> tune(["method=full,lora", "model=smollm2-135m", "tune.points=5"], console)
0
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter
from yaml import YAMLError

from bench.compose import CONFIG_FOLDER, RATES_FILE, Rates, Trial, Tuning, compose, read_rates
from bench.config import ConfigurationError, RunConfig, SuiteConfig, TrackingConfig, checked
from bench.identity import sweep_folder, tuning_key, write_atomic
from bench.record import Record
from bench.stats.rates import TuneConfig, best, edge, next_rate, remarks
from bench.sweep.console import Console
from bench.sweep.execute import claim, is_finished, run_one
from bench.sweep.fetching import prepare_all

TUNE_FOLDER = "tune"  # below paths.results
PREFIX = "tune."
HEAD = "# Learning rates chosen on the validation split by `python -m bench tune`; used with rates=THIS FILE.\n"


def tune(overrides: Sequence[str], console: Console) -> int:
    """Search every method's rate; returns 0 when each has one.

    Raises:
        ConfigurationError: with all mistakes, before anything runs.
    """
    settings, arms = compose_tuning(overrides)
    firsts = [_first_trial(arm, settings) for arm in arms]
    path = sweep_folder(firsts[0]) / RATES_FILE
    try:
        if path.exists():
            read_rates(path)  # rates found earlier are kept
    except ValueError as error:
        raise ConfigurationError([f"{path}: not readable ({error}); mend it or delete it"]) from None
    prepare_all([first for first in firsts if not is_finished(first)], console)
    most = len(settings.rates) if settings.rates else max(settings.points, settings.max_points)
    console.say(f"{len(arms)} searches of at most {most} trials each, seed {settings.seed}.")
    tunings = []
    for arm in arms:
        if (tuning := search(arm, settings, console)) is not None:
            keep_tuning(path, tuning)
            tunings.append(tuning)
    for tuning in tunings:
        chosen = "none" if tuning.learning_rate is None else f"{tuning.learning_rate:g}"
        console.say(f"{tuning.method}: learning rate {chosen}" + "".join(f"\n  {text}" for text in remarks(tuning)))
    if tunings:
        methods = ",".join(dict.fromkeys(["base", *(t.method for t in tunings if t.learning_rate is not None)]))
        others = [text for text in overrides if not text.startswith(("method=", PREFIX))]
        command = [os.path.relpath(sys.executable), "-m", "bench", "-m", f"method={methods}", *others, f"rates={path}"]
        console.say(f"Rates: {path}\nA sweep with them: {shlex.join(command)}")
    return 0 if len(tunings) == len(arms) and all(t.learning_rate is not None for t in tunings) else 1


def search(arm: RunConfig, settings: TuneConfig, console: Console) -> Tuning | None:
    """Try rates for one method until the search is over; None when a trial fails, as the others then would too."""
    first: Record | None = None
    trials: list[Trial] = []
    while (rate := next_rate(settings, _middle(arm), trials)) is not None:
        record = run_one(trial(arm, settings, rate), console, tell_success=False)
        if record is None or record.failure is not None or record.train is None:
            return None
        first = first or record
        trials.append(
            Trial(
                learning_rate=rate,
                loss=record.train.heldout[-1].loss,
                steps=record.train.steps,
                seconds=record.wall_seconds,
                run_id=record.run_id,
            )
        )
        console.say(f"  {arm.method.name}  {trial_text(trials[-1])}, {trials[-1].seconds:.0f} s")
    return _tuning(arm, settings, trials, first) if first else None


def trial_text(tried: Trial) -> str:
    """A trial in a few words."""
    loss = "not finite" if tried.loss is None else f"{tried.loss:.4f}"
    return f"{tried.learning_rate:g}: held-out loss {loss}"


def _tuning(arm: RunConfig, settings: TuneConfig, trials: list[Trial], record: Record) -> Tuning:
    winner = best(trials)
    return Tuning(
        key=tuning_key(arm),
        method=arm.method.name,
        model=arm.model.name,
        task=arm.task.name,
        learning_rate=winner.learning_rate if winner else None,
        at_edge=edge(trials) if winner else None,
        trials=sorted(trials, key=lambda tried: tried.learning_rate),
        seed=settings.seed,
        max_steps=settings.max_steps,
        data_fingerprint=record.data.fingerprint if record.data else None,
        command=record.provenance["command"],
        git_commit=record.provenance["git_commit"],
        git_dirty=record.provenance["git_dirty"],
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _middle(arm: RunConfig) -> float:
    assert arm.method.learning_rate is not None  # checked by config.py for every method that trains
    return arm.method.learning_rate


def _first_trial(arm: RunConfig, settings: TuneConfig) -> RunConfig:
    rate = next_rate(settings, _middle(arm), [])
    assert rate is not None  # the grid is never empty
    return trial(arm, settings, rate)


def compose_tuning(overrides: Sequence[str]) -> tuple[TuneConfig, list[RunConfig]]:
    """(how to search, one run description for every method, model, task and budget to search for).

    Seeds, suites and untrained methods make no further searches: a sweep's overrides can be given as they are.

    Raises:
        ConfigurationError: with all mistakes.
    """
    problems: list[str] = []
    settings, arms = TuneConfig(), list[RunConfig]()
    try:
        settings = checked(TuneConfig, _tune_mapping([text for text in overrides if text.startswith(PREFIX)]), "tune")
    except ConfigurationError as error:
        problems += error.problems
    try:
        arms = _searched(compose([text for text in overrides if not text.startswith(PREFIX)], multirun=True))
    except ConfigurationError as error:
        problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return settings, arms


def _tune_mapping(overrides: list[str]) -> dict[str, Any]:
    try:
        given = OmegaConf.from_dotlist([text.removeprefix(PREFIX) for text in overrides])
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigurationError([f"tune: {' '.join(str(error).split())}"]) from None
    merged: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(CONFIG_FOLDER / "tune.yaml"), given))
    return {str(key): value for key, value in merged.items()}


def _searched(configs: list[RunConfig]) -> list[RunConfig]:
    trained = [config for config in configs if config.method.trains != "nothing"]
    if not trained:
        raise ConfigurationError(["method: none of the methods trains anything; choose for example method=full,lora"])
    if any(config.rates for config in trained):
        raise ConfigurationError(["rates: a search finds the rates, and reads none; leave it out"])
    by_key: dict[str, RunConfig] = {}
    for config in trained:
        first = by_key.setdefault(tuning_key(config), config)
        if first.method.learning_rate != config.method.learning_rate:
            message = "is what is searched; give one value, the middle, or a list in tune.rates=[...]"
            raise ConfigurationError([f"method.learning_rate: {message}"])
    return list(by_key.values())


def trial(arm: RunConfig, settings: TuneConfig, learning_rate: float) -> RunConfig:
    """The run that tries a rate: the arm's training and data, no evaluation, no suite, nothing kept but its record."""
    steps = [n for n in (arm.train.max_steps, settings.max_steps) if n is not None]
    return replace(
        arm,
        method=replace(arm.method, learning_rate=learning_rate),
        suite=SuiteConfig(name="none", source="none"),
        train=replace(arm.train, max_steps=min(steps, default=None), heldout_points=settings.heldout_points),
        tracking=TrackingConfig(name="none"),
        paths=replace(arm.paths, results=str(Path(arm.paths.results) / TUNE_FOLDER)),
        seed=settings.seed,
        trial=True,
    )


def keep_tuning(path: Path, tuning: Tuning) -> None:
    """Add a finished search to a rates file, in place of an earlier one for the same runs.

    Raises:
        ValueError: the file is there and is not a rates file.
    """
    with claim(path.parent):
        others = [t for t in read_rates(path).tunings if t.key != tuning.key] if path.exists() else []
        content = TypeAdapter(Rates).dump_python(Rates([*others, tuning]), mode="json")
        write_atomic(path, HEAD + yaml.safe_dump(content, sort_keys=False, width=120))


def keep_rates(config: RunConfig) -> None:
    """Copy the rates file that a run names into its sweep's folder, where the report looks for it.

    Raises:
        ConfigurationError: the folder cannot be written to.
    """
    if config.rates is None:
        return
    kept = sweep_folder(config) / RATES_FILE
    try:
        if kept.resolve() != Path(config.rates).resolve():
            write_atomic(kept, Path(config.rates).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError([f"rates: {config.rates} cannot be copied to {kept}: {error}"]) from None
