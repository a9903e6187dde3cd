"""From the overrides of `python -m bench.tune` to what is searched, and from a rate to the trial that tries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter
from yaml import YAMLError

from bench.compose import CONFIG_FOLDER, RATES_FILE, compose, read_rates
from bench.config import ConfigurationError, RunConfig, SuiteConfig, TrackingConfig, TrialConfig
from bench.identity import sweep_folder, tuning_key, write_atomic
from bench.record import HeldoutPoint, Rates, TuneConfig, Tuning, tune_config
from bench.sweep.execute import claim

TUNE_FOLDER = "tune"  # below paths.results
_PREFIX = "tune."


def compose_tuning(overrides: Sequence[str]) -> tuple[TuneConfig, list[RunConfig]]:
    """(how to search, what to search for): one run description for every method, model, task and budget asked for.

    Seeds, suites and untrained methods make no further searches: a sweep's overrides can be given as they are.

    Raises:
        ConfigurationError: with all mistakes.
    """
    problems: list[str] = []
    settings, arms = TuneConfig(), list[RunConfig]()
    try:
        settings = tune_config(_tune_mapping([text for text in overrides if text.startswith(_PREFIX)]))
    except ConfigurationError as error:
        problems += error.problems
    try:
        arms = _searched(compose([text for text in overrides if not text.startswith(_PREFIX)], multirun=True))
    except ConfigurationError as error:
        problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return settings, arms


def _tune_mapping(overrides: list[str]) -> dict[str, Any]:
    try:
        given = OmegaConf.from_dotlist([text.removeprefix(_PREFIX) for text in overrides])
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


def trial(
    arm: RunConfig, settings: TuneConfig, learning_rate: float, best_points: Sequence[HeldoutPoint] = ()
) -> RunConfig:
    """The run that tries a rate: the arm's training and data, no evaluation, no suite, nothing kept but its record.

    Args:
        best_points: the held-out losses of the best trial so far, against which this one may prove hopeless.
    """
    steps = [n for n in (arm.train.max_steps, settings.max_steps) if n is not None]
    return replace(
        arm,
        method=replace(arm.method, learning_rate=learning_rate),
        suite=SuiteConfig(name="none", source="none"),
        train=replace(arm.train, max_steps=min(steps, default=None), heldout_points=settings.heldout_points),
        tracking=TrackingConfig(name="none"),
        paths=replace(arm.paths, results=str(Path(arm.paths.results) / TUNE_FOLDER)),
        seed=settings.seed,
        trial=TrialConfig(
            best_losses=[(point.step, point.loss) for point in best_points if point.loss is not None],
            hopeless_below=settings.hopeless_below,
        ),
    )


_HEAD = "# Learning rates chosen on the validation split by `python -m bench.tune`; used with rates=THIS FILE.\n"


def keep_tuning(path: Path, tuning: Tuning) -> None:
    """Add a finished search to a rates file, in place of an earlier one for the same runs.

    Raises:
        ValueError: the file is there and is not a rates file.
    """
    with claim(path.parent):
        others = [t for t in read_rates(path).tunings if t.key != tuning.key] if path.exists() else []
        content = TypeAdapter(Rates).dump_python(Rates([*others, tuning]), mode="json")
        write_atomic(path, _HEAD + yaml.safe_dump(content, sort_keys=False, width=120))


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
