"""FLOPs by hand-computed answers; energy on fake counters."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.compose import compose
from bench.worker import methods, models
from bench.worker.instruments.energy import Energy, Nvml, Rapl, open_energy
from bench.worker.instruments.tokens import LinearCosts, linear_costs, matmul_peak_flops_per_second, needed_flops

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


def test_the_measured_peak_is_a_speed() -> None:
    assert 1e8 < matmul_peak_flops_per_second("cpu", torch.float32, lambda: None, seconds=0.05) < 1e15


def test_energy_is_a_difference_of_readings_by_phase() -> None:
    readings = iter([1000.0, 8200.0, 11800.0, 99999.0])
    energy = Energy(lambda: next(readings))
    energy.enter("train")
    energy.enter("heldout")
    energy.stop()
    assert energy.read() == {"train": 2.0, "heldout": 1.0}


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


class FakeCuda:
    """Two devices."""

    def device_count(self) -> int:
        return 2

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(pci_domain_id=0, pci_bus_id=index, pci_device_id=0)


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
    assert Nvml(library, FakeCuda()).joules() == expected


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
