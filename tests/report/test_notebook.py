"""The notebooks run top to bottom over a sweep and show their charts as SVG."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
# In its own process: the warnings of kernels and sockets are not this project's.
EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": sys.argv[2]}}).execute()
kinds = [kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
print(kinds.count("image/svg+xml"), kinds.count("text/html"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "charts", "tables"), [("compare", 5, 2), ("write_your_own_analysis", 1, 2)])
def test_a_notebook_runs_in_a_kernel(name: str, charts: int, tables: int) -> None:
    command = [sys.executable, "-c", EXECUTE, str(NOTEBOOKS / f"{name}.ipynb"), str(NOTEBOOKS)]
    environment = os.environ | {"BENCH_SWEEP": str(ROOT / "results" / "reference"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(charts), str(tables)]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_its_outputs(path: Path) -> None:
    text = path.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells), "run: make notebook SWEEP=results/reference"
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert "cdn" not in text.lower()
