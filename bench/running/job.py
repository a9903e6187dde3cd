"""What a launcher carries to where a run runs: the checked plan, and how to stop when the machine is wanted back.

>>> Job({run_id(config): config})(OmegaConf.create({"run": run_id(config)}))  # what a launcher does, elsewhere
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType

from omegaconf import DictConfig

from bench.running import provenance
from bench.running.execute import execute
from bench.running.gpus import own_gpus
from bench.running.tracking import track
from bench.spec.config import RunConfig

TERM_SECONDS = 600.0  # between SIGTERM and what follows: SIGKILL or, on some clusters, SIGUSR2
POLL_SECONDS = 0.2


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
            time.sleep(POLL_SECONDS)
        if signal.SIGUSR2 in asked:
            requeue(signal.SIGUSR2, None)  # ends this process
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
