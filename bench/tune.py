"""`python -m bench.tune`: each method's own learning rate, chosen on the validation split.

    python -m bench.tune method=full,lora,qlora                     the overrides of the sweep it is for
    python -m bench.tune method=lora model=... tune.points=5        settings of the search: conf/tune.yaml

A trial trains in a child process of its own, as a run of the sweep does, and measures the held-out loss. It never
reads the test split and keeps no weights. The chosen rates go to results/tune/<sweep>/rates.yaml, which a sweep
reads with rates=FILE. The same command again runs only what is missing.

Exit codes: 0 every method has a rate; 1 some search failed; 2 mistakes in the configuration, nothing was run; 130
stopped by Ctrl-C, finished trials are kept.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.analysis.rates import best, edge, next_rate, remarks
from bench.cli import COMMAND_AGAIN, console, prepare_all
from bench.compose import RATES_FILE, read_rates
from bench.config import ConfigurationError, RunConfig
from bench.identity import sweep_folder, tuning_key
from bench.record import Record, Status, Trial, TuneConfig, Tuning
from bench.sweep.execute import execute, is_finished
from bench.sweep.tuning import compose_tuning, keep_tuning, trial


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    overrides = list(sys.argv[1:] if arguments is None else arguments)
    if any(text.startswith("-") for text in overrides):
        print(__doc__)
        return 0 if {"-h", "--help"} & set(overrides) else 2
    try:
        settings, arms = compose_tuning(overrides)
        path = sweep_folder(_first_trial(arms[0], settings)) / RATES_FILE
        _check(path)
        prepare_all([c for arm in arms if not is_finished(c := _first_trial(arm, settings))])
        console.say(f"{len(arms)} searches of at most {_most_trials(settings)} trials each, seed {settings.seed}.")
        tunings = [_keep(path, search(arm, settings)) for arm in arms]
        return _conclude(path, [t for t in tunings if t], overrides, failed=tunings.count(None))
    except ConfigurationError as error:
        console.problem(error.message())
        return 2
    except KeyboardInterrupt:
        console.problem(f"Stopped. Finished trials are kept. {COMMAND_AGAIN}")
        return 130


def search(arm: RunConfig, settings: TuneConfig) -> Tuning | None:
    """Try rates for one method until the search is over; None when a trial fails, as the others then would too."""
    records: dict[str, Record] = {}
    trials: list[Trial] = []
    while (rate := next_rate(settings, _middle(arm), trials)) is not None:
        leader = best(trials)
        points = records[leader.run_id].train.heldout if leader else ()  # type: ignore[union-attr]
        config = trial(arm, settings, rate, points)
        try:
            with console.run(config) as watch:
                record = execute(config, watch)
        except OSError as error:  # a full disk, a folder gone
            console.problem(f"{arm.method.name}: not written down: {error}. {COMMAND_AGAIN}")
            return None
        if record.status is not Status.OK or record.train is None:
            console.ended(record)
            return None
        records[record.run_id] = record
        trials.append(_trial_of(record, rate))
        console.say(f"  {arm.method.name}  {trial_text(trials[-1])}, {trials[-1].seconds:.0f} s")
    return _tuning(arm, settings, trials, next(iter(records.values())))


def trial_text(tried: Trial) -> str:
    """A trial in a few words."""
    loss = "not finite" if tried.loss is None else f"{tried.loss:.4f}"
    stopped = f", stopped at step {tried.steps}: {tried.stopped_early}" if tried.stopped_early else ""
    return f"{tried.learning_rate:g}: held-out loss {loss}{stopped}"


def _trial_of(record: Record, rate: float) -> Trial:
    assert record.train is not None
    return Trial(
        learning_rate=rate,
        loss=record.train.heldout[-1].loss,
        steps=record.train.steps,
        stopped_early=record.train.stopped_early,
        seconds=record.wall_seconds,
        run_id=record.run_id,
    )


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
    assert arm.method.learning_rate is not None  # checked by the spec for every method that trains
    return arm.method.learning_rate


def _first_trial(arm: RunConfig, settings: TuneConfig) -> RunConfig:
    rate = next_rate(settings, _middle(arm), [])
    assert rate is not None  # the grid is never empty
    return trial(arm, settings, rate)


def _most_trials(settings: TuneConfig) -> int:
    return len(settings.rates) if settings.rates else max(settings.points, settings.max_points)


def _check(path: Path) -> None:
    """Rates found earlier are kept, so the file must be readable before anything runs."""
    try:
        if path.exists():
            read_rates(path)
    except ValueError as error:
        raise ConfigurationError([f"{path}: not readable ({error}); mend it or delete it"]) from None


def _keep(path: Path, tuning: Tuning | None) -> Tuning | None:
    if tuning is not None:
        keep_tuning(path, tuning)
    return tuning


def _conclude(path: Path, tunings: list[Tuning], overrides: list[str], failed: int) -> int:
    for tuning in tunings:
        chosen = "none" if tuning.learning_rate is None else f"{tuning.learning_rate:g}"
        console.say(f"{tuning.method}: learning rate {chosen}" + "".join(f"\n  {text}" for text in remarks(tuning)))
    if tunings:
        methods = ",".join(dict.fromkeys(["base", *(t.method for t in tunings if t.learning_rate is not None)]))
        others = [text for text in overrides if not text.startswith(("method=", "tune."))]
        command = [os.path.relpath(sys.executable), "-m", "bench", "-m", f"method={methods}", *others, f"rates={path}"]
        console.say(f"Rates: {path}\nA sweep with them: {shlex.join(command)}")
    return 0 if not failed and all(tuning.learning_rate is not None for tuning in tunings) else 1


if __name__ == "__main__":
    sys.exit(main())
