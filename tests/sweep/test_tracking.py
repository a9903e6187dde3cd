"""Tracking copies a record and the report, offline too, and never costs one."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from in_process import in_process

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import run_folder
from bench.outcome import Status
from bench.record import Record, from_json
from bench.stats.frames import load
from bench.sweep import execute, fetching, tracking
from bench.sweep.console import Console
from bench.sweep.tracking import curves, summary

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.fixture
def record(smoke_config: RunConfig) -> Record:
    """A real one, of the reference sweep, with its files in the folder of the run."""
    (source,) = REFERENCE.glob("lora-*-s0-*")
    shutil.copytree(source, run_folder(smoke_config))
    return from_json(Record, (source / "record.json").read_bytes())


def tracked(config: RunConfig, kind: str, **changes: Any) -> RunConfig:
    return dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, kind=kind, **changes))


def was_sent(folder: Path, *names: bytes) -> bool:
    """Whether W&B's own file holds these, uncompressed; its service may write it a little after a run has ended."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        sent = b"".join(file.read_bytes() for file in folder.rglob("*.wandb"))
        if all(name in sent for name in names):
            return True
        time.sleep(0.1)
    return False


def test_nothing_is_sent_by_default(smoke_config, record, tmp_path, monkeypatch) -> None:
    for name in ("send_record", "send_report"):
        monkeypatch.setattr(tracking, name, lambda *a: pytest.fail("sent"))
    assert tracking.track(smoke_config, record) is None
    assert tracking.track_report(smoke_config, tmp_path) is None


def test_a_failing_tracker_is_reported_and_costs_nothing(smoke_config, record, monkeypatch) -> None:
    def broken(*arguments):
        raise ConnectionError("no route")

    monkeypatch.setattr(tracking, "send_record", broken)
    assert "no route" in (tracking.track(tracked(smoke_config, "wandb"), record) or "")


def test_a_tracker_that_is_not_installed_says_how_to_get_it(smoke_config, monkeypatch) -> None:
    asked = tracked(smoke_config, "tensorboard")
    assert tracking.tracking_problems(tracked(smoke_config, "wandb")) == []
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    (problem,) = tracking.tracking_problems(asked)
    assert 'pip install -c constraints.txt -e ".[tensorboard]"' in problem


@pytest.mark.slow
def test_tensorboard_gets_the_curve_of_training(smoke, monkeypatch) -> None:
    pytest.importorskip("tensorboardX", reason='no tensorboardX: pip install -e ".[tensorboard]"')
    for module in (execute, fetching):
        monkeypatch.setattr(module, "run_stage", in_process)
    overrides = smoke("method=lora", "tracking=tensorboard")
    (config,) = compose(overrides, multirun=False)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(run_folder(config) / "tensorboard"))  # as the worker does
    fetching.prepare_all([config], Console())
    assert execute.execute(config).status is Status.OK
    (file,) = (run_folder(config) / "tensorboard").glob("events.out.*")
    assert b"train/loss" in file.read_bytes()


def test_what_a_tracker_is_sent(smoke_config, record) -> None:
    sent = dict(curves(load(run_folder(smoke_config))))
    assert len(sent) == record.train.steps + 1  # and before the first
    assert sent[0] == {"heldout/loss": record.train.heldout[0].loss}
    assert sent[20]["heldout/loss"] == record.train.heldout[-1].loss
    assert 2 < sent[20]["train/loss"] < 4
    assert summary(record)["score_rougeL"] == record.evaluate.scores["rougeL"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # wandb's own
def test_offline_tracking_writes_curves_and_tables_below_the_run(smoke_config, record) -> None:
    config = tracked(smoke_config, "wandb", mode="offline")
    assert tracking.track(config, record) is None
    assert was_sent(run_folder(config), b"train/loss", b"heldout/loss", b"predictions", b"comparison_key")
    tables = list(run_folder(config).rglob("*.table.json"))
    assert any("numpy" in table.read_text() or "sympy" in table.read_text() for table in tables)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_report_is_an_artifact(smoke_config, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "some sweep"
    (folder / "tables").mkdir(parents=True)
    (folder / "report.html").write_text("<p>report")
    (folder / "tables" / "runs.csv").write_text("a\n1\n")
    assert tracking.track_report(tracked(smoke_config, "wandb", mode="offline"), folder) is None
    assert was_sent(folder, b"report-some-sweep", b"report.html", b"tables/runs.csv")
