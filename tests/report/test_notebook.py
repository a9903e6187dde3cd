"""The notebook runs top to bottom over a sweep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from synthetic import build_sweep

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "compare.ipynb"
# In its own process: the warnings of kernels and sockets are not this project's.
EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": sys.argv[2]}}).execute()
kinds = [kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
print(kinds.count("image/png"), kinds.count("text/html"))
"""


def test_compare_notebook(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "synthetic")
    command = [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(NOTEBOOK.parent)]
    environment = os.environ | {"BENCH_SWEEP": str(folder), "PYTHONPATH": str(NOTEBOOK.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "3"]  # four plots, three tables
