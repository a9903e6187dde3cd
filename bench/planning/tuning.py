"""From the overrides of `python -m bench.tune` to what is searched, and from a rate to the trial that tries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bench.planning.compose import CONFIG_FOLDER, compose
from bench.spec.config import RunConfig, SuiteConfig, TrackingConfig, TrialConfig
from bench.spec.failure import ConfigurationError
from bench.spec.identity import tuning_key
from bench.spec.record import HeldoutPoint
from bench.spec.tuning import TuneConfig, tune_config

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
