"""What this machine has and lacks, as far as it shows without loading PyTorch: driver, wheel, compiler, cores.

A sweep prints what is not fine of it before anything else; `bench doctor` shows all of it, beside the trials of
`bench.worker.doctor`.

>>> gpu_out_of_reach()
('NVML sees NVIDIA H100 (...), PyTorch does not: its wheel 2.13.0+cpu is built for CPUs', '.venv/bin/pip ...')
"""

from __future__ import annotations

import importlib.util
import os
import platform
import runpy
import shutil
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import pynvml

from bench.config import HardwareConfig

HIDDEN = ("", "-1")  # of CUDA_VISIBLE_DEVICES: no device is to be seen
_INDEXES = {12: "cu126", 13: "cu130"}  # the driver's CUDA -> builds that it runs
_NEWER_DRIVER = "a newer driver (from 525 on they run CUDA 12, from 580 on CUDA 13)"
_COMPILERS = {  # what is missing -> what mends it
    "no C++ compiler": "sudo apt-get install g++",
    "no Triton": ".venv/bin/pip install triton",
    "no Python.h": "sudo apt-get install python3-dev (of the Python that made .venv)",
}
_LOOK_SECONDS = 0.3  # at how busy the cores are


@dataclass(frozen=True)
class Finding:
    """What `bench doctor` says of one part of the machine."""

    name: str
    state: Literal["fine", "slower", "broken"]  # slower: than it could be
    found: str
    mend: str = ""  # the command or the setting that mends it


@dataclass(frozen=True)
class Driver:
    """What NVML says."""

    version: str  # such as 580.159.04
    cuda: tuple[int, int]  # the newest CUDA that it runs
    gpus: list[str]  # their names


def driver() -> Driver | None:
    """The NVIDIA driver; None where there is none, or it does not answer."""
    try:
        pynvml.nvmlInit()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()  # 12040 for 12.4
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
        return Driver(str(pynvml.nvmlSystemGetDriverVersion()), (cuda // 1000, cuda % 1000 // 10), names)
    except pynvml.NVMLError:
        return None


def wheel() -> tuple[str, str, str | None]:
    """(version of the installed PyTorch, its platform and that one's version), by a file that needs nothing loaded.

    >>> wheel()
    ('2.13.0+cu130', 'CUDA', '13.0')
    """
    found = importlib.util.find_spec("torch")  # without importing it
    assert found is not None
    assert found.origin is not None
    told = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    platforms = {"CUDA": "cuda", "ROCm": "hip", "XPU": "xpu"}
    built = next(((name, told[key]) for name, key in platforms.items() if told.get(key)), ("CPUs", None))
    return told["__version__"], *built


def gpu_out_of_reach(tried: bool = False) -> tuple[str, str] | None:
    """(why PyTorch cannot use a GPU that the driver sees, what mends it); None: it can, there is none, it is hidden.

    Args:
        tried: PyTorch was loaded and sees none, whatever driver and wheel promise.
    """
    found, (version, platform, built_for) = driver(), wheel()
    if found is None or not found.gpus or os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN:
        return None
    runs, index = "CUDA {}.{}".format(*found.cuda), _INDEXES.get(found.cuda[0])
    told = f"NVML sees {found.gpus[0]} (driver {found.version}, which runs {runs}), PyTorch does not"
    needs_cuda = int(built_for.split(".")[0]) if platform == "CUDA" and built_for else None
    if needs_cuda is not None and needs_cuda <= found.cuda[0]:
        return (told, '.venv/bin/python -c "import torch; torch.cuda.init()" says why') if tried else None
    mends = [_NEWER_DRIVER] if needs_cuda is not None or index is None else []
    if index is not None:
        install = f".venv/bin/pip install --force-reinstall torch=={version.split('+')[0]} --index-url URL"
        mends.append(
            f"{install}, URL being PyTorch's own index that ends in /whl/{index} (its page Get Started has it)"
        )
    return f"{told}: its wheel {version} is built for {platform} {built_for or ''}".rstrip(), "; or ".join(mends)


def compiler_problem(device: str) -> str | None:
    """What torch.compile lacks for a type of device; None: nothing."""
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        return "no C++ compiler"
    if device != "cpu" and importlib.util.find_spec("triton") is None:
        return "no Triton"
    return None if (Path(sysconfig.get_path("include")) / "Python.h").exists() else "no Python.h"


def allowed_cores() -> list[int]:
    """The processors that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


def processor() -> str:
    """What its maker calls it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def device_name(kind: str) -> str | None:
    """The device of runs here, as `Environment.device` has it; None: a GPU that NVML does not see."""
    if kind == "cpu":
        return f"cpu: {processor()}"
    found = driver()
    return f"cuda: {found.gpus[0]}" if found and found.gpus else None


def device_memory_gib(hardware: HardwareConfig, kind: str) -> float | None:
    """Of one device, by NVML and at most `hardware.memory_gib`; of a CPU what is free. None: unknown."""
    if kind == "cpu":
        return psutil.virtual_memory().available / 2**30
    known = [] if hardware.memory_gib is None else [hardware.memory_gib]
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        known += [pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30 for handle in handles]
    return min(known, default=None)


def findings(hardware: HardwareConfig) -> list[Finding]:
    """Driver, wheel, compiler and cores."""
    found, lost = driver(), gpu_out_of_reach() if hardware.device in ("auto", "cuda") else None
    told = f"{found.version}, CUDA {found.cuda[0]}.{found.cuda[1]}, {', '.join(found.gpus)}" if found else "none"
    version, *built = wheel()
    on_gpu = bool(found and found.gpus and hardware.device != "cpu" and not lost)
    return [
        Finding("driver", "broken", *lost) if lost else Finding("driver", "fine", f"NVIDIA: {told}"),
        Finding("wheel", "fine", f"PyTorch {version} for {' '.join(filter(None, built))}"),
        _compiler(compiler_problem("cuda" if on_gpu else "cpu")),
        _cores(),
    ]


def _compiler(lacks: str | None) -> Finding:
    if lacks is None:
        return Finding("compiler", "fine", "a C++ compiler and Python's headers")
    return Finding("compiler", "slower", f"{lacks}: training is not compiled", _COMPILERS[lacks])


def _cores() -> Finding:
    allowed, percent = allowed_cores(), psutil.cpu_percent(_LOOK_SECONDS, percpu=True)
    busy = sum(percent[core] for core in allowed if core < len(percent)) / 100
    told = f"{len(allowed)}, {busy:.1f} of them busy"
    if busy > len(allowed) / 4:
        return Finding("cores", "slower", told, "end what else runs, or hardware.threads=N: it would bend speeds")
    return Finding("cores", "fine", told)
