"""Peak memory by phase, and what the static part of it is made of.

A peak belongs to the phase in which it happened: entering a phase resets the device's high-water mark, so the
peak of evaluation is never reported as that of training. A phase entered again keeps the larger peak.

    >>> memory = open_memory("cpu")
    >>> memory.enter("train")
    >>> memory.close()
    [PhaseMemory(phase='train', peak_bytes=2675965952, ...)]

CPU: `VmHWM`, the peak resident set, which counts memory-mapped files once touched. CUDA: the allocator's
`max_memory_allocated` and `max_memory_reserved`, and this process's memory by NVML.
"""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from bench.spec.record import MemoryBreakdown, PhaseMemory


class MemoryMeter(Protocol):
    """One contract for every device."""

    def reset_peak(self) -> None:
        """Forget the high-water mark, after giving freed memory back."""

    def read(self, phase: str) -> PhaseMemory:
        """The peak since the last reset."""


class Memory:
    """Attributes peaks to phases."""

    def __init__(self, meter: MemoryMeter):
        self._meter = meter
        self._phase: str | None = None
        self._peaks: dict[str, PhaseMemory] = {}

    def enter(self, phase: str) -> None:
        """Start a phase; the one before it ends."""
        self._read_current()
        self._phase = phase
        self._meter.reset_peak()

    def close(self) -> list[PhaseMemory]:
        """End the last phase and return all of them, in the order they were first entered."""
        self._read_current()
        self._phase = None
        return list(self._peaks.values())

    def _read_current(self) -> None:
        if self._phase is None:
            return
        reading = self._meter.read(self._phase)
        before = self._peaks.get(self._phase)
        if before is None or (reading.peak_bytes or 0) > (before.peak_bytes or 0):
            self._peaks[self._phase] = reading


class CpuMeter:
    """Resident memory of this process, from Linux's /proc; None elsewhere."""

    def __init__(self, proc: Path = Path("/proc/self")):
        self._proc = proc
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)
        self._start_bytes = self._status("VmRSS")

    def reset_peak(self) -> None:
        gc.collect()
        self._trim(0)  # else the phase inherits what the one before it has freed
        with suppress(OSError):
            (self._proc / "clear_refs").write_text("5")

    def read(self, phase: str) -> PhaseMemory:
        peak = self._status("VmHWM")
        above = None if peak is None or self._start_bytes is None else peak - self._start_bytes
        return PhaseMemory(phase, peak, above, anonymous_bytes=self._status("RssAnon"))

    def _status(self, field: str) -> int | None:
        with suppress(OSError):
            for line in (self._proc / "status").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) * 1024
        return None


class CudaMeter:
    """The CUDA allocator's peaks and the process's device memory by NVML.

    Args:
        cuda: `torch.cuda`, or a fake of it in tests.
        nvml: the `pynvml` module, or None where it is missing.
    """

    def __init__(self, cuda: Any = torch.cuda, nvml: Any = None):
        self._cuda, self._nvml = cuda, nvml

    def reset_peak(self) -> None:
        gc.collect()
        self._cuda.empty_cache()  # reserved memory would else be the largest of all phases before
        self._cuda.reset_peak_memory_stats()

    def read(self, phase: str) -> PhaseMemory:
        self._cuda.synchronize()
        return PhaseMemory(
            phase,
            peak_bytes=self._cuda.max_memory_allocated(),
            above_start_bytes=None,
            peak_reserved_bytes=self._cuda.max_memory_reserved(),
            device_used_bytes=self._used_by_process(),
        )

    def _used_by_process(self) -> int | None:
        if self._nvml is None:
            return None
        with suppress(self._nvml.NVMLError):
            handle = self._nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id(self._cuda))
            for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if process.pid == os.getpid() and process.usedGpuMemory is not None:
                    return int(process.usedGpuMemory)
        return None


def open_memory(device: str) -> Memory:
    """The memory instrument of a device type, "cpu" or "cuda"."""
    if device == "cpu":
        return Memory(CpuMeter())
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return Memory(CudaMeter())
    return Memory(CudaMeter(nvml=pynvml))


def breakdown(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> MemoryBreakdown:
    """Bytes of weights, gradients and optimizer state, each storage counted once.

    Call after an optimizer step and before the gradients are cleared.
    """
    parameters = list(model.parameters())
    constants = [t for p in parameters for t in quantization_constants(p)]
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    gradients = [p.grad for p in parameters if p.grad is not None]
    weights = [*parameters, *constants, *model.buffers()]
    return MemoryBreakdown(total_bytes(weights), total_bytes(gradients), total_bytes(states))


def quantization_constants(parameter: torch.Tensor) -> list[torch.Tensor]:
    """The scales that bitsandbytes keeps beside a 4-bit weight (`bitsandbytes.functional.QuantState`)."""
    state = getattr(parameter, "quant_state", None)
    nested = getattr(state, "state2", None)
    tensors = [getattr(state, "absmax", None), getattr(state, "code", None), getattr(state, "offset", None)]
    tensors += [getattr(nested, "absmax", None), getattr(nested, "code", None)]
    return [t for t in tensors if isinstance(t, torch.Tensor)]


def total_bytes(tensors: list[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind tensors; tied weights count once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def pci_bus_id(cuda: Any) -> str:
    """NVML counts devices without regard to CUDA_VISIBLE_DEVICES; the bus id names the same one in both."""
    p = cuda.get_device_properties(cuda.current_device())
    return f"{p.pci_domain_id:08X}:{p.pci_bus_id:02X}:{p.pci_device_id:02X}.0"
