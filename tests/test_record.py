"""Records are read back as they were written, strictly, and a failure says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from bench.config import RunConfig
from bench.identity import comparison_key, run_id
from bench.outcome import Status, next_step
from bench.record import SCHEMA_VERSION, Record, from_json, to_json

RECORDS = sorted((Path(__file__).parents[1] / "results").glob("*/*/record.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_committed_records_are_read_and_named_by_their_content(path: Path) -> None:
    record = from_json(Record, path.read_bytes())
    assert (record.schema_version, record.run_id) == (SCHEMA_VERSION, path.parent.name)
    assert (run_id(record.config), comparison_key(record.config)) == (record.run_id, record.comparison_key)
    named = (record.config.method.name, record.config.task.name, record.config.seed)
    assert named == (record.method, record.task, record.seed)
    assert from_json(Record, to_json(record)) == record
    assert from_json(RunConfig, path.with_name("plan.json").read_bytes()).method == record.config.method


def test_an_unknown_or_missing_field_is_refused() -> None:
    content = json.loads(RECORDS[0].read_bytes())
    with pytest.raises(ValidationError, match="moon"):
        from_json(Record, json.dumps(content | {"moon": 1}))
    del content["config"]["model"]
    with pytest.raises(ValidationError, match="model"):
        from_json(Record, json.dumps(content))


@pytest.mark.parametrize(
    ("status", "stage", "message", "checkpoint", "says"),
    [
        (Status.OOM, "train", "", 5, "Lower train.micro_batch"),
        (Status.OOM, "evaluate", "", None, "hardware.generate_batch"),
        (Status.ERROR, "train", "No space left on device", None, "Free some space"),
        (Status.KILLED, "train", "", 5, "resumes from step 5"),
        (Status.TIMEOUT, "train", "", None, "hardware.stage_timeout_seconds"),
    ],
)
def test_what_a_person_does_next(status: Status, stage: str, message: str, checkpoint: int | None, says: str) -> None:
    assert says in next_step(status, stage, message, checkpoint)
    assert ("resumes" in next_step(status, stage, message, checkpoint)) == (says == "resumes from step 5")
