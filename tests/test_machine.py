"""What a machine shows without PyTorch: every broken thing put in place by a fake."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import machine
from bench.config import HardwareConfig

CPU = HardwareConfig(name="cpu", device="cpu")
AUTO = HardwareConfig(name="auto")


class NvmlError(Exception):
    """As pynvml raises it without a driver."""


def fake_nvml(monkeypatch: pytest.MonkeyPatch, version: str, cuda: int, gpus: list[str]) -> None:
    """A driver that runs `cuda` (12040 for 12.4) and sees some GPUs; without a version it does not answer."""

    def init() -> None:
        if not version:
            raise NvmlError

    library: dict[str, Any] = {
        "NVMLError": NvmlError,
        "nvmlInit": init,
        "nvmlSystemGetDriverVersion": lambda: version,
        "nvmlSystemGetCudaDriverVersion_v2": lambda: cuda,
        "nvmlDeviceGetCount": lambda: len(gpus),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: gpus[handle],
    }
    monkeypatch.setattr(machine, "pynvml", SimpleNamespace(**library))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def with_wheel(monkeypatch: pytest.MonkeyPatch, version: str, cuda: str | None) -> None:
    monkeypatch.setattr(machine, "wheel", lambda: (version, "CUDA" if cuda else "CPUs", cuda))


def by_name(hardware: HardwareConfig = AUTO) -> dict[str, Any]:
    return {finding.name: finding for finding in machine.findings(hardware)}


def test_the_wheel_is_read_without_loading_it() -> None:
    import torch

    built = machine.wheel()
    assert built[0] == torch.__version__
    assert built[1:] == (("CUDA", torch.version.cuda) if torch.version.cuda else ("CPUs", None))


def test_an_old_driver_is_named_with_the_wheel_and_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, "535.54.03", 12020, ["NVIDIA A100"])
    with_wheel(monkeypatch, "2.13.0+cu130", "13.0")
    found = by_name()["driver"]
    assert found.state == "broken"
    for words in ("NVIDIA A100", "535.54.03", "CUDA 12.2", "2.13.0+cu130", "CUDA 13.0"):
        assert words in found.found
    assert "torch==2.13.0 --index-url" in found.mend
    assert "/whl/cu126" in found.mend
    assert "newer driver" in found.mend


def test_a_driver_of_the_same_generation_runs_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, "550.90.07", 12040, ["NVIDIA H100"])
    with_wheel(monkeypatch, "2.13.0+cu128", "12.8")
    assert by_name()["driver"].state == "fine"
    assert machine.gpu_out_of_reach() is None
    why, mend = machine.gpu_out_of_reach(tried=True)  # PyTorch was asked, and sees none
    assert "NVIDIA H100" in why
    assert "torch.cuda.init()" in mend


def test_a_wheel_for_cpus_on_a_gpu_machine_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, "580.159.04", 13000, ["NVIDIA H200"])
    with_wheel(monkeypatch, "2.13.0+cpu", None)
    found = by_name()["driver"]
    assert (found.state, "is built for CPUs" in found.found) == ("broken", True)
    assert "/whl/cu130" in found.mend
    assert "newer driver" not in found.mend
    assert by_name(CPU)["driver"].state == "fine"  # the CPU was asked for


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_is_hidden_is_not_missed(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    fake_nvml(monkeypatch, "535.54.03", 12020, ["NVIDIA A100"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert machine.gpu_out_of_reach(tried=True) is None


def test_no_driver_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, "", 0, [])
    assert machine.driver() is None
    assert by_name()["driver"].state == "fine"


def test_no_compiler_and_no_headers_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvml(monkeypatch, "", 0, [])
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: str(tmp_path))
    assert machine.compiler_problem("cpu") == "no Python.h"
    found = by_name()["compiler"]
    assert (found.state, found.found) == ("slower", "no Python.h: training is not compiled")
    assert "python3-dev" in found.mend
    (tmp_path / "Python.h").touch()
    assert machine.compiler_problem("cpu") is None
    assert by_name()["compiler"].state == "fine"
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert by_name()["compiler"].mend == "sudo apt-get install g++"


def test_triton_is_needed_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    assert machine.compiler_problem("cuda") == "no Triton"
    assert machine.compiler_problem("cpu") is None


def test_busy_cores_bend_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "allowed_cores", lambda: [0, 2])
    monkeypatch.setattr(machine.psutil, "cpu_percent", lambda seconds, percpu: [0.0, 100.0, 90.0])
    found = by_name()["cores"]
    assert (found.state, found.found) == ("slower", "2, 0.9 of them busy")  # the busy one in between is not ours


def test_the_memory_is_that_of_the_smallest_device_and_at_most_what_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, "580.10", 13000, ["A", "B"])
    sizes = [SimpleNamespace(total=80 << 30), SimpleNamespace(total=40 << 30)]
    machine.pynvml.nvmlDeviceGetMemoryInfo = lambda handle: sizes[handle]
    stated = {gib: machine.device_memory_gib(HardwareConfig(name="gpu", memory_gib=gib), "cuda") for gib in (None, 24)}
    assert stated == {None: 40.0, 24: 24.0}
    fake_nvml(monkeypatch, "", 0, [])
    assert machine.device_memory_gib(AUTO, "cuda") is None
    assert 0 < machine.device_memory_gib(CPU, "cpu") < 2**20
