"""What NVIDIA's management library (NVML) says of the GPUs that this process sees.

NVML answers for whole devices. Where that is not an answer about this run, it is unknown: a GPU split by MIG has one
energy counter for all its tenants, and in a container NVML may name processes by numbers that they do not have inside.

    >>> nvml = open_nvml()                 # None without a driver
    >>> nvml.used_by_process_bytes()
    1262485504
"""

from __future__ import annotations

import os
from typing import Any

import torch


class Nvml:
    """The visible devices.

    Args:
        library: the `pynvml` module, initialized; or a fake of it in tests.
        cuda: `torch.cuda`, likewise.

    Raises:
        library.NVMLError: NVML does not know a visible device.
    """

    def __init__(self, library: Any, cuda: Any = torch.cuda):
        self._library = library
        self._handles = [
            library.nvmlDeviceGetHandleByPciBusId(pci_bus_id(cuda, index)) for index in range(cuda.device_count())
        ]

    def used_by_process_bytes(self) -> int | None:
        """Device memory of this process, contexts and libraries included, summed over devices.

        None where NVML does not list the process, or does not tell its share (containers, MIG without the right to
        see all instances, some drivers).
        """
        try:
            used = [
                process.usedGpuMemory
                for handle in self._handles
                for process in self._library.nvmlDeviceGetComputeRunningProcesses(handle)
                if process.pid == os.getpid()
            ]
        except self._library.NVMLError:
            return None
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
        """Of every process that computes on one of the devices, as NVML names it; None where it does not answer."""
        try:
            lists = [self._library.nvmlDeviceGetComputeRunningProcesses(handle) for handle in self._handles]
        except self._library.NVMLError:
            return None
        return {process.pid for processes in lists for process in processes}

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

    try:
        pynvml.nvmlInit()
        return Nvml(pynvml)
    except pynvml.NVMLError:
        return None


def pci_bus_id(cuda: Any, index: int | None = None) -> str:
    """Of the current device, or of one by its index.

    NVML counts devices without regard to CUDA_VISIBLE_DEVICES; the bus id names the same one in both.
    """
    p = cuda.get_device_properties(cuda.current_device() if index is None else index)
    return f"{p.pci_domain_id:08X}:{p.pci_bus_id:02X}:{p.pci_device_id:02X}.0"
