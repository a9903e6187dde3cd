"""The frontier stage: keeping points changes no training, and every point is measured as what it is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from in_process import in_process
from test_train import configured, trained

from bench.identity import artifact_folder, run_folder
from bench.record import HELDOUT, TASK_KL
from bench.sweep import execute
from bench.worker.train import point_steps

POINTS = "evaluation.points=[0.25,0.5,1.0]"


def test_keeping_points_changes_no_step(smoke, tmp_path: Path) -> None:
    dropout = ("method=lora", "method.adapter.dropout=0.1", "method.learning_rate=0.01")
    runs = [trained(configured(smoke, *dropout, *more), tmp_path / str(len(more))) for more in ((), (POINTS,))]
    assert [step["loss"] for step in runs[0][1]] == [step["loss"] for step in runs[1][1]]
    assert [name for name in runs[1][0].weights if "points" in name and "safetensors" in name] == [
        "points/1/adapter_model.safetensors", "points/2/adapter_model.safetensors"
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["full", "lora"])
def test_each_point_is_measured_with_its_own_weights(smoke, monkeypatch, method: str) -> None:
    monkeypatch.setattr(execute, "run_stage", in_process)
    rate = "method.learning_rate=0.01"
    config = configured(smoke, f"method={method}", POINTS, rate, "evaluation.examples=4", "evaluation.answers=true")
    record = execute.execute(config)
    assert record.frontier
    assert record.train
    values = [{(v.task, v.metric): v.value for v in point.values} for point in record.frontier.points]
    assert [point.step for point in record.frontier.points] == [0, 1, 2, 4]
    assert values[0][TASK_KL, "kl_from_base"] == 0.0
    kls = [of_point[TASK_KL, "kl_from_base"] for of_point in values]
    assert kls == sorted(set(kls))
    losses = [of_point[HELDOUT, "loss"] for of_point in values]
    assert losses[0] > losses[-1]
    assert losses[-1] == pytest.approx(record.train.heldout[-1].loss, rel=2e-3)
    assert (HELDOUT, "numeric") in values[0]
    lines = gzip.decompress((run_folder(config) / "frontier_items.jsonl.gz").read_bytes()).splitlines()
    assert {json.loads(line)["step"] for line in lines} == {0, 1, 2, 4}


def test_a_changed_number_of_items_measures_again_and_trains_nothing(smoke, monkeypatch) -> None:
    monkeypatch.setattr(execute, "run_stage", in_process)
    first = execute.execute(configured(smoke, "method=lora", POINTS, "evaluation.examples=2"))
    config = configured(smoke, "method=lora", POINTS, "evaluation.examples=3")
    second = execute.execute(config)
    assert "train" in second.reused_stages
    assert second.run_id != first.run_id
    assert (artifact_folder(config) / "points/2/adapter_model.safetensors").exists()
    assert second.frontier
    assert second.frontier.points[1].values[0].items == 3


def test_the_steps_of_points() -> None:
    assert point_steps([0.1, 0.25, 0.5, 1.0], 60) == [6, 15, 30]
    assert point_steps([0.01, 0.02], 10) == [1]
