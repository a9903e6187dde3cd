"""Run one stage in a child process of its own, and say how it ended.

Nothing passes between parent and child but files and an exit code: the child reads `plan.json`, appends what it
prints to `<stage>.log`, keeps `progress.json` current, and writes `<stage>.json` last. The parent sleeps. Where
`hardware.devices` train together, the child starts one process a device (`bench.worker.multi`) and ends as they do.

    >>> outcome = run_stage(folder, "train", timeout_seconds=3600)
    >>> outcome.status
    <Status.OK: 'ok'>
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from bench.mistakes import ConfigurationError
from bench.outcome import (
    EXIT_CONFIGURATION,
    EXIT_DIVERGED,
    EXIT_ERROR,
    EXIT_OK,
    EXIT_OOM,
    Failure,
    Stage,
    Status,
    next_step,
)
from bench.trust import fresh_file, masked

HEARTBEAT = "heartbeat"  # a file in the run's folder whose time shows that the run is at work
HEARTBEAT_SECONDS = 5
POLL_SECONDS = 0.5  # asleep in between: 0.3% of a core, measured
GRACE_SECONDS = 10  # between SIGTERM and SIGKILL
CHECKPOINT_GRACE_SECONDS = 120  # where SIGTERM lets training end its step and write a checkpoint
LOG_TAIL_CHARACTERS = 4000
WITHOUT_A_RUN: tuple[Stage, ...] = ("prepare", "fetch", "bundle", "check", "doctor", "export", "judge")
Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a stage ended; `failure` is None exactly when it is ok."""

    status: Status
    wall_seconds: float
    failure: Failure | None = None


def run_stage(folder: Path, stage: Stage, timeout_seconds: float, watch: Watch = lambda progress: None) -> Outcome:
    """Run `python -m bench.worker FOLDER STAGE` to its end.

    Args:
        watch: called about twice a second with the child's latest progress.

    Raises:
        ConfigurationError: a child outside of a run found mistakes in the user's data or settings. Found in a run, on a
            node without the device asked for, say, they are a failure of this run alone.
        KeyboardInterrupt: after the child has been stopped.
    """
    for stale in (f"{stage}.json", "error.json", "progress.json"):
        (folder / stale).unlink(missing_ok=True)
    devices = _read(folder / "plan.json").get("hardware", {}).get("devices", 1)
    seen = devices if stage in ("train", *WITHOUT_A_RUN) else 1
    oom_kills = _kernel_oom_kills()
    started = time.monotonic()
    with fresh_file(folder / f"{stage}.log") as log:
        child = _started(command(folder, stage, devices), seen, log)
        try:
            timed_out, resident_bytes = _wait(child, folder, started + timeout_seconds, watch)
        finally:
            (folder / HEARTBEAT).unlink(missing_ok=True)
            writes_checkpoints = _read(folder / "progress.json").get("checkpoint_step") is not None
            stop(child, CHECKPOINT_GRACE_SECONDS if writes_checkpoints else GRACE_SECONDS)
    wall_seconds = time.monotonic() - started
    code = child.returncode
    killed_by_kernel = code == -signal.SIGKILL and _kernel_oom_kills() > oom_kills
    status = _status(folder, stage, code, timed_out=timed_out, killed_by_kernel=killed_by_kernel)
    if code == EXIT_CONFIGURATION and stage in WITHOUT_A_RUN:
        raise ConfigurationError(_read(folder / "error.json").get("problems") or [_tail(folder, stage)])
    if status is Status.OK:
        return Outcome(status, wall_seconds)
    failure = _failure(folder, stage, status, code, timeout_seconds)
    if killed_by_kernel and resident_bytes:  # host memory ran out, whatever the device's instrument said last
        failure = replace(failure, last_known_peak_bytes=resident_bytes)
    return Outcome(status, wall_seconds, failure)


def _started(words: list[str], devices: int, log: BinaryIO) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": visible(os.environ.get("CUDA_VISIBLE_DEVICES"), devices)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        close_fds=False,  # it holds the locks of `execute.claim` too, and longer, should this process be killed
        start_new_session=True,  # Ctrl-C reaches the parent only, which then stops the child in order
    )


def command(folder: Path, stage: Stage, devices: int) -> list[str]:
    """What runs a stage; only training is shared by several devices."""
    if devices > 1 and stage == "train":
        return [sys.executable, "-m", "bench.worker.multi", str(devices), str(folder), stage]
    return [sys.executable, "-m", "bench.worker", str(folder), stage]


def visible(given: str | None, devices: int) -> str:
    """`CUDA_VISIBLE_DEVICES` for a run: as many as it asks for, the first of those that it may see.

    Others would be counted, in memory and energy, and used: transformers splits a batch over all that it sees.
    """
    if given is None:
        return ",".join(map(str, range(devices)))
    return ",".join(given.split(",")[:devices])


def _wait(child: subprocess.Popen[bytes], folder: Path, deadline: float, watch: Watch) -> tuple[bool, int | None]:
    """Sleep until the child ends or the deadline passes: (whether it passed, the most that was seen resident)."""
    resident_bytes, beat_at = None, 0.0
    while True:
        try:
            child.wait(POLL_SECONDS)
            return False, resident_bytes
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                return True, resident_bytes
            if time.monotonic() - beat_at > HEARTBEAT_SECONDS:
                beat_at = time.monotonic()
                with contextlib.suppress(OSError):  # a full disk
                    (folder / HEARTBEAT).touch()
            resident_bytes = max(resident_bytes or 0, _resident_peak_bytes(child.pid) or 0) or None
            if progress := _read(folder / "progress.json"):
                watch(progress)


def stop(child: subprocess.Popen[bytes], grace_seconds: float, first: signal.Signals = signal.SIGTERM) -> None:
    """End a child that leads a session of its own, and everything it started; one that has ended by itself is left."""
    for how in (first, signal.SIGKILL):
        if child.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # orphans of its process group, such as compile workers


def _status(folder: Path, stage: Stage, code: int, *, timed_out: bool, killed_by_kernel: bool) -> Status:
    if timed_out:
        return Status.TIMEOUT
    if code == EXIT_OK:
        return Status.OK if (folder / f"{stage}.json").exists() else Status.ERROR
    if code == EXIT_OOM or killed_by_kernel or _gave_up_on_memory(folder, stage, code):
        return Status.OOM
    if code == EXIT_DIVERGED:
        return Status.DIVERGED
    return Status.KILLED if code < 0 else Status.ERROR


def _gave_up_on_memory(folder: Path, stage: Stage, code: int) -> bool:
    """Whether compiled code ended the child itself: C++ and Rust abort, bitsandbytes exits, each with these words."""
    if code not in (-signal.SIGABRT, EXIT_ERROR) or (folder / "error.json").exists():
        return False
    end = _tail(folder, stage)
    return any(words in end for words in ("std::bad_alloc", "memory allocation of", "Error out of memory at line"))


def _failure(folder: Path, stage: Stage, status: Status, code: int, timeout_seconds: float) -> Failure:
    error, progress = _read(folder / "error.json"), _read(folder / "progress.json")
    if status is Status.TIMEOUT:
        message = f"still running after hardware.stage_timeout_seconds={timeout_seconds:g}"
    elif code < 0:
        message = f"ended by signal {-code} ({signal.Signals(-code).name})"
    elif code == EXIT_OK:
        message = f"exit code 0, but no {stage}.json"
    else:
        message = error.get("message") or f"exit code {code}: {_last_line(folder, stage)}"
    return Failure(
        stage=stage,
        phase=error.get("phase") or progress.get("phase"),
        message=masked(message),  # libraries may have put a token into it
        next_step=next_step(status, stage, message, progress.get("checkpoint_step")),
        exit_code=code,
        log_tail=masked(_tail(folder, stage)),
        last_known_peak_bytes=error.get("peak_bytes") or progress.get("peak_bytes"),
        step=error.get("step"),
    )


def _read(path: Path) -> dict[str, Any]:
    """A small JSON file of the child; empty while it is missing or torn."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    except (FileNotFoundError, ValueError):
        return {}


def _tail(folder: Path, stage: Stage) -> str:
    return (folder / f"{stage}.log").read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]


def _last_line(folder: Path, stage: Stage) -> str:
    return (_tail(folder, stage).strip() or "nothing in its log").splitlines()[-1]


def _resident_peak_bytes(pid: int) -> int | None:
    """The peak resident set of a process since it last reset it; None where /proc tells none.

    Of one that started others to train together: the most of any of them.
    """
    peaks: list[int] = []
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peaks += [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():  # of its main thread
            peaks.append(_resident_peak_bytes(int(child)) or 0)
    return max(peaks, default=None)


def _kernel_oom_kills() -> int:
    """How many processes the kernel's out-of-memory killer has ended since boot (Linux 4.13+; else 0)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
