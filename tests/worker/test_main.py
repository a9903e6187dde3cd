"""What counts as out of memory, and the child's environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.compose import with_settings
from bench.config import RunConfig
from bench.identity import WEIGHTS, artifact_folder, checksums, data_folder, make_once, write_atomic
from bench.mistakes import ConfigurationError
from bench.record import Record, from_json, to_json
from bench.worker.main import _confine, is_out_of_memory, refuse_changed_inputs

REFERENCE = Path(__file__).parents[2] / "results" / "reference"

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
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
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
    assert environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    given = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}  # the user's own stays the only one
    monkeypatch.setattr("os.environ", given)
    _confine(smoke_config, "train")
    assert "PYTORCH_ALLOC_CONF" not in given


@pytest.fixture
def planned(smoke_config: RunConfig, tmp_path: Path) -> RunConfig:
    """A run with prepared data, and weights that its training wrote."""
    config = with_settings(smoke_config, {"paths.cache": str(tmp_path / "cache")})
    make_once(data_folder(config), lambda target: write_atomic(target / "test" / "data.arrow", "rows"), tmp_path)
    write_atomic(artifact_folder(config) / "adapter_model.safetensors", "weights")
    record = from_json(Record, next(REFERENCE.glob("lora-*/record.json")).read_bytes())
    trained = replace(record.train, weights=checksums(artifact_folder(config), patterns=WEIGHTS))
    write_atomic(tmp_path / "train.json", to_json(trained))
    return config


@pytest.mark.parametrize(
    ("file", "stages"),
    [("data", ["train", "evaluate"]), ("weights", ["evaluate", "regression"]), ("sums.jsonl", ["prepare"])],
)
def test_a_stage_refuses_what_is_not_what_it_was(
    planned: RunConfig, tmp_path: Path, file: str, stages: list[str]
) -> None:
    asked = ("prepare", "train", "evaluate", "regression")
    for stage in asked:
        refuse_changed_inputs(planned, tmp_path, stage)
    places = {"data": data_folder(planned) / "test" / "data.arrow",
              "weights": artifact_folder(planned) / "adapter_model.safetensors"}  # fmt: skip
    path = places.get(file, tmp_path / file)
    path.write_bytes(path.read_bytes()[:-1] + b"!")  # as long as before
    for stage in asked:
        said = {"weights": path.name, "data": "prepared data"}.get(file, file)
        if stage in stages:
            with pytest.raises(ConfigurationError, match=said):
                refuse_changed_inputs(planned, tmp_path, stage)
        else:
            refuse_changed_inputs(planned, tmp_path, stage)


@pytest.mark.parametrize("words", ["could not create a primitive", "std::bad_alloc", "can't start new thread"])
def test_words_of_libraries_under_a_limit_mean_memory(words: str) -> None:
    assert is_out_of_memory(RuntimeError(words), limited=True)
    assert not is_out_of_memory(RuntimeError(words))
