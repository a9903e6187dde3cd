"""The trials of `bench doctor` that need PyTorch: each thing is done once on the device, in small, and not guessed.

A trial that raises is a finding like any other: what it raised, and what mends it. What shows without PyTorch is in
`bench.machine`, the disk in `bench.planner.disk`.

>>> [finding["name"] for finding in run(context)["findings"]]
['device', 'memory', 'bf16', 'attention', '4-bit', 'compile', 'energy', 'hub']
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bench.config import RunConfig
from bench.machine import Finding, compiler_problem
from bench.mistakes import ConfigurationError
from bench.worker import device, models
from bench.worker.instruments.clock import other_gpu_processes
from bench.worker.instruments.energy import RAPL, open_energy, open_nvml
from bench.worker.main import Context

GIB = 2**30
LITTLE_FREE = 0.9  # of the device's memory: less is free where others use it
ROUNDING = 0.02  # relative to the largest: bf16's, of a product over 256
_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
             "cuDNN": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}  # fmt: skip
_BITSANDBYTES = "BNB_CUDA_VERSION=NNN of a library that its wheel has, or .venv/bin/pip install -U bitsandbytes"
_RAPL = f"sudo chmod a+r {RAPL}/intel-rapl:*/energy_uj"
_OFFLINE = "check the network and its proxy (HTTPS_PROXY); or make fetch where the hub can be reached: docs/gpu.md"


@dataclass(frozen=True)
class Trial:
    """Something to try, what it means if it raises, and what mends it then."""

    name: str
    act: Callable[[RunConfig, str], Finding]
    state: Literal["slower", "broken"]
    mend: str


def run(context: Context) -> dict[str, Any]:
    """Every trial, on the run's device; on the CPU where that cannot be used."""
    config, kind, found = context.config, "cpu", []
    with suppress(ConfigurationError):
        kind = device.kind_of(config.hardware)
    for trial in TRIALS:
        context.progress.phase(trial.name)
        found.append(asdict(tried(trial, config, kind)))
    return {"findings": found}


def tried(trial: Trial, config: RunConfig, kind: str) -> Finding:
    """What a trial finds, or what it raised."""
    try:
        return trial.act(config, kind)
    except ConfigurationError as error:
        return Finding(trial.name, trial.state, error.problems[0], trial.mend)
    except Exception as error:  # whatever a broken library raises
        said = (str(error).strip() or "no message").splitlines()[0]
        return Finding(trial.name, trial.state, f"{type(error).__name__}: {said}", trial.mend)


def _device(config: RunConfig, kind: str) -> Finding:
    device.kind_of(config.hardware)  # raises where the device that was asked for cannot be used
    told = f"{kind}: {device.name_of(kind)}"
    if kind == "cuda":
        told += ", compute capability {}.{}".format(*torch.cuda.get_device_capability())
    (torch.ones(8, device=kind) + 1).sum().item()  # a wheel without kernels for this device raises here
    return Finding("device", "fine", told)


def _memory(config: RunConfig, kind: str) -> Finding:
    free, total = device.free_and_total_bytes(kind)
    told = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    nvml = open_nvml() if kind == "cuda" else None
    if nvml and (others := other_gpu_processes(nvml.process_ids(), {os.getpid()})):
        told += f"; other processes on the device: {others}"
    if kind != "cpu" and free < LITTLE_FREE * total:
        return Finding("memory", "slower", told, "nvidia-smi names what holds it: end that, or take another device")
    return Finding("memory", "fine", told)


def _bf16(config: RunConfig, kind: str) -> Finding:
    if device.compute_dtype(config.hardware, kind) is torch.bfloat16:
        return Finding("bf16", "fine", "computed by the device")
    return Finding("bf16", "slower", "not computed by the device: every run computes in fp32", "a newer device")


def _attention(config: RunConfig, kind: str) -> Finding:
    dtype = device.compute_dtype(config.hardware, kind)
    query, works = torch.randn(1, 4, 128, 64, device=kind, dtype=dtype), []
    for name, backend in _BACKENDS.items():
        with suppress(RuntimeError), warnings.catch_warnings(), sdpa_kernel(backend):
            warnings.simplefilter("ignore")  # why a kernel cannot be used
            scaled_dot_product_attention(query, query, query, is_causal=True).sum().item()
            works.append(name)
    told = f"works: {', '.join(works)}" + ("; cuDNN is left out of runs" if "cuDNN" in works else "")
    if set(works) <= {"math"}:
        mend = "another PyTorch build: without these, attention keeps the square of the length"
        return Finding("attention", "slower", told, mend)
    return Finding("attention", "fine", told)


def _four_bit(config: RunConfig, kind: str) -> Finding:
    import bitsandbytes
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight, given = (torch.randn(rows, 256, device=kind).bfloat16() for rows in (128, 32))
    packed, state = quantize_4bit(weight, quant_type="nf4")
    product = bitsandbytes.matmul_4bit(given, packed.t(), quant_state=state)
    expected = given @ dequantize_4bit(packed, state).t()
    error = float((product - expected).abs().max() / expected.abs().max())
    told = f"bitsandbytes {bitsandbytes.__version__}: a product by 4-bit weights is off by {error:.1%} of the largest"
    if not error < ROUNDING:
        return Finding("4-bit", "broken", told, _BITSANDBYTES)
    return Finding("4-bit", "fine", told)


def _compile(config: RunConfig, kind: str) -> Finding:
    if (lacks := compiler_problem(kind)) is not None:
        return Finding("compile", "slower", f"not tried: {lacks}", "see compiler")
    layer = torch.nn.Linear(64, 64, device=kind)
    given = torch.randn(8, 64, device=kind)
    started = time.perf_counter()
    compiled = torch.compile(lambda x: torch.nn.functional.silu(layer(x)), dynamic=True)(given)
    error = float((compiled - torch.nn.functional.silu(layer(given))).detach().abs().max())
    told = f"a small layer in {time.perf_counter() - started:.0f} s"
    if not error < ROUNDING:
        return Finding("compile", "broken", f"{told}, off by {error:.2g}", "train.compile=off")
    return Finding("compile", "fine", told)


def _energy(config: RunConfig, kind: str) -> Finding:
    energy = open_energy(kind)
    energy.enter("doctor")
    if energy.read()["doctor"] is not None:
        return Finding("energy", "fine", f"counted by {'RAPL' if kind == 'cpu' else 'NVML'}")
    told = "no counter that may be read: records leave energy out"
    return Finding("energy", "fine", told, _RAPL if kind == "cpu" and list(RAPL.glob("intel-rapl:*")) else "")


def _hub(config: RunConfig, kind: str) -> Finding:
    model, task = config.model, config.task
    needed = [(model.location, "model")] if model.source == "hub" else []
    needed += [(task.hub_dataset, "dataset")] if task.source == "hub" and task.hub_dataset else []
    told = "logged in" if get_token() else "logged out"
    if not needed or config.paths.bundle is not None:
        return Finding("hub", "fine", f"{told}; these runs need no hub")
    for name, kind_of_repository in needed:
        try:
            HfApi().auth_check(name, repo_type=kind_of_repository)
        except GatedRepoError:
            return Finding("hub", "broken", f"{told}; {name} is gated", models.HOW_TO_LOG_IN)
        except RepositoryNotFoundError:
            hidden = f"{told}; no {kind_of_repository} {name} that this login may read"
            return Finding("hub", "broken", hidden, models.HOW_TO_LOG_IN)
    return Finding("hub", "fine", f"{told}; {' and '.join(name for name, _ in needed)} may be read")


TRIALS = (
    Trial("device", _device, "broken", "a wheel with kernels for it: docs/gpu.md"),
    Trial("memory", _memory, "broken", "nvidia-smi"),
    Trial("bf16", _bf16, "broken", "hardware.compute_dtype=float32"),
    Trial("attention", _attention, "broken", "hardware.attention=eager"),
    Trial("4-bit", _four_bit, "broken", _BITSANDBYTES),
    Trial("compile", _compile, "slower", "train.compile=off, or see compiler"),
    Trial("energy", _energy, "slower", ""),
    Trial("hub", _hub, "broken", _OFFLINE),
)
