"""A run from its plan to its record: what is kept, what is made again, how the micro-batch is found."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import artifact_folder, data_folder, run_folder, training_key, write_atomic
from bench.outcome import Failure, Status
from bench.planner.advice import Machine
from bench.record import DataSummary, EvaluateResult, Fit, Made, Record, TrainResult, from_json, to_json
from bench.sweep import execute
from bench.sweep.child import Outcome

HERE = {
    "python": "3.11", "packages": {"torch": "2"}, "code": "abc", "git_commit": "abc", "git_dirty": False,
    "platform": "p", "processor": "c", "cores": 2, "memory_bytes": 1,
}  # fmt: skip
OTHERS = [{"code": "def"}, {"packages": {"torch": "3"}}, {"processor": "another"}]
INPUTS = {"train": "1", "validation": "2"}
REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def configured(smoke, *overrides: str) -> RunConfig:
    (config,) = compose(smoke(*overrides), multirun=False)
    return config


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "provenance", lambda: HERE)


# --- Files ---


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "record.json"
    write_atomic(target, "old")

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_writer_left_is_removed_an_hour_later(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".record.json.abcdefgh", tmp_path / ".record.json.ijklmnop"
    for leftover, age_seconds in ((old, 3700), (fresh, 10)):
        leftover.write_text("half")
        os.utime(leftover, (time.time() - age_seconds,) * 2)
    write_atomic(tmp_path / "record.json", "new")
    assert sorted(tmp_path.iterdir()) == [fresh, tmp_path / "record.json"]


@pytest.mark.parametrize("content", ["", "{", '{"run_id": "x"}', "null"])
def test_a_torn_record_counts_as_missing(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    assert execute.read_record(tmp_path) is None


def _hold(folder: Path, log: Path) -> None:
    with execute.claim(folder):
        with log.open("a") as file:
            file.write("in\n")
        time.sleep(0.5)
        with log.open("a") as file:
            file.write("out\n")


def test_two_processes_do_not_run_the_same_run_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    both = [context.Process(target=_hold, args=(tmp_path / "run", log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert log.read_text().split() == ["in", "out", "in", "out"]


# --- What is taken over ---


def evaluated(config: RunConfig, inputs: dict[str, str], **program: Any) -> EvaluateResult:
    """A finished evaluation in a run's folder."""
    (source,), folder = REFERENCE.glob("lora-*-s0-*"), execute.write_plan(config)
    result = from_json(Record, (source / "record.json").read_bytes()).evaluate
    result = replace(result, made=Made(None, 9.0, HERE | program, inputs))
    write_atomic(folder / "evaluate.json", to_json(result))
    shutil.copy(source / "samples.jsonl.gz", folder)
    return result


@pytest.mark.parametrize("other", [{}, *OTHERS])
def test_an_equal_stage_of_an_untrained_run_of_another_sweep_is_taken_over(smoke, here, other) -> None:
    config, inputs = configured(smoke, "method=base"), {"test": "3"}
    result, folder = evaluated(replace(config, sweep="earlier"), inputs, **other), execute.write_plan(config)
    assert execute.finished_stage(config, folder, "evaluate", {"test": "4"}) is None  # other questions
    assert execute.finished_stage(config, folder, "evaluate", inputs) == (None if other else result)
    assert (folder / "samples.jsonl.gz").exists() == (not other)
    assert from_json(RunConfig, (folder / "plan.json").read_bytes()).sweep == config.sweep


def test_an_evaluation_of_a_trained_run_is_not_taken_over(smoke, here) -> None:
    config, inputs = configured(smoke, "method=lora"), {"test": "3", "weights": "4"}
    evaluated(replace(config, sweep="earlier"), inputs)
    assert execute.finished_stage(config, run_folder(config), "evaluate", inputs) is None


def trained(config: RunConfig, weights: bytes = b"12345", **program: str) -> TrainResult:
    """A finished training in the run's folder, with weights."""
    (source,) = REFERENCE.glob("lora-*-s0-*")
    name, folder = "adapter_model.safetensors", run_folder(config)
    result = replace(
        from_json(Record, (source / "record.json").read_bytes()).train,
        weights={name: hashlib.sha256(weights).hexdigest()},
        made=Made(None, 40.0, HERE | program, INPUTS),
    )
    write_atomic(folder / "train.json", to_json(result))
    write_atomic(folder / "steps.jsonl", (source / "steps.jsonl").read_bytes())
    write_atomic(artifact_folder(config) / name, weights)
    execute.write_plan(config)
    return result


@pytest.mark.parametrize("other", [{}, *OTHERS])
def test_a_training_is_taken_over_by_a_run_that_is_evaluated_otherwise(smoke, here, other) -> None:
    config, more = (configured(smoke, "method=lora", f"task.max_new_tokens={tokens}") for tokens in (8, 9))
    assert run_folder(config) != run_folder(more)
    assert training_key(config) == training_key(more)
    result = trained(config, **other)
    found = execute.finished_stage(more, run_folder(more), "train", INPUTS)
    assert found == (None if other else result)
    assert (run_folder(more) / "steps.jsonl").exists() == (not other)


def test_a_training_on_other_data_or_with_damaged_weights_is_not_finished(smoke, here) -> None:
    config = configured(smoke, "method=lora")
    result = trained(config)
    assert execute.finished_stage(config, run_folder(config), "train", INPUTS) == result
    assert execute.finished_stage(config, run_folder(config), "train", INPUTS | {"train": "3"}) is None
    (artifact_folder(config) / "adapter_model.safetensors").write_bytes(b"12354")  # as many bytes
    assert execute.finished_stage(config, run_folder(config), "train", INPUTS) is None


def test_what_one_run_writes_or_deletes_another_keeps(smoke, here) -> None:
    """Runs of one training in two sweeps, and one that trains anew."""
    config, other = (configured(smoke, "method=lora", f"sweep={name}") for name in ("monday", "friday"))
    result = trained(config)
    assert execute.finished_stage(other, run_folder(other), "train", INPUTS) == result
    assert execute.weights_are_whole(other, result)
    anew = trained(other, b"67890")
    assert execute.weights_are_whole(other, anew)
    assert execute.weights_are_whole(config, result)
    shutil.rmtree(artifact_folder(other))
    assert execute.weights_are_whole(config, result)


def test_an_evaluation_of_other_weights_is_not_finished(smoke, here) -> None:
    config = configured(smoke, "method=lora")
    first = trained(config)
    summary = DataSummary("f", 1, 1, 1, {}, 20.0, 33, "here", {"train": "1", "validation": "2", "test": "3"})
    inputs = execute.inputs_of("evaluate", summary, first)
    assert set(inputs) == {"test", "weights"}
    result = evaluated(config, inputs)
    assert execute.finished_stage(config, run_folder(config), "evaluate", inputs) == result
    retrained = execute.inputs_of("evaluate", summary, trained(config, b"67890"))
    assert execute.finished_stage(config, run_folder(config), "evaluate", retrained) is None


# --- What a stage leaves ---


def test_a_result_that_cannot_be_read_back_is_a_failure(smoke, here, monkeypatch) -> None:
    config = configured(smoke, "method=base", "suite=quick")
    folder = execute.write_plan(config)

    def run_stage(folder: Path, stage: str, timeout_seconds: float, watch: Any) -> Outcome:
        (folder / f"{stage}.json").write_text('{"suite": "quick", "tasks": null}')  # NaN is written as null
        return Outcome(Status.OK, 1.0)

    monkeypatch.setattr(execute, "run_stage", run_stage)
    result, outcome = execute.make_stage(config, folder, "regression", {}, lambda progress: None)
    assert (result, outcome.status) == (None, Status.ERROR)
    assert "regression.json cannot be read back" in outcome.failure.message


def test_the_wall_time_of_a_run_counts_the_stages_of_earlier_calls(smoke, here, monkeypatch) -> None:
    config = configured(smoke, "method=lora", "suite=none")
    trained(config)
    summary = DataSummary("f", 1, 1, 1, {}, 20.0, 33, "here", {"train": "1", "validation": "2", "test": "3"})
    write_atomic(data_folder(config) / "summary.json", to_json(summary))
    failure = Failure("evaluate", "load", "no", "-", 1, "")
    monkeypatch.setattr(execute, "run_stage", lambda *_: Outcome(Status.ERROR, 7.0, failure))
    record = execute.execute(config)
    (data_folder(config) / "summary.json").unlink()
    assert record.reused_stages == ["train"]
    assert record.stage_wall_seconds == {"train": 40.0, "evaluate": 7.0}
    assert record.wall_seconds == pytest.approx(40.0, abs=5.0)  # the second stage took no time here
    assert record.train.made.provenance == HERE


# --- train.micro_batch=auto ---


@pytest.mark.parametrize(
    ("start", "fits", "tried"),
    [(8, 8, []), (8, 3, [8, 4]), (12, 5, [12, 6]), (4, 0, [4, 2])],
)
def test_the_micro_batch_is_halved_until_it_fits(smoke, monkeypatch, start, fits, tried) -> None:
    config = configured(smoke, "method=lora", "train.micro_batch=auto", f"train.batch_size={start}")
    ran: list[int] = []

    def run_stage(folder: Path, stage: str, timeout_seconds: float, watch: Any) -> Outcome:
        rows = from_json(Fit, (folder / "fit.json").read_bytes()).micro_batch
        ran.append(rows)
        failure = Failure("train", "backward", "out of memory", "-", 3, "")
        return Outcome(Status.OK, 1.0) if rows <= fits else Outcome(Status.OOM, 1.0, failure)

    monkeypatch.setattr(execute, "run_stage", run_stage)
    monkeypatch.setattr(execute, "starting_micro_batch", lambda *_: start)
    outcome = execute.train(config, execute.write_plan(config), lambda progress: None)
    fit = from_json(Fit, (run_folder(config) / "fit.json").read_bytes())
    assert fit.too_large == tried
    assert ran == [*tried, fit.micro_batch]
    assert all(config.train.batch_size % rows == 0 for rows in ran)
    assert outcome.status is (Status.OK if fits else Status.OOM)
    if not fits:
        assert "hardware.memory_budget_gib" in outcome.failure.next_step


def test_the_planner_is_asked_for_the_longest_example_and_the_stated_memory(smoke, monkeypatch) -> None:
    overrides = ("method=lora", "train.micro_batch=auto", "hardware.memory_budget_gib=3", "hardware.device=cpu")
    config = configured(smoke, *overrides)
    asked: list[Any] = []
    summary = DataSummary("f", 1, 1, 1, {}, 20.0, 33, "here")
    write_atomic(data_folder(config) / "summary.json", to_json(summary))
    monkeypatch.setattr(execute, "run_stage", lambda *_: Outcome(Status.OK, 1.0))
    monkeypatch.setattr(execute, "starting_micro_batch", lambda *given: asked.extend(given[1:]) or 2)
    execute.train(config, execute.write_plan(config), lambda progress: None)
    assert asked == [33, Machine("cpu", 3.0)]
    (data_folder(config) / "summary.json").unlink()
    fit = from_json(Fit, (run_folder(config) / "fit.json").read_bytes())
    assert fit == Fit(2, 3 * 2**30)
