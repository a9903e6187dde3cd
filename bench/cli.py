"""`python -m bench`: check everything, prepare what is shared, run what is missing, report.

    python -m bench method=lora                                 one run
    python -m bench -m method=base,full,lora,qlora seed=0,1     a sweep and its report

Exit codes: 0 all runs are ok; 1 some failed (their records say why); 2 mistakes in the configuration, nothing
was run; 130 stopped by Ctrl-C, what was finished is kept.
"""

from __future__ import annotations

import sys
import warnings

import hydra
from omegaconf import DictConfig

from bench.console import Console
from bench.planning.compose import CONFIG_FOLDER, compose, explicit, to_run_config
from bench.running.execute import execute, prepare
from bench.running.store import is_finished, read_record
from bench.running.tracking import track
from bench.spec.config import RunConfig
from bench.spec.failure import ConfigurationError, Status
from bench.spec.identity import data_key, run_id
from bench.spec.layout import run_folder, sweep_folder

_INFORMATION = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
console = Console()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    flags = [a for a in arguments if a.startswith("-")]
    overrides = [a for a in arguments if not a.startswith("-")]
    multirun = bool({"-m", "--multirun"} & set(flags))
    try:
        if not set(flags) & set(_INFORMATION):
            configs = compose(overrides, multirun)
            if _nothing_to_do(configs):
                return 0
            _prepare(configs)
        sys.argv[1:] = flags + explicit(overrides)
        _job()
        return 0 if set(flags) & set(_INFORMATION) else _conclude(configs)
    except ConfigurationError as error:
        console.problem(error.message())
        return 2
    except KeyboardInterrupt:
        console.problem("Stopped. Finished runs are kept; the same command again runs only what is missing.")
        return 130


@hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
def _job(composed: DictConfig) -> float | None:
    """One Hydra job: one run. Returns its held-out loss, which sweepers such as Optuna minimize."""
    config = to_run_config(composed)
    with console.run(config) as watch:
        record = execute(config, watch)
    console.ended(record)
    if trouble := track(config, record):
        console.problem(trouble)
    return record.train.heldout[-1].loss if record.train and record.train.heldout else None


def _nothing_to_do(configs: list[RunConfig]) -> bool:
    pending = [c for c in configs if not is_finished(c)]
    console.plan(configs, pending)
    if not pending:
        _report(configs)
    return not pending


def _prepare(configs: list[RunConfig]) -> None:
    """Make the model and data of the pending runs, once each; all their mistakes are told together.

    Raises:
        ConfigurationError: mistakes in the data, the suite or the names of models.
    """
    pending = {data_key(c): c for c in reversed(configs) if not is_finished(c)}
    problems: dict[str, None] = {}
    for config in pending.values():
        try:
            with console.stage(f"prepare {config.model.name}, {config.task.name}") as watch:
                outcome = prepare(config, watch)
        except ConfigurationError as error:
            problems |= dict.fromkeys(error.problems)
            continue
        if outcome.failure:
            problems[f"preparing failed: {outcome.failure.message}; log: {run_folder(config) / 'prepare.log'}"] = None
    if problems:
        raise ConfigurationError(list(problems))


def _conclude(configs: list[RunConfig]) -> int:
    """Write the reports; 0 when every run is ok."""
    _report(configs)
    records = {run_id(c): read_record(run_folder(c)) for c in configs}
    return 0 if all(r is not None and r.status is Status.OK for r in records.values()) else 1


def _report(configs: list[RunConfig]) -> None:
    from bench.report.build import build_report  # plotting takes a second to import

    for folder in sorted({sweep_folder(c) for c in configs}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            console.say(f"Report: {build_report(folder)}")
