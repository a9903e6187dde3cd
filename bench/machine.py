"""What this machine has and lacks, as far as it shows without loading PyTorch: driver, wheel, compiler, cores.

The sweep prints what is not fine of it before anything else; `bench doctor` shows all of it, beside the trials of
`bench.worker.doctor`.

>>> [finding.name for finding in findings(config.hardware) if finding.state == "broken"]
['driver']
>>> gpu_out_of_reach()
('NVML sees NVIDIA H100 (...), PyTorch does not: its wheel 2.13.0+cpu is built without CUDA', '.venv/bin/pip ...')
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import psutil
import pynvml

from bench.config import HardwareConfig
from bench.record import Finding

_INDEXES = {12: "cu126", 13: "cu130"}  # the driver's CUDA -> builds that it runs
_NEWER_DRIVER = "a newer driver (from 525 on they run CUDA 12, from 580 on CUDA 13)"
HIDDEN = ("", "-1")  # of CUDA_VISIBLE_DEVICES: no device is to be seen
_COMPILERS = {  # what is missing -> what mends it
    "no C++ compiler": "sudo apt-get install g++",
    "no Triton": ".venv/bin/pip install triton",
    "no Python.h": "sudo apt-get install python3-dev (of the Python that made .venv)",
}
_LOOK_SECONDS = 0.3  # at how busy the cores are


@dataclass(frozen=True)
class Driver:
    """What NVML says."""

    version: str  # such as 580.159.04
    cuda: tuple[int, int]  # the newest CUDA that it runs
    gpus: list[str]  # their names


@dataclass(frozen=True)
class Wheel:
    """What the installed PyTorch was built for; None: not for that."""

    version: str
    cuda: str | None
    hip: str | None
    xpu: str | None


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


def wheel() -> Wheel | None:
    """The installed PyTorch, by a file of its own that needs nothing loaded; None where it has none."""
    found = importlib.util.find_spec("torch")  # without importing it
    if found is None or found.origin is None:
        return None
    try:
        told = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    except OSError:
        return None
    return Wheel(str(told["__version__"]), *(told.get(name) for name in ("cuda", "hip", "xpu")))


def gpu_out_of_reach(tried: bool = False) -> tuple[str, str] | None:
    """(why PyTorch cannot use a GPU that the driver sees, what mends it); None: it can, there is none, it is hidden.

    Args:
        tried: PyTorch was loaded and sees none, whatever driver and wheel promise.
    """
    found, built = driver(), wheel()
    if found is None or built is None or not found.gpus or os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN:
        return None
    runs, index = "CUDA {}.{}".format(*found.cuda), _INDEXES.get(found.cuda[0])
    told = f"NVML sees {found.gpus[0]} (driver {found.version}, which runs {runs}), PyTorch does not"
    other_wheel = (
        f".venv/bin/pip install --force-reinstall torch=={built.version.split('+')[0]} --index-url URL, URL being "
        f"PyTorch's own index that ends in /whl/{index} (its page Get Started has it)"
    )
    if built.cuda is None:
        why = f"{told}: its wheel {built.version} is built without CUDA"
        return why, other_wheel if index else _NEWER_DRIVER
    if int(built.cuda.split(".")[0]) > found.cuda[0]:
        why = f"{told}: its wheel {built.version} is built for CUDA {built.cuda}"
        return why, f"{_NEWER_DRIVER}; or {other_wheel}" if index else _NEWER_DRIVER
    return (told, '.venv/bin/python -c "import torch; torch.cuda.init()" says why') if tried else None


def compiler_problem(device: str) -> str | None:
    """What torch.compile lacks for a type of device; None: nothing."""
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        return "no C++ compiler"
    if device != "cpu" and importlib.util.find_spec("triton") is None:
        return "no Triton"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "no Python.h"
    return None


def free_bytes(folder: Path) -> int:
    """Free disk space where a folder is or will be."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def findings(hardware: HardwareConfig) -> list[Finding]:
    """Driver, wheel, compiler and cores."""
    found, built = driver(), wheel()
    unreachable = gpu_out_of_reach() if hardware.device in ("auto", "cuda") else None
    on_gpu = found is not None and found.gpus and hardware.device != "cpu" and not unreachable
    return [
        _driver(found, unreachable), _wheel(built), _compiler(compiler_problem("cuda" if on_gpu else "cpu")), _cores(),
    ]  # fmt: skip


def _driver(found: Driver | None, unreachable: tuple[str, str] | None) -> Finding:
    if unreachable:
        return Finding("driver", "broken", *unreachable)
    if found is None:
        return Finding("driver", "fine", "none of NVIDIA")
    return Finding("driver", "fine", f"{found.version}, CUDA {found.cuda[0]}.{found.cuda[1]}, {', '.join(found.gpus)}")


def _wheel(built: Wheel | None) -> Finding:
    if built is None:
        return Finding("wheel", "broken", "PyTorch is not installed", "make setup")
    platforms = {"CUDA": built.cuda, "ROCm": built.hip, "XPU": built.xpu}
    named = [f"{name} {version}" for name, version in platforms.items() if version]
    return Finding("wheel", "fine", f"PyTorch {built.version} for {', '.join(named) or 'CPUs'}")


def _compiler(lacks: str | None) -> Finding:
    if lacks is None:
        return Finding("compiler", "fine", "a C++ compiler and Python's headers")
    return Finding("compiler", "slower", f"{lacks}: training is not compiled", _COMPILERS[lacks])


def allowed_cores() -> list[int]:
    """The processors that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


def _cores() -> Finding:
    allowed, percent = allowed_cores(), psutil.cpu_percent(_LOOK_SECONDS, percpu=True)
    busy = sum(percent[core] for core in allowed if core < len(percent)) / 100
    told = f"{len(allowed)}, {busy:.1f} of them busy"
    if busy > len(allowed) / 4:
        return Finding("cores", "slower", told, "end what else runs, or hardware.threads=N: it would bend speeds")
    return Finding("cores", "fine", told)
