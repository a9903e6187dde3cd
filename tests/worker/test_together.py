"""How several processes end as one, what is asked of DeepSpeed, and what a run may see of a machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.compose import compose
from bench.sweep.child import command, visible
from bench.worker import multi as sharding
from bench.worker import prepare as checks
from bench.worker.multi import first_cause


@pytest.mark.parametrize(
    ("codes", "said", "expected"),
    [
        ([1, 3], {"exit_code": 3}, 3),  # one ran out of memory and said so; the other lost its connection
        ([-6, 3], {"exit_code": 3}, 3),  # which may abort it
        ([1], {"exit_code": 1}, 1),
        ([1, -9], {"exit_code": 1, "lost_peer": True}, -9),  # killed: the other's error is a consequence
        ([-6, -9], None, -9),
        ([-11, 1], {"exit_code": 1, "lost_peer": True}, -11),
        ([1, -15], {"exit_code": 1}, 1),  # the launcher ended the other
        ([1, 1], {"exit_code": 1, "lost_peer": True}, 1),  # the network failed, no process did
        ([-15], None, -15),  # by nothing else: it was SIGTERM
        ([3, 1], None, 3),  # a full disk: nothing was said
    ],
)
def test_the_cause_is_told_from_its_consequences(tmp_path: Path, codes: list[int], said: dict, expected: int) -> None:
    if said is not None:
        (tmp_path / "error.json").write_text(json.dumps({"message": "..."} | said))
    assert first_cause(codes, tmp_path) == expected


def test_only_training_is_by_several_processes() -> None:
    assert command(Path("run"), "train", 2)[1:] == ["-m", "bench.worker.multi", "2", "run", "train"]
    assert command(Path("run"), "evaluate", 2)[1:] == ["-m", "bench.worker", "run", "evaluate"]
    assert command(Path("run"), "train", 1)[1:] == ["-m", "bench.worker", "run", "train"]


@pytest.mark.parametrize(
    ("given", "devices", "expected"),
    [(None, 1, "0"), (None, 3, "0,1,2"), ("4,5,6", 2, "4,5"), ("GPU-a,GPU-b", 1, "GPU-a"), ("", 2, ""), ("7", 2, "7")],
)
def test_a_run_sees_as_many_gpus_as_it_asks_for(given: str | None, devices: int, expected: str) -> None:
    assert visible(given, devices) == expected


def arguments(*overrides: str, dtype: torch.dtype = torch.bfloat16) -> dict:
    (config,) = compose(["hardware.devices=2", *overrides], multirun=False)
    return sharding.arguments(config, dtype)


def test_deepspeed_is_asked_for_the_same_numerics() -> None:
    two = arguments("hardware.strategy=zero2")["deepspeed"]
    assert two["zero_optimization"]["stage"] == 2
    assert two["bf16"] == {"enabled": False}
    assert two["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert "offload_optimizer" not in two["zero_optimization"]
    three = arguments("hardware.strategy=zero3", "hardware.cpu_offload=true", dtype=torch.float32)["deepspeed"]
    assert three["zero_optimization"]["stage"] == 3
    assert three["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert three["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert three["torch_autocast"]["enabled"] is False


def test_fsdp_is_asked_for_version_2() -> None:
    found = arguments("hardware.strategy=fsdp", "hardware.cpu_offload=true")
    assert found["fsdp"] is True
    assert (found["fsdp_config"]["version"], found["fsdp_config"]["cpu_offload"]) == (2, True)


def test_a_missing_deepspeed_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = compose(["hardware.devices=2", "hardware.strategy=zero2"], multirun=False)
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    (problem,) = checks.device_problems(config)
    assert "zero2 needs DeepSpeed" in problem
    assert "pip install" in problem
