"""Runs by launchers: what is sent, what comes back, what never does. With real launchers: tests/test_launchers.py."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from bench.cli import main
from bench.compose import CONFIG_FOLDER, choices, compose
from bench.config import ConfigurationError, RunConfig
from bench.identity import run_folder, run_id, write_atomic
from bench.record import Record, Status
from bench.sweep import execute as provenance
from bench.sweep import launchers as dispatch
from bench.sweep import launchers as job
from bench.sweep.execute import write_record
from bench.sweep.launchers import check, chosen_launcher

SLURM = "hydra_plugins.hydra_submitit_launcher"
LAUNCHERS = {
    name: yaml.safe_load((CONFIG_FOLDER / "hydra" / "launcher" / f"{name}.yaml").read_text())
    for name in choices("hydra/launcher")
}


@pytest.fixture
def two(smoke) -> list[RunConfig]:
    return compose(smoke("method=lora,qlora"), multirun=True)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the jobs saw; each writes a record at once."""
    seen: list[dict[str, Any]] = []

    def execute(config: RunConfig) -> Record:
        seen.append({"run": run_id(config), "folder": os.getcwd(), "command": provenance.command()})
        record = _record(config)
        write_record(run_folder(config), record)
        return record

    monkeypatch.setattr(job, "execute", execute)
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(provenance, "_sent_by", [])
    return seen


def _record(config: RunConfig) -> Record:
    return Record(
        run_id=run_id(config),
        comparison_key="0" * 12,
        sweep=config.sweep,
        method=config.method.name,
        model=config.model.name,
        task=config.task.name,
        suite="none",
        seed=config.seed,
        status=Status.OK,
        config=config,
        provenance={},
        started_at="2026-01-01T00:00:00+00:00",
        wall_seconds=1.0,
    )


def test_every_run_is_a_job_that_carries_its_checked_plan(two, executed, monkeypatch, capfd) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "-m", "method=lora,qlora"])
    ended: list[str] = []
    two[1] = replace(two[1], seed=7)  # nowhere on the command line: the plan is what runs
    outcome = dispatch.dispatch(two, ["method=lora,qlora", "hydra/launcher=basic"], lambda r: ended.append(r.run_id))
    assert (outcome.missing, outcome.problems) == ([], [])
    assert [seen["run"] for seen in executed] == ended == [run_id(config) for config in two]
    assert executed[0]["folder"] == os.getcwd()
    assert executed[0]["command"].endswith("-m method=lora,qlora")


def test_a_run_that_never_came_back_is_named(two, executed, monkeypatch) -> None:
    lost = run_folder(two[0])
    write_atomic(lost / "record.json", "an older record, torn")

    class Launcher:
        def launch(self, job_overrides: list[list[str]], initial_job_idx: int) -> None:
            jobs = [Sent()]  # submitit's launcher keeps them so
            job.execute(two[1])
            raise RuntimeError(f"job {17 * len(jobs)}_0: NODE_FAIL\nand a long log")

    class Sent:
        def wait(self) -> None:
            waited.append(True)

    waited: list[bool] = []
    monkeypatch.setattr(Plugins.instance(), "instantiate_launcher", lambda **_: Launcher())
    outcome = dispatch.dispatch(two, ["hydra/launcher=slurm"], lambda record: None)
    assert [run_id(config) for config in outcome.missing] == [lost.name]
    assert outcome.problems == ["hydra/launcher=slurm: RuntimeError: job 17_0: NODE_FAIL"]
    assert waited == [True]


def test_a_job_that_fails_where_it_runs_does_not_stop_the_others(two, executed, monkeypatch) -> None:
    real = job.execute

    def full_disk(config: RunConfig) -> Record:
        if config.method.name == "lora":
            raise OSError(28, "No space left on device")
        return real(config)

    monkeypatch.setattr(job, "execute", full_disk)
    outcome = dispatch.dispatch(two, ["hydra/launcher=basic"], lambda record: None)
    assert [config.method.name for config in outcome.missing] == ["lora"]
    assert "No space left on device" in outcome.problems[0]


def test_the_launcher_is_what_the_command_says(monkeypatch) -> None:
    assert chosen_launcher(["method=lora"]) is None
    assert chosen_launcher(["hydra/launcher=basic"]) is None
    assert chosen_launcher(["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]) == "slurm"
    check(["method=lora"], multirun=False, searching=False)


@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_launchers_are_ready_or_say_what_to_install(name: str, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "visible_gpus", lambda: ["0"])
    plugin = LAUNCHERS[name]["_target_"].split(".")[1]
    there = importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(f"hydra_plugins.{plugin}")
    if there:
        check([f"hydra/launcher={name}"], multirun=True, searching=False)
    monkeypatch.setattr(dispatch, "_is_installed", lambda module: False)
    with pytest.raises(ConfigurationError, match=f"needs the package {plugin.replace('_', '-')}; pip install"):
        check([f"hydra/launcher={name}"], multirun=True, searching=False)


def test_mistakes_about_launchers_are_found_before_anything_runs(smoke, monkeypatch, tmp_path, capfd) -> None:
    monkeypatch.setattr(dispatch, "_is_installed", lambda module: True)
    monkeypatch.setattr(dispatch, "visible_gpus", lambda: [])
    for overrides, words in (
        (["-m", "hydra/launcher=slrum"], "slrum"),
        (["-m", "hydra/launcher=slurm", "hydra.launcher.partitoin=gpu"], "partitoin"),
        (["-m", "hydra/launcher=ray"], "no GPU is visible here"),
        (["hydra/launcher=joblib"], "add -m"),
        (["-m", "hydra/launcher=joblib", "hydra/sweeper=optuna"], "leave one out"),
    ):
        assert main(smoke("method=lora", *overrides)) == 2, overrides
        assert words in capfd.readouterr().err
    assert not list((tmp_path / "results").rglob("record.json"))


def test_a_job_on_slurm_asks_for_one_gpu_and_is_requeued() -> None:
    slurm = LAUNCHERS["slurm"]
    assert (slurm["gpus_per_node"], slurm["tasks_per_node"], slurm["nodes"]) == (1, 1, 1)
    assert slurm["additional_parameters"] == {"requeue": True}
    assert slurm["max_num_timeout"] > 0


STUBS = {
    "sbatch": 'cp "$1" {folder}/script.sh; echo "Submitted batch job 17"',
    "srun": "exit 0",
    "sacct": 'printf "JobID|State|NodeList\\n17_0|NODE_FAIL|n1\\n17_1|CANCELLED by 0|n2\\n"',
}


def test_lost_slurm_jobs_are_told_by_the_real_plugin(two, tmp_path: Path, monkeypatch) -> None:
    """submitit's own code against a scheduler whose every node fails at once."""
    submitit = pytest.importorskip("submitit", reason='needs the launchers: pip install -e ".[launchers]"')
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in STUBS.items():
        (commands / name).write_text(f"#!/bin/sh\n{body.format(folder=tmp_path)}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(submitit.SlurmJob, "_results_timeout_s", 0)
    outcome = dispatch.dispatch(two, ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], lambda record: None)
    assert outcome.missing == two
    assert "17_0" in outcome.problems[0]
    script = (tmp_path / "script.sh").read_text()
    for line in ("--requeue", "--gpus-per-node=1", "--partition=gpu", "--signal=USR2@180", "--time=1440"):
        assert f"#SBATCH {line}\n" in script
    assert "--array=0-1%2" in script


def test_a_warned_job_stops_its_stage_before_it_is_requeued(two, preempt) -> None:
    assert preempt(signal.SIGUSR2) == ["stage stopped", "requeued"]


def test_a_terminated_job_leaves_no_record_and_is_requeued_only_when_warned_too(two, preempt, monkeypatch) -> None:
    assert preempt(signal.SIGTERM, signal.SIGUSR2) == ["stage stopped", "requeued"]
    monkeypatch.setattr(job, "TERM_SECONDS", 0.0)
    assert preempt(signal.SIGTERM) == ["stage stopped"]  # cancelled, or Slurm requeues it
    assert not list(run_folder(two[0]).parent.rglob("record.json"))


@pytest.fixture
def preempt(two, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Give a job that is at work the first signal, and the others while it stops; returns what happened."""
    order: list[str] = []
    signals: list[int] = []

    def execute(config: RunConfig) -> Record:
        try:
            os.kill(os.getpid(), signals.pop(0))
            time.sleep(5)
            raise AssertionError("the stage was not stopped")
        finally:
            order.append("stage stopped")
            for signum in signals:
                os.kill(os.getpid(), signum)

    def requeue(signum: int, frame: object) -> None:  # as submitit does it
        order.append("requeued")
        sys.exit(144)

    def called(*given: int) -> list[str]:
        order.clear()
        signals[:] = given
        with pytest.raises((SystemExit, job._Preempted)):
            job.Job({"a": two[0]})(OmegaConf.create({"run": "a"}))
        assert signal.getsignal(signal.SIGUSR2) is requeue
        assert signal.getsignal(signal.SIGTERM) is before[signal.SIGTERM]
        return list(order)

    monkeypatch.setattr(job, "execute", execute)
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, requeue)
    yield called
    for signum, handler in before.items():
        signal.signal(signum, handler)
