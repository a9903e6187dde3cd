"""FLOPs by hand-computed answers; energy on fake counters."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.planning.compose import compose
from bench.worker import methods, models
from bench.worker.instruments.energy import Energy, nvml_joules, rapl_joules
from bench.worker.instruments.flops import LinearCosts, linear_costs, matmul_peak_flops_per_second, needed_flops

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


def test_energy_is_a_difference_of_readings() -> None:
    readings = iter([1000.0, 1000.0 + 7200.0])
    energy = Energy(lambda: next(readings))
    energy.start()
    assert energy.watt_hours() == 2.0


@pytest.mark.parametrize("readings", [[None, None], [5.0, None], [None, 5.0], [9.0, 5.0]])
def test_unknown_energy_is_none(readings: list[float | None]) -> None:
    values = iter(readings)
    energy = Energy(lambda: next(values))
    energy.start()
    assert energy.watt_hours() is None


def test_rapl_sums_packages_and_not_their_parts(tmp_path: Path) -> None:
    for name, microjoules in (("intel-rapl:0", 3_000_000), ("intel-rapl:1", 4_000_000), ("intel-rapl:0:0", 9_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{microjoules}\n")
    assert rapl_joules(tmp_path) == 7.0
    assert rapl_joules(tmp_path / "nothing") is None


def test_nvml_energy_on_a_fake_driver() -> None:
    def unsupported(handle: str) -> int:
        raise RuntimeError("not supported")

    fake = SimpleNamespace(NVMLError=RuntimeError, nvmlDeviceGetTotalEnergyConsumption=lambda handle: 2500)
    assert nvml_joules(fake, ["a", "b"]) == 5.0
    fake.nvmlDeviceGetTotalEnergyConsumption = unsupported
    assert nvml_joules(fake, ["a"]) is None
