"""The machine's device, compute dtype, attention kernel and compilation, resolved once per stage.

`auto` in `conf/hardware/` is decided here and the decision is recorded in the stage's `Environment`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from bench.config import CUTS_WEIGHTS, HardwareConfig, RunConfig
from bench.machine import allowed_cores, compiler_problem, gpu_out_of_reach, processor
from bench.mistakes import ConfigurationError, refuse
from bench.planner.time import COMPILE_REPAYS_FROM_STEPS
from bench.record import Environment
from bench.worker.attention import PRODUCTS, faster_on_cpu
from bench.worker.instruments.clock import OtherLoad

ACCELERATORS = ("cuda", "xpu", "mps")
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # x86 and Arm, as PyTorch names them


@dataclass(frozen=True)
class Device:
    """The resolved hardware settings of a stage."""

    type: str  # "cpu", "cuda" (NVIDIA's, and AMD's by ROCm), "xpu" (Intel's) or "mps" (Apple's)
    compute_dtype: torch.dtype
    attention: str
    compiled: str  # "regional", or "off: REASON"
    keeps_casts: bool = True  # autocast keeps each cast weight until the pass ends: too much if the weights are cut

    def synchronize(self) -> None:
        """Wait for queued device work."""
        if self.type != "cpu":
            torch.accelerator.synchronize()

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """bfloat16, or None where everything computes in fp32."""
        return None if self.compute_dtype is torch.float32 else self.compute_dtype

    def autocast(self) -> torch.autocast:
        """The numerics of training, for evaluation too."""
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=self.keeps_casts)

    def environment(self, load: OtherLoad) -> Environment:
        """The facts that must be equal for speeds to be compared, and other load meanwhile."""
        return Environment(
            device=f"{self.type}: {name_of(self.type)}",
            device_count=1 if self.type == "cpu" else torch.accelerator.device_count(),
            threads=torch.get_num_threads(),
            compute_dtype=str(self.compute_dtype).removeprefix("torch."),
            attention=self.attention,
            compiled=self.compiled,
            torch=torch.__version__,
            load_average_1min_at_start=load.load_average_1min,
            cpus=len(allowed_cores()),
            cpu_affinity=affinity(),
            cpu_governor=governor(allowed_cores()),
            other_cpu_cores=load.cpu_cores,
            stolen_cpu_cores=load.stolen_cores,
            other_gpu_processes=load.gpu_processes,
        )


def resolve(config: RunConfig, steps: int | None = None, processes: int = 1) -> Device:
    """Decide everything that is `auto`.

    Args:
        steps: optimizer steps to run; None outside training.
        processes: that train together on this machine and share its cores.

    Raises:
        ConfigurationError: the config asks for what is not here.
    """
    hardware = config.hardware
    torch.set_num_threads(hardware.threads or max(1, len(allowed_cores()) // processes))
    kind = kind_of(hardware)
    if kind == "cuda" and torch.cuda.device_count() < processes:
        raise ConfigurationError(
            [f"hardware.devices: {processes} were asked for, but {torch.cuda.device_count()} are visible; lower it"]
        )
    refuse(unsupported(config, kind))
    if config.train.kernels == "liger" and (kind != "cuda" or importlib.util.find_spec("liger_kernel") is None):
        raise ConfigurationError(["train.kernels: liger needs CUDA and the package liger-kernel; use torch"])
    dtype, compiled = compute_dtype(hardware, kind), _compilation(config, kind, steps)
    return Device(
        type=kind,
        compute_dtype=dtype,
        attention=_attention(config, kind, dtype, None if steps is None else compiled == "regional"),
        compiled=compiled,
        keeps_casts=config.hardware.strategy not in CUTS_WEIGHTS,
    )


def kind_of(hardware: HardwareConfig) -> str:
    """The type of device that `hardware.device` means here.

    Raises:
        ConfigurationError: one was asked for that PyTorch does not see, or it does not see a GPU that the driver sees.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    here = accelerator.type if accelerator is not None and accelerator.type in ACCELERATORS else "cpu"
    if hardware.device in ("cpu", here):
        return hardware.device
    if here == "cpu" and (lost := gpu_out_of_reach(tried=True)):
        why, mend = lost
        raise ConfigurationError([f"hardware.device: {why}; {mend}; or hardware.device=cpu to run without it"])
    if hardware.device != "auto":
        raise ConfigurationError(
            [f"hardware.device: {hardware.device} was asked for, but none is visible; use auto or {here}"]
        )
    return here


def unsupported(config: RunConfig, kind: str) -> list[str]:
    """What the run asks for that a type of device cannot do, one line each."""
    problems = []
    if kind in ("xpu", "mps") and config.hardware.devices > 1:
        problems.append(f"hardware.devices: several train together on cuda and cpu alone, and this is {kind}; use 1")
    if kind in ("xpu", "mps") and config.method.quantization is not None:
        from bitsandbytes import supported_torch_devices

        if kind not in supported_torch_devices:
            held = ", ".join(sorted(supported_torch_devices))
            problems.append(
                f"method.quantization: bitsandbytes has no backend for {kind} (it has {held}); leave "
                f"{config.method.name} out, or install a newer bitsandbytes"
            )
    return problems


def name_of(kind: str) -> str:
    """What the maker calls the device."""
    if kind == "cpu":
        return processor()
    return "Apple" if kind == "mps" else str(torch.get_device_module(kind).get_device_name())


def free_and_total_bytes(kind: str) -> tuple[int, int]:
    """Memory of the device; of a CPU, and of a GPU that shares it, the machine's."""
    if kind in ("cpu", "mps"):
        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)
    return torch.accelerator.get_memory_info()


def limit_memory(hardware: HardwareConfig, kind: str) -> None:
    """Let CUDA's allocator run out at a stated budget as on a device of that size. A CPU's memory is only measured."""
    if hardware.memory_budget_gib is not None and kind == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, hardware.memory_budget_gib * 2**30 / total))


def compute_dtype(hardware: HardwareConfig, kind: str) -> torch.dtype:
    """The dtype in which matrices are multiplied, `auto` decided."""
    if hardware.compute_dtype != "auto":
        dtype: torch.dtype = getattr(torch, hardware.compute_dtype)
        return dtype
    if kind in ("cuda", "xpu"):  # T4 and V100 only emulate it
        fast = torch.get_device_module(kind).is_bf16_supported(including_emulation=False)
    elif kind == "mps":
        fast = True  # computed since macOS 14, without which PyTorch no longer runs
    else:
        fast = any(torch.cpu.get_capabilities().get(flag) for flag in _BF16_FLAGS)
    return torch.bfloat16 if fast else torch.float32


def _attention(config: RunConfig, kind: str, dtype: torch.dtype, compiled: bool | None) -> str:
    """By name; `compiled` is None outside training, where nothing is measured."""
    hardware = config.hardware
    has_flash = kind == "cuda" and importlib.util.find_spec("flash_attn") is not None
    if hardware.attention == "flash_attention_2" and not has_flash:
        raise ConfigurationError(
            ["hardware.attention: flash_attention_2 needs CUDA and the package flash-attn; use auto or sdpa"]
        )
    if hardware.attention == PRODUCTS and kind != "cpu":
        raise ConfigurationError(["hardware.attention: products is for CPUs; use auto or sdpa"])
    if hardware.attention != "auto":
        return hardware.attention
    if kind == "cpu" and compiled is not None:
        return faster_on_cpu(dtype, compiled, processor(), Path(config.paths.cache) / "attention")
    # On padded batches it waits for the device in every layer and breaks the compiled ones: for packed rows alone.
    return "flash_attention_2" if has_flash and config.train.packing else "sdpa"


def _compilation(config: RunConfig, kind: str, steps: int | None) -> str:
    wanted = config.train.compile
    if wanted == "off" or steps is None:
        return "off"
    lacks = "no compiler for mps" if kind == "mps" else compiler_problem(kind)
    if lacks is not None:
        if wanted == "regional":
            problem = f"train.compile: regional was asked for, but there is {lacks}; use off"
            raise ConfigurationError([f"{problem}, or mend it as `python -m bench doctor` says"])
        return f"off: {lacks}"
    if wanted == "auto" and steps < COMPILE_REPAYS_FROM_STEPS:
        return f"off: {steps} steps do not repay it"
    return "regional"


def affinity() -> str | None:
    """The processors that this process may use, as Linux writes them ("0-2,5"); None elsewhere."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list:"))
    return None


def governor(processors: Iterable[int], root: Path = Path("/sys/devices/system/cpu")) -> str | None:
    """`performance`, `powersave`, ...; several joined by "/"; None if the system hides it (most VMs)."""
    found = set()
    for number in processors:
        with suppress(OSError):
            found.add((root / f"cpu{number}" / "cpufreq" / "scaling_governor").read_text().strip())
    return "/".join(sorted(found)) or None


def compile_layers(model: torch.nn.Module) -> None:
    """Compile the decoder layers one by one: all share one graph, so it costs one compilation, not one a layer.

    Compiled 4-bit layers dequantize their weights again in the backward pass, as uncompiled ones do.
    """
    torch._dynamo.config.optimize_ddp = False  # cuts graphs at DDP's buckets, which breaks checkpointed layers
    # Training or held-out loss, first layer or later, small or large: each may need a graph. Beyond PyTorch's limit (8)
    # a layer would run eager in silence.
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    alike = [list(m) for m in lists if len({type(child) for child in m}) == 1]
    for layer in max(alike, key=len, default=[]):  # the longest list of equal modules, under any wrapper
        layer.forward = torch.compile(layer.forward, dynamic=True)


def graphs_compiled() -> int:
    """How many graphs the compiler has made in this process until now."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # seconds to import, and there once anything was compiled
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0
