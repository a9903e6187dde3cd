"""Tables and plots in other formats hold what the CSV files hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from synthetic import build_sweep

from bench.config import ConfigurationError
from bench.report.build import build_report
from bench.report.exports import formats_of


def test_every_format_of_every_table_and_plot(tmp_path: Path) -> None:
    folder = build_sweep(tmp_path / "sweep")
    build_report(folder, formats=formats_of("latex,markdown,parquet,svg,pdf"))
    csv_files = sorted((folder / "tables").glob("*.csv"))
    assert csv_files
    for path in csv_files:
        table = pd.read_csv(path)
        again = pd.read_parquet(path.with_suffix(".parquet"))
        assert list(again.columns) == list(table.columns)
        assert len(again) == len(table)
        assert path.with_suffix(".tex").read_text().startswith(r"\begin{tabular}")
        assert path.with_suffix(".md").read_text().count("\n") == len(table) + 2
    for path in (folder / "plots").glob("*.png"):
        assert "<svg" in path.with_suffix(".svg").read_text()
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'word' is not a format; allowed: latex, markdown, parquet, svg, pdf"):
        formats_of("latex,word")
    done = subprocess.run(
        [sys.executable, "-m", "bench.report", "nowhere", "--export=word"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "'word' is not a format" in done.stderr
