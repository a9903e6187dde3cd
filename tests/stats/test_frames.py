"""A sweep's folder as frames: everything that is whole, a reason for the rest, one row an arm, one peak."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic import EXAMPLES, METHODS, MIB, STEPS, build_sweep, make_failure, make_record, make_train, write_run

from bench.planner.memory import CUDA_PROCESS_BYTES
from bench.record import DeviceShare, PhaseMemory, TrainResult
from bench.stats.frames import groups, load, peak_memory_bytes


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
    assert set(sweep.regression.columns) >= {
        "run_id",
        "arm",
        "method",
        "seed",
        "task",
        "item_id",
        "metric",
        "score",
        "weight",
    }
    assert sweep.heldout.groupby("run_id")["step"].max().eq(STEPS).all()
    assert sweep.problems == []


def test_bench_load_is_the_same_function() -> None:
    import bench

    assert bench.load is load
    with pytest.raises(AttributeError, match="it has: load, decide"):
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


def on_cuda(memory: list[PhaseMemory], shares: tuple[int, ...] = ()) -> TrainResult:
    train = make_train("lora", 0)
    return replace(
        train,
        memory=memory,
        environment=replace(train.environment, device="cuda: synthetic"),
        devices=max(1, len(shares)),
        per_device=[DeviceShare(rank, share, None) for rank, share in enumerate(shares)],
    )


def test_peak_on_a_cpu_is_the_highest_resident_set_of_any_phase() -> None:
    train = make_train("full", 0)
    assert peak_memory_bytes(train) == METHODS["full"]["peak"] * MIB
    saving = PhaseMemory("save", 9000 * MIB, None)
    assert peak_memory_bytes(replace(train, memory=[*train.memory, saving])) == 9000 * MIB
    assert peak_memory_bytes(replace(train, memory=[saving])) is None  # of training itself nothing is known


def test_peak_on_a_gpu_is_what_the_device_must_have() -> None:
    load, train = PhaseMemory("load", 900 * MIB, None), PhaseMemory("train", 3000 * MIB, None, 3500 * MIB)
    assert peak_memory_bytes(on_cuda([load, train])) == 3500 * MIB + CUDA_PROCESS_BYTES
    seen_by_nvml = replace(train, device_used_bytes=5000 * MIB)
    assert peak_memory_bytes(on_cuda([load, seen_by_nvml])) == 5000 * MIB


def test_peak_of_several_gpus_is_that_of_the_largest() -> None:
    train = PhaseMemory("train", 8000 * MIB, None, 10_000 * MIB)
    peak = peak_memory_bytes(on_cuda([train], shares=(6000 * MIB, 2000 * MIB)))
    assert peak == (10_000 * MIB + 2 * CUDA_PROCESS_BYTES) * 3 // 4
    assert peak_memory_bytes(on_cuda([train], shares=(4000 * MIB, 4000 * MIB))) == 5000 * MIB + CUDA_PROCESS_BYTES


def test_arms_are_means_over_seeds_and_count_failures(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "sweep", failed=False)
    write_run(folder, replace(make_failure("full", 0), run_id="full-failed", seed=7, method="full"), [], [], [])
    sweep = load(folder)
    arms = sweep.arms.set_index("arm")
    assert arms.index.tolist() == ["base", "full", "lora", "qlora"]
    assert arms["family"].tolist() == ["base", "full", "lora", "qlora"]
    assert arms.loc["full", ["seeds", "runs", "failed"]].tolist() == [2, 3, 1]
    assert arms["untrained"].tolist() == [True, False, False, False]
    assert arms.loc["lora", "peak_memory_bytes"] == (METHODS["lora"]["peak"] + 4) * MIB
    expected = [make_record("lora", seed).evaluate.scores["rougeL"] for seed in (0, 1)]  # type: ignore[union-attr]
    assert arms.loc["lora", "score"] == pytest.approx(sum(expected) / 2)
    assert pd.isna(arms.loc["base", "peak_memory_bytes"])


def test_the_later_of_two_runs_of_a_seed_counts(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "sweep", failed=False)
    again = replace(make_record("lora", 0), run_id="lora-again", started_at="2026-02-01T00:00:00Z", wall_seconds=1.0)
    write_run(folder, again, [], [], [])
    sweep = load(folder)
    assert sweep.arms.set_index("arm").loc["lora", ["seeds", "runs"]].tolist() == [2, 3]
    (group,) = groups(sweep)
    assert group.by_arm["lora"][0].run_id == "lora-again"


def test_an_empty_folder_has_empty_frames(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    assert len(sweep.runs) == len(sweep.arms) == len(sweep.samples) == 0
    assert groups(sweep) == []
