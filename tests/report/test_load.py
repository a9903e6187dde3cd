"""Reading a sweep's folder: everything that is whole, and a reason for the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import EXAMPLES, STEPS, build_sweep

from bench.report.load import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_sweep(tmp_path / "sweep", failed=False)


def run_of(folder: Path, method: str) -> Path:
    return next(run for run in sorted(folder.iterdir()) if run.name.startswith(f"{method}-"))


def test_frames_have_every_row(folder: Path) -> None:
    sweep = load(folder)
    assert len(sweep.runs) == len(sweep.records) == 7
    assert len(sweep.steps) == 6 * STEPS
    assert len(sweep.samples) == 7 * EXAMPLES
    assert sweep.samples["score_rougeL"].notna().all()
    assert set(sweep.regression.columns) >= {"run_id", "method", "seed", "task", "item_id", "metric", "score", "weight"}
    assert sweep.heldout.groupby("run_id")["step"].max().eq(STEPS).all()
    assert sweep.problems == []


def test_bench_load_is_the_same_function() -> None:
    import bench

    assert bench.load is load
    with pytest.raises(AttributeError, match="it has: load"):
        bench.nothing  # noqa: B018


def test_import_bench_imports_nothing_heavy() -> None:
    code = "import bench, sys; sys.exit(bool({'pandas', 'numpy', 'torch', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_truncated_gzip_keeps_the_lines_before(folder: Path) -> None:
    run = run_of(folder, "lora")
    path = run / "samples.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-200])
    sweep = load(folder)
    (problem,) = sweep.problems
    assert (problem.run, problem.file) == (run.name, "samples.jsonl.gz")
    assert "the file ends early" in problem.reason
    assert 0 < len(sweep.samples[sweep.samples["run_id"] == run.name]) < EXAMPLES


def test_bad_lines_are_counted(folder: Path) -> None:
    path = run_of(folder, "full") / "steps.jsonl"
    path.write_text(path.read_text() + '{"step": 1}\nnot json\n')
    (problem,) = load(folder).problems
    assert problem.reason.startswith(f"2 unreadable line(s), {STEPS} read")


@pytest.mark.parametrize("text", ["", "{", '{"run_id": "x"}', "\x00"])
def test_corrupt_record_is_a_problem(folder: Path, text: str) -> None:
    (run_of(folder, "qlora") / "record.json").write_text(text)
    sweep = load(folder)
    assert len(sweep.records) == 6
    (problem,) = sweep.problems
    assert "unreadable record" in problem.reason


def test_unfinished_run_is_a_problem_and_other_folders_are_not(folder: Path) -> None:
    (folder / "plots").mkdir()
    (folder / "lora-unfinished").mkdir()
    (folder / "lora-unfinished" / "plan.json").write_text("{}")
    (problem,) = load(folder).problems
    assert (problem.run, "in progress" in problem.reason) == ("lora-unfinished", True)


def test_two_folders_share_a_run_once(folder: Path) -> None:
    assert len(load(folder, folder).records) == 7


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load(tmp_path / "nowhere")
