"""Other load against known answers: a process that spins outside our tree is one core, our own work is none."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bench.worker import device
from bench.worker.instruments.clock import CpuSeconds, Load, open_load, other_gpu_processes, read_cpu_seconds
from bench.worker.instruments.energy import Nvml

SPIN = "import time; end = time.monotonic() + {seconds}; print('on', flush=True)\nwhile time.monotonic() < end: pass"

pytestmark = pytest.mark.alone


def others_seconds() -> dict[int, float]:
    """The CPU time of every process but ours and our descendants, by process."""
    this = psutil.Process()
    own = {this.pid, *(child.pid for child in this.children(recursive=True))}
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return {pid: seconds for pid, seconds in found.items() if pid not in own}


def measured_and_counted(work: Callable[[], object]) -> tuple[float, float]:
    """Cores used by others meanwhile: by the instrument, and counted process by process.

    The closest of some windows: of processes that come and go within one the count knows nothing.
    """
    windows = []
    for _ in range(6):
        before, load, started = others_seconds(), open_load("cpu"), time.monotonic()
        work()
        cores, seconds, after = load.read().cpu_cores, time.monotonic() - started, others_seconds()
        windows.append((cores, sum(used - before.get(pid, 0) for pid, used in after.items()) / seconds))
        if abs(windows[-1][0] - windows[-1][1]) < 0.05:
            break
    return min(windows, key=lambda window: abs(window[0] - window[1]))


def spin(seconds: float = 0.7) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def child(seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SPIN.format(seconds=seconds)], stdout=subprocess.DEVNULL)


def children_that_ended() -> None:
    child(0.6).wait()


def children_at_work() -> None:
    """One still works when it is looked at; it is ended before the next window."""
    for process in LEFT:
        process.kill()
        process.wait()
    LEFT[:] = [child(20)]
    time.sleep(0.8)


LEFT: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def end_children() -> Iterator[None]:
    yield
    while LEFT:
        process = LEFT.pop()
        process.kill()
        process.wait()


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


def test_it_measures_what_the_others_use() -> None:
    """About nothing on an idle machine, and right on one that is not."""
    measured, counted = measured_and_counted(lambda: time.sleep(0.5))
    assert measured == pytest.approx(counted, abs=0.1)


def test_a_stranger_that_spins_is_counted(stranger: psutil.Process) -> None:
    before, started = stranger.cpu_times().user, time.monotonic()
    measured, counted = measured_and_counted(lambda: time.sleep(1))
    used = (stranger.cpu_times().user - before) / (time.monotonic() - started)
    assert used > 0.3  # a whole core, where the machine has one to spare
    assert measured > used - 0.15
    assert measured == pytest.approx(counted, abs=0.1)


@pytest.mark.parametrize("work", [spin, children_at_work, children_that_ended])
def test_our_own_work_is_not_other_load(work: Callable[[], None]) -> None:
    """We keep a core busy; it is not in the sum."""
    measured, counted = measured_and_counted(work)
    assert measured == pytest.approx(counted, abs=0.15)


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


def test_processors_are_named_as_the_kernel_does(tmp_path: Path) -> None:
    assert device.ranges([0, 1, 2, 5, 8, 7]) == "0-2,5,7-8"
    assert device.ranges([]) == ""
    for number, word in enumerate(("powersave", "performance")):
        folder = tmp_path / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(word + "\n")
    assert device.governor([0, 1, 2], tmp_path) == "performance/powersave"
    assert device.governor([0], tmp_path) == "powersave"
    assert device.governor([2], tmp_path) is None
