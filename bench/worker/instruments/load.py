"""What else ran on the machine while we measured: cores used by others, time stolen by the hypervisor, GPU neighbours.

Two readings, at the start and at the end, and none in between: measuring costs nothing while something is measured.
The load average is no such measure, because it counts the run itself.

    >>> load = open_load("cpu")
    >>> load.start(); train(); load.read()
    OtherLoad(cpu_cores=0.02, stolen_cores=0.0, gpu_processes=None, load_average_1min=1.9)

CPU (Linux): of the processors that this process may use, the busy time in /proc/stat (user, nice and system;
interrupts belong to nobody), less the CPU time of this process and all its descendants, by the wall time. CUDA: other
processes that compute on the device by NVML. Of several processes that train together, what started them counts as
`this process`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.worker.instruments.nvml import open_nvml


@dataclass(frozen=True)
class OtherLoad:
    """What others did between two moments; None where it cannot be known."""

    cpu_cores: float | None = None  # processors kept busy by other processes, on average
    stolen_cores: float | None = None  # processors' worth of time that a hypervisor gave to other machines
    gpu_processes: int | None = None  # others that held the device at the start or at the end
    load_average_1min: float | None = None  # at the start: of the minute before it


@dataclass(frozen=True)
class CpuSeconds:
    """Time since boot, in seconds of one processor."""

    busy: float  # of the processors that this process may use
    stolen: float  # of the same
    own: float  # of this process and its descendants


class Load:
    """Other load between `start` and `read`."""

    def __init__(
        self,
        cpu: Callable[[], CpuSeconds | None] = lambda: None,
        gpu: Callable[[], int | None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ):
        self._cpu, self._gpu, self._now = cpu, gpu, now
        self.start()

    def start(self) -> None:
        self._gpu_at_start = self._gpu()
        self._load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._cpu_at_start, self._started = self._cpu(), self._now()

    def read(self) -> OtherLoad:
        """Since `start`; may be read several times."""
        seconds, after, before = self._now() - self._started, self._cpu(), self._cpu_at_start
        neighbours = [count for count in (self._gpu_at_start, self._gpu()) if count is not None]
        gpu_processes = max(neighbours, default=None)
        if before is None or after is None or seconds <= 0:
            return OtherLoad(gpu_processes=gpu_processes, load_average_1min=self._load_average)
        others = (after.busy - before.busy) - (after.own - before.own)
        return OtherLoad(
            cpu_cores=max(0.0, others) / seconds,  # ticks of 10 ms: a few of them may be missing
            stolen_cores=max(0.0, after.stolen - before.stolen) / seconds,
            gpu_processes=gpu_processes,
            load_average_1min=self._load_average,
        )


def open_load(device: str, own: int | None = None) -> Load:
    """The instrument for a device type, "cpu" or "cuda", already started.

    Args:
        own: the process that, with its descendants, is not others; None: this one.
    """
    own = own or os.getpid()
    return Load(lambda: read_cpu_seconds(own=own), _gpu_reading(own) if device == "cuda" else lambda: None)


def read_cpu_seconds(stat: Path = Path("/proc/stat"), own: int | None = None) -> CpuSeconds | None:
    """The time used until now; None where there is no /proc/stat."""
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    try:
        allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in stat.read_text().splitlines()]
    except (OSError, AttributeError):
        return None
    ticks = [[int(field) for field in fields] for name, *fields in lines if name in allowed]
    if not ticks:
        return None
    user, nice, system, steal = 0, 1, 2, 7  # proc_stat(5); `user` and `nice` hold the guests' time already
    busy = sum(row[user] + row[nice] + row[system] for row in ticks)
    stolen = sum(row[steal] for row in ticks)
    return CpuSeconds(busy / ticks_per_second, stolen / ticks_per_second, _own_seconds(own))


def _own_seconds(own: int | None) -> float:
    """Of a process (None: this one), of its living descendants (compile workers), and of those that ended before."""
    this = psutil.Process(own)
    total = 0.0
    for process in [this, *this.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # ended since it was listed
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def other_gpu_processes(running: Collection[int] | None, own: Collection[int]) -> int | None:
    """How many processes compute on the device besides ours, which holds it too; None where NVML cannot tell.

    In a container NVML may name processes by ids that mean nothing inside; then one of those listed is taken for ours.
    """
    if not running:
        return None  # not even ours: the list is hidden
    others = set(running) - set(own)
    return len(others) if len(others) < len(running) else len(running) - 1


def _gpu_reading(own: int) -> Callable[[], int | None]:
    nvml = open_nvml()

    def count() -> int | None:
        ours = {own, *(child.pid for child in psutil.Process(own).children(recursive=True))}
        return other_gpu_processes(nvml.process_ids(), ours) if nvml else None

    return count
