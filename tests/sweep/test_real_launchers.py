"""Sweeps by the launchers' local forms: real plugins and processes, the tiny random model, few stages left to do."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from in_process import in_process

from bench.cli import main
from bench.compose import compose
from bench.config import RunConfig
from bench.identity import run_folder
from bench.outcome import Status
from bench.sweep import execute, launchers
from bench.sweep.console import Console
from bench.sweep.execute import read_record

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
METHODS = "method=base,lora,qlora"
NODE = platform.node().partition(".")[0]  # this machine, as Slurm calls it


def needs(plugin: str, extra: str) -> None:
    if not (importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(f"hydra_plugins.{plugin}")):
        pytest.skip(f'needs {plugin.replace("_", "-")}: pip install -e ".[{extra}]"')


def needs_slurm() -> None:
    if not shutil.which("sbatch") or not shutil.which("sacct"):
        pytest.skip("needs Slurm: no sbatch or sacct here")
    state = ["sinfo", "--noheader", "--responding", f"--nodes={NODE}", "--format=%T"]
    said = subprocess.run(state, capture_output=True, text=True, timeout=60, check=False).stdout
    if not said or "down" in said or "drain" in said:
        pytest.skip(f"needs Slurm: no controller answers, or {NODE} is no node of it that is up")


def sweep(overrides: list[str], *launcher: str) -> list[str]:
    return [sys.executable, "-m", "bench", "-m", METHODS, *overrides, *launcher]


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_complete(configs: list[RunConfig], said: str) -> None:
    """Every run is ok and reported, on one stream; its record knows the command that sent it."""
    records = [read_record(run_folder(config)) for config in configs]
    assert [record.status for record in records if record] == [Status.OK] * 3
    assert len({record.train.data_stream_sha256 for record in records if record.train}) == 1
    assert all(record.provenance["command"].startswith("python -m bench -m method=") for record in records)
    report = (run_folder(configs[0]).parent / "report.md").read_text()
    assert all(config.method.name in report for config in configs)
    assert all(f"OK       {run_folder(config).name}" in said for config in configs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """(overrides, results folder) of a sweep's stages, made in this process: a child takes longer than a stage."""
    base = tmp_path_factory.mktemp("finished")
    rows = "".join(f'{{"question": "{a} + {b} = ?", "answer": "{a + b}"}}\n' for a in range(8) for b in range(5))
    (base / "sums.jsonl").write_text(rows)
    overrides = ["experiment=smoke", "task=jsonl", f"task.train_file={base / 'sums.jsonl'}", "hardware.threads=1"]
    overrides += ["task.prompt={question}", "task.target={answer}", "task.metrics=[numeric]", "task.max_new_tokens=8"]
    overrides += ["task.validation_examples=4", "task.test_examples=4"]
    overrides += [f"paths.{name}={base / name}" for name in ("cache", "artifacts")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "run_stage", in_process)
        for config in compose([METHODS, *overrides, f"paths.results={base / 'results'}"], multirun=True):
            execute.execute(config)
    return overrides, base / "results"


@pytest.fixture
def sweep_to_do(finished: tuple[list[str], Path], tmp_path: Path) -> tuple[list[str], list[RunConfig]]:
    """(overrides, configs) of the same sweep elsewhere: no run has a record, and one has yet to be evaluated."""
    overrides, results = finished
    shutil.copytree(results, tmp_path / "results", ignore=shutil.ignore_patterns("record.json"))
    overrides = [*overrides, f"paths.results={tmp_path / 'results'}"]
    configs = compose([METHODS, *overrides], multirun=True)
    (run_folder(configs[1]) / "evaluate.json").unlink()
    return overrides, configs


def test_joblib(sweep_to_do, capfd) -> None:
    needs("hydra_joblib_launcher", "launchers")
    overrides, configs = sweep_to_do
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert_complete(configs, run(sweep(overrides, *joblib)))
    assert main(["-m", METHODS, *overrides, *joblib]) == 0
    assert "nothing to do" in capfd.readouterr().out


def test_submitit_and_a_preempted_job_that_goes_on(sweep_to_do, tmp_path: Path) -> None:
    needs("hydra_submitit_launcher", "launchers")
    overrides, configs = sweep_to_do
    parent = subprocess.Popen(
        sweep(overrides, "hydra/launcher=submitit_local"), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    child = pid_of(f"bench.worker\0{run_folder(configs[1])}\0evaluate", parent)
    job = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(job, signal.SIGUSR2)  # as Slurm warns of a preemption
    said = parent.communicate(timeout=300)[0]
    assert parent.returncode == 0, said
    assert_complete(configs, said)
    logs = "".join(path.read_text() for path in (tmp_path / "results").rglob("*_log.*"))
    assert "this job is preempted" in logs
    assert "Requeued job" in logs


def test_slurm(sweep_to_do) -> None:
    needs("hydra_submitit_launcher", "launchers")
    needs_slurm()
    overrides, configs = sweep_to_do
    small = [f"hydra.launcher.{value}" for value in ("gpus_per_node=0", "cpus_per_task=1", "mem_gb=4")]
    here = f"+hydra.launcher.additional_parameters.nodelist={NODE}"  # which has the temporary folder
    said = run(sweep(overrides, "hydra/launcher=slurm", *small, here))
    assert_complete(configs, said)
    assert "nothing to do" in run(sweep(overrides, "hydra/launcher=slurm"))


def test_ray(sweep_to_do) -> None:
    needs("hydra_ray_launcher", "ray")
    overrides, configs = sweep_to_do
    ray = ("hydra/launcher=ray", "hydra.launcher.ray.remote.num_gpus=0")
    assert_complete(configs, run(sweep(overrides, *ray)))


def pid_of(command: str, parent: subprocess.Popen) -> int:
    """The process id of a command, once it runs."""
    for _ in range(1200):
        assert parent.poll() is None, "the sweep ended before the stage began"
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if command.encode() in entry.read_bytes():
                    return int(entry.parent.name)
            except OSError:
                continue
        time.sleep(0.1)
    raise AssertionError(f"no process {command!r}")


STUBS = {
    "sbatch": 'cp "$1" {folder}/script.sh; echo "Submitted batch job 17"',
    "srun": "exit 0",
    "sacct": 'printf "JobID|State|NodeList\\n17_0|NODE_FAIL|n1\\n17_1|CANCELLED by 0|n2\\n17_2|NODE_FAIL|n1\\n"',
}


def test_lost_slurm_jobs_are_told_by_the_real_plugin(sweep_to_do, tmp_path: Path, monkeypatch, capfd) -> None:
    """submitit's own code against a scheduler whose every node fails at once."""
    needs("hydra_submitit_launcher", "launchers")
    _, configs = sweep_to_do
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in STUBS.items():
        (commands / name).write_text(f"#!/bin/sh\n{body.format(folder=tmp_path)}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(launchers, "SILENT_SECONDS", 0.5)
    lost = launchers.send(configs, ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], Console())
    assert lost == configs
    assert "17_0" in capfd.readouterr().err
    script = (tmp_path / "script.sh").read_text()
    for line in ("--requeue", "--gpus-per-node=1", "--partition=gpu", "--signal=USR2@180", "--time=1440"):
        assert f"#SBATCH {line}\n" in script
    assert "--array=0-2%3" in script
