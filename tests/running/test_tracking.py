"""Tracking copies a record, offline too, and never costs one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.running import tracking
from bench.spec.config import to_mapping
from bench.spec.failure import Status
from bench.spec.record import Record


@pytest.fixture
def record(smoke_config) -> Record:
    return Record(
        run_id="lora-x",
        comparison_key="k",
        sweep="smoke",
        method="lora",
        model="m",
        task="t",
        suite="none",
        seed=0,
        status=Status.OK,
        config=to_mapping(smoke_config),
        provenance={},
        started_at="2026-01-01T00:00:00+00:00",
        wall_seconds=1.0,
    )


def tracked(config, **changes):
    return dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, kind="wandb", **changes))


def test_nothing_is_sent_by_default(smoke_config, record, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "_to_wandb", lambda *a: pytest.fail("sent"))
    assert tracking.track(smoke_config, record) is None


def test_a_failing_tracker_is_reported_and_costs_nothing(smoke_config, record, monkeypatch) -> None:
    def broken(*arguments):
        raise ConnectionError("no route")

    monkeypatch.setattr(tracking, "_to_wandb", broken)
    assert "no route" in tracking.track(tracked(smoke_config), record)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # wandb's own
def test_offline_tracking_writes_below_the_run(smoke_config, record) -> None:
    config = tracked(smoke_config, mode="offline")
    folder = Path(tracking.run_folder(config))
    folder.mkdir(parents=True)
    assert tracking.track(config, record) is None
    assert list(folder.rglob("*.wandb"))
