"""Tables and plots in the formats that papers and other programs want, beside CSV and PNG.

>>> write_table(frame, Path("tables/runs"), formats_of("latex,parquet"))      # runs.csv, runs.tex, runs.parquet
"""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from bench.config import ConfigurationError
from bench.identity import write_atomic

TABLES = {"latex": "tex", "markdown": "md", "parquet": "parquet"}  # name -> ending
PLOTS = {"svg": "svg", "pdf": "pdf"}


def formats_of(text: str) -> frozenset[str]:
    """The names in a comma-separated list.

    Raises:
        ConfigurationError: names that are not known, with those that are.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [*TABLES, *PLOTS]
    wrong = [f"--export: {name!r} is not a format; allowed: {', '.join(known)}" for name in names if name not in known]
    if wrong or not names:
        raise ConfigurationError(wrong or [f"--export: empty; allowed: {', '.join(known)}"])
    return frozenset(names)


def write_table(frame: pd.DataFrame, path: Path, formats: frozenset[str]) -> None:
    """Write a table as CSV and in each format asked for.

    Args:
        path: without an ending.
    """
    write_atomic(path.with_suffix(".csv"), frame.to_csv(index=False))
    for name in formats & TABLES.keys():
        write_atomic(path.with_suffix(f".{TABLES[name]}"), _content(frame, name))


def _content(frame: pd.DataFrame, name: str) -> str | bytes:
    if name == "markdown":
        return frame.to_markdown(index=False, disable_numparse=True) + "\n"
    if name == "latex":
        return str(frame.to_latex(index=False, escape=True, na_rep="-"))
    # Columns of mixed kinds (a setting that is a list here and a word there) have no type in Parquet: as text.
    mixed = [str(column) for column in frame if frame[column].dropna().map(type).nunique() > 1]
    buffer = io.BytesIO()
    frame.assign(**{column: frame[column].map(str, na_action="ignore") for column in mixed}).to_parquet(buffer)
    return buffer.getvalue()
