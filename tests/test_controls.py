"""Controls of the regression suite, on the embedded model: the base against itself, and a model wrecked on purpose."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.stats.compare import compare
from bench.stats.frames import groups, load

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(2700)  # a processor without bf16 arithmetic and one core: 20 minutes
def test_the_suite_sees_harm_and_only_harm(tmp_path: Path) -> None:
    overrides = [
        "experiment=controls",
        "task.train_examples=16",
        "task.validation_examples=4",
        "task.test_examples=10",
        "task.max_new_tokens=4",
        "suite.items_per_task=30",
        "train.batch_size=8",
        "train.heldout_points=1",
        *(f"paths.{name}={tmp_path / name}" for name in ("results", "artifacts", "cache")),
    ]
    command = [sys.executable, "-m", "bench", "-m", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stdout + done.stderr

    (group,) = groups(load(tmp_path / "results" / "controls"))
    findings = compare(group)
    changes = findings.comparisons[findings.comparisons["kind"] == "regression"]
    again = changes[changes["arm"] == "base_again"]
    assert len(again) == 13  # twelve tasks and their mean
    assert again["difference"].eq(0).all()
    assert set(again["verdict"]) == {"equal"}
    wrecked = changes[changes["arm"] == "wrecked"]
    assert (wrecked["verdict"] == "worse").mean() > 0.5, wrecked[["measure", "verdict"]]

    moved = findings.estimates[findings.estimates["kind"] == "divergence"].set_index(["measure", "arm"])["mean"]
    for kind in ("prose_kl", "code_kl"):
        assert moved[kind, "base"] == moved[kind, "base_again"] == 0
        assert moved[kind, "wrecked"] > 1
