"""Other load against known answers: a process that spins outside our tree is counted, our own work is not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bench.worker.instruments.clock import CpuSeconds, Load, open_load, other_gpu_processes, read_cpu_seconds
from bench.worker.instruments.energy import Nvml

SPIN = "import time; end = time.monotonic() + {seconds}; print('on', flush=True)\nwhile time.monotonic() < end: pass"


@pytest.fixture
def stranger() -> Iterator[psutil.Process]:
    """A process that spins and is no descendant: its parent is gone."""
    spin = SPIN.format(seconds=20)
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {spin!r}]).pid, flush=True)"
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    first, second = started.stdout.readline(), started.stdout.readline()
    process = psutil.Process(int(first.strip() if first != b"on\n" else second))
    started.wait()
    yield process
    process.kill()
    started.stdout.close()


def test_a_stranger_that_spins_is_counted_and_our_own_work_is_not(stranger: psutil.Process) -> None:
    load, before = open_load("cpu"), stranger.cpu_times().user
    started, own = time.monotonic(), time.process_time()
    while time.monotonic() - started < 1:
        pass
    seconds, own = time.monotonic() - started, time.process_time() - own
    used = (stranger.cpu_times().user - before) / seconds
    cores = load.read().cpu_cores
    assert own > 0.1  # we were busy, too
    assert used - 0.15 < cores < psutil.cpu_count() - own / seconds + 0.15


def made_up(*readings: CpuSeconds | None, gpu: tuple[int | None, ...] = (None, None), seconds: float = 10.0) -> Load:
    """An instrument that reads what it is told, `seconds` apart."""
    cpu, neighbours, times = iter(readings), iter(gpu), iter((100.0, 100.0 + seconds))
    return Load(lambda: next(cpu), lambda: next(neighbours), lambda: next(times))


def test_what_others_used_is_the_busy_time_less_our_own() -> None:
    other = made_up(CpuSeconds(50, 1, 20), CpuSeconds(75, 3, 40)).read()
    assert (other.cpu_cores, other.stolen_cores) == (0.5, 0.2)  # (25 - 20) / 10 and 2 / 10


def test_a_tick_too_few_is_not_less_than_nothing() -> None:
    assert made_up(CpuSeconds(50, 0, 20), CpuSeconds(69.99, 0, 40)).read().cpu_cores == 0


def test_unknown_is_none() -> None:
    other = made_up(None, None).read()
    assert (other.cpu_cores, other.stolen_cores, other.gpu_processes) == (None, None, None)
    assert read_cpu_seconds(Path("/nowhere")) is None


def test_the_most_neighbours_count() -> None:
    assert made_up(None, None, gpu=(2, 0)).read().gpu_processes == 2
    assert made_up(None, None, gpu=(None, 1)).read().gpu_processes == 1


def test_only_our_processors_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    row = "{name} 100 20 30 900 5 7 9 {steal} 0 0"
    lines = [row.format(name=name, steal=steal) for name, steal in (("cpu", 9), ("cpu0", 4), ("cpu1", 5), ("cpu10", 6))]
    stat.write_text("\n".join([*lines, "intr 1 2 3"]) + "\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {1})
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    reading = read_cpu_seconds(stat)
    assert reading is not None
    assert (reading.busy, reading.stolen) == (1.5, 0.05)


class Library:
    """pynvml with some processes on each of two devices; None: it refuses."""

    class NVMLError(Exception):
        pass

    def __init__(self, *pids: set[int] | None):
        self._pids = pids

    def nvmlDeviceGetHandleByPciBusId(self, bus: str) -> int:  # noqa: N802
        return int(bus.split(":")[1])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802
        if (found := self._pids[handle]) is None:
            raise self.NVMLError
        return [SimpleNamespace(pid=pid) for pid in found]


class Cuda:
    """torch.cuda with two devices."""

    def device_count(self) -> int:
        return 2

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(pci_domain_id=0, pci_bus_id=index, pci_device_id=0)


@pytest.mark.parametrize(
    ("pids", "expected"),
    [
        (({10}, set()), 0),
        (({10, 11}, {10}), 0),  # 11 is our child
        (({10, 70}, {71}), 2),
        (({70}, set()), 0),  # a container: ours by another id
        (({70, 71}, {70}), 1),
        ((set(), set()), None),  # hidden
        (({10}, None), None),
    ],
)
def test_neighbours_on_the_gpu(pids: tuple[set[int] | None, ...], expected: int | None) -> None:
    assert other_gpu_processes(Nvml(Library(*pids), Cuda()).process_ids(), {10, 11}) == expected
