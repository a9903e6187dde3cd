"""Peak memory by phase, and what the static part of it is made of.

A peak belongs to the phase in which it happened: entering a phase resets the device's high-water mark, so the
peak of evaluation is never reported as that of training. A phase entered again keeps the larger peak.

    >>> memory = open_memory("cpu")
    >>> memory.enter("train")
    >>> memory.read()
    {'train': PhaseMemory(phase='train', peak_bytes=2675965952, ...)}

CPU: `VmHWM`, the peak resident set, which counts memory-mapped files once touched. CUDA, ROCm and XPU: the allocator's
`max_memory_allocated` and `max_memory_reserved`, with paged optimizer state, and on CUDA this process's memory by NVML.
MPS shares the host's memory and keeps no peak: unknown.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from bench.record import MemoryBreakdown, PhaseMemory
from bench.worker.instruments.energy import Nvml, open_nvml


class CpuMeter:
    """Resident memory of this process, from Linux's /proc; None elsewhere, and where the peak cannot be reset.

    A meter of any device has these four calls.
    """

    def __init__(self, proc: Path = Path("/proc/self")):
        self._proc = proc
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)
        self._start_bytes = self._status().get("VmRSS")
        self._was_reset = False

    def release(self) -> None:
        """Give freed memory back to the system; takes a while."""
        _collect()
        self._trim(0)

    def reset_peak(self) -> None:
        """Let the high-water mark start from what is held now; takes microseconds."""
        self._was_reset = False
        with suppress(OSError):
            (self._proc / "clear_refs").write_text("5")
            self._was_reset = True

    def now(self) -> tuple[int | None, int | None]:
        """(bytes held, the most since the last reset)."""
        status = self._status()
        return status.get("VmRSS"), status.get("VmHWM") if self._was_reset else None

    def read(self, phase: str) -> PhaseMemory:
        """Everything known since the last reset, under a phase's name."""
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


class AcceleratorMeter:
    """The allocator's numbers, summed over the visible devices, and the process's device memory by NVML.

    Optimizer state that bitsandbytes pages is in no allocator and counts wherever it is, as the planner counts it.

    Args:
        accelerator: `torch.accelerator`, or a fake of it in tests.
        nvml: None where it is missing.
    """

    def __init__(self, accelerator: Any = torch.accelerator, nvml: Nvml | None = None):
        self._accelerator, self._nvml = accelerator, nvml
        self._devices = range(accelerator.device_count())

    def release(self) -> None:
        _collect()
        self._accelerator.empty_cache()  # reserved memory would else be the largest of all phases before

    def reset_peak(self) -> None:
        for device in self._devices:
            self._accelerator.reset_peak_memory_stats(device)

    def now(self) -> tuple[int | None, int | None]:
        return self._sum(self._accelerator.memory_allocated), self._sum(self._accelerator.max_memory_allocated)

    def read(self, phase: str) -> PhaseMemory:
        self._accelerator.synchronize()
        return PhaseMemory(
            phase,
            peak_bytes=self.now()[1],
            above_start_bytes=None,
            peak_reserved_bytes=self._sum(self._accelerator.max_memory_reserved),
            device_used_bytes=self._nvml.used_by_process_bytes() if self._nvml else None,
        )

    def _sum(self, of_device: Any) -> int:
        return sum(of_device(device) for device in self._devices) + paged_bytes()


def paged_bytes() -> int:
    """Bytes of optimizer state in managed memory, which moves between device and host (`paged_adamw_...`)."""
    library = sys.modules.get("bitsandbytes.functional")  # seconds to import, and there once anything is paged
    pages = library.GlobalPageManager.get_instance().paged_tensors if library else []
    return sum(tensor.nbytes for tensor in pages)


def release() -> None:
    """Give back the device memory of models that are no longer used; cycles of references keep 4-bit ones alive."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _collect() -> None:
    """Collect garbage. What is alive the first time, mostly what imports made, is not looked at again.

    That takes 0.3 s off every later call (`python -m benchmarks.observer`: a change of phase).
    """
    gc.collect()
    _freeze_once()


_freeze_once = functools.cache(gc.freeze)  # to ask gc whether it has been done walks all that is frozen: 50 ms


class Memory:
    """Attributes peaks to phases, an instrument."""

    def __init__(self, meter: CpuMeter | AcceleratorMeter):
        self._meter = meter
        self._phase: str | None = None
        self._phases: dict[str, PhaseMemory] = {}
        self._seen_bytes: dict[str, int] = {}  # highest peak that `now` has shown, by phase

    def enter(self, phase: str) -> None:
        """Start a phase; the one before it ends, and what it freed is given back first."""
        self._update()
        self._phase = phase
        self._meter.release()
        self._meter.reset_peak()

    def stop(self) -> None:
        self._update()
        self._phase = None

    def read(self) -> dict[str, PhaseMemory]:
        self._update()
        return dict(self._phases)

    def recall(self, phases: Iterable[PhaseMemory]) -> None:
        """Peaks of an earlier process that did a part of the same work; the larger one is kept, as within one."""
        for phase in phases:
            self._keep(phase)

    def now(self) -> tuple[int | None, int | None]:
        """(bytes held at this moment, peak bytes of the phase so far); None outside of phases or where unknown."""
        if self._phase is None:
            return None, None
        held, peak = self._meter.now()
        if peak is None:
            return held, None
        before = self._phases.get(self._phase)
        peak = max(peak, (before and before.peak_bytes) or 0, self._seen_bytes.get(self._phase, 0))
        self._seen_bytes[self._phase] = peak  # Linux counts pages in batches: its peak may seem to fall by some
        return held, peak

    def peak_so_far_bytes(self) -> int | None:
        """The highest of all phases until now."""
        peaks = [self.now()[1], *(phase.peak_bytes for phase in self._phases.values())]
        return max((peak for peak in peaks if peak is not None), default=None)

    def _update(self) -> None:
        if self._phase is not None:
            self._keep(self._meter.read(self._phase))

    def _keep(self, reading: PhaseMemory) -> None:
        before = self._phases.get(reading.phase)
        if before is None or (reading.peak_bytes or 0) > (before.peak_bytes or 0):
            self._phases[reading.phase] = reading


def open_memory(device: str) -> Memory:
    """The memory instrument of a type of device."""
    if device in ("cpu", "mps"):
        return Memory(CpuMeter())
    return Memory(AcceleratorMeter(nvml=open_nvml() if device == "cuda" else None))


def breakdown(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> MemoryBreakdown:
    """Bytes of weights, gradients and optimizer state, each storage counted once.

    Call after an optimizer step and before the gradients are cleared.
    """
    parameters = list(model.parameters())
    holders: list[torch.Tensor | torch.nn.Module] = [*parameters, *model.modules()]
    constants = [t for holder in holders for t in quantization_constants(holder)]
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    gradients = [p.grad for p in parameters if p.grad is not None]
    weights = [*parameters, *constants, *model.buffers()]
    return MemoryBreakdown(total_bytes(weights), total_bytes(gradients), total_bytes(states))


def quantization_constants(holder: torch.Tensor | torch.nn.Module) -> list[torch.Tensor]:
    """The scales that bitsandbytes keeps beside a 4-bit weight (`bitsandbytes.functional.QuantState`).

    Args:
        holder: the weight, or its layer, which alone still has them when FSDP has cut the weight.
    """
    state = getattr(holder, "quant_state", None)
    nested = getattr(state, "state2", None)
    tensors = [getattr(state, "absmax", None), getattr(state, "code", None), getattr(state, "offset", None)]
    tensors += [getattr(nested, "absmax", None), getattr(nested, "code", None)]
    return [t for t in tensors if isinstance(t, torch.Tensor)]


def total_bytes(tensors: list[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind tensors; tied weights count once, of a cut tensor this process's part."""
    tensors = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
