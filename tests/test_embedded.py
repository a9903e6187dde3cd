"""The real thing in small: the embedded model, its task and the quick suite, every method, by the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import load

ROOT = Path(__file__).parents[1]
METHODS = ("base", "full", "lora", "qlora")


@pytest.mark.slow
@pytest.mark.timeout(2700)  # a processor without bf16 arithmetic and one core: 20 minutes
def test_every_method_learns_the_embedded_task(tmp_path: Path) -> None:
    overrides = [
        f"method={','.join(METHODS)}",
        "task.train_examples=24",
        "task.validation_examples=8",
        "task.test_examples=6",
        "task.max_new_tokens=16",
        "suite.items_per_task=3",
        "train.batch_size=4",
        "train.heldout_points=1",
        "train.compile=off",
        f"paths.results={tmp_path / 'results'}",
        f"paths.artifacts={tmp_path / 'artifacts'}",
        f"paths.cache={tmp_path / 'cache'}",
    ]
    command = [sys.executable, "-m", "bench", "-m", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stdout + done.stderr

    sweep = load(tmp_path / "results" / "default")
    runs = sweep.runs.set_index("method")
    assert set(runs.index) == set(METHODS)
    assert set(runs["status"]) == {"ok"}
    tuned = runs.drop(index="base")
    assert tuned["data_stream_sha256"].nunique() == 1
    assert (tuned["heldout_loss_after"] < tuned["heldout_loss_before"] - 0.1).all()
    assert runs.loc["full", "parameters_trainable"] == 134_515_008  # as counted from the architecture
    assert runs.loc["lora", "parameters_trainable"] == runs.loc["qlora", "parameters_trainable"] == 4_884_480
    weights = runs["weights_bytes"]
    assert weights["full"] == pytest.approx(4 * 134_515_008, rel=1e-5)  # and a buffer
    # A processor without bf16 arithmetic computes in fp32, and then LoRA's base is kept in fp32 too.
    (dtype,) = {record.train.environment.compute_dtype for record in sweep.records if record.train}
    base_bytes = {"bfloat16": 2, "float32": 4}[dtype] * 134_515_008
    assert weights["lora"] == pytest.approx(base_bytes + 4 * 4_884_480, rel=1e-5)
    assert weights["qlora"] < weights["lora"]
    assert sweep.regression.groupby("run_id")["task"].nunique().eq(14).all()  # 12 and 2 divergences from the base
    assert (tmp_path / "results" / "default" / "report.html").stat().st_size < 5 * 2**20
