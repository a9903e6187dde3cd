"""`bench tune`: the search of each method's own learning rate, by the loss on the validation split.

The rate is the minimum of a parabola through the losses, where there is one (`stats.optimum`), else the best one tried.
A trial trains in a child process of its own, as a run of the sweep does, and measures the held-out loss. It never
reads the test split and keeps no weights. The chosen rates go to results/tune/<sweep>/rates.yaml, which a sweep reads
with rates=FILE. The same command again runs only what is missing.

>>> tune(["method=full,lora", "model=smollm2-135m", "tune.max_points=7"], console)
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

import yaml
from pydantic import TypeAdapter

from bench.compose import RATES_FILE, Rates, Trial, Tuning, compose_beside, read_rates
from bench.config import RunConfig, SuiteConfig, TrackingConfig
from bench.identity import sweep_folder, tuning_key, write_atomic
from bench.mistakes import ConfigurationError
from bench.outcome import Status
from bench.record import Record
from bench.stats.rates import TuneConfig, best, edge, next_rate, remarks
from bench.sweep.console import Console
from bench.sweep.execute import claim, is_finished, run_one
from bench.sweep.fetching import prepare_all

HEAD = "# Learning rates chosen on the validation split by `python -m bench tune`; used with rates=THIS FILE.\n"


def tune(overrides: Sequence[str], console: Console) -> int:
    """Search every method's rate; returns 0 when each has one.

    Raises:
        ConfigurationError: with all mistakes, before anything runs.
    """
    from bench.stats import optimum  # scipy takes a second to import

    settings, arms = compose_tuning(overrides)
    firsts = [trial(arm, settings, next_rate(settings, arm.method.learning_rate or 1.0, []) or 1.0) for arm in arms]
    path = sweep_folder(firsts[0]) / RATES_FILE
    try:
        if path.exists():
            read_rates(path)  # rates found earlier are kept
    except ValueError as error:
        raise ConfigurationError([f"{path}: not readable ({error}); mend it or delete it"]) from None
    prepare_all([first for first in firsts if not is_finished(first)], console)
    most = len(settings.rates) if settings.rates else settings.max_points
    console.say(f"{len(arms)} searches of at most {most} trials each, seed {settings.seed}.")
    tunings = []
    for arm in arms:
        if (tuning := search(arm, settings, console)) is not None:
            keep_tuning(path, tuning)
            tunings.append(tuning)
    for tuning in tunings:
        chosen = "none" if tuning.learning_rate is None else f"{tuning.learning_rate:g}"
        minutes = sum(tried.seconds for tried in tuning.trials) / 60
        console.say(f"{tuning.method}: learning rate {chosen}; {len(tuning.trials)} trials, {minutes:.1f} minutes")
        for text in (optimum.words(optimum.of_search(tuning.trials)), *remarks(tuning)):
            console.say(f"  {text}")
    for text in optimum.ratios({tuning.method: optimum.of_search(tuning.trials) for tuning in tunings}):
        console.say(text)
    if tunings:
        methods = ",".join(dict.fromkeys(["base", *(t.method for t in tunings if t.learning_rate is not None)]))
        others = [text for text in overrides if not text.startswith(("method=", "tune."))]
        command = [os.path.relpath(sys.executable), "-m", "bench", "-m", f"method={methods}", *others, f"rates={path}"]
        console.say(f"Rates: {path}\nA sweep with them: {shlex.join(command)}")
    return 0 if len(tunings) == len(arms) and all(t.learning_rate is not None for t in tunings) else 1


def search(arm: RunConfig, settings: TuneConfig, console: Console) -> Tuning | None:
    """Try rates for one method until the search is over; None when a trial fails, as the others then would too."""
    from bench.stats import optimum

    records: list[Record] = []
    trials: list[Trial] = []
    while (rate := next_rate(settings, arm.method.learning_rate or 1.0, trials)) is not None:
        record = run_one(trial(arm, settings, rate), console, tell_success=False)
        if record is None or not (record.train or record.status is Status.DIVERGED):
            return None
        records.append(record)
        loss = record.train.heldout[-1].loss if record.train else None
        steps = record.train.steps if record.train else (record.failure and record.failure.step) or 0
        trials.append(Trial(rate, loss, steps, record.wall_seconds, record.run_id))
        shown = "not finite" if loss is None else f"{loss:.4f}"
        console.say(f"  {arm.method.name}  {rate:g}: held-out loss {shown}, {record.wall_seconds:.0f} s")
    winner, data, provenance = best(trials), records[0].data, records[0].provenance
    fitted = optimum.of_search(trials)
    found = winner.learning_rate if winner else None
    return Tuning(
        key=tuning_key(arm),
        method=arm.method.name,
        model=arm.model.name,
        task=arm.task.name,
        learning_rate=found if isinstance(fitted, str) else fitted.learning_rate,
        at_edge=edge(trials) if winner else None,
        trials=sorted(trials, key=lambda tried: tried.learning_rate),
        seed=settings.seed,
        max_steps=settings.max_steps,
        data_fingerprint=data.fingerprint if data else None,
        command=provenance["command"],
        git_commit=provenance["git_commit"],
        git_dirty=provenance["git_dirty"],
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def compose_tuning(overrides: Sequence[str]) -> tuple[TuneConfig, list[RunConfig]]:
    """(how to search, one run description for every method, model, task and budget to search for).

    Seeds, suites and untrained methods make no further searches: a sweep's overrides can be given as they are.

    Raises:
        ConfigurationError: with all mistakes.
    """
    settings, configs = compose_beside(TuneConfig, "tune", overrides)
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
    return settings, list(by_key.values())


def trial(arm: RunConfig, settings: TuneConfig, learning_rate: float) -> RunConfig:
    """The run that tries a rate: the arm's training and data, no evaluation, no suite, nothing kept but its record."""
    steps = [n for n in (arm.train.max_steps, settings.max_steps) if n is not None]
    return replace(
        arm,
        method=replace(arm.method, learning_rate=learning_rate),
        suite=SuiteConfig(name="none", source="none"),
        train=replace(arm.train, max_steps=min(steps, default=None), heldout_points=settings.heldout_points),
        tracking=TrackingConfig(name="none"),
        paths=replace(arm.paths, results=str(Path(arm.paths.results) / "tune")),
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
