"""The notebooks run top to bottom over a sweep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt
from synthetic import build_sweep

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# In its own process: the warnings of kernels and sockets are not this project's.
EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": sys.argv[2]}}).execute()
kinds = [kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
print(kinds.count("image/png"), kinds.count("text/html"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sweep(tmp_path_factory.mktemp("results") / "synthetic")


def test_compare_notebook_in_a_kernel(folder: Path) -> None:
    notebook = NOTEBOOKS / "compare.ipynb"
    command = [sys.executable, "-c", EXECUTE, str(notebook), str(NOTEBOOKS)]
    environment = os.environ | {"BENCH_SWEEP": str(folder), "PYTHONPATH": str(NOTEBOOKS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "3"]  # four plots, three tables


@pytest.mark.parametrize("name", ["learning_curves", "regression_deep_dive", "write_your_own_analysis"])
def test_code_of_a_notebook(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a kernel, which costs seconds: the cells one after the other."""
    monkeypatch.setenv("BENCH_SWEEP", str(folder))
    monkeypatch.chdir(NOTEBOOKS)
    mpl.use("Agg")
    names: dict[str, object] = {}
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            lines = [line for line in cell["source"] if not line.startswith("%")]
            exec(compile("".join(lines), f"{name}.ipynb", "exec"), names)
    plt.close("all")
    assert names["sweep"]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_its_outputs(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells), "run: make notebook SWEEP=results/reference"
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert sum(bool(cell["outputs"]) for cell in cells) >= len(cells) - 1
