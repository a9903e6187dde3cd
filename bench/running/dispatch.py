"""Runs sent to other processes and machines by a Hydra launcher: Slurm, Ray, joblib.

What is sent is what was checked: every job carries the `RunConfig`s of the sweep and is told by its only override
which of them to run. Nothing is composed again where it runs, so a file of `conf/` edited in the meantime changes
nothing. The job writes the run's record; the parent waits, tells of the records as they appear, and reports.

>>> outcome = dispatch(pending, ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], ended=console.ended)
>>> [run_id(config) for config in outcome.missing]  # no record came back: a node was lost, a job was cancelled
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bench.planning.compose import CONFIG_FOLDER
from bench.running.gpus import visible_gpus
from bench.running.job import Job
from bench.running.store import is_finished, read_record
from bench.spec.config import RunConfig
from bench.spec.failure import ConfigurationError
from bench.spec.identity import run_id
from bench.spec.layout import run_folder, sweep_folder
from bench.spec.record import Record

CHOICE = "hydra/launcher="
POLL_SECONDS = 2.0  # between two looks at the records; a shared folder shows them some seconds late


@dataclass(frozen=True)
class Outcome:
    """What came back: the runs without a record of this sweep, and what the launcher said of its jobs."""

    missing: list[RunConfig]
    problems: list[str]


def chosen_launcher(overrides: Sequence[str]) -> str | None:
    """The launcher that the overrides name; None for Hydra's own, which runs one after another in this process."""
    names = [text.removeprefix(CHOICE) for text in overrides if text.startswith(CHOICE)]
    return names[-1] if names and names[-1] != "basic" else None


def check(overrides: Sequence[str], multirun: bool, searching: bool) -> None:
    """Whether the launcher, if one is chosen, can do what is asked for, before anything is prepared.

    Raises:
        ConfigurationError: unknown names or settings, a plugin that is not installed, GPUs that are not there.
    """
    name = chosen_launcher(overrides)
    if name is None:
        return
    if not multirun:
        raise ConfigurationError([f"{CHOICE}{name}: sends the runs of a sweep; add -m"])
    if searching:
        raise ConfigurationError([f"{CHOICE}{name}: a search draws its runs one after the other; leave one out"])
    with _composed(overrides, Path(".")) as (config, _):
        launcher = config.hydra.launcher
        module = launcher._target_.rpartition(".")[0]
        if not _is_installed(module):
            plugin = module.split(".")[1].replace("_", "-")
            how = 'pip install -e ".[ray]"' if "ray" in plugin else 'pip install -c constraints.txt -e ".[launchers]"'
            raise ConfigurationError([f"{CHOICE}{name}: needs the package {plugin}; {how}"])
        ray = launcher.get("ray") or {}
        here = ray.get("init", {}).get("address") == "local"
        if here and ray.get("remote", {}).get("num_gpus") and not visible_gpus():
            text = "no GPU is visible here, so no job would ever start; set it to 0"
            raise ConfigurationError([f"hydra.launcher.ray.remote.num_gpus: {text}"])


def dispatch(configs: Sequence[RunConfig], overrides: Sequence[str], ended: Callable[[Record], None]) -> Outcome:
    """Send the runs, one job each, and wait until all are done or lost.

    Args:
        configs: the runs, checked and not finished; all of one sweep folder or several.
        overrides: of the command line; those of hydra choose and set the launcher.
        ended: called with every record as it appears.
    """
    job = Job({run_id(config): config for config in configs})
    before = {name: _written_at(config) for name, config in job.configs.items()}
    problems: list[str] = []
    with _composed(overrides, sweep_folder(configs[0]).resolve()) as (composed, context), _told(job, before, ended):
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=composed)
        try:
            results = launcher.launch([[f"run={name}"] for name in job.configs], initial_job_idx=0)
            for name, result in zip(job.configs, results, strict=True):
                if result.status is not JobStatus.COMPLETED:
                    problems.append(f"{name}: {_words(result._return_value)}")
        except Exception as error:  # a node lost, a job cancelled, a scheduler that cannot be reached
            problems.append(f"{CHOICE}{chosen_launcher(overrides)}: {_words(error)}")
            for sent in _jobs_left(error):
                sent.wait()
    unchanged = [config for name, config in job.configs.items() if _written_at(config) == before[name]]
    return Outcome([config for config in unchanged if not is_finished(config)], problems)


class _Told:
    """In place of Hydra's loader of configurations, which would read conf/ again for every job, there."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        told = copy.deepcopy(master_config)
        told.merge_with_dotlist(sweep_overrides)
        return told


@contextlib.contextmanager
def _composed(overrides: Sequence[str], folder: Path) -> Iterator[tuple[DictConfig, HydraContext]]:
    """conf/launch.yaml with the launcher's settings, and what tells a job its `run=ID`."""
    own = [text for text in overrides if text.startswith("hydra")]
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"\s+'hydra/launcher/.* is validated against"
            )  # welcome: its names
            composed = compose("launch", [*own, f"hydra.sweep.dir='{folder}'"], return_hydra_config=True)
        yield composed, HydraContext(config_loader=cast(ConfigLoader, _Told()), callbacks=Callbacks(composed))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError([" ".join(str(error).split())]) from None


@contextlib.contextmanager
def _told(job: Job, before: dict[str, int | None], ended: Callable[[Record], None]) -> Iterator[None]:
    """Tell of each new record once while the block runs, and of the last ones at its end."""
    seen, over = dict(before), threading.Event()

    def look() -> None:
        is_last = False
        while not is_last:
            is_last = over.wait(POLL_SECONDS)
            for name, config in job.configs.items():
                written_at = _written_at(config)
                if written_at != seen[name] and (record := read_record(run_folder(config))):
                    seen[name] = written_at
                    ended(record)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _written_at(config: RunConfig) -> int | None:
    try:
        return (run_folder(config) / "record.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _jobs_left(error: BaseException) -> list[Any]:
    """What submitit's launcher has sent: it gives up at the first lost job, and no one else knows the others."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((f.f_locals["jobs"] for f in frames if f.f_code.co_name == "launch" and "jobs" in f.f_locals), [])


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _words(error: object) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
