"""Data files -> rows, each knowing its line, and a problem for each record that cannot be read.

>>> read_records(Path("train.jsonl"))
([Row('train.jsonl:1', {'question': '2 + 2?', 'answer': '4'})], [])
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.worker.sources.template import Row


def read_records(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a file whose extension is in `READERS`, and what is wrong with the others.

    Row numbers count lines of the file for .jsonl and .csv, records for .parquet and a .json array; from 1.
    """
    try:
        return READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return [], [f"{path}:{line}: byte {error.object[error.start]:#04x} is not UTF-8; save the file as UTF-8"]
    except OSError as error:
        return [], [f"{path}: cannot be read: {error.strerror or error}"]


def _read_json(path: Path) -> tuple[list[Row], list[str]]:
    text = path.read_bytes().decode("utf-8-sig")
    if not text.lstrip().startswith("["):
        return _json_lines(path, text)
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        return [], [f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})"]
    return _objects(path, list(enumerate(records, 1)))


def _json_lines(path: Path, text: str) -> tuple[list[Row], list[str]]:
    records, problems = [], []
    # Only \n ends a line: JSON texts may hold other separators that str.splitlines would break at.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            records.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{number}: not JSON: {error.msg} (column {error.colno}); one object a line")
    rows, more = _objects(path, records)
    return rows, problems + more


def _objects(path: Path, records: list[tuple[int, Any]]) -> tuple[list[Row], list[str]]:
    rows, problems = [], []
    for number, record in records:
        if isinstance(record, dict):
            rows.append(Row(f"{path.name}:{number}", record))
        else:
            problems.append(f"{path}:{number}: a {type(record).__name__}, not an object of named columns")
    return rows, problems


def _read_csv(path: Path) -> tuple[list[Row], list[str]]:
    text = path.read_bytes().decode("utf-8-sig")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    problems: list[str] = []
    header: list[str] | None = None
    try:
        line = 1
        for cells in reader:
            if header is None:
                header = cells
                repeated = sorted({name for name in cells if cells.count(name) > 1})
                if repeated:
                    return [], [f"{path}:1: columns named twice: {', '.join(repeated)}"]
            elif cells and len(cells) != len(header):
                problems.append(f"{path}:{line}: {len(cells)} cells, but the header names {len(header)} columns")
            elif cells:
                rows.append(Row(f"{path.name}:{line}", dict(zip(header, cells, strict=True))))
            line = reader.line_num + 1  # where the next record starts: quoted cells may span lines
    except csv.Error as error:
        problems.append(f"{path}:{reader.line_num}: not CSV: {error}")
    return rows, problems


def _read_parquet(path: Path) -> tuple[list[Row], list[str]]:
    import pyarrow  # slow to import, and only these files need it
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        return [], [f"{path}: not Parquet: {str(error).splitlines()[0]}"]
    return _objects(path, list(enumerate(records, 1)))


READERS: dict[str, Callable[[Path], tuple[list[Row], list[str]]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
