"""How much memory training may take: `hardware.memory_budget_gib`, or nine tenths of what the device has.

>>> enforce(config.hardware, "cuda")   # from here, CUDA's allocator gives no more
>>> budget_bytes(config.hardware, "cuda") / 2**30
72.0
"""

from __future__ import annotations

import psutil
import torch

from bench.config import HardwareConfig

SHARE = 0.9  # the rest is for the driver, the compiler and what fragments


def budget_bytes(hardware: HardwareConfig, device: str) -> int:
    """Bytes that the peak of training may reach.

    Unstated: of the memory of one CUDA device; on a CPU, of what is available now, or of `memory_limit_gib` if less.
    """
    if hardware.memory_budget_gib is not None:
        return int(hardware.memory_budget_gib * 2**30)
    if device == "cuda":
        return int(SHARE * torch.cuda.get_device_properties(0).total_memory)
    available = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    limit = hardware.memory_limit_gib
    return int(SHARE * min(available, available if limit is None else limit * 2**30))


def enforce(hardware: HardwareConfig, device: str) -> None:
    """Let CUDA's allocator run out at a stated budget as on a device of that size. A CPU's memory is only measured."""
    if hardware.memory_budget_gib is not None and device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, hardware.memory_budget_gib * 2**30 / total))
