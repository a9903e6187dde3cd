"""Runs sent to other processes and machines by a Hydra launcher (Slurm, Ray, joblib), and searches by a Hydra sweeper.

Both are a Hydra application of their own: this module, in a process of its own.

    python -m bench.sweep.launchers --multirun sent=FILE 'run=range(0,12)' hydra/launcher=slurm ...
    python -m bench.sweep.launchers --multirun --config-name config method=lora hydra/sweeper=optuna ...

What is sent is what was checked: FILE (a `Sent`) names the runs' folders, and a job reads the `plan.json` in its own;
nothing of conf/ but launch.yaml is read where it runs. The parent watches the records, which say how a run ended, and
the heartbeats, which say that it is at work. So a lost or requeued job is seen whatever the scheduler says.

>>> missing = send(pending, ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], console)
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import hydra
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from bench import machine
from bench.compose import CONFIG_FOLDER, as_mistakes, explicit, quoted, to_run_config
from bench.config import RunConfig
from bench.identity import run_folder, run_id, sweep_folder, write_atomic
from bench.mistakes import ConfigurationError
from bench.record import from_json, to_json
from bench.sweep.child import GRACE_SECONDS, HEARTBEAT, stop
from bench.sweep.console import Console
from bench.sweep.execute import COMMAND, COMMAND_AGAIN, command, execute, read_record, write_plan
from bench.sweep.tracking import track
from bench.trust import fresh_file, lock_file, own_folder

CHOICE = "hydra/launcher="
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 2.0  # between two looks at the runs' folders; a shared folder shows changes some seconds late
SILENT_SECONDS = 90.0  # without a heartbeat: the run is no longer at work
END_SECONDS = 60.0  # for the launcher to end by itself when all records are there
TERM_SECONDS = 600.0  # between SIGTERM and what follows: SIGKILL or, on some clusters, SIGUSR2
GPU_POLL_SECONDS = 1.0
ERROR_LINE = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b.*", re.M)  # of a traceback, its last line


@dataclass(frozen=True)
class Sent:
    """What jobs are told: where to start, for which command, and the folder of each run."""

    folder: str  # relative paths start here, there as here
    command: str
    runs: list[str]


def chosen_launcher(overrides: Sequence[str]) -> str | None:
    """The launcher that the overrides name; None for Hydra's own, which stands for a loop in this process."""
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
    own = [text for text in overrides if text.startswith("hydra")]
    with as_mistakes(), initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"), warnings.catch_warnings():
        # It is welcome that the launcher's names are checked.
        warnings.filterwarnings("ignore", message=r"\s+'hydra/launcher/.* is validated against")
        launcher = compose("launch", own, return_hydra_config=True).hydra.launcher
    module = launcher._target_.rpartition(".")[0]
    if not is_installed(module):
        plugin = module.split(".")[1].replace("_", "-")
        how = 'pip install -e ".[ray]"' if "ray" in plugin else 'pip install -c constraints.txt -e ".[launchers]"'
        raise ConfigurationError([f"{CHOICE}{name}: needs the package {plugin}; {how}"])
    ray = launcher.get("ray") or {}
    here = ray.get("init", {}).get("address") == "local"
    if here and ray.get("remote", {}).get("num_gpus") and not visible_gpus():
        text = "no GPU is visible here, so no job would ever start; set it to 0"
        raise ConfigurationError([f"hydra.launcher.ray.remote.num_gpus: {text}"])


def is_installed(module: str) -> bool:
    """Whether a module could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def send(configs: Sequence[RunConfig], overrides: Sequence[str], console: Console) -> list[RunConfig]:
    """Send the runs, one job each, and wait until all are done or lost; returns the lost ones.

    Args:
        configs: the runs, checked and not finished.
        overrides: of the command line; those of hydra choose and set the launcher.
    """
    launcher = chosen_launcher(overrides)
    console.say(f"Sent by {launcher}: {len(configs)} jobs. This command waits for them, then reports.")
    folder = sweep_folder(configs[0]).resolve()
    path = own_folder(folder / ".sent") / f"{os.getpid()}.json"
    own_folder(folder / ".submitit")
    sent = Sent(os.getcwd(), command(), [str(write_plan(config).resolve()) for config in configs])
    write_atomic(path, to_json(sent))
    own = [text for text in overrides if text.startswith("hydra")]
    where = [f"sent={quoted(str(path))}", f"hydra.sweep.dir={quoted(str(folder))}"]
    asked = [*where, f"run=range(0,{len(configs)})", *own]
    runs = _Runs([run_folder(config) for config in configs], console)
    with _application(["--multirun", *asked], path.with_suffix(".log")) as process:
        with console.stage(f"{len(configs)} runs by {launcher}") as watch:
            while runs.waiting and not runs.given_up(process.poll()):
                progress = {"done": len(configs) - len(runs.waiting), "total": len(configs)}
                watch({"stage": "sent", "phase": f"{runs.at_work} at work", **progress})
                time.sleep(POLL_SECONDS)
                runs.look()
        if runs.waiting and (problem := _problem(path.with_suffix(".log"))):
            console.problem(f"{CHOICE}{launcher}: {problem}")
    lost = [config for config in configs if run_folder(config) in runs.waiting]
    for config in lost:
        console.problem(f"MISSING  {run_id(config)}: its job ended without a record; logs: {folder}/.submitit")
    if lost:
        console.problem(f"{COMMAND_AGAIN} Here that is the {len(lost)} above: {command()}")
    return lost


def search(configs: Sequence[RunConfig], overrides: Sequence[str], console: Console) -> None:
    """Let Hydra's sweeper draw the runs one after the other, in a process of its own, and report each as it ends."""
    folders = sorted({sweep_folder(config) for config in configs})
    log = folders[0] / ".sent" / f"{os.getpid()}.log"
    known = {path.parent for folder in folders for path in folder.glob("*/record.json")}
    with _application(["--multirun", "--config-name", "config", *explicit(list(overrides))], log) as process:
        over = False
        while not over:
            over = process.poll() is not None  # and then a last look
            for folder in [path.parent for f in folders for path in f.glob("*/record.json")]:
                if folder not in known and (record := read_record(folder)):
                    known.add(folder)
                    console.ended(record)
            time.sleep(0 if over else POLL_SECONDS)
    if process.returncode:
        console.problem(f"hydra/sweeper: {_problem(log)}")


@contextlib.contextmanager
def _application(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """This module as a Hydra application; at the end of the block it has ended, or is ended."""
    own_folder(log.parent)
    environment = os.environ | {"HYDRA_FULL_ERROR": "1", COMMAND: command()}
    with fresh_file(log) as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.sweep.launchers", *arguments],
            env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    how = signal.SIGINT
    try:
        yield process
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        how = signal.SIGTERM
    finally:  # stopped by Ctrl-C: jobs on this machine end in order, those of a cluster go on
        stop(process, GRACE_SECONDS, first=how)


class _Runs:
    """Runs at work elsewhere, as the files in their folders show them."""

    def __init__(self, folders: Sequence[Path], console: Console):
        self.waiting, self._console = list(folders), console
        self._times = {folder: _times(folder) for folder in folders}
        self._alive_at: dict[Path, float] = {}  # monotonic seconds of the last new heartbeat
        self._silent: set[Path] = set()
        self._changed_at = time.monotonic()

    @property
    def at_work(self) -> int:
        """The runs that showed a heartbeat lately."""
        return sum(folder in self._alive_at and not self._fell_silent(folder) for folder in self.waiting)

    def _fell_silent(self, folder: Path) -> bool:
        return time.monotonic() - self._alive_at.get(folder, math.inf) > SILENT_SECONDS

    def look(self) -> None:
        """Report new records, and runs that began and fell silent."""
        for folder in list(self.waiting):
            (old_record, old_beat), (record_ns, beat_ns) = self._times[folder], _times(folder)
            if beat_ns not in (None, old_beat):
                self._times[folder] = (old_record, beat_ns)
                self._alive_at[folder] = self._changed_at = time.monotonic()
                self._silent.discard(folder)
            if record_ns not in (None, old_record) and (record := read_record(folder)):
                self._changed_at = time.monotonic()
                self.waiting.remove(folder)
                self._console.ended(record)
            elif self._fell_silent(folder) and folder not in self._silent:
                self._silent.add(folder)
                text = "no sign of life: its job was lost, or stopped to be sent again"
                self._console.problem(f"SILENT   {folder.name}: {text}")

    def given_up(self, exit_code: int | None) -> bool:
        """Whether nothing more can come: the launcher has ended, and nothing is at work or will soon be.

        A launcher that failed may have left jobs behind: submitit's ends at the first lost one.
        """
        if exit_code == 0:
            self.look()
        return exit_code == 0 or (exit_code is not None and time.monotonic() - self._changed_at > SILENT_SECONDS)


def _times(folder: Path) -> tuple[int | None, int | None]:
    """When the record and the heartbeat were written, by the clock of where they are; None: not there."""
    found: list[int | None] = []
    for name in ("record.json", HEARTBEAT):
        path = folder / name
        found.append(path.stat().st_mtime_ns if path.exists() else None)
    return found[0], found[1]


def _problem(log: Path) -> str:
    """What a launcher said last."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    errors = [match.group() for match in ERROR_LINE.finditer(text)]
    return f"{errors[-1] if errors else (text.splitlines() or ['it said nothing'])[-1]} (log: {log})"


def job(composed: DictConfig) -> float | None:
    """One job of the application. Returns the run's held-out loss, which sweepers such as Optuna minimize."""
    if "sent" in composed:
        sent = from_json(Sent, Path(composed.sent).read_bytes())
        os.chdir(sent.folder)
        os.environ[COMMAND] = sent.command
        config = from_json(RunConfig, (Path(sent.runs[composed.run]) / "plan.json").read_bytes())
    else:
        config = to_run_config(composed)
    with _stopped_in_order(), own_gpus(config.hardware.devices):
        record = execute(config)
    if trouble := track(config, record):
        print(trouble)
    return record.train.heldout[-1].loss if record.train and record.train.heldout else None


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
            time.sleep(0.2)
        if signal.SIGUSR2 in asked:
            requeue(signal.SIGUSR2, None)  # ends this process
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


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
    folder = own_folder(locks or Path(tempfile.gettempdir()) / f"bench-gpus-{os.getuid()}")
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
    found = machine.driver()
    return [str(index) for index in range(len(found.gpus))] if found else []


@contextlib.contextmanager
def _taken(names: Sequence[str], count: int, folder: Path) -> Iterator[list[str]]:
    """`count` of the names, locked: all or, while too few are free, none."""
    told = False
    while True:
        with contextlib.ExitStack() as locks:
            own: list[str] = []
            for name in names:
                file = locks.enter_context(lock_file(folder / name.replace("/", "_")))
                with contextlib.suppress(BlockingIOError):
                    if len(own) < count:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        own.append(name)
            if len(own) == count:
                yield own
                return
        if not told:
            print(f"Waiting: fewer than {count} of the GPUs {', '.join(names)} are free.", file=sys.stderr, flush=True)
        told = True
        time.sleep(GPU_POLL_SECONDS)


if __name__ == "__main__":
    from bench.sweep.launchers import job as importable  # launchers send a reference to it, not its code

    hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="launch")(importable)()
