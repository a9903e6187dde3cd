"""Energy by the hardware's own counters; None without a counter, never guessed. NVML is read here, too.

NVIDIA GPUs since Volta count millijoules since the driver was loaded (`nvmlDeviceGetTotalEnergyConsumption`); Intel and
AMD processors count microjoules (RAPL, under /sys/class/powercap, often readable by root only). A counter covers the
whole device: what else runs on it is counted too.

    >>> energy = open_energy("cuda")
    >>> energy.enter("train"); train(); energy.stop()
    >>> energy.read()
    {'train': 1.37}
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Nvml:
    """The visible devices.

    Args:
        library: the `pynvml` module, initialized; or a fake of it in tests.
        cuda: `torch.cuda`, likewise.

    Raises:
        library.NVMLError: NVML does not know a visible device.
    """

    def __init__(self, library: Any, cuda: Any):
        self._library = library
        self._handles = [
            library.nvmlDeviceGetHandleByPciBusId(pci_bus_id(cuda, index)) for index in range(cuda.device_count())
        ]

    def used_by_process_bytes(self) -> int | None:
        """Device memory of this process, contexts and libraries included, summed over devices.

        None where NVML does not list the process, or does not tell its share (containers, MIG without the right to
        see all instances, some drivers).
        """
        used = [process.usedGpuMemory for process in self._processes() or () if process.pid == os.getpid()]
        return None if not used or None in used else sum(used)

    def joules(self) -> float | None:
        """Energy since the drivers were loaded, summed over devices; None where one has no counter of its own."""
        try:
            if any(self._split(handle) for handle in self._handles):
                return None
            millijoules = [self._library.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles]
        except self._library.NVMLError:
            return None
        return sum(millijoules) / 1e3 if millijoules else None

    def process_ids(self) -> set[int] | None:
        """Ids of all processes that compute on the devices, as NVML names them; None: it does not answer."""
        processes = self._processes()
        return None if processes is None else {process.pid for process in processes}

    def _processes(self) -> list[Any] | None:
        try:
            lists = [self._library.nvmlDeviceGetComputeRunningProcesses(handle) for handle in self._handles]
        except self._library.NVMLError:
            return None
        return [process for processes in lists for process in processes]

    def _split(self, handle: Any) -> bool:
        """Whether MIG is on; devices that do not know MIG are not split."""
        try:
            current, _pending = self._library.nvmlDeviceGetMigMode(handle)
        except self._library.NVMLError:
            return False
        return bool(current)


def open_nvml() -> Nvml | None:
    """The visible devices; None without a driver that answers."""
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        return Nvml(pynvml, torch.cuda)
    except pynvml.NVMLError:
        return None


def pci_bus_id(cuda: Any, index: int | None = None) -> str:
    """The bus id of the current device, or of one by its index.

    NVML counts devices without regard to CUDA_VISIBLE_DEVICES; the bus id names the same one in both.
    """
    p = cuda.get_device_properties(cuda.current_device() if index is None else index)
    return f"{p.pci_domain_id:08X}:{p.pci_bus_id:02X}:{p.pci_device_id:02X}.0"


_JOULES_PER_WATT_HOUR = 3600
Joules = Callable[[], float | None]  # since some fixed moment; None: unknown


class Energy:
    """Accumulates watt-hours by phase; an instrument. None where there is no counter, or where it started over.

    Args:
        joules: the counter.
        wraps: whether it starts over by itself, and must be read often (`sample`).
    """

    def __init__(self, joules: Joules, wraps: bool = False):
        self._joules, self._wraps = joules, wraps
        self._phase: str | None = None
        self._since: float | None = None
        self._watt_hours: dict[str, float | None] = {}

    def enter(self, phase: str) -> None:
        self._update()
        self._phase = phase

    def stop(self) -> None:
        self._update()
        self._phase = None

    def read(self) -> dict[str, float | None]:
        self._update()
        return dict(self._watt_hours)

    def recall(self, watt_hours: Mapping[str, float | None]) -> None:
        """Go on from what an earlier process had used by phase."""
        self._watt_hours = dict(watt_hours)

    def used_wh(self, phase: str) -> float | None:
        """Watt-hours of one phase until now; 0 before it first began. Reads the counter once."""
        self._update()
        return self._watt_hours.get(phase, None if self._since is None else 0.0)

    def sample(self) -> None:
        """Call every few seconds: follows a counter that wraps. Costs nothing where it does not."""
        if self._wraps:
            self._update()

    def _update(self) -> None:
        now = self._joules()
        if self._phase is not None:
            before, used = self._watt_hours.get(self._phase, 0.0), _watt_hours(self._since, now)
            self._watt_hours[self._phase] = None if before is None or used is None else before + used
        self._since = now


def _watt_hours(since: float | None, until: float | None) -> float | None:
    if since is None or until is None or until < since:
        return None
    return (until - since) / _JOULES_PER_WATT_HOUR


RAPL = Path("/sys/class/powercap")


class Rapl:
    """Joules of all processor packages since this object was made; None without RAPL or the right to read it.

    A package's counter starts over at `max_energy_range_uj`, after about a quarter of an hour at full load, so it must
    be read more often than that.
    """

    def __init__(self, root: Path = RAPL):
        packages = [p for p in sorted(root.glob("intel-rapl:*")) if p.name.count(":") == 1]  # deeper: parts of these
        self._last_microjoules: dict[Path, int | None] = {p: _read(p / "energy_uj") for p in packages}
        self._sum_microjoules = 0

    def __call__(self) -> float | None:
        for package, last in self._last_microjoules.items():
            now, limit = _read(package / "energy_uj"), _read(package / "max_energy_range_uj")
            if now is None or last is None or (now < last and limit is None):
                return None
            self._sum_microjoules += now - last if now >= last else now - last + (limit or 0)
            self._last_microjoules[package] = now
        return self._sum_microjoules / 1e6 if self._last_microjoules else None


def open_energy(device: str) -> Energy:
    """The energy instrument of a type of device; NVIDIA's GPUs and processors have counters."""
    if device == "cpu":
        return Energy(Rapl(), wraps=True)
    nvml = open_nvml() if device == "cuda" else None
    return Energy(nvml.joules if nvml else lambda: None)


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
