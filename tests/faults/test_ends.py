"""A child or a whole sweep that is ended from outside: time-outs, signals, Ctrl-C, a dead parent."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import (
    EXECUTE,
    FIRST_TRAINING_FORWARD,
    ROOT,
    SECOND_STEP_FORWARD,
    Fault,
    Place,
    after_training,
    environment,
    files_of,
    how,
    steps_written,
)

from bench.outcome import Status
from bench.record import Record, to_json

pytestmark = pytest.mark.slow

HANG_IN_TRAINING = Fault("hang", "forward", FIRST_TRAINING_FORWARD)


def killed_in_training(finished: Place, base: Path) -> tuple[Place, Record]:
    where = finished.copy(base)
    return where, where.execute("method=full", fault=Fault("kill", "forward", SECOND_STEP_FORWARD))


def preempted(finished: Place, base: Path) -> tuple[Place, Record, Record]:
    """The run as it was stopped, and after the same command again."""
    where, command = finished.copy(base), ("method=full", "train.checkpoint_every_steps=100")
    stopped = where.execute(*command, fault=Fault("term", "forward", SECOND_STEP_FORWARD))
    return where, stopped, where.execute(*command)


def terminated_in_evaluation(finished: Place, base: Path) -> Record:
    return after_training(finished, base).execute("method=lora", fault=Fault("term"))


def timeout(finished: Place, base: Path) -> Record:
    where, limit = after_training(finished, base), "hardware.stage_timeout_seconds=3"
    return where.execute("method=lora", limit, fault=Fault("hang", "start"))


def parent_killed(finished: Place, base: Path) -> tuple[Place, bool]:
    """Whether the child outlived its parent."""
    where = finished.copy(base)
    plan = base / "plan.json"
    plan.write_text(to_json(where.config("method=full")))
    parent = subprocess.Popen([sys.executable, "-c", EXECUTE, plan], cwd=ROOT, env=HANG_IN_TRAINING.environment())
    child = child_in_training(where, parent, phase="train")
    parent.kill()
    parent.wait()
    return where, not ends(child)


def parent_killed_in_a_step(finished: Place, base: Path) -> tuple[Place, Record]:
    """With checkpoints the child ends its step, and the same command comes meanwhile."""
    where, command = finished.copy(base), ("method=full", "train.checkpoint_every_steps=100")
    plan, fault = base / "plan.json", Fault("orphan", "forward", SECOND_STEP_FORWARD)
    plan.write_text(to_json(where.config(*command)))
    killed = subprocess.run([sys.executable, "-c", EXECUTE, plan], cwd=ROOT, env=fault.environment())
    assert killed.returncode == -signal.SIGKILL
    return where, where.execute(*command)


def ctrl_c(finished: Place, base: Path) -> tuple[Place, int, str, bool]:
    """Exit code, messages, and whether the child outlived the sweep."""
    where = finished.copy(base)
    command = where.sweep("method=lora,full")
    with (base / "errors").open("w") as errors:
        sweep = subprocess.Popen(command, cwd=ROOT, env=environment(None), stdout=subprocess.DEVNULL, stderr=errors)
    child = child_in_training(where, sweep, phase="start")
    sweep.send_signal(signal.SIGINT)
    sweep.wait(60)
    return where, sweep.returncode, (base / "errors").read_text(), not ends(child)


CASES: dict[str, Callable[[Place, Path], object]] = {
    "timeout": timeout,
    "SIGKILL": killed_in_training,
    "preempted": preempted,
    "SIGTERM": terminated_in_evaluation,
    "parent": parent_killed,
    "orphan": parent_killed_in_a_step,
    "ctrl-c": ctrl_c,
}


def test_a_timeout_is_a_result(cases, finished, shows) -> None:
    record = cases("timeout")
    assert record.status is Status.TIMEOUT
    assert "stage_timeout_seconds=3" in record.failure.message
    assert record.failure.phase == "start"
    injected = "the child hangs, `hardware.stage_timeout_seconds=3`"
    shows("a stage takes too long", injected, how(record), training_survives(record, finished))


def test_a_kill_in_training_keeps_the_steps_until_then(cases, finished, shows) -> None:
    where, record = cases("SIGKILL")
    assert record.status is Status.KILLED
    assert "SIGKILL" in record.failure.message
    assert record.failure.phase == "train"
    assert record.failure.last_known_peak_bytes > 100 << 20
    assert steps_written(where.folder("method=full")) == 1
    assert files_of(where.folder("method=lora")) == files_of(finished.folder("method=lora"))
    injected = "the child sends it to itself in its second step"
    shows("SIGKILL", injected, how(record), "the other run; the step measured until then; the peak memory")


def test_a_preempted_run_goes_on_from_its_checkpoint(cases, finished, shows) -> None:
    where, stopped, again = cases("preempted")
    assert stopped.status is Status.KILLED
    assert "SIGTERM" in stopped.failure.message
    assert stopped.failure.next_step.endswith("The same command resumes from step 2.")
    assert again.status is Status.OK
    assert (again.train.resumed_at_steps, again.train.steps) == ([2], 4)
    assert steps_written(where.folder("method=full")) == 4
    assert again.train.data_stream_sha256 == finished.record("method=lora").train.data_stream_sha256
    injected = "`train.checkpoint_every_steps=100`; the child sends SIGTERM to itself in its second step"
    survived = "both steps, in a checkpoint; the same command goes on from it and ends `ok`"
    shows("preempted in training", injected, how(stopped), survived)


def test_a_signal_in_evaluation_keeps_what_was_trained(cases, finished, shows) -> None:
    """Other signals are told apart in tests/sweep/test_child.py."""
    record = cases("SIGTERM")
    assert record.status is Status.KILLED
    assert "SIGTERM" in record.failure.message
    shows("SIGTERM", "the child sends it to itself", how(record), training_survives(record, finished))


def test_no_child_outlives_a_killed_parent(cases, finished, shows) -> None:
    where, outlived = cases("parent")
    assert not outlived
    folder = where.folder("method=full")
    assert not (folder / "record.json").exists()
    with (folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds the run
    assert files_of(where.folder("method=lora")) == files_of(finished.folder("method=lora"))
    injected = "SIGKILL to the parent while its child trains"
    shows("the sweep is killed", injected, "no record; the child ends too, the run is free", "the other run")


def test_a_child_that_ends_its_step_holds_the_run_until_then(cases, shows) -> None:
    where, record = cases("orphan")
    assert record.status is Status.OK
    steps = [
        json.loads(line)["step"] for line in (where.folder("method=full") / "steps.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, record.train.steps + 1))
    assert record.train.resumed_at_steps == [2]  # the checkpoint that the orphan left was waited for
    injected = "SIGKILL to the parent in its child's second step, checkpoints on, and the same command at once"
    shows("the sweep is killed in a step", injected, how(record), "the steps until then; none is written twice")


def test_ctrl_c_stops_cleanly(cases, finished, shows) -> None:
    where, code, errors, outlived = cases("ctrl-c")
    assert code == 130
    assert "runs only what is missing" in errors
    assert "Traceback" not in errors
    assert not outlived
    assert not (where.folder("method=full") / "record.json").exists()
    assert files_of(where.folder("method=lora")) == files_of(finished.folder("method=lora"))
    shows("Ctrl-C", "SIGINT to the sweep while its child starts to train", "exit code 130, no record", "the other run")


def training_survives(record: Record, finished: Place) -> str:
    assert record.reused_stages == ["train"]
    assert record.train == finished.record("method=lora").train
    return "the training stage and its weights"


def child_in_training(where: Place, parent: subprocess.Popen, phase: str) -> int:
    """The process id of the training child, once it has announced a phase."""
    folder = where.folder("method=full")
    needle = f"bench.worker\0{folder}\0train".encode()
    for _ in range(1200):
        assert parent.poll() is None, "the parent ended first"
        time.sleep(0.1)
        try:
            progress = json.loads((folder / "progress.json").read_text())
            if (progress["stage"], progress["phase"]) != ("train", phase):
                continue
        except FileNotFoundError:
            continue
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if needle in entry.read_bytes():
                    return int(entry.parent.name)
            except OSError:
                continue
    parent.kill()
    raise AssertionError("no child in training")


def ends(pid: int) -> bool:
    """Whether a process is gone, or waits to be reaped, within ten seconds."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False
