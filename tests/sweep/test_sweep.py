"""Whole sweeps of the command line on a tiny random model; tests/test_embedded.py has every stage in real children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.cli import main
from bench.compose import compose
from bench.identity import run_folder
from bench.outcome import Status
from bench.record import Record, from_json

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def records(tmp_path: Path) -> dict[str, Record]:
    found = [from_json(Record, p.read_bytes()) for p in (tmp_path / "results").rglob("record.json")]
    return {record.method: record for record in found}


def command(overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "bench", "-m", *overrides]


def test_a_sweep_trains_every_method_on_the_same_stream(smoke, tmp_path: Path, capfd, in_this_process) -> None:
    overrides = smoke("method=base,full,lora,qlora")
    assert main(["-m", *overrides]) == 0
    said = capfd.readouterr().out
    by_method = records(tmp_path)
    assert {m: r.status for m, r in by_method.items()} == dict.fromkeys(("base", "full", "lora", "qlora"), Status.OK)
    tuned = [by_method[m] for m in ("full", "lora", "qlora")]
    assert len({r.train.data_stream_sha256 for r in tuned}) == 1
    assert len({r.comparison_key for r in by_method.values()}) == 1
    for record in tuned:
        assert record.train.steps == 4
        assert record.train.supervised_tokens < record.train.tokens <= record.train.positions
        assert [p.step for p in record.train.heldout] == [0, 4]
        assert {"load", "heldout", "train", "save"} == {m.phase for m in record.train.memory}
        assert record.train.breakdown.gradients_bytes == 4 * record.train.parameters_trainable
        assert record.evaluate.examples == 4
        for stage in (record.train, record.evaluate):
            assert stage.environment.other_cpu_cores >= 0
            assert stage.environment.cpus == len(os.sched_getaffinity(0))
    assert by_method["full"].train.parameters_trainable == by_method["full"].train.parameters_total
    assert by_method["base"].train is None
    assert (tmp_path / "results" / "smoke" / "report.html").exists()
    assert "6 of 6 pairs may be compared as planned" in said
    (plan,) = json.loads((tmp_path / "results" / "smoke" / "fairness.json").read_text())
    assert (list(plan["seeds"]), plan["pairs"]) == (["base", "full", "lora", "qlora"], [])  # none is refused

    started = time.monotonic()
    assert main(["-m", *overrides]) == 0
    assert "nothing to do" in capfd.readouterr().out
    assert time.monotonic() - started < 20


def test_a_killed_child_loses_nothing_else(smoke, tmp_path: Path, in_this_process) -> None:
    """The sweep is a process of its own, with children; the same command afterwards is not."""
    overrides = smoke("method=base,lora")
    (lora,) = [c for c in compose(overrides, multirun=True) if c.method.name == "lora"]
    sweep = subprocess.Popen(command(overrides), cwd=ROOT, stdout=subprocess.DEVNULL)
    os.kill(_wait_for_child(run_folder(lora), "train", sweep), signal.SIGKILL)
    assert sweep.wait(timeout=300) == 1
    by_method = records(tmp_path)
    assert by_method["base"].status is Status.OK
    assert by_method["lora"].status is Status.KILLED
    assert "SIGKILL" in by_method["lora"].failure.message
    base_record = (run_folder(lora).parent / by_method["base"].run_id / "record.json").stat().st_mtime_ns

    assert main(["-m", *overrides]) == 0
    assert records(tmp_path)["lora"].status is Status.OK
    after = (run_folder(lora).parent / by_method["base"].run_id / "record.json").stat().st_mtime_ns
    assert after == base_record


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task.target={anser}"], "anser"),
        (["trian.epochs=2"], "trian.epochs"),
        (["task.overflow=error", "train.max_length=16"], "train.max_length"),
        (["suite=local", "suite.path=nowhere"], "suite.path"),
        (["task.test_examples=4000"], "task.test_examples"),
    ],
)
def test_mistakes_stop_with_exit_code_2_before_training(
    smoke, tmp_path, capfd, overrides, expected, in_this_process
) -> None:
    assert main(smoke("method=lora", *overrides)) == 2
    errors = capfd.readouterr().err
    assert "nothing was run" in errors
    assert expected in errors
    assert "Traceback" not in errors
    assert not records(tmp_path)


def test_a_malformed_line_is_named_by_the_child_that_reads_it(smoke, task_file: Path, capfd) -> None:
    task_file.write_text(task_file.read_text() + "{not json\n")
    assert main(smoke("method=lora")) == 2
    assert "sums.jsonl:41" in capfd.readouterr().err


def test_an_empty_split_is_named(smoke, tmp_path: Path, capfd, in_this_process) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert main(smoke("method=lora", f"task.test_file={tmp_path / 'empty.jsonl'}")) == 2
    assert "empty.jsonl" in capfd.readouterr().err


def _wait_for_child(folder: Path, stage: str, sweep: subprocess.Popen) -> int:
    """The process id of a run's stage, once it is at work."""
    needle = f"bench.worker\0{folder}\0{stage}".encode()
    for _ in range(1200):
        assert sweep.poll() is None, "the sweep ended before the stage began"
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if needle in entry.read_bytes():
                    return int(entry.parent.name)
            except OSError:
                continue
        time.sleep(0.1)
    raise AssertionError(f"no {stage} child for {folder.name}")
