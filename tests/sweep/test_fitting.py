"""`train.micro_batch=auto`: what probes say decides, a probe that ran out of memory costs nothing but itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from in_process import in_process

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import run_folder
from bench.record import Failure, Fit, ProbeResult, Status, from_json, to_json
from bench.sweep import execute
from bench.sweep import execute as fitting
from bench.sweep.child import Outcome
from bench.sweep.execute import write_plan

AUTO = ("train.micro_batch=auto", "train.batch_size=8", "hardware.memory_budget_gib=1")
MIB = 2**20


def configured(smoke, *overrides: str) -> RunConfig:
    (config,) = compose(smoke("method=lora", *AUTO, *overrides), multirun=False)
    return config


def probes_that_take(mib: dict[int, int | None], probed: list[int]):
    """Probes by a table of micro-batch -> peak in MiB; None runs out of memory."""

    def run_stage(folder: Path, stage: str, timeout_seconds: float, watch=None) -> Outcome:
        rows = from_json(RunConfig, (folder / "plan.json").read_bytes()).train.fitted_micro_batch
        probed.append(rows)
        (folder / f"{stage}.log").write_text("what the child printed")
        taken = mib[rows]
        if taken is None:
            failure = Failure("probe", "backward", "out of memory", "-", 3, "", last_known_peak_bytes=900 * MIB)
            return Outcome(Status.OOM, 1.0, failure)
        (folder / f"{stage}.json").write_text(to_json(ProbeResult(taken * MIB, 1024 * MIB)))
        return Outcome(Status.OK, 1.0)

    return run_stage


@pytest.fixture
def prepared(monkeypatch):
    """No data are read: the longest example and the planner's start are given."""
    monkeypatch.setattr(fitting, "_longest", lambda config: 100)
    monkeypatch.setattr(fitting, "first_size", lambda *arguments: 2)


def test_the_largest_that_fits_is_kept_with_how_it_was_found(smoke, prepared, monkeypatch) -> None:
    probed: list[int] = []
    monkeypatch.setattr(fitting, "run_stage", probes_that_take({2: 500, 4: 1000, 8: None}, probed))
    config = configured(smoke)
    folder = write_plan(config)
    assert fitting.fit(config, folder, lambda progress: None).status is Status.OK
    found = fitting.read_fit(folder)
    assert (found.micro_batch, found.is_largest, found.budget_bytes) == (4, True, 1024 * MIB)
    assert [(p.micro_batch, p.fits, p.how) for p in found.probes] == [
        (2, True, "measured"),
        (4, True, "measured"),
        (8, False, "oom"),
    ]
    assert not (folder / "probes").exists()
    other_seed = replace(config, seed=1)
    again = write_plan(other_seed)
    fitting.fit(other_seed, again, lambda progress: None)
    assert probed == [2, 4, 8]
    assert fitting.read_fit(again) == found


def test_when_nothing_fits_the_run_is_out_of_memory(smoke, prepared, monkeypatch) -> None:
    monkeypatch.setattr(fitting, "run_stage", probes_that_take({2: 3000, 1: 2000}, []))
    config = configured(smoke)
    outcome = fitting.fit(config, write_plan(config), lambda progress: None)
    assert outcome.status is Status.OOM
    assert outcome.failure.stage == "fit"
    assert outcome.failure.message == "no micro-batch fits: train.micro_batch=1 took 1.95 GiB of a budget of 1.00 GiB"
    assert "hardware.memory_budget_gib" in outcome.failure.next_step
    assert fitting.read_fit(run_folder(config)) is None


def test_a_probe_that_fails_otherwise_ends_the_run(smoke, prepared, monkeypatch) -> None:
    failure = Failure("probe", "load", "a bug", "-", 1, "")
    monkeypatch.setattr(fitting, "run_stage", lambda *arguments: Outcome(Status.ERROR, 1.0, failure))
    config = configured(smoke)
    outcome = fitting.fit(config, write_plan(config), lambda progress: None)
    assert (outcome.status, outcome.failure.stage, outcome.failure.message) == (Status.ERROR, "fit", "a bug")


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_a_run_trains_at_the_micro_batch_that_was_found(smoke, monkeypatch, method: str) -> None:
    """Real probes, in this process: its peak decides nothing here, the budget is far above."""
    monkeypatch.setattr(execute, "run_stage", in_process)
    monkeypatch.setattr(fitting, "run_stage", in_process)
    budget = "hardware.memory_budget_gib=64"
    (config,) = compose(smoke(f"method={method}", *AUTO[:2], budget, "train.max_steps=2"), multirun=False)
    (given,) = compose(smoke(f"method={method}", AUTO[1], "train.micro_batch=2", "train.max_steps=2"), multirun=False)
    record, other = execute.execute(config), execute.execute(given)
    assert isinstance(record.fit, Fit)
    assert (record.fit.micro_batch, record.train.micro_batch, other.train.micro_batch) == (8, 8, 2)
    assert record.fit.probes[-1].peak_bytes > 100 * MIB
    assert record.train.data_stream_sha256 == other.train.data_stream_sha256
    assert record.train.heldout[-1].loss == pytest.approx(other.train.heldout[-1].loss, rel=0.02)
    assert record.comparison_key == other.comparison_key
    assert other.fit is None
