"""Wall time by name, the timing of optimizer steps, and what else ran on the machine meanwhile.

A span is timed where it happens and never computed by subtracting others: what is in no span is overhead, and
shows as such. The device is synchronized at both edges of everything timed.

    >>> clock = Clock()
    >>> with clock.span("load"):
    ...     load()
    >>> clock.read()
    {'load': 1.93}

Other load is read at the start and at the end only, so measuring costs nothing while something is measured. On a CPU
(Linux) it is the busy time in /proc/stat of the processors that this process may use (user, nice and system; interrupts
belong to nobody), less the CPU time of this process and its descendants, by the wall time. On CUDA it is the number of
other processes that compute on the device, by NVML. The load average is no such measure: it counts the run itself.

    >>> load = open_load("cpu")
    >>> load.start(); train(); load.read()
    OtherLoad(cpu_cores=0.02, stolen_cores=0.0, gpu_processes=None, load_average_1min=1.9)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from bench.worker.instruments.energy import open_nvml


@dataclass
class Clock:
    """Accumulates wall seconds by phase; an instrument.

    Attributes:
        synchronize: waits for the device's queued work; does nothing on a CPU.
        now: a monotonic clock in seconds, so that a changed system time cannot bend a measurement.
        spans_seconds: ended spans; may start with what was timed before the clock existed.
    """

    synchronize: Callable[[], None] = lambda: None
    now: Callable[[], float] = time.perf_counter
    spans_seconds: dict[str, float] = field(default_factory=dict)
    _phase: str | None = field(default=None, init=False)
    _since: float = field(default=0.0, init=False)

    def mark(self) -> float:
        """The time after all queued device work, seconds."""
        self.synchronize()
        return self.now()

    def enter(self, phase: str) -> None:
        self._update()
        self._phase = phase

    def stop(self) -> None:
        self._update()
        self._phase = None

    def read(self) -> dict[str, float]:
        self._update()
        return dict(self.spans_seconds)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Add the block's wall seconds to a name. It interrupts a span around it, so that spans add up."""
        outer = self._phase
        self.enter(name)
        try:
            yield
        finally:
            if outer is None:
                self.stop()
            else:
                self.enter(outer)

    def _update(self) -> None:
        at = self.mark()
        if self._phase is not None:
            self.spans_seconds[self._phase] = self.spans_seconds.get(self._phase, 0.0) + at - self._since
        self._since = at


def step_times(seconds: list[float], timed: list[bool], compiled: bool) -> dict[str, float | None]:
    """Percentiles over the timed steps, by the fields of `TrainResult`, in seconds; None when none was timed.

    `compile_seconds` is what the untimed steps took beyond the median of the timed ones: the price of `torch.compile`.
    """
    names = ("step_seconds_median", "step_seconds_p90", "step_seconds_p99", "compile_seconds")
    measured = [s for s, counts in zip(seconds, timed, strict=True) if counts]
    if not measured:
        return dict.fromkeys(names)
    median, p90, p99 = (float(q) for q in np.percentile(measured, [50, 90, 99]))
    excess = sum(s - median for s, counts in zip(seconds, timed, strict=True) if not counts)
    return dict(zip(names, (median, p90, p99, max(0.0, excess) if compiled else None), strict=True))


@dataclass(frozen=True)
class OtherLoad:
    """Load by others between two moments; None: unknown."""

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
    """The instrument for a type of device, already started.

    Args:
        own: the process that, with its descendants, is not others; None: this one.
    """
    this = psutil.Process(own or os.getpid())
    nvml = open_nvml() if device == "cuda" else None

    def gpu() -> int | None:
        ours = {this.pid, *(child.pid for child in this.children(recursive=True))}
        return other_gpu_processes(nvml.process_ids(), ours) if nvml else None

    return Load(lambda: read_cpu_seconds(own=this.pid), gpu if nvml else lambda: None)


def read_cpu_seconds(stat: Path = Path("/proc/stat"), own: int | None = None) -> CpuSeconds | None:
    """The time used until now; None without /proc/stat."""
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
    """CPU seconds of a process (None: this one) and its descendants (compile workers), ended ones included."""
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
