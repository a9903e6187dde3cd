"""`python -m bench`: check everything, prepare what is shared, run what is missing, report.

    python -m bench method=lora                                 one run
    python -m bench -m method=base,full,lora,qlora seed=0,1     a sweep and its report
    ... hydra/launcher=joblib                                   its runs by Slurm, Ray or joblib (docs/cluster.md)
    ... --allow-different=device,threads                        compare in spite of these; the report says so

Exit codes: 0 all runs are ok and reported; 1 some failed (their records say why) or could not be written down; 2
mistakes in the configuration, nothing was run; 130 stopped by Ctrl-C, what was finished is kept.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import hydra
from omegaconf import DictConfig

from bench import fairness as pairs
from bench.compose import CONFIG_FOLDER, compose, explicit, is_search, to_run_config
from bench.config import ConfigurationError, RunConfig
from bench.fairness import allowed_names
from bench.identity import data_key, run_folder, run_id, sweep_folder, write_atomic
from bench.record import Stage, Status
from bench.sweep import launchers as dispatch
from bench.sweep.console import Console
from bench.sweep.execute import claim, command, execute, is_finished, prepare, read_record, unwritable_folders
from bench.sweep.fetching import bundle_problems
from bench.sweep.tracking import track, track_report
from bench.sweep.tuning import keep_rates

COMMAND_AGAIN = "The same command again runs only what is missing."
_INFORMATION = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
_ALLOW = "--allow-different"
console = Console()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    flags = [a for a in arguments if a.startswith("-")]
    exceptions = [flag for flag in flags if flag.startswith(_ALLOW)]
    flags = [flag for flag in flags if flag not in exceptions]
    overrides = [a for a in arguments if not a.startswith("-")]
    multirun = bool({"-m", "--multirun"} & set(flags))
    searching = multirun and is_search(overrides)
    launcher = dispatch.chosen_launcher(overrides)
    try:
        if not set(flags) & set(_INFORMATION):
            dispatch.check(overrides, multirun, searching)
            given = ",".join(flag.removeprefix(_ALLOW).removeprefix("=") for flag in exceptions)
            allowed = allowed_names(given) if exceptions else frozenset()
            configs = compose(overrides, multirun)
            pending = [c for c in configs if searching or not is_finished(c)]
            if searching:
                console.say("The sweeper draws the runs one after the other.")
            else:
                console.plan(configs, pending, allowed)
            for config in configs:
                keep_rates(config)
            if not pending:
                return _conclude(configs, allowed)
            prepare_all([_aside(c) for c in pending] if searching else pending, "fetch" if launcher else "prepare")
            _keep_plan(configs)
            if launcher:
                _send(pending, overrides, launcher)
                return _conclude(configs, allowed)
        sys.argv[1:] = flags + explicit(overrides)
        _job()
        return 0 if set(flags) & set(_INFORMATION) else _conclude(configs, allowed, searching)
    except ConfigurationError as error:
        console.problem(error.message())
        return 2
    except KeyboardInterrupt:
        console.problem(f"Stopped. Finished runs are kept. {COMMAND_AGAIN}")
        return 130


def _send(pending: list[RunConfig], overrides: list[str], launcher: str) -> None:
    """Let a launcher run the runs, and name those that never came back."""
    console.say(f"Sent by {launcher}: {len(pending)} jobs. This command waits for them, then reports.")
    outcome = dispatch.dispatch(pending, overrides, console.ended)
    for problem in outcome.problems:
        console.problem(problem)
    for config in outcome.missing:
        console.problem(
            f"MISSING  {run_id(config)}: its job ended without a record; logs: {sweep_folder(config)}/.submitit"
        )
    if outcome.missing:
        console.problem(f"{COMMAND_AGAIN} Here that is the {len(outcome.missing)} above: {command()}")


@hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
def _job(composed: DictConfig) -> float | None:
    """One Hydra job: one run. Returns its held-out loss, which sweepers such as Optuna minimize."""
    config = to_run_config(composed)
    with console.run(config) as watch:
        try:
            record = execute(config, watch)
        except OSError as error:  # a full disk, a folder gone: this run has no record, the others may
            console.problem(f"{run_id(config)}: not written down: {error}. {COMMAND_AGAIN}")
            return None
    console.ended(record)
    if trouble := track(config, record):
        console.problem(trouble)
    return record.train.heldout[-1].loss if record.train and record.train.heldout else None


def _aside(config: RunConfig) -> RunConfig:
    """A run that is only prepared, because a search draws others in its place: without a folder among the results."""
    return replace(config, paths=replace(config.paths, results=str(Path(config.paths.cache) / "prepared")))


def prepare_all(pending: list[RunConfig], stage: Stage = "prepare") -> None:
    """Make the model and data of the pending runs, once each; all their mistakes are told together.

    Args:
        stage: "fetch" does without the device of the runs, which may be another machine's.

    Raises:
        ConfigurationError: unusable folders; mistakes in the data, the suite or the names of models.
    """
    problems = dict.fromkeys(p for config in pending for p in [*unwritable_folders(config), *bundle_problems(config)])
    if problems:
        raise ConfigurationError(list(problems))
    made_once = {(data_key(c), c.method.quantization if stage == "prepare" else None): c for c in reversed(pending)}
    for config in made_once.values():
        try:
            scheme = f" in {config.method.quantization.scheme}" if config.method.quantization else ""
            with console.stage(f"{stage} {config.model.name}{scheme}, {config.task.name}") as watch:
                outcome = prepare(config, watch, stage)
        except ConfigurationError as error:
            problems |= dict.fromkeys(error.problems)
            continue
        if outcome.failure:
            problems[f"preparing failed: {outcome.failure.message}; log: {run_folder(config) / f'{stage}.log'}"] = None
    if problems:
        raise ConfigurationError(list(problems))


def _keep_plan(configs: list[RunConfig]) -> None:
    """Write down what every two methods have in common, before the first of them runs."""
    for folder in sorted({sweep_folder(c) for c in configs}):
        groups = pairs.groups_of([c for c in configs if sweep_folder(c) == folder])
        if any(group.pairs for group in groups):
            write_atomic(folder / pairs.FILE, pairs.to_json(groups))


def _conclude(configs: list[RunConfig], allowed: frozenset[str], searching: bool = False) -> int:
    """Write the reports; 0 when every run is ok and reported. A search's runs are those that are in its folder."""
    folders = {sweep_folder(c): c for c in configs}
    reported = [_report(folder, allowed, folders[folder]) for folder in sorted(folders)]
    if searching:
        records = [read_record(path.parent) for folder in folders for path in folder.glob("*/record.json")]
        ended_well = all(record is not None and record.status is Status.OK for record in records)
    else:
        ended_well = all(is_finished(c) for c in configs)
    return 0 if all(reported) and ended_well else 1


def _report(folder: Path, allowed: frozenset[str], config: RunConfig) -> bool:
    """Write a sweep's report; two sweeps on one folder do so one after the other. False when it cannot be written.

    Args:
        config: of one of its runs; it says whether a tracker gets the report too.
    """
    from bench.report.build import NoRecordsError, build_report  # plotting takes a second to import

    try:
        with claim(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            console.say(f"Report: {build_report(folder, allowed=allowed)}")
    except (OSError, NoRecordsError) as error:
        console.problem(f"The report could not be written: {error}. Every record is kept. {COMMAND_AGAIN}")
        return False
    if trouble := track_report(config, folder):
        console.problem(trouble)
    return True
