"""Model folders that cannot be trained, refused before a child starts: by their files alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench import checkpoint
from bench.compose import compose
from bench.identity import weight_files
from bench.mistakes import ConfigurationError
from bench.sweep.console import Console
from bench.sweep.fetching import prepare_all

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512}


def changed(**settings: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(CONFIG | settings))


def written(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-2])


def packed(folder: Path) -> None:
    save_file({"model.layers.0.mlp.up_proj.weight": np.zeros((2, 2), np.uint8)}, folder / "model.safetensors")


def shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
BROKEN = {
    "no config.json": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "not JSON": (written("config.json", "{"), "cannot be read"),
    "no model type": (written("config.json", "{}"), "names no model_type"),
    "only .bin": (only_bin, "no model.safetensors in"),
    "LFS pointer": (written("model.safetensors", LFS), "is a Git LFS pointer"),
    "cut short": (cut, "incomplete metadata"),
    "not safetensors": (written("model.safetensors", "{" * 99), "header too large"),
    "a shard is missing": (shard_missing, "is not there"),
    "quantized by config.json": (changed(quantization_config={"quant_method": "gptq"}), "already quantized (config"),
    "quantized by a file": (written("quantize_config.json", "{}"), "already quantized (quantize_config.json"),
    "quantized by its weights": (packed, "already quantized (model.layers.0.mlp.up_proj.weight holds U8)"),
    "encoder and decoder": (changed(is_encoder_decoder=True), "has an encoder and a decoder"),
    "another head": (changed(architectures=["BertForMaskedLM"]), "BertForMaskedLM is not a causal language model"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder without a mistake, of one weight."""
    made = tmp_path / "model"
    made.mkdir()
    changed()(made)
    save_file({"lm_head.weight": np.zeros((2, 2), np.float16)}, made / "model.safetensors")
    return made


def composed(folder: Path, *overrides: str) -> Any:
    basis = ["experiment=smoke", "model=folder", f"model.location={folder}", "train.max_length=256"]
    basis += [f"paths.{name}={folder.parent / name}" for name in ("results", "artifacts", "cache")]
    return compose([*basis, *overrides], multirun=False)[0]


def test_a_sound_folder_tells_how_long_a_text_it_takes(folder: Path) -> None:
    assert composed(folder).model.max_context == 512
    assert composed(folder, "model.max_context=300").model.max_context == 300


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_before_anything_runs(folder: Path, case: str) -> None:
    breaks, words = BROKEN[case]
    breaks(folder)
    with pytest.raises(ConfigurationError) as caught:
        prepare_all([composed(folder)], Console())
    assert all(problem.startswith("model.location: ") for problem in caught.value.problems)
    assert sum(words in problem for problem in caught.value.problems) == 1


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    changed(quantization_config={"load_in_4bit": True})(folder)
    only_bin(folder)
    with pytest.raises(ConfigurationError) as caught:
        prepare_all([composed(folder, "model.max_context=4096")], Console())
    problems = "\n".join(caught.value.problems)
    for words in ("quantized (config.json has quantization_config: 4 bit)", "beside pytorch_model.bin",
                  "model.max_context: 4096 is beyond the 512 positions"):  # fmt: skip
        assert words in problems


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),  # GPT-2
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),  # reads images too
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "linear", "factor": 4}}, 16384),
        ({"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "llama3", "factor": 8.0,
          "original_max_position_embeddings": 8192}}, 131072),
        ({"alibi": True}, None),
    ],
)  # fmt: skip
def test_positions(content: dict[str, Any], expected: int | None) -> None:
    assert checkpoint.positions(content) == expected


def test_the_weights_that_transformers_reads_are_those_that_count(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "other.safetensors"}}))
    assert [path.name for path in weight_files(folder)] == ["model.safetensors"]
