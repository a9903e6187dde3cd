"""Energy by the hardware's own counters; absent where there is none, never guessed.

NVIDIA GPUs since Volta count millijoules since the driver was loaded (`nvmlDeviceGetTotalEnergyConsumption`); Intel and
AMD processors count microjoules (RAPL, under /sys/class/powercap, often readable by root only). A counter covers the
whole device: what else runs on it is counted too.

    >>> energy = open_energy("cuda")
    >>> energy.start(); train(); energy.watt_hours()
    1.37
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_JOULES_PER_WATT_HOUR = 3600
Reading = Callable[[], float | None]  # joules since some fixed moment; None: unknown


class Energy:
    """Watt-hours between a start and a reading."""

    def __init__(self, joules: Reading):
        self._joules = joules
        self._started: float | None = None

    def start(self) -> None:
        self._started = self._joules()

    def watt_hours(self) -> float | None:
        """Since `start`; None where there is no counter, or where it started over in between."""
        now = self._joules()
        if now is None or self._started is None or now < self._started:
            return None
        return (now - self._started) / _JOULES_PER_WATT_HOUR


def open_energy(device: str) -> Energy:
    """The energy instrument of a device type, "cpu" or "cuda"."""
    return Energy(rapl_joules if device == "cpu" else _nvml_reading())


def rapl_joules(root: Path = Path("/sys/class/powercap")) -> float | None:
    """The sum over processor packages; None without RAPL or without the right to read it."""
    packages = [p for p in root.glob("intel-rapl:*") if p.name.count(":") == 1]  # deeper ones are parts of these
    try:
        return sum(int((p / "energy_uj").read_text()) for p in packages) / 1e6 if packages else None
    except OSError:
        return None


def nvml_joules(nvml: Any, handles: list[Any]) -> float | None:
    """The sum over devices; None where a device has no counter."""
    try:
        return sum(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1e3
    except nvml.NVMLError:
        return None


def _nvml_reading() -> Reading:
    import pynvml
    import torch

    from bench.worker.instruments.memory import pci_bus_id

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id(torch.cuda))]
    except pynvml.NVMLError:
        return lambda: None
    return lambda: nvml_joules(pynvml, handles)
