"""What can be known to be wrong before anything is downloaded: names, columns, disk space."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE

from bench.config import DEEPSPEED, RunConfig
from bench.worker.methods import served_forms
from bench.worker.sources import hub
from bench.worker.suites.check import check_suite

BYTES_PER_PARAMETER = 2  # as downloaded, and as a checkpoint is written: 16 bit
QUANTIZED_BYTES_PER_PARAMETER = 0.7  # 4 bit with constants, embeddings in 16 bit


def before_download(config: RunConfig) -> list[str]:
    """All problems with the suite's task names, the data's columns and splits, and the disk."""
    problems = check_suite(config.suite)
    adapter = config.method.adapter
    if adapter is not None and adapter.init == "loftq" and not torch.cuda.is_available():
        problems.append("method.adapter.init: PEFT computes loftq on CUDA only, and none is visible; use default")
    problems += device_problems(config)
    if config.task.source == "hub":
        problems += hub.check_columns_without_download(config.task)
    return problems + disk_problems(config)


def device_problems(config: RunConfig) -> list[str]:
    """What several devices need and is not here."""
    hardware, problems = config.hardware, list[str]()
    if hardware.strategy in DEEPSPEED and importlib.util.find_spec("deepspeed") is None:
        problems.append(
            f"hardware.strategy: {hardware.strategy} needs DeepSpeed, which is not installed; "
            "pip install 'finetune-bench[deepspeed]', or use fsdp"
        )
    if hardware.device != "cpu" and torch.cuda.is_available() and torch.cuda.device_count() < hardware.devices:
        count = torch.cuda.device_count()
        problems.append(f"hardware.devices: {hardware.devices} were asked for, but {count} are visible; lower it")
    return problems


def disk_problems(config: RunConfig) -> list[str]:
    """Whether the model, one checkpoint of it and the forms to be served fit, from its number of parameters."""
    if config.model.parameters is None:
        return []
    needed = BYTES_PER_PARAMETER * config.model.parameters
    model_folder = Path(HF_HUB_CACHE) if config.model.source == "hub" else Path(config.paths.cache)
    artifacts = Path(config.paths.artifacts)
    places = [("the model", model_folder, needed), ("a checkpoint", artifacts, needed)]
    if config.serve.prompt_tokens:
        places.append(("a checkpoint with its served forms", artifacts, needed + _forms_bytes(config)))
    return [
        f"disk: {what} takes {size_bytes / 2**30:.1f} GiB, but {str(folder)!r} has {free / 2**30:.1f} GiB free; "
        "free some space, or name another folder (HF_HOME, paths.cache, paths.artifacts)"
        for what, folder, size_bytes in places
        if (free := free_bytes(folder)) < size_bytes
    ]


def _forms_bytes(config: RunConfig) -> int:
    """Of the merged and requantized forms that serving writes."""
    built = [form for form in served_forms(config.method) if form.is_built]
    each = [QUANTIZED_BYTES_PER_PARAMETER if form.is_quantized else BYTES_PER_PARAMETER for form in built]
    return int((config.model.parameters or 0) * sum(each))


def free_bytes(folder: Path) -> int:
    """Free disk space where a folder is or will be."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free
