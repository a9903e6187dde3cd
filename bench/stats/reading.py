"""Files of runs that may be torn, foreign or still being written: what can be read is; what cannot is a `Problem`.

>>> problems = []
>>> record = read_record(Path("results/reference/lora-..."), problems)
>>> steps = read_rows(Step, Path("results/reference/lora-.../steps.jsonl"), problems)
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic_core
from pydantic import TypeAdapter

from bench.mistakes import first_mistake
from bench.record import SCHEMA_VERSION, Record, from_json

T = TypeVar("T")
RECORD_BYTES, LINE_BYTES, MOST_BYTES = 2**24, 2**22, 2**28  # read of a record, of a line, of a file of lines, unpacked


@dataclass(frozen=True)
class Problem:
    """Something that could not be read, for a person."""

    run: str  # the run folder's name
    file: str
    reason: str
    next_step: str


def read_record(run: Path, problems: list[Problem]) -> Record | None:
    """The run's record; None for a folder that is no run, is not finished or cannot be read."""
    path = run / "record.json"
    if not path.is_file():
        if (run / "plan.json").is_file():
            reason = "no record: the run is in progress or was interrupted"
            step = "Run the same command again: only this run is repeated."
            problems.append(Problem(run.name, path.name, reason, step))
        return None
    try:
        if path.stat().st_size > RECORD_BYTES:
            raise ValueError(f"larger than {RECORD_BYTES // 2**20} MiB")
        record = from_json(Record, path.read_bytes())
    except (ValueError, OSError) as error:
        step = f"Delete {run.name}/record.json and run the same command again."
        problems.append(Problem(run.name, path.name, f"unreadable record: {first_mistake(error)}", step))
        return None
    if record.schema_version != SCHEMA_VERSION:
        reason = f"schema version {record.schema_version}; this program reads {SCHEMA_VERSION}"
        problems.append(Problem(run.name, path.name, reason, "Read it with the version of the program that wrote it."))
        return None
    return record


def read_rows(kind: type[T], path: Path, problems: list[Problem]) -> list[T]:
    """The lines of a JSONL file that parse; those that do not are counted in one problem. No file: no rows."""
    adapter, rows, reasons = TypeAdapter(kind), list[T](), list[str]()
    try:
        for line in _lines(path) if path.is_file() else ():
            try:
                content = pydantic_core.from_json(line, allow_inf_nan=False)
                if not _is_finite(content):
                    raise ValueError("a number that is not finite; unknown is null")
                rows.append(adapter.validate_python(content))
            except ValueError as error:
                reasons.append(first_mistake(error))
    except (OSError, EOFError, zlib.error) as error:
        reasons = [f"the file ends early ({first_mistake(error)})", *reasons]
    if reasons:
        text = f"{len(reasons)} unreadable line(s), {len(rows)} read: {reasons[0]}"
        torn = "folder" if path.name == "steps.jsonl" else "record.json"  # the record alone: evaluated anew
        step = f"Delete the run's {torn} and run the same command again to have all of it."
        problems.append(Problem(path.parent.name, path.name, text, step))
    return rows


def _is_finite(content: Any) -> bool:
    """Whether every number of a row is."""
    if isinstance(content, dict):
        return all(map(_is_finite, content.values()))
    return not isinstance(content, float) or math.isfinite(content)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines that are not blank; OSError, EOFError or zlib.error where the file is damaged or beyond the bounds."""
    left_bytes = MOST_BYTES
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as opened:
        while line := opened.readline(LINE_BYTES + 1):
            left_bytes -= len(line)
            if left_bytes < 0 or len(line) > LINE_BYTES:
                whole, of_line = MOST_BYTES // 2**20, LINE_BYTES // 2**20
                raise OSError(f"read are at most {whole} MiB unpacked and {of_line} MiB a line")
            if line.strip():
                yield line
