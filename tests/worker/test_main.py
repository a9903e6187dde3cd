"""What counts as out of memory, and the child's environment."""

from __future__ import annotations

import pytest
import torch

from bench.config import RunConfig
from bench.worker.main import _confine, is_out_of_memory

CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."


def caused_by(cause: BaseException) -> ValueError:
    error = ValueError("wrapped")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError(CPU_MESSAGE),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("unable to mmap 5120150520 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        OSError(12, "Cannot allocate memory"),
        caused_by(MemoryError()),
    ],
    ids=repr,
)
def test_out_of_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [ValueError("memory"), RuntimeError("shape mismatch"), OSError(28, "No space")], ids=repr
)
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_the_child_keeps_its_caches_and_avoids_cudnn_attention(monkeypatch, smoke_config: RunConfig) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr("os.environ", environment)
    _confine(smoke_config, "train")
    assert environment["TORCH_CUDNN_SDPA_DEPRIORITIZED"] == "1"
    assert environment["TRITON_CACHE_DIR"] == f"{smoke_config.paths.cache}/triton"
