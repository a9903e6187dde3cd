"""Runs by launchers: what is sent, what comes back, what never does. With real plugins: test_real_launchers.py."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from bench.cli import main
from bench.compose import CONFIG_FOLDER, choices, compose
from bench.config import RunConfig
from bench.identity import run_folder, run_id
from bench.mistakes import ConfigurationError
from bench.outcome import Status
from bench.record import Record, from_json, to_json
from bench.sweep import execute, launchers
from bench.sweep.child import HEARTBEAT
from bench.sweep.console import Console
from bench.sweep.execute import write_record
from bench.sweep.launchers import Sent, check, chosen_launcher

LAUNCHERS = {
    name: yaml.safe_load((CONFIG_FOLDER / "hydra" / "launcher" / f"{name}.yaml").read_text())
    for name in choices("hydra/launcher")
}


@pytest.fixture
def two(smoke) -> list[RunConfig]:
    return compose(smoke("method=lora,qlora"), multirun=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(launchers, "SILENT_SECONDS", 0.3)


def record_of(config: RunConfig) -> Record:
    return Record(
        run_id=run_id(config), comparison_key="0" * 12, sweep=config.sweep, method=config.method.name,
        model=config.model.name, task=config.task.name, suite="none", seed=config.seed, status=Status.OK,
        config=config, provenance={}, started_at="2026-01-01T00:00:00+00:00", wall_seconds=1.0,
    )  # fmt: skip


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch):
    """Returns a function that takes what happens in the place of the launcher's process: Python code, a thread."""

    def replace_by(code: str, deeds: Callable[[], None] = lambda: None) -> list[list[str]]:
        given: list[list[str]] = []
        real = subprocess.Popen

        def popen(command: list[str], **options: Any) -> subprocess.Popen:
            given.append(command)
            threading.Thread(target=deeds).start()
            return real([sys.executable, "-c", code], **options)

        monkeypatch.setattr(launchers.subprocess, "Popen", popen)
        return given

    return replace_by


def test_every_run_is_a_job_that_reads_its_checked_plan(two, application, monkeypatch, capfd) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "-m", "method=lora,qlora"])
    two[1] = replace(two[1], seed=7)  # nowhere on the command line: the plan is what runs

    def jobs() -> None:
        for config in two:
            write_record(run_folder(config), record_of(config))

    given = application("pass", jobs)
    assert launchers.send(two, ["method=lora,qlora", "hydra/launcher=slurm"], Console()) == []
    said = capfd.readouterr().out
    assert [f"OK       {run_id(config)}" in said for config in two] == [True, True]
    (command,) = given
    assert command[1:4] == ["-m", "bench.sweep.launchers", "--multirun"]
    assert {"run=range(0,2)", "hydra/launcher=slurm"} <= set(command)
    assert "method=lora,qlora" not in command
    path = next(text for text in command if text.startswith("sent=")).partition("=")[2].strip("'")
    sent = from_json(Sent, Path(path).read_bytes())
    assert (sent.folder, sent.command) == (os.getcwd(), "python -m bench -m method=lora,qlora")
    plans = [from_json(RunConfig, (Path(folder) / "plan.json").read_bytes()) for folder in sent.runs]
    assert plans == two


def test_a_job_runs_the_plan_of_its_folder_for_the_command_that_sent_it(two, tmp_path, monkeypatch) -> None:
    seen: list[tuple[RunConfig, str, str]] = []

    def executed(config: RunConfig) -> Record:
        seen.append((config, os.getcwd(), execute.command()))
        return record_of(config)

    monkeypatch.setattr(launchers, "execute", executed)
    monkeypatch.setenv(execute.COMMAND, "")
    monkeypatch.chdir(tmp_path)
    folders = [str(execute.write_plan(config)) for config in two]
    (tmp_path / "sent.json").write_text(to_json(Sent(str(tmp_path / "results"), "python -m bench -m x", folders)))
    launchers.job(OmegaConf.create({"sent": str(tmp_path / "sent.json"), "run": 1}))
    assert seen == [(two[1], str(tmp_path / "results"), "python -m bench -m x")]


def test_a_run_that_never_came_back_is_named_with_what_the_launcher_said(two, application, capfd) -> None:
    code = (
        "import sys; sys.exit('Traceback ...\\nsubmitit.core.utils.UncompletedJobError: Job 17_0: NODE_FAIL\\n\\nlog')"
    )
    application(code, lambda: write_record(run_folder(two[1]), record_of(two[1])))
    assert launchers.send(two, ["hydra/launcher=slurm"], Console()) == [two[0]]
    errors = capfd.readouterr().err
    assert f"MISSING  {run_id(two[0])}" in errors
    assert "UncompletedJobError: Job 17_0: NODE_FAIL" in errors


def test_jobs_that_outlive_a_failed_launcher_are_waited_for(two, application, capfd) -> None:
    """Submitit's ends at the first lost job; the heartbeat says that another is at work."""

    def jobs() -> None:
        folder = run_folder(two[1])
        for _ in range(30):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / HEARTBEAT).write_text("")
            time.sleep(0.05)
        write_record(folder, record_of(two[1]))

    application("import sys; sys.exit('RuntimeError: a node was lost')", jobs)
    assert launchers.send(two, ["hydra/launcher=slurm"], Console()) == [two[0]]
    said = capfd.readouterr()
    assert f"OK       {run_id(two[1])}" in said.out
    assert f"MISSING  {run_id(two[1])}" not in said.err


def test_a_run_that_falls_silent_is_told_whatever_the_scheduler_says(two, application, capfd) -> None:
    def jobs() -> None:
        time.sleep(0.1)
        (run_folder(two[0]) / HEARTBEAT).touch()
        time.sleep(1)  # lost, and sent again
        for config in two:
            write_record(run_folder(config), record_of(config))

    application("import time; time.sleep(60)", jobs)  # the scheduler knows nothing
    launchers.END_SECONDS, before = 0.1, launchers.END_SECONDS
    assert launchers.send(two, ["hydra/launcher=slurm"], Console()) == []
    launchers.END_SECONDS = before
    said = capfd.readouterr()
    assert said.err.count("SILENT") == 1
    assert f"SILENT   {run_id(two[0])}: no sign of life" in said.err
    assert "1 at work" in said.out


def test_a_search_reports_every_run_that_it_draws(smoke, two, application, capfd) -> None:
    drawn = replace(two[0], seed=3)
    given = application("import time; time.sleep(0.2)", lambda: write_record(run_folder(drawn), record_of(drawn)))
    launchers.search(two, ["method=lora", "hydra/sweeper=optuna"], Console())
    assert f"OK       {run_id(drawn)}" in capfd.readouterr().out
    assert given[0][3:] == ["--multirun", "--config-name", "config", "++method=lora", "hydra/sweeper=optuna"] or (
        given[0][3:] == ["--multirun", "--config-name", "config", "method=lora", "hydra/sweeper=optuna"]
    )


def test_the_launcher_is_what_the_command_says() -> None:
    assert chosen_launcher(["method=lora"]) is None
    assert chosen_launcher(["hydra/launcher=basic"]) is None
    assert chosen_launcher(["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]) == "slurm"


@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_launchers_are_ready_or_say_what_to_install(name: str, monkeypatch) -> None:
    monkeypatch.setattr(launchers, "visible_gpus", lambda: ["0"])
    plugin = LAUNCHERS[name]["_target_"].split(".")[1]
    if importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(f"hydra_plugins.{plugin}"):
        check([f"hydra/launcher={name}"], multirun=True, searching=False)
    monkeypatch.setattr(launchers, "is_installed", lambda module: False)
    with pytest.raises(ConfigurationError, match=f"needs the package {plugin.replace('_', '-')}; pip install"):
        check([f"hydra/launcher={name}"], multirun=True, searching=False)


def test_mistakes_about_launchers_are_found_before_anything_runs(smoke, monkeypatch, tmp_path, capfd) -> None:
    monkeypatch.setattr(launchers, "is_installed", lambda module: True)
    monkeypatch.setattr(launchers, "visible_gpus", lambda: [])
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


def test_a_warned_job_stops_its_stage_before_it_is_requeued(preempt) -> None:
    assert preempt(signal.SIGUSR2) == ["stage stopped", "requeued"]


def test_a_terminated_job_leaves_no_record_and_is_requeued_only_when_warned_too(two, preempt, monkeypatch) -> None:
    assert preempt(signal.SIGTERM, signal.SIGUSR2) == ["stage stopped", "requeued"]
    monkeypatch.setattr(launchers, "TERM_SECONDS", 0.0)
    assert preempt(signal.SIGTERM) == ["stage stopped"]  # cancelled, or Slurm requeues it
    assert not list(run_folder(two[0]).parent.rglob("record.json"))


@pytest.fixture
def preempt(two, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Give a job that is at work the first signal, and the others while it stops; returns what happened."""
    order: list[str] = []
    signals: list[int] = []

    def executed(config: RunConfig) -> Record:
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
        with pytest.raises((SystemExit, launchers._Preempted)):
            launchers.job(OmegaConf.create({"unused": 1}))
        assert signal.getsignal(signal.SIGUSR2) is requeue
        assert signal.getsignal(signal.SIGTERM) is before[signal.SIGTERM]
        return list(order)

    monkeypatch.setattr(launchers, "execute", executed)
    monkeypatch.setattr(launchers, "to_run_config", lambda composed: two[0])
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, requeue)
    yield called
    for signum, handler in before.items():
        signal.signal(signum, handler)
