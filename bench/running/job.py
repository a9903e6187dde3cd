"""What a launcher carries to where a run runs: the checked plan, and how to stop when the machine is wanted back.

>>> Job({run_id(config): config})(OmegaConf.create({"run": run_id(config)}))  # what a launcher does, elsewhere
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType

from omegaconf import DictConfig

from bench.running import provenance
from bench.running.execute import execute
from bench.running.gpus import own_gpus
from bench.running.tracking import track
from bench.spec.config import RunConfig


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
    """At Slurm's warning stop the stage, which may write a checkpoint, and only then let submitit requeue the job.

    The other way round Slurm, asked to requeue, would kill the stage at its work.
    """
    requeue = signal.getsignal(signal.SIGUSR2)
    if not callable(requeue):  # no job of submitit's
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # one warning is enough
        raise _Preempted

    signal.signal(signal.SIGUSR2, stop)
    try:
        yield
    except _Preempted:
        requeue(signal.SIGUSR2, None)  # ends this process
        raise
    finally:
        signal.signal(signal.SIGUSR2, requeue)
