"""A record is there whole or not at all."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from bench.identity import write_atomic
from bench.sweep import execute as store


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


@pytest.mark.parametrize("content", ["", "{", '{"run_id": "x"}', "null"])
def test_a_torn_record_counts_as_missing(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    assert store.read_record(tmp_path) is None


def _hold(folder: Path, log: Path) -> None:
    with store.claim(folder):
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
