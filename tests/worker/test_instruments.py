"""Instruments against known answers: sleeps, spins, allocations of known size, and a fake CUDA device."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.worker.instruments.clock import Clock, step_times
from bench.worker.instruments.memory import CpuMeter, CudaMeter, Memory, breakdown, open_memory, total_bytes

MIB = 2**20


class FakeTime:
    """A clock that moves when told, and a device whose queued work takes time to finish."""

    def __init__(self) -> None:
        self.now_seconds = 0.0
        self.queued_seconds = 0.0

    def now(self) -> float:
        return self.now_seconds

    def synchronize(self) -> None:
        self.now_seconds += self.queued_seconds
        self.queued_seconds = 0.0


def test_a_span_waits_for_queued_device_work() -> None:
    fake = FakeTime()
    clock = Clock(fake.synchronize, fake.now)
    fake.queued_seconds = 5  # work of before: not this span's
    with clock.span("a"):
        fake.queued_seconds = 2  # launched inside, finished later
    assert clock.spans_seconds == {"a": 2}


def test_spans_add_up_and_survive_errors() -> None:
    fake = FakeTime()
    clock = Clock(fake.synchronize, fake.now)
    for seconds in (1, 2):
        with pytest.raises(KeyError), clock.span("a"):  # noqa: PT012
            fake.now_seconds += seconds
            raise KeyError
    assert clock.spans_seconds["a"] == 3


@pytest.mark.parametrize("how", ["sleep", "spin"])
def test_a_real_span_lasts_as_long_as_it_does(how: str) -> None:
    clock = Clock()
    with clock.span("x"):
        end = time.perf_counter() + 0.2
        if how == "sleep":
            time.sleep(0.2)
        else:
            while time.perf_counter() < end:
                pass
    assert 0.2 <= clock.spans_seconds["x"] < 0.25


def test_step_times_leave_the_warm_up_out() -> None:
    seconds = [30.0, 2.0, 2.0, *np.linspace(1, 2, 101)]
    times = step_times(seconds, untimed_steps=3, compiled=True)
    assert (times.median, times.p90, times.p99) == pytest.approx((1.5, 1.9, 1.99))
    assert times.compile == pytest.approx(34 - 3 * 1.5)
    assert step_times(seconds, 3, compiled=False).compile is None
    assert step_times([1.0, 1.0], untimed_steps=3, compiled=True).median is None


@pytest.mark.parametrize("mib", [64, 300])
def test_cpu_memory_sees_what_is_allocated_within_1_percent(mib: int) -> None:
    memory = Memory(CpuMeter())
    memory.enter("empty")
    memory.enter("full")
    block = np.ones(mib * MIB, dtype=np.uint8)
    del block
    empty, full = memory.close()
    assert full.peak_bytes - empty.peak_bytes == pytest.approx(mib * MIB, rel=0.01, abs=MIB)


def test_a_peak_belongs_to_its_phase() -> None:
    memory = Memory(CpuMeter())
    memory.enter("big")
    block = np.ones(200 * MIB, dtype=np.uint8)
    del block
    memory.enter("small")
    block = np.ones(20 * MIB, dtype=np.uint8)
    del block
    memory.enter("big")  # entered again with less: keeps the larger peak
    peaks = {p.phase: p for p in memory.close()}
    assert list(peaks) == ["big", "small"]
    assert peaks["big"].peak_bytes - peaks["small"].peak_bytes == pytest.approx(180 * MIB, rel=0.02)


class FakeCuda:
    """The calls of torch.cuda that the meter makes."""

    def __init__(self) -> None:
        self.allocated = self.peak = 0
        self.calls: list[str] = []

    def allocate(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def max_memory_allocated(self) -> int:
        return self.peak

    def max_memory_reserved(self) -> int:
        return self.peak + 2 * MIB

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)


def test_cuda_memory_by_phase_on_a_fake_device() -> None:
    import os

    cuda = FakeCuda()
    used = SimpleNamespace(pid=os.getpid(), usedGpuMemory=900 * MIB)
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlDeviceGetHandleByPciBusId=lambda bus: bus,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=1, usedGpuMemory=1), used],
    )
    memory = Memory(CudaMeter(cuda, nvml))
    memory.enter("load")
    cuda.allocate(300 * MIB)
    memory.enter("train")
    cuda.allocate(500 * MIB)
    cuda.allocate(-500 * MIB)
    load, train = memory.close()
    assert load.peak_bytes == 300 * MIB
    assert train.peak_bytes == 800 * MIB
    assert train.peak_reserved_bytes == 802 * MIB
    assert train.device_used_bytes == 900 * MIB
    assert "synchronize" in cuda.calls


def test_cuda_memory_without_nvml_says_unknown() -> None:
    memory = Memory(CudaMeter(FakeCuda(), nvml=None))
    memory.enter("load")
    assert memory.close()[0].device_used_bytes is None


def test_breakdown_sums_weights_gradients_and_adam_states() -> None:
    model = torch.nn.Linear(100, 10, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    parts = breakdown(model, optimizer)
    assert parts.weights_bytes == 4000
    assert parts.gradients_bytes == 4000
    assert parts.optimizer_bytes == pytest.approx(8000, abs=8)  # two moments and a step counter


def test_tied_weights_count_once() -> None:
    weight = torch.zeros(1000)
    assert total_bytes([weight, weight.view(10, 100)]) == 4000


@pytest.mark.gpu
def test_cuda_memory_on_a_real_device() -> None:
    memory = open_memory("cuda")
    memory.enter("train")
    block = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    del block
    (train,) = memory.close()
    assert train.peak_bytes == pytest.approx(256 * MIB, rel=0.01)
    assert train.peak_reserved_bytes >= train.peak_bytes
