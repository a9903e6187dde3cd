"""How much memory a process holds and has held at most, by device: what `memory.Memory` reads from.

>>> meter = CpuMeter()
>>> meter.reset_peak()
>>> meter.now()
(1073741824, 1073741824)
"""

from __future__ import annotations

import ctypes
import functools
import gc
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from bench.record import PhaseMemory
from bench.worker.instruments.nvml import Nvml


class MemoryMeter(Protocol):
    """One contract for every device."""

    def release(self) -> None:
        """Give freed memory back to the system; takes a while."""

    def reset_peak(self) -> None:
        """Let the high-water mark start from what is held now; takes microseconds."""

    def now(self) -> tuple[int | None, int | None]:
        """(bytes held, the most since the last reset)."""

    def read(self, phase: str) -> PhaseMemory:
        """Everything known since the last reset, under a phase's name."""


class CpuMeter:
    """Resident memory of this process, from Linux's /proc; None elsewhere, and where the peak cannot be reset."""

    def __init__(self, proc: Path = Path("/proc/self")):
        self._proc = proc
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)
        self._start_bytes = self._status().get("VmRSS")
        self._was_reset = False

    def release(self) -> None:
        _collect()
        self._trim(0)

    def reset_peak(self) -> None:
        self._was_reset = False
        with suppress(OSError):
            (self._proc / "clear_refs").write_text("5")
            self._was_reset = True

    def now(self) -> tuple[int | None, int | None]:
        status = self._status()
        return status.get("VmRSS"), status.get("VmHWM") if self._was_reset else None

    def read(self, phase: str) -> PhaseMemory:
        peak = self.now()[1]
        above = None if peak is None or self._start_bytes is None else peak - self._start_bytes
        return PhaseMemory(phase, peak, above, anonymous_bytes=self._status().get("RssAnon"))

    def _status(self) -> dict[str, int]:
        """Bytes by name."""
        with suppress(OSError):
            lines = (self._proc / "status").read_text().splitlines()
            return {
                name: int(value.split()[0]) * 1024
                for name, _, value in (line.partition(":") for line in lines)
                if name in ("VmHWM", "VmRSS", "RssAnon")
            }
        return {}


class CudaMeter:
    """The CUDA allocator's numbers, summed over the visible devices, and the process's device memory by NVML.

    Args:
        cuda: `torch.cuda`, or a fake of it in tests.
        nvml: None where it is missing.
    """

    def __init__(self, cuda: Any = torch.cuda, nvml: Nvml | None = None):
        self._cuda, self._nvml = cuda, nvml
        self._devices = range(cuda.device_count())

    def release(self) -> None:
        _collect()
        self._cuda.empty_cache()  # reserved memory would else be the largest of all phases before

    def reset_peak(self) -> None:
        for device in self._devices:
            self._cuda.reset_peak_memory_stats(device)

    def now(self) -> tuple[int | None, int | None]:
        return self._sum(self._cuda.memory_allocated), self._sum(self._cuda.max_memory_allocated)

    def read(self, phase: str) -> PhaseMemory:
        self._cuda.synchronize()
        return PhaseMemory(
            phase,
            peak_bytes=self.now()[1],
            above_start_bytes=None,
            peak_reserved_bytes=self._sum(self._cuda.max_memory_reserved),
            device_used_bytes=self._nvml.used_by_process_bytes() if self._nvml else None,
        )

    def _sum(self, of_device: Any) -> int:
        return sum(of_device(device) for device in self._devices)


def _collect() -> None:
    """Collect garbage. What is alive the first time, mostly what imports made, is not looked at again.

    That takes 0.3 s off every later call (`python -m benchmarks.observer`: a change of phase).
    """
    gc.collect()
    _freeze_once()


@functools.cache
def _freeze_once() -> None:
    gc.freeze()  # to ask it whether it has been done walks all that is frozen: 50 ms
