"""The instruments' contract, and each against known answers: sleeps, known allocations, fake devices and counters."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytest
import torch

from bench.compose import compose
from bench.config import RunConfig
from bench.planner.time import LinearCosts, needed_flops
from bench.record import PhaseMemory
from bench.worker import methods, models
from bench.worker.device import Device
from bench.worker.instruments.clock import Clock, step_times
from bench.worker.instruments.energy import Energy, Nvml, Rapl, open_energy
from bench.worker.instruments.memory import AcceleratorMeter, CpuMeter, Memory, breakdown, open_memory, total_bytes
from bench.worker.instruments.tokens import TokenStream, linear_costs, matmul_peak_flops_per_second
from bench.worker.main import Context, Progress


@runtime_checkable
class Instrument(Protocol):
    """The calls of every instrument: `bench.worker.instruments` says what each means."""

    def enter(self, phase: str) -> None: ...

    def stop(self) -> None: ...

    def read(self) -> dict[str, Any]: ...


class FakeMeter:
    """Memory that is held only for a moment."""

    def __init__(self) -> None:
        self.peak = 0

    def release(self) -> None: ...

    def reset_peak(self) -> None:
        self.peak = 0

    def now(self) -> tuple[int, int]:
        return 0, self.peak

    def read(self, phase: str) -> PhaseMemory:
        return PhaseMemory(phase, self.peak, None)


@dataclass
class Case:
    """An instrument, what feeds it an amount, and the amount in a reading."""

    instrument: Instrument
    stimulate: Callable[[int], None]
    amount: Callable[[Any], float]
    adds_up: bool  # else the larger of two entries is kept


def clock() -> Case:
    seconds = [0.0]
    clock = Clock(now=lambda: seconds[0])
    return Case(clock, lambda n: seconds.__setitem__(0, seconds[0] + n), float, adds_up=True)


def memory() -> Case:
    meter = FakeMeter()
    return Case(Memory(meter), lambda n: setattr(meter, "peak", max(meter.peak, n)), lambda r: r.peak_bytes, False)


def tokens() -> Case:
    stream = TokenStream()

    def stimulate(n: int) -> None:
        row = torch.ones(1, n, dtype=torch.long)
        stream.consume(row, row, row)

    return Case(stream, stimulate, lambda r: r.tokens, adds_up=True)


def energy() -> Case:
    joules = [100.0]
    energy = Energy(lambda: joules[0])
    return Case(energy, lambda n: joules.__setitem__(0, joules[0] + 3600 * n), float, adds_up=True)


@pytest.fixture(params=[clock, memory, tokens, energy], ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param()


def amounts(case: Case) -> dict[str, float]:
    return {phase: case.amount(reading) for phase, reading in case.instrument.read().items()}


def test_it_has_the_shape(case: Case) -> None:
    assert isinstance(case.instrument, Instrument)


def test_each_phase_gets_what_happened_in_it(case: Case) -> None:
    case.instrument.enter("a")
    case.stimulate(5)
    case.instrument.enter("b")
    case.stimulate(2)
    assert amounts(case) == {"a": 5, "b": 2}
    assert list(case.instrument.read()) == ["a", "b"]


def test_nothing_is_measured_before_the_first_phase_and_after_the_stop(case: Case) -> None:
    assert case.instrument.read() == {}
    case.stimulate(7)
    case.instrument.stop()
    case.instrument.enter("a")
    case.stimulate(3)
    case.instrument.stop()
    case.stimulate(9)
    assert amounts(case) == {"a": 3}


def test_a_phase_entered_again_goes_on(case: Case) -> None:
    for phase, amount in (("a", 4), ("b", 1), ("a", 3)):
        case.instrument.enter(phase)
        case.stimulate(amount)
    assert amounts(case) == {"a": 7 if case.adds_up else 4, "b": 1}
    assert list(case.instrument.read()) == ["a", "b"]


def test_reading_disturbs_nothing(case: Case) -> None:
    case.instrument.enter("a")
    case.stimulate(2)
    first = case.instrument.read()
    first.clear()
    assert amounts(case) == {"a": 2}
    case.stimulate(4)
    assert amounts(case) == {"a": 6 if case.adds_up else 4}


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
    assert clock.read() == {"a": 2}


def test_spans_add_up_and_survive_errors() -> None:
    fake = FakeTime()
    clock = Clock(fake.synchronize, fake.now)
    for seconds in (1, 2):
        with pytest.raises(KeyError), clock.span("a"):  # noqa: PT012
            fake.now_seconds += seconds
            raise KeyError
    assert clock.read() == {"a": 3}


def test_a_span_inside_another_interrupts_it_so_that_spans_add_up() -> None:
    fake = FakeTime()
    clock = Clock(fake.synchronize, fake.now)
    with clock.span("outer"):
        fake.now_seconds += 1
        with clock.span("inner"):
            fake.now_seconds += 10
        fake.now_seconds += 2
    fake.now_seconds += 100
    assert clock.read() == {"outer": 3, "inner": 10}


def test_the_clock_of_a_stage_waits_for_the_gpu(
    monkeypatch: pytest.MonkeyPatch, smoke_config: RunConfig, tmp_path: Path
) -> None:
    fake = FakeTime()
    monkeypatch.setattr(torch.accelerator, "synchronize", fake.synchronize)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)  # nothing here for the other instruments to ask
    context = Context(tmp_path, smoke_config, Progress(tmp_path, "train"), clock=Clock(now=fake.now))
    for device, expected in (("cpu", 0), ("cuda", 2)):
        context.measure_on(Device(device, torch.bfloat16, "sdpa", "off"))
        with context.clock.span(device):
            fake.queued_seconds = 2
        assert context.clock.read()[device] == expected


def test_step_times_leave_the_warm_up_out() -> None:
    seconds = [30.0, 2.0, 2.0, *np.linspace(1, 2, 101), 9.0]
    timed = [False] * 3 + [True] * 101 + [False]  # the compiler worked again in the last one
    times = step_times(seconds, timed, compiled=True)
    assert list(times.values()) == pytest.approx([1.5, 1.9, 1.99, 43 - 4 * 1.5])
    assert list(times) == ["step_seconds_median", "step_seconds_p90", "step_seconds_p99", "compile_seconds"]
    assert step_times(seconds, timed, compiled=False)["compile_seconds"] is None
    assert set(step_times([1.0, 1.0], [False, False], compiled=True).values()) == {None}


@pytest.mark.parametrize("mib", [128, 512])
def test_cpu_memory_sees_what_is_allocated_within_1_percent(mib: int) -> None:
    memory = Memory(CpuMeter())
    memory.enter("empty")
    memory.enter("full")
    block = np.ones(mib * MIB, dtype=np.uint8)
    del block
    peaks = memory.read()
    assert peaks["full"].peak_bytes - peaks["empty"].peak_bytes == pytest.approx(mib * MIB, rel=0.01)


def test_the_time_line_shows_what_is_held_and_the_peak_so_far() -> None:
    memory = Memory(CpuMeter())
    assert memory.now() == (None, None)
    memory.enter("train")
    start, _ = memory.now()
    block = np.ones(200 * MIB, dtype=np.uint8)
    held, peak = memory.now()
    del block
    after, same_peak = memory.now()
    memory.enter("train")  # as after an evaluation in between: the peak is that of the phase, not of the entry
    assert held - start == pytest.approx(200 * MIB, rel=0.01)
    assert after - start == pytest.approx(0, abs=2 * MIB)
    assert peak == pytest.approx(held, rel=0.001)  # the kernel counts pages in batches
    assert peak <= same_peak <= memory.now()[1]
    assert memory.read()["train"].peak_bytes == pytest.approx(peak, rel=0.001)
    memory.enter("save")
    assert memory.now()[1] < memory.peak_so_far_bytes() == memory.read()["train"].peak_bytes


def test_a_peak_that_cannot_be_reset_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmHWM:\t 900 kB\nVmRSS:\t 500 kB\nRssAnon:\t 400 kB\n")
    (tmp_path / "clear_refs").mkdir()  # cannot be written to
    memory = Memory(CpuMeter(tmp_path))
    memory.enter("train")
    assert memory.now() == (500 * 1024, None)
    reading = memory.read()["train"]
    assert (reading.peak_bytes, reading.above_start_bytes, reading.anonymous_bytes) == (None, None, 400 * 1024)
    (tmp_path / "clear_refs").rmdir()
    memory.enter("evaluate")
    assert memory.read()["evaluate"].peak_bytes == 900 * 1024


class FakeCuda:
    """The calls of torch.cuda that the meter makes, for devices whose allocations are told."""

    def __init__(self, devices: int = 1) -> None:
        self.allocated = [0] * devices
        self.peak = [0] * devices
        self.calls: list[str] = []

    def allocate(self, size: int, device: int = 0) -> None:
        self.allocated[device] += size
        self.peak[device] = max(self.peak[device], self.allocated[device])

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def reset_peak_memory_stats(self, device: int) -> None:
        self.peak[device] = self.allocated[device]

    def memory_allocated(self, device: int) -> int:
        return self.allocated[device]

    def max_memory_allocated(self, device: int) -> int:
        return self.peak[device]

    def max_memory_reserved(self, device: int) -> int:
        return self.peak[device] + 2 * MIB

    def device_count(self) -> int:
        return len(self.allocated)

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B + index, pci_device_id=0)


def fake_nvml(cuda: FakeCuda, processes: dict[str, list[tuple[int, int | None]]], **more: Any) -> Nvml:
    """NVML with (process id, bytes) by bus id."""
    library = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlDeviceGetHandleByPciBusId=lambda bus: bus,
        nvmlDeviceGetComputeRunningProcesses=lambda bus: [
            SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes[bus]
        ],
        **more,
    )
    return Nvml(library, cuda)


FIRST, SECOND, OTHER_PROCESS = "00000000:3B:00.0", "00000000:3C:00.0", 1


def test_cuda_memory_by_phase_on_a_fake_device() -> None:
    cuda = FakeCuda()
    nvml = fake_nvml(cuda, {FIRST: [(OTHER_PROCESS, 1), (os.getpid(), 900 * MIB)]})
    memory = Memory(AcceleratorMeter(cuda, nvml))
    memory.enter("load")
    cuda.allocate(300 * MIB)
    memory.enter("train")
    cuda.allocate(500 * MIB)
    cuda.allocate(-500 * MIB)
    assert memory.now() == (300 * MIB, 800 * MIB)
    load, train = memory.read().values()
    assert load.peak_bytes == 300 * MIB
    assert train.peak_bytes == 800 * MIB
    assert train.peak_reserved_bytes == 802 * MIB
    assert train.device_used_bytes == 900 * MIB
    assert "synchronize" in cuda.calls


def test_several_gpus_add_up() -> None:
    cuda = FakeCuda(devices=2)
    nvml = fake_nvml(cuda, {FIRST: [(os.getpid(), 400 * MIB)], SECOND: [(os.getpid(), 600 * MIB), (OTHER_PROCESS, 7)]})
    memory = Memory(AcceleratorMeter(cuda, nvml))
    memory.enter("train")
    cuda.allocate(100 * MIB, device=0)
    cuda.allocate(200 * MIB, device=1)
    reading = memory.read()["train"]
    assert (reading.peak_bytes, reading.peak_reserved_bytes) == (300 * MIB, 304 * MIB)
    assert reading.device_used_bytes == 1000 * MIB


def test_paged_optimizer_state_counts_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = SimpleNamespace(paged_tensors=[torch.zeros(MIB, dtype=torch.uint8)] * 3)
    library = SimpleNamespace(GlobalPageManager=SimpleNamespace(get_instance=lambda: pages))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", library)
    cuda = FakeCuda()
    memory = Memory(AcceleratorMeter(cuda))
    memory.enter("train")
    cuda.allocate(10 * MIB)
    assert memory.now() == (13 * MIB, 13 * MIB)
    assert memory.read()["train"].peak_reserved_bytes == 15 * MIB


def refused(*arguments: Any) -> None:
    raise RuntimeError("NVML: insufficient permissions")


@pytest.mark.parametrize(
    ("listed", "more"),
    [
        ([], {}),  # no CUDA context yet
        ([(OTHER_PROCESS, 5)], {}),  # a container: our number outside of it is another
        ([(os.getpid(), None)], {}),  # the driver does not say
        ([(os.getpid(), 5)], {"nvmlDeviceGetComputeRunningProcesses": refused}),  # MIG, without the right to see all
    ],
    ids=["no context", "container", "not available", "refused"],
)
def test_device_use_that_nvml_does_not_tell_is_unknown(listed: list[Any], more: dict[str, Any]) -> None:
    cuda = FakeCuda()
    nvml = fake_nvml(cuda, {FIRST: listed})
    vars(nvml._library).update(more)
    memory = Memory(AcceleratorMeter(cuda, nvml))
    memory.enter("train")
    assert memory.read()["train"].device_used_bytes is None


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
    start, _ = memory.now()
    block = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    held, _ = memory.now()
    del block
    train = memory.read()["train"]
    assert held - start == 256 * MIB
    assert train.peak_bytes - start == pytest.approx(256 * MIB, rel=0.01)
    assert train.peak_reserved_bytes >= train.peak_bytes
    assert train.device_used_bytes is None or train.device_used_bytes > 256 * MIB


@pytest.mark.gpu
def test_a_span_on_a_real_device_lasts_as_long_as_the_device_works() -> None:
    matrix = torch.randn(8192, 8192, device="cuda")
    clock = Clock(torch.cuda.synchronize)
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    matrix @ matrix  # the first call loads kernels
    with clock.span("products"):
        started.record()
        for _ in range(20):
            matrix @ matrix
        ended.record()
    device_seconds = started.elapsed_time(ended) / 1000
    assert clock.read()["products"] == pytest.approx(device_seconds, rel=0.1)


# The tiny model: width 64, feed-forward 128, 2 layers, keys and values 32 wide, vocabulary 261.
BASE = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)
ADAPTER = 2 * 16 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))


@pytest.mark.parametrize(
    ("method", "expected"), [("full", 6 * BASE), ("lora", 4 * BASE + 6 * ADAPTER), ("qlora", 4 * BASE + 6 * ADAPTER)]
)
def test_frozen_weights_need_no_weight_gradient(shared_cache: Path, method: str, expected: int) -> None:
    (config,) = compose(["model=tiny-random", f"method={method}"], multirun=False)
    source = models.locate(config.model, shared_cache)
    model = methods.make_trainable(methods.load_base(config, source, "cpu", torch.bfloat16), config.method, 0)
    costs = linear_costs(model)
    assert costs.per_token == expected
    assert costs.per_supervised_token == 261 * 64 * (6 if method == "full" else 4)
    assert costs.per_attended_pair == 12 * 2 * 64


def test_needed_flops_add_up() -> None:
    costs = LinearCosts(per_token=10, per_supervised_token=100, per_attended_pair=1000)
    assert needed_flops(costs, tokens=3, supervised_tokens=2, attended_pairs=6) == 30 + 200 + 6000


def test_energy_so_far_is_read_while_another_phase_runs() -> None:
    readings = iter([1000.0, 1000.0, 1000.0, 8200.0, 9999.0])
    energy = Energy(lambda: next(readings))
    energy.enter("heldout")
    assert energy.used_wh("train") == 0.0
    energy.enter("train")
    energy.enter("heldout")
    assert energy.used_wh("train") == 2.0
    assert Energy(lambda: None).used_wh("train") is None


@pytest.mark.parametrize("readings", [[None, None], [5.0, None], [None, 5.0], [9.0, 5.0]])
def test_unknown_energy_is_none(readings: list[float | None]) -> None:
    values = iter(readings)
    energy = Energy(lambda: next(values))
    energy.enter("train")
    assert energy.read() == {"train": None}


def test_a_phase_of_which_a_part_is_unknown_is_unknown() -> None:
    readings = iter([0.0, None, 5.0, 6.0])
    energy = Energy(lambda: next(readings))
    for phase in ("train", "heldout", "train"):
        energy.enter(phase)
    assert energy.read()["train"] is None


def packages(root: Path, **microjoules: int) -> None:
    for name, value in microjoules.items():
        folder = root / name.replace("_", ":").replace("rapl", "intel-rapl", 1)
        folder.mkdir(exist_ok=True)
        (folder / "energy_uj").write_text(f"{value}\n")
        (folder / "max_energy_range_uj").write_text("10000000\n")


def test_rapl_sums_packages_and_not_their_parts(tmp_path: Path) -> None:
    packages(tmp_path, rapl_0=3_000_000, rapl_1=4_000_000, rapl_0_0=9_000_000)
    rapl = Rapl(tmp_path)
    packages(tmp_path, rapl_0=5_000_000, rapl_1=4_500_000, rapl_0_0=9_900_000)
    assert rapl() == 2.5


def test_rapl_goes_on_when_a_counter_starts_over(tmp_path: Path) -> None:
    packages(tmp_path, rapl_0=9_000_000, rapl_1=1_000_000)
    rapl = Rapl(tmp_path)
    energy = Energy(rapl, wraps=True)
    energy.enter("train")
    for value in (2_000_000, 8_000_000, 1_000_000):  # +3 J across the end of the range, +6 J, +3 J across it again
        packages(tmp_path, rapl_0=value)
        energy.sample()
    assert energy.read()["train"] == pytest.approx(12 / 3600)


def test_rapl_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    assert Rapl(tmp_path / "nothing")() is None
    packages(tmp_path, rapl_0=1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert Rapl(tmp_path)() is None


def unsupported(handle: str) -> int:
    raise RuntimeError("not supported")


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ({"nvmlDeviceGetMigMode": lambda handle: [0, 0]}, 5.0),
        ({"nvmlDeviceGetMigMode": unsupported}, 5.0),  # devices before MIG
        ({"nvmlDeviceGetMigMode": lambda handle: [1, 1]}, None),  # one counter for all tenants
        ({"nvmlDeviceGetMigMode": unsupported, "nvmlDeviceGetTotalEnergyConsumption": unsupported}, None),
    ],
    ids=["two devices", "no MIG", "MIG", "no counter"],
)
def test_nvml_energy_on_a_fake_driver(calls: dict, expected: float | None) -> None:
    library = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlDeviceGetHandleByPciBusId=lambda bus: bus,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 2500,
    )
    vars(library).update(calls)
    assert Nvml(library, FakeCuda(devices=2)).joules() == expected


@pytest.mark.gpu
def test_energy_on_a_real_device_is_plausible() -> None:
    energy = open_energy("cuda")
    matrix = torch.randn(4096, 4096, device="cuda")
    energy.enter("train")
    started = time.perf_counter()
    while time.perf_counter() - started < 2:
        matrix @ matrix
        torch.cuda.synchronize()
    (watt_hours,) = energy.read().values()
    if watt_hours is None:
        pytest.skip("this device has no energy counter")
    watts = watt_hours * 3600 / (time.perf_counter() - started)
    assert 20 < watts < 2000


@pytest.mark.gpu
def test_the_measured_peak_on_a_real_device_is_a_speed() -> None:
    assert 1e12 < matmul_peak_flops_per_second("cuda", torch.bfloat16, torch.cuda.synchronize) < 1e16
