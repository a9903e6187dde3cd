"""`benchmarks/gpu.py` runs on a CPU with toy shapes, so that a lent GPU's minutes are not spent on its mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_checks_run_with_toy_shapes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--checks=3,7,10", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    checks = {n: json.loads((tmp_path / f"check-{n:02}.json").read_text()) for n in (3, 7, 10)}
    assert done.returncode == 0, checks
    assert {n: check["ended"] for n, check in checks.items()} == {3: "ok", 7: "ok", 10: "device only"}
    (training,) = checks[3]["rows"]
    first, last = training["first_and_last_loss"]
    assert last < first
    assert training["planned_gib"] > 0
    assert any(row["what"].endswith(": train") for row in checks[7]["rows"])
    assert "## 3." in (tmp_path / "summary.md").read_text()
