"""Several processes: who computes what, how they end as one, and what is asked of DeepSpeed and FSDP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.compose import compose
from bench.sweep.child import command, visible
from bench.worker import data, multi, prepare
from bench.worker.multi import Team, deal, first_cause, idle_row, in_order, is_idle, share_of_rows

ROWS = [{"prompt_ids": [1] * (i + 1), "answer_ids": [2, 3]} for i in range(5)]


def dealt(rows: int, size: int, batch_size: int = 8, micro_batch: int = 2) -> list[list[list[int]]]:
    return [deal(rows, batch_size=batch_size, micro_batch=micro_batch, rank=rank, size=size) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("rows", [8, 16, 19, 25, 1, 40])
def test_together_they_do_what_one_does(rows: int, size: int) -> None:
    (alone,) = dealt(rows, 1)
    shares = dealt(rows, size)
    assert len({len(share) for share in shares}) == 1
    assert [batch for batch in in_order(shares) if batch != [rows]] == alone
    assert [row for batch in alone for row in batch] == list(range(rows))


def test_a_step_of_each_is_its_part_of_that_step() -> None:
    first, second = dealt(19, 2)  # 8, 8 and 3 rows, in micro-batches of 2
    assert first == [[0, 1], [4, 5], [8, 9], [12, 13], [16, 17]]
    assert second == [[2, 3], [6, 7], [10, 11], [14, 15], [18]]
    assert dealt(17, 2)[1][-1] == [17]  # nothing is left for the second in the last step


def test_the_idle_row_has_no_label() -> None:
    assert is_idle(data.collate([idle_row(ROWS)], pad_id=0))
    assert is_idle(data.pack([idle_row(ROWS)]))
    assert not is_idle(data.collate(ROWS[:1], pad_id=0))


def test_held_out_rows_are_dealt_once_and_evenly() -> None:
    shares = [share_of_rows(ROWS, Team(rank, 2)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [3, 3]
    dealt_rows = [row for share in shares for row in share if row["answer_ids"]]
    assert sorted(map(str, dealt_rows)) == sorted(map(str, ROWS))
    assert share_of_rows(ROWS, Team()) is ROWS


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
    return multi.arguments(config, dtype)


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
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    (problem,) = prepare.device_problems(config)
    assert "zero2 needs DeepSpeed" in problem
    assert "pip install" in problem
