"""`python -m bench settle`: ordinary runs of one folder, a report of the last look; a second call does nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import in_process

from bench.cli import main
from bench.record import Record, from_json
from bench.stats import settling
from bench.stats.frames import load
from bench.sweep import execute, fetching
from bench.sweep.settle import compose_arms


@pytest.mark.slow
def test_it_runs_step_by_step_and_goes_on_where_it_was(smoke, tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(settling, "FIRST_EXAMPLES", 1)
    for parent in (execute, fetching):
        monkeypatch.setattr(parent, "run_stage", in_process)
    command = ["settle", *smoke("method=base,lora", "seed=0", "budget_minutes=30")]
    assert main(command) == 1  # a random model answers nothing: there is nothing to be sure of
    said = capfd.readouterr().out
    assert "base, lora: 1 seed and 1 test examples, 2 runs to do." in said
    assert "base, lora: 1 seed and 4 test examples, 2 runs to do." in said
    assert "Not settled after 2 looks" in said
    folder = tmp_path / "results" / "smoke-settle"
    records = [from_json(Record, path.read_bytes()) for path in folder.glob("*/record.json")]
    assert sorted((r.method, r.seed, r.config.task.test_examples) for r in records if r.method == "lora") == [
        ("lora", 0, 1), ("lora", 0, 4),
    ]  # fmt: skip
    grown = next(r for r in records if (r.method, r.seed, r.config.task.test_examples) == ("lora", 0, 4))
    assert grown.reused_stages == ["train"]
    sweep = load(folder)
    assert set(sweep.arms["arm"]) == {"base", "lora"}  # runs on fewer examples are left out
    assert sweep.said[0].startswith("An adaptive sweep of 2 looks, the last at 1 seed and 4 test examples")
    assert (folder / "report.md").is_file()

    assert main(command) == 1
    assert "1 seed and 4 test examples, 0 runs to do." in capfd.readouterr().out


def test_an_untrained_arm_has_one_run_whatever_the_seeds() -> None:
    arms = compose_arms(["method=base,lora"])
    assert {arm: list(runs) for arm, runs in arms.items()} == {"base": [0, 1, 2, 3, 4], "lora": [0, 1, 2, 3, 4]}
    assert arms["lora"][0].sweep == "default-settle"


def test_mistakes_are_told_before_anything_runs(capfd) -> None:
    assert main(["settle", "method=full,lora", "sure=2", "budget_minutes=x", "memory_gib=-1"]) == 2
    assert "3 problems" in capfd.readouterr().err
    for overrides, expected in (
        (["method=lora"], "two arms or more"),
        (["task=docstrings,outline"], "one model, task"),
    ):
        assert main(["settle", *overrides]) == 2
        assert expected in capfd.readouterr().err
