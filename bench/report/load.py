"""Read a sweep's folder into records and DataFrames, and say what could not be read.

A folder that is still being written, a record cut short or a truncated gzip file lose only themselves: each is
listed in `Sweep.problems` and everything else is kept.

    >>> from bench import load
    >>> sweep = load("results/default")
    >>> sweep.runs.groupby("arm")["train_tokens_per_second"].mean()
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from bench.analysis import frame
from bench.compose import RATES_FILE, read_rates
from bench.record import SCHEMA_VERSION, Record, RegressionItem, Sample, ServedAnswer, Step, Tuning, from_json

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Something that could not be read, for a person."""

    run: str  # the run folder's name
    file: str
    reason: str
    next_step: str


@dataclass(frozen=True)
class Sweep:
    """One or several sweep folders in memory. The frames' columns are documented in `bench.analysis.frame`."""

    folders: list[Path]
    records: list[Record]
    step_rows: dict[str, list[Step]]  # by run_id
    sample_rows: dict[str, list[Sample]]
    regression_rows: dict[str, list[RegressionItem]]
    problems: list[Problem]
    tunings: list[Tuning] = field(default_factory=list)  # searches of learning rates, from the folders' rates.yaml
    answer_rows: dict[str, list[ServedAnswer]] = field(default_factory=dict)  # of every served form, by run_id

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row a run (`frame.runs_frame`)."""
        return frame.runs_frame(self.records)

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row an optimizer step (`frame.steps_frame`)."""
        return frame.steps_frame(self.step_rows, self.records)

    @cached_property
    def heldout(self) -> pd.DataFrame:
        """One row a held-out loss (`frame.heldout_frame`)."""
        return frame.heldout_frame(self.records)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row a test prediction (`frame.samples_frame`)."""
        return frame.samples_frame(self.sample_rows, self.records)

    @cached_property
    def regression(self) -> pd.DataFrame:
        """One row a regression item (`frame.regression_frame`)."""
        return frame.regression_frame(self.regression_rows, self.records)


def load(*folders: str | Path) -> Sweep:
    """Read every run below the folders given; a run found twice is read once.

    Raises:
        FileNotFoundError: when a folder does not exist.
    """
    if not folders:
        raise TypeError("load() needs at least one sweep folder, for example load('results/default')")
    paths = [Path(folder) for folder in folders]
    records: dict[str, Record] = {}
    sweep = Sweep(paths, [], {}, {}, {}, [])
    for run in (run for path in paths for run in _run_folders(path)):
        record = _record(run, sweep.problems)
        if record is None:
            continue
        if record.run_id in records:
            sweep.problems.extend(_twice(run, record, records[record.run_id]))
            continue
        records[record.run_id] = record
        sweep.step_rows[record.run_id] = _rows(Step, run, "steps.jsonl", sweep.problems)
        sweep.sample_rows[record.run_id] = _rows(Sample, run, "samples.jsonl.gz", sweep.problems)
        sweep.regression_rows[record.run_id] = _rows(RegressionItem, run, "regression_items.jsonl.gz", sweep.problems)
        sweep.answer_rows[record.run_id] = _rows(ServedAnswer, run, "served_answers.jsonl.gz", sweep.problems)
    sweep.records.extend(records.values())
    for path in paths:
        sweep.tunings.extend(_tunings(path, sweep.problems))
    return sweep


def read_records(folder: Path) -> tuple[list[Record], list[Problem]]:
    """The records of a sweep's runs without their details, and what could not be read.

    Raises:
        FileNotFoundError: when the folder does not exist.
    """
    problems: list[Problem] = []
    found = (_record(run, problems) for run in _run_folders(folder))
    return [record for record in found if record is not None], problems


def _run_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; a sweep's results are in results/<sweep>")
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _twice(run: Path, record: Record, shown: Record) -> Iterator[Problem]:
    """The same settings were run again, later or by another commit: not the same measurement."""
    if record.started_at != shown.started_at:
        reason = f"the same run, started {record.started_at}, is left out: that of {shown.started_at} is shown"
        step = "See both with python -m bench.report --history, or report each sweep by itself."
        yield Problem(run.name, "record.json", reason, step)


def _tunings(folder: Path, problems: list[Problem]) -> list[Tuning]:
    """The searches of learning rates that the sweep used; none when it used no file of `make tune`."""
    try:
        return read_rates(folder / RATES_FILE).tunings
    except FileNotFoundError:
        return []
    except (ValueError, OSError) as error:
        step = "Copy the file of `make tune` there again, or run the sweep's command again."
        problems.append(Problem(folder.name, RATES_FILE, f"unreadable rates: {_first_line(error)}", step))
        return []


def _record(run: Path, problems: list[Problem]) -> Record | None:
    """The run's record; None for a folder that is no run, is not finished or cannot be read."""
    path = run / "record.json"
    if not path.is_file():
        if (run / "plan.json").is_file():
            reason = "no record: the run is in progress or was interrupted"
            problems.append(
                Problem(run.name, path.name, reason, "Run the same command again: only this run is repeated.")
            )
        return None
    try:
        record = from_json(Record, path.read_bytes())
    except (ValidationError, OSError) as error:
        reason = f"unreadable record: {_first_line(error)}"
        step = f"Delete {run.name}/record.json and run the same command again."
        problems.append(Problem(run.name, path.name, reason, step))
        return None
    if record.schema_version != SCHEMA_VERSION:
        reason = f"schema version {record.schema_version}; this program reads {SCHEMA_VERSION}"
        problems.append(Problem(run.name, path.name, reason, "Read it with the version of the program that wrote it."))
        return None
    return record


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        count = error.error_count()
        return f"{where + ': ' if where else ''}{first['msg']}" + (f" (and {count - 1} more)" if count > 1 else "")
    return str(error).splitlines()[0]


def _rows(kind: type[T], run: Path, name: str, problems: list[Problem]) -> list[T]:
    """The lines of a JSONL file that parse; those that do not are counted in `problems`. No file: no rows."""
    path = run / name
    if not path.is_file():
        return []
    adapter = TypeAdapter(kind)
    rows: list[T] = []
    bad, reason = 0, ""
    for line in _lines(path):
        if isinstance(line, Exception):
            bad, reason = bad + 1, f"the file ends early ({_first_line(line)})"
            continue
        try:
            rows.append(adapter.validate_json(line))
        except ValidationError as error:
            bad, reason = bad + 1, reason or _first_line(error)
    if bad:
        text = f"{bad} unreadable line(s), {len(rows)} read: {reason}"
        torn = "folder" if name == "steps.jsonl" else "record.json"  # whole items are read from what was evaluated anew
        step = f"Delete the run's {torn} and run the same command again to have all of it."
        problems.append(Problem(run.name, name, text, step))
    return rows


def _lines(path: Path) -> Iterator[bytes | Exception]:
    """Lines that are not blank; a damaged or truncated file ends in the exception instead of raising it."""
    opened: Iterable[bytes]
    try:
        if path.suffix == ".gz":
            with contextlib.suppress(EOFError, zlib.error, OSError):  # damaged: line by line, to have what is whole
                yield from filter(bytes.strip, gzip.decompress(path.read_bytes()).splitlines())
                return
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as opened:
            for line in opened:
                if line.strip():
                    yield line
    except (OSError, EOFError, zlib.error) as error:
        yield error
