"""A finished sweep is served later: only the serving runs, and not without the weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from in_process import in_process

from bench.cli import main
from bench.compose import compose
from bench.identity import artifact_folder, run_folder
from bench.outcome import Status
from bench.sweep import execute, fetching
from bench.sweep.execute import read_record

pytestmark = pytest.mark.slow
SERVED = (
    "serve=quick", "serve.prompt_tokens=[8]", "serve.batch_sizes=[1]", "serve.new_tokens=3", "serve.repetitions=1",
    "serve.adapters=[1,2]",
)  # fmt: skip


def test_serving_is_added_to_what_is_there(
    smoke, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (execute, fetching):
        monkeypatch.setattr(module, "run_stage", in_process)
    (config,) = compose(smoke("method=lora"), multirun=False)
    assert main(smoke("method=lora")) == 0
    before = read_record(run_folder(config))
    trained = (run_folder(config) / "train.json").stat().st_mtime_ns
    assert before.serve is None

    assert main(smoke("method=lora", *SERVED)) == 0
    after = read_record(run_folder(config))
    assert (after.train, after.evaluate, after.started_at) == (before.train, before.evaluate, before.started_at)
    assert (run_folder(config) / "train.json").stat().st_mtime_ns == trained
    assert after.serve.generations
    assert after.serve.made.provenance["packages"]["peft"]
    report = (tmp_path / "results" / "smoke" / "report.md").read_text()
    assert "## Serving" in report

    capfd.readouterr()
    assert main(smoke("method=lora", *SERVED)) == 0
    assert "nothing to do" in capfd.readouterr().out

    shutil.rmtree(artifact_folder(config))
    assert main(smoke("method=lora", *SERVED, "serve.new_tokens=4")) == 1
    assert "the weights of this run are no longer as it wrote them" in capfd.readouterr().out
    kept = read_record(run_folder(config))
    assert (kept.status, kept.serve) == (Status.OK, after.serve)
    assert kept.serve_failure.phase == "weights"
    assert "nothing to serve" in (tmp_path / "results" / "smoke" / "report.md").read_text()
