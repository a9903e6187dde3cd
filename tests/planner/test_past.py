"""Expected times: a probe's, the planner's, or none; and the parts of a run that has ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import make_record

from bench.compose import CONFIG_FOLDER, compose
from bench.config import RunConfig
from bench.outcome import Status
from bench.planner.advice import architecture_of
from bench.planner.forecast import Forecast, bounds, forecast, time_notes, time_table
from bench.planner.time import (
    PARTS,
    Counts,
    PlanConfig,
    counts_of,
    measured_seconds,
    not_asked,
    planned_seconds,
    speed_path,
)
from bench.record import DataSummary, Record, Speed, to_json

DATA = DataSummary("f", 1000, 300, 100, {}, tokens_per_example_mean=200.0, tokens_per_example_max=700, source="here")


CPU = "cpu: synthetic"
WALLS = {"train": 250.0, "evaluate": 70.0, "regression": 45.0}


def lora(*overrides: str) -> RunConfig:
    (config,) = compose(["method=lora", "train.epochs=2", *overrides], multirun=False)
    return config


def earlier(**changes: object) -> Record:
    """A finished run of `lora()`: 600 tokens/s, 10 s of compiling, 256 held-out examples 4 times, 96 answers."""
    record = make_record("lora", 0)
    assert record.train
    assert record.evaluate
    assert record.regression
    train = replace(
        record.train,
        train_tokens_per_second=600.0,
        compile_seconds=10.0,
        spans_seconds={"train_steps": 200.0, "heldout": 30.0},
    )
    evaluate = replace(
        record.evaluate, examples=50, spans_seconds={"load": 1.0, "heldout": 4.0, "generate": 50.0, "score": 2.0}
    )
    data = replace(DATA, validation_examples=60, test_examples=50)
    found = replace(record, config=lora(), train=train, evaluate=evaluate, stage_wall_seconds=WALLS, data=data)
    return replace(found, **changes)  # type: ignore[arg-type]


def test_the_parts_of_a_run_add_up_to_its_stages() -> None:
    parts = measured_seconds(earlier())
    assert parts == {
        "load": 20 + 14 + 15, "train": 200, "heldout": 34, "generation": 52, "suite": 30, "frontier": 0, "weights": 0,
    }  # fmt: skip
    assert sum(parts.values()) == 250 + 70 + 45
    asked = measured_seconds(earlier(stage_wall_seconds=WALLS | {"frontier": 80.0, "weights": 22.0}))
    assert asked == parts | {"frontier": 80, "weights": 22}
    assert measured_seconds(earlier(status=Status.OOM)) == {}


def test_counts_by_hand() -> None:
    assert counts_of(lora(), DATA) == Counts(2000, 4 * 256 + 100, 100, 200.0, True)
    assert counts_of(lora("train.max_steps=5"), DATA).train == 5 * 16
    assert counts_of(lora("task.train_examples=320", "task.general_share=0.2"), None).train == 2 * 400
    assert counts_of(lora("method=base"), DATA) == Counts(0, 100, 100, 200.0, True)
    unbounded = ("train.heldout_examples=null", "task.test_examples=null")
    unknown = counts_of(lora("task=gsm8k", *unbounded), None)
    assert unknown == Counts(None, None, None, 1024.0, False)


def told(**seconds: float | None) -> Forecast:
    """A LoRA run of the general suite with 200 test examples, 10 minutes of training and nothing else."""
    config = lora("suite=general", "task.test_examples=200", "task.train_examples=400")
    parts = dict.fromkeys(PARTS, 0.0) | {"train": 600.0} | seconds
    return Forecast(config, None, 0.0, counts_of(config, None), parts, config.suite.items_per_task)


def test_an_evaluation_longer_than_training_is_said_with_what_bounds_it() -> None:
    *_, line = time_notes([told(generation=300.0, suite=900.0)])
    assert line == (
        "smollm2-135m, docstrings: answers and suite are expected to take 20.0 min a run, training 10.0; about as long "
        "with task.test_examples=100 suite.items_per_task=50"
    )
    assert bounds([told(generation=300.0, suite=300.0)]) == []
    # The mean over the runs that train: their items are the same.
    assert bounds([told(generation=300.0), told(generation=900.0)]) == []
    (line,) = bounds([told(generation=600.0), told(generation=1000.0, suite=None)])
    assert line.endswith("about as long with task.test_examples=150")
    assert bounds([told(train=1.0, generation=40.0)]) == []  # a trial of the harness
    assert bounds([told(train=0.0, generation=900.0)]) == []  # the base


def test_items_are_bounded_by_default() -> None:
    """Answers of the hub's tasks and items of the general suite are numbers of their own, whatever takes how long."""
    hub = [path.stem for path in (CONFIG_FOLDER / "task").glob("*.yaml") if "source: hub" in path.read_text()]
    assert len(hub) == 8
    answers = {name: lora(f"task={name}").task for name in hub}
    assert all((task.test_examples or 10**9) <= 1000 for task in answers.values())
    assert lora("suite=general").suite.items_per_task == 100


def test_the_planner_fills_in_training_and_held_out_losses(tmp_path: Path) -> None:
    config = lora(
        "model=llama-3.2-1b",
        "hardware=h100",
        "task.train_examples=2000",
        f"paths.results={tmp_path}",
        f"paths.cache={tmp_path}",
    )
    run = forecast(config, 80.0, None)
    assert run.seconds["generation"] is run.seconds["load"] is run.total_seconds is None
    architecture = architecture_of(config.model)
    low, high = PlanConfig().utilization_range
    rate = 989e12 * (low * high) ** 0.5
    planned = planned_seconds(config, architecture, run.counts, rate)
    assert (run.seconds["train"], run.seconds["heldout"]) == pytest.approx(planned)
    tokens = 1024 * 2 * 2000
    matrices = 1_235_814_400 - 33 * 2048  # without the norms; the head is the embedding
    assert run.seconds["train"] == pytest.approx(4 * matrices * tokens / rate, rel=0.15)  # and adapter, attention
    headers, (row,) = time_table([run])
    assert dict(zip(headers, row, strict=True))["load, min"] == "-"
    assert "at most" in time_notes([run])[0]


def test_a_sharded_run_takes_its_part_of_the_time() -> None:
    architecture, counts = architecture_of(lora("model=llama-3.2-1b").model), counts_of(lora(), DATA)
    one, two = (
        planned_seconds(lora("model=llama-3.2-1b", *more), architecture, counts, 1e14)
        for more in ((), ("hardware.devices=2", "hardware.strategy=ddp"))
    )
    assert one[0] == pytest.approx(2 * (two[0] or 0))
    assert one[1] == two[1]


def test_stages_that_are_not_asked_for_take_no_time() -> None:
    asked = lora("evaluation.points=[0.5]", "evaluation.weights=true", "suite=none")
    assert not_asked(asked, counts_of(asked, DATA)) == {"suite": 0.0}
    base = lora("method=base", "evaluation.weights=true")
    assert not_asked(base, counts_of(base, DATA)) == {"train": 0.0, "frontier": 0.0, "weights": 0.0}
    headers, (row,) = time_table([forecast(asked, None, None)])
    assert dict(zip(headers, row, strict=True))["frontier, min"] == "-"
    assert "frontier, min" not in time_table([forecast(lora(), None, None)])[0]


def test_a_probe_tells_the_rest(tmp_path: Path) -> None:
    own = [f"paths.{name}={tmp_path}" for name in ("results", "cache")]
    config = lora("task.train_examples=2000", "task.validation_examples=300", "task.test_examples=100", *own)
    speed = Speed(load_seconds=7.0, forward_seconds_per_token=0.001, answers_seconds=20.0, answers=50)
    path = speed_path(config, CPU)
    path.parent.mkdir(parents=True)
    path.write_text(to_json(speed))
    assert forecast(config, 16.0, "cpu: another").total_seconds is None
    run = forecast(config, 16.0, CPU)
    heldout = (4 * 256 + 100) * 1024 * 0.001
    assert run.seconds | {"train": None} == {
        "load": 3 * 7.0, "train": None, "heldout": heldout, "generation": 40.0, "suite": None, "frontier": 0.0,
        "weights": 0.0,
    }  # fmt: skip
    losses = 2 * 2000 * 1024 * 0.001  # two epochs of forward passes
    assert run.seconds["train"] == pytest.approx(2 * losses, rel=0.15)  # a frozen base: four a weight for two; adapter
