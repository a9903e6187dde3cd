"""Files cut short, as a lost machine or a full disk may leave them: noticed, made again, and no more than they."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import ROOT, Place, cut_short, environment, files_of, how

from bench.outcome import Status
from bench.record import Record, from_json
from bench.stats.frames import load
from bench.sweep.execute import RESULT_OF, finished_stage

pytestmark = pytest.mark.slow

CUT = "cut to its first half"


def record_cut(finished: Place, base: Path) -> Record:
    where = finished.copy(base)
    cut_short(where.folder("method=lora") / "record.json")
    return where.execute("method=lora")


def items_cut(finished: Place, base: Path) -> tuple[Place, Record]:
    where = finished.copy(base, without=("record.json",))
    cut_short(where.folder("method=lora") / "samples.jsonl.gz")
    return where, where.execute("method=lora")


def everything_cut(finished: Place, base: Path) -> tuple[Place, list[str], subprocess.CompletedProcess[str]]:
    where = finished.copy(base)
    names = ("*.json", "*.jsonl", "*.gz", "*.arrow", "*.safetensors")
    files = [f for folder in ("results", "artifacts", "cache") for name in names for f in (base / folder).rglob(name)]
    for file in files:
        cut_short(file)
    command = where.sweep("method=lora")
    done = subprocess.run(command, cwd=ROOT, env=environment(None), capture_output=True, text=True, timeout=300)
    return where, [file.name for file in files], done


CASES: dict[str, Callable[[Place, Path], object]] = {
    "everything": everything_cut,
    "items": items_cut,
    "record": record_cut,
}


def test_a_torn_record_is_written_again_from_its_stages(cases, finished, shows) -> None:
    record = cases("record")
    assert record.status is Status.OK
    assert record.stage_wall_seconds == finished.record("method=lora").stage_wall_seconds
    assert record.reused_stages == ["train", "evaluate"]
    assert record.evaluate == finished.record("method=lora").evaluate
    shows("torn `record.json`", CUT, how(record), "every stage; none is repeated")


def test_torn_items_repeat_their_stage(cases, finished, shows) -> None:
    where, record = cases("items")
    assert record.status is Status.OK
    assert record.reused_stages == ["train"]
    name = "samples.jsonl.gz"
    assert files_of(where.folder("method=lora"))[name] == files_of(finished.folder("method=lora"))[name]
    shows(f"torn `{name}`", f"{CUT}, no record yet", how(record), "training; evaluation is repeated, with equal items")


def test_torn_files_of_a_finished_run_are_named_by_the_report(finished, tmp_path: Path, shows) -> None:
    where = finished.copy(tmp_path)
    folder = where.folder("method=lora")
    for name in ("steps.jsonl", "samples.jsonl.gz"):
        cut_short(folder / name)
    sweep = load(folder.parent)
    assert [record.status for record in sweep.records] == [Status.OK]
    assert {problem.file for problem in sweep.problems} == {"steps.jsonl", "samples.jsonl.gz"}
    assert 0 < len(sweep.step_rows[folder.name]) < 4
    shows(
        "torn `steps.jsonl`, `samples.jsonl.gz`",
        f"{CUT}, in a finished run",
        "named by the report",
        "the record, whole lines",
    )


def test_when_everything_is_torn_everything_is_made_again(cases, finished, shows) -> None:
    """Prepared data, the cached model, weights, stages, record: none is trusted, and the result is the same."""
    where, cut, done = cases("everything")
    assert {"summary.json", "model.safetensors", "adapter_model.safetensors", "train.json", "record.json"} <= set(cut)
    assert any(name.endswith(".arrow") for name in cut)
    assert done.returncode == 0, done.stdout + done.stderr
    record, before = where.record("method=lora"), finished.record("method=lora")
    assert record.status is Status.OK
    assert record.reused_stages == []
    assert record.train.data_stream_sha256 == before.train.data_stream_sha256
    assert record.train.heldout[-1].loss == before.train.heldout[-1].loss
    assert record.evaluate.scores == before.evaluate.scores
    injected = "prepared data, cached model, weights, stages and record cut to their first halves"
    shows(
        "everything is torn",
        injected,
        how(record),
        "nothing is trusted; all is made again, with equal losses and scores",
    )


@pytest.mark.parametrize(
    ("stage", "torn"),
    [
        ("train", "train.json"),
        ("train", "adapter_model.safetensors"),
        ("evaluate", "evaluate.json"),
        ("evaluate", "samples.jsonl.gz"),
    ],
)
def test_a_stage_counts_as_finished_only_when_it_is_whole(
    stage: str, torn: str, finished, tmp_path: Path, shows
) -> None:
    where = finished.copy(tmp_path)
    config, folder = where.config("method=lora"), where.folder("method=lora")
    inputs = from_json(RESULT_OF[stage], (folder / f"{stage}.json").read_bytes()).made.inputs
    assert finished_stage(config, folder, stage, inputs) is not None
    (file,) = [f for root in ("results", "artifacts") for f in (tmp_path / root).rglob(torn)]
    cut_short(file)
    assert finished_stage(config, folder, stage, inputs) is None
    shows(f"torn stage: `{torn}`", CUT, f"the stage {stage} is not taken for finished", "the stages before it")
