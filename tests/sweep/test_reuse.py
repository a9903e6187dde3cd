"""The base's results are taken from a neighbouring sweep only when nothing could make them differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.compose import compose
from bench.config import RunConfig, with_settings
from bench.identity import artifact_folder, run_folder
from bench.record import Record, Status
from bench.sweep import execute as reuse
from bench.sweep.execute import write_record

HERE = {
    "python": "3.11", "packages": {"torch": "2"}, "git_commit": "abc", "git_dirty": False,
    "platform": "p", "processor": "c", "cores": 2, "memory_bytes": 1,
}  # fmt: skip


@pytest.fixture
def config(smoke, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr(reuse, "provenance", lambda: HERE)
    return compose(smoke("method=base"), multirun=False)[0]


def finished_elsewhere(config: RunConfig, **changes: Any) -> Record:
    record = Record(
        run_id=run_folder(config).name, comparison_key="k", sweep="earlier", method="base", model="m", task="t",
        suite="s", seed=0, status=Status.OK, config=config, provenance=HERE,
        started_at="2026-01-01T00:00:00+00:00", wall_seconds=9.0,
    )  # fmt: skip
    folder = run_folder(replace(config, sweep="earlier"))
    write_record(folder, replace(record, **changes))
    (folder / "samples.jsonl.gz").write_bytes(b"samples")
    (folder / "plan.json").write_text(json.dumps("another plan"))
    return record


def test_an_equal_base_run_is_taken_over(config: RunConfig) -> None:
    finished_elsewhere(config)
    folder = run_folder(config)
    folder.mkdir(parents=True)
    record = reuse.take_over(config, folder)
    assert (record.sweep, record.reused_from) == (config.sweep, "earlier")
    assert (folder / "samples.jsonl.gz").read_bytes() == b"samples"
    assert not (folder / "plan.json").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"status": Status.ERROR},
        {"provenance": HERE | {"git_commit": "def"}},
        {"provenance": HERE | {"git_dirty": True}},
        {"provenance": HERE | {"packages": {"torch": "3"}}},
        {"provenance": HERE | {"processor": "another"}},
    ],
)
def test_anything_that_could_matter_prevents_it(config: RunConfig, changes: dict[str, Any]) -> None:
    finished_elsewhere(config, **changes)
    assert reuse.take_over(config, run_folder(config)) is None


def test_a_changed_working_tree_prevents_it(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_elsewhere(config)
    monkeypatch.setattr(reuse, "provenance", lambda: HERE | {"git_dirty": True})
    assert reuse.take_over(config, run_folder(config)) is None


def test_trained_runs_are_measured_anew(smoke) -> None:
    (config,) = compose(smoke("method=lora"), multirun=False)
    finished_elsewhere(config)
    assert reuse.take_over(config, run_folder(config)) is None


def test_a_finished_training_serves_runs_that_differ_in_evaluation_alone(smoke, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(reuse, "provenance", lambda: HERE)
    reference = Path(__file__).parents[2] / "results" / "reference"
    trained = next(reference.glob("lora-*"))
    (config,) = compose(smoke("method=lora"), multirun=False)
    weights = artifact_folder(config)
    weights.mkdir(parents=True)
    expected_bytes = json.loads((trained / "train.json").read_bytes())["checkpoint_bytes"]
    (weights / "adapter_model.safetensors").write_bytes(bytes(expected_bytes))
    (weights / "complete").touch()
    reuse.keep_training(config, trained)
    other = with_settings(config, {"task.metrics": ["bleu"], "sweep": "later"})
    folder = run_folder(other)
    folder.mkdir(parents=True)
    result = reuse.take_over_training(other, folder)
    assert result is not None
    assert (folder / "steps.jsonl").read_bytes() == (trained / "steps.jsonl").read_bytes()
    assert reuse.finished_stage(other, folder, "train") == result
    assert reuse.take_over_training(with_settings(config, {"train.epochs": 9}), folder) is None
    monkeypatch.setattr(reuse, "provenance", lambda: HERE | {"git_commit": "def"})
    assert reuse.take_over_training(other, folder) is None
