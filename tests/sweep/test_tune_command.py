"""`bench tune` and the sweep that reads its rates, with the stages in this process, on a tiny random model."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli import main
from bench.compose import compose, read_rates
from bench.identity import artifact_folder, run_folder
from bench.outcome import Status
from bench.record import Record, from_json
from bench.sweep.execute import execute

pytestmark = pytest.mark.usefixtures("in_this_process")
SETTINGS = ("tune.max_points=2", "tune.factor=10")


@pytest.mark.slow
def test_rates_are_found_on_the_validation_split_and_a_sweep_reads_them(
    smoke, tmp_path: Path, monkeypatch, capfd
) -> None:
    overrides = smoke("seed=0")
    command = ["tune", "method=base,lora", *overrides, *SETTINGS]
    monkeypatch.setattr(sys, "argv", ["bench", *command])
    assert main(command) == 0
    said = capfd.readouterr().out
    path = tmp_path / "results" / "tune" / "smoke" / "rates.yaml"
    (lora,) = read_rates(path).tunings
    assert [trial.learning_rate for trial in lora.trials] == [5e-4, 5e-3]
    assert lora.learning_rate == min(lora.trials, key=lambda trial: trial.loss).learning_rate
    assert lora.command.startswith("python -m bench tune method=base,lora")
    records = [from_json(Record, p.read_bytes()) for p in path.parent.glob("*/record.json")]
    assert len(records) == 2
    assert {(r.seed, r.evaluate, r.regression) for r in records} == {(1000, None, None)}
    assert len({r.train.data_stream_sha256 for r in records}) == 1
    assert all(r.train.checkpoint_bytes is None for r in records)
    assert not list((tmp_path / "artifacts").rglob("*.safetensors"))

    started = time.monotonic()
    assert main(command) == 0
    assert time.monotonic() - started < 20  # nothing is trained again
    assert read_rates(path).tunings[0].trials == lora.trials

    assert f"rates={path}" in said  # the sweep's command
    assert main(["-m", "method=lora", *overrides, f"rates={path}"]) == 0
    (made,) = [from_json(Record, p.read_bytes()) for p in (tmp_path / "results" / "smoke").glob("*/record.json")]
    assert made.config.method.learning_rate == lora.learning_rate
    assert made.config.learning_rate_source.startswith(f"tuned: {path} sha256 ")
    assert made.evaluate is not None
    report = (tmp_path / "results" / "smoke" / "report.md").read_text()
    assert "## Learning rates" in report
    assert "untuned" not in report


@pytest.mark.slow
def test_a_trial_reads_no_test_split_and_keeps_no_weights(smoke, tmp_path: Path) -> None:
    (config,) = compose(smoke("method=lora", "train.heldout_points=2"), multirun=False)
    record = execute(replace(config, trial=True))
    assert record.status is Status.OK
    assert [point.step for point in record.train.heldout] == [0, 2, 4]
    assert record.evaluate is None
    assert not list(run_folder(replace(config, trial=True)).glob("samples*"))
    assert not artifact_folder(replace(config, trial=True)).exists()


def test_mistakes_are_told_before_anything_runs(smoke, capfd) -> None:
    assert main(["tune", *smoke("method=lora", "tune.max_points=0", "train.epoch=1")]) == 2
    errors = capfd.readouterr().err
    assert "tune.max_points" in errors
    assert "train.epoch" in errors
    assert "2 problems; nothing was run" in errors


def test_a_damaged_rates_file_is_not_written_over(smoke, tmp_path: Path, capfd) -> None:
    path = tmp_path / "results" / "tune" / "smoke" / "rates.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("tunings: [mine")
    assert main(["tune", *smoke("method=lora")]) == 2
    assert "mend it or delete it" in capfd.readouterr().err
    assert path.read_text() == "tunings: [mine"
