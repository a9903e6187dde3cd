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
import fcntl
import importlib.util
import os
import signal
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
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

from bench.compose import CONFIG_FOLDER
from bench.config import ConfigurationError, RunConfig
from bench.identity import run_folder, run_id, sweep_folder
from bench.record import Record
from bench.sweep import execute as provenance
from bench.sweep.execute import execute, is_finished, read_record
from bench.sweep.tracking import track

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


TERM_SECONDS = 600.0  # between SIGTERM and what follows: SIGKILL or, on some clusters, SIGUSR2
POLL_SECONDS_job = 0.2


@dataclass(frozen=True)
class Job:
    """What a launcher carries to where a run runs, and calls there with `run: ID`."""

    configs: dict[str, RunConfig]  # by run id
    folder: str = field(default_factory=os.getcwd)  # relative paths start here, there as here
    command: str = field(default_factory=provenance.command)

    def __call__(self, told: DictConfig) -> None:
        os.chdir(self.folder)
        provenance.sent_by(self.command)
        config = self.configs[told.run]
        with _stopped_in_order(), own_gpus(config.hardware.devices):
            record = execute(config)
        if trouble := track(config, record):
            print(trouble)


class _Preempted(BaseException):
    """A scheduler wants its machine back; no `Exception`, so that nothing takes it for a failure of the run."""


@contextlib.contextmanager
def _stopped_in_order() -> Iterator[None]:
    """At a signal of Slurm's stop the stage, which may write a checkpoint, and leave no record.

    Only after Slurm's warning (SIGUSR2), and only then, submitit requeues the job: asked to requeue it while the stage
    is at its work, Slurm would kill that. SIGTERM comes, to the stage as well, where a job is cancelled, or preempted
    and requeued by Slurm itself; which of them it is, the job cannot know, so it waits for Slurm to go on.
    """
    requeue = signal.getsignal(signal.SIGUSR2)
    if not callable(requeue):  # no job of submitit's
        yield
        return
    asked: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        if len(asked) == 1:  # one is enough
            raise _Preempted

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        yield
    except _Preempted:
        deadline = time.monotonic() + TERM_SECONDS
        while signal.SIGUSR2 not in asked and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS_job)
        if signal.SIGUSR2 in asked:
            requeue(signal.SIGUSR2, None)  # ends this process
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS_gpus = 1.0


@contextlib.contextmanager
def own_gpus(count: int = 1, locks: Path | None = None) -> Iterator[None]:
    """Hold `count` of the GPUs that this process may see; until the end it and its children see those alone.

    Does nothing where no more than that are visible.

    Args:
        locks: the folder of the lock files, local to the machine; by default below the system's temporary folder.
    """
    visible = visible_gpus()
    if len(visible) <= count:
        yield
        return
    folder = locks or Path(tempfile.gettempdir()) / f"bench-gpus-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get(VISIBLE)
    with _taken(visible, count, folder) as own:
        os.environ[VISIBLE] = ",".join(own)
        try:
            yield
        finally:
            os.environ.pop(VISIBLE) if before is None else os.environ.update({VISIBLE: before})


def visible_gpus() -> list[str]:
    """The names (indices or UUIDs) of the GPUs that CUDA would show this process; empty where there are none."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() and name.strip() != "-1"]
    import pynvml

    try:
        pynvml.nvmlInit()
        return [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


@contextlib.contextmanager
def _taken(names: Sequence[str], count: int, folder: Path) -> Iterator[list[str]]:
    """`count` of the names, locked: all or, while too few are free, none."""
    while True:
        with contextlib.ExitStack() as locks:
            own: list[str] = []
            for name in names:
                if len(own) < count and _locked(folder / name, locks):
                    own.append(name)
            if len(own) == count:
                yield own
                return
        time.sleep(POLL_SECONDS_gpus)


def _locked(path: Path, locks: contextlib.ExitStack) -> bool:
    file = locks.enter_context(path.open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
