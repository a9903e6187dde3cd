"""Tracking copies a record and the report, offline too, and never costs one."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.config import RunConfig
from bench.identity import run_folder
from bench.record import Record, from_json
from bench.sweep import tracking
from bench.sweep.tracking import curves, predictions, summary

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
    for name in ("send", "send_report"):
        monkeypatch.setattr(tracking.tracking_wandb, name, lambda *a: pytest.fail("sent"))
    assert tracking.track(smoke_config, record) is None
    assert tracking.track_report(smoke_config, tmp_path) is None


def test_a_failing_tracker_is_reported_and_costs_nothing(smoke_config, record, monkeypatch) -> None:
    def broken(*arguments):
        raise ConnectionError("no route")

    monkeypatch.setattr(tracking.tracking_wandb, "send", broken)
    assert "no route" in (tracking.track(tracked(smoke_config, "wandb"), record) or "")


def test_a_tracker_that_is_not_installed_says_how_to_get_it(smoke_config, record, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert 'pip install -c constraints.txt -e ".[tensorboard]"' in (
        tracking.track(tracked(smoke_config, "tensorboard"), record) or ""
    )


def test_what_a_tracker_is_told(smoke_config, record) -> None:
    folder = run_folder(smoke_config)
    told = curves(record, folder)
    assert len(told) == record.train.steps + 1  # and before the first
    assert told[0] == {"heldout/loss": record.train.heldout[0].loss}
    assert told[20]["heldout/loss"] == record.train.heldout[-1].loss
    assert 2 < told[20]["train/loss"] < 4
    headers, rows = predictions(folder)
    assert headers[:5] == ["example_id", "prompt", "reference", "prediction", "rougeL"]
    assert len(rows) == record.evaluate.examples
    assert sum(row[4] for row in rows) / len(rows) == pytest.approx(record.evaluate.scores["rougeL"])
    assert summary(record)["score/rougeL"] == record.evaluate.scores["rougeL"]


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


def test_tensorboard_reads_what_was_written(smoke_config, record) -> None:
    pytest.importorskip("tensorboardX", reason='no tensorboardX: pip install -e ".[tensorboard]"')
    from tensorboardX.proto.event_pb2 import Event

    config = tracked(smoke_config, "tensorboard")
    assert tracking.track(config, record) is None
    assert tracking.track(config, record) is None  # the same again: written anew, not twice
    (file,) = (run_folder(config) / "tensorboard").glob("events.out.*")
    data, values = file.read_bytes(), {}
    while data:  # length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        values |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    assert values["heldout/loss", 20] == pytest.approx(record.train.heldout[-1].loss)
    assert values["result/score/rougeL", 20] == pytest.approx(record.evaluate.scores["rougeL"])
