"""Two processes that train together: a run from its command to its record, and one of them dying under it."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from faults import FIRST_TRAINING_FORWARD, ROOT, Fault, Place, environment, steps_written

from bench.outcome import Status

pytestmark = pytest.mark.slow
TWO = ("hardware=cpu_pair", "train.micro_batch=1")


@pytest.fixture(scope="module")
def place(finished: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished run by two processes, made by the command line, on model and data that are prepared already."""
    where = Place(tmp_path_factory.mktemp("several"), finished.task_file)
    shutil.copytree(finished.base / "cache", where.base / "cache")
    command, env = where.sweep(*TWO, "method=lora"), environment(None)
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return where


def test_a_run_by_two_ends_as_any_other(place: Place) -> None:
    record = place.record(*TWO, "method=lora")
    assert record.status is Status.OK
    assert (record.train.devices, record.train.strategy, len(record.train.per_device)) == (2, "ddp", 2)
    assert record.train.steps == steps_written(place.folder(*TWO, "method=lora")) == 4
    assert record.evaluate.examples == 4
    assert "### By device" in (place.base / "results" / "smoke" / "report.md").read_text()


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (Fault("kill", "forward", FIRST_TRAINING_FORWARD, rank=1), Status.KILLED, "SIGKILL"),
        (Fault("oom", "backward", 1, rank=1), Status.OOM, "allocate"),
    ],
    ids=["killed", "out of memory"],
)
def test_the_record_says_how_one_of_them_ended(place: Place, fault: Fault, status: Status, words: str) -> None:
    settings = (*TWO, "method=full", f"seed={1 if fault.deed == 'kill' else 2}")
    record = place.execute(*settings, fault=fault)
    assert record.status is status
    assert (record.failure.stage, words in record.failure.message) == ("train", True)
