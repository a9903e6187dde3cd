"""The user's own files: .jsonl, .json, .csv or .parquet, also gzipped -> examples.

A file, a folder of files named by their split, or a folder that `datasets` has saved. One record is one example;
`layouts` says how. Everything that is wrong is reported at once, with file and line. A split without a file is cut
from the training file: a tenth of it, at most 1000 examples, by hash. An example in two given files is an error:
scores on it would be memory, not skill.

    >>> load(TaskConfig(name="mine", source="files", train_file="train.jsonl", prompt="{q}", target="{a}"))
    Loaded(splits={'train': [...], 'validation': [...], 'test': [...]}, dropped={}, source='train.jsonl')
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench.config import TaskConfig
from bench.mistakes import ConfigurationError
from bench.worker.sources import SPLITS, Example, Loaded, decoded, divided, overlaps, shortened
from bench.worker.sources.layouts import Row, column_problems, columns_there, described, fill, with_labels

_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


# --- Which files ---


class Source(NamedTuple):
    """A file with records, or a folder that `datasets` has saved."""

    path: Path
    name: str  # in the ids of its examples

    @property
    def kind(self) -> str:
        """The extension in small letters, without .gz."""
        path = self.path.with_suffix("") if self.path.suffix.lower() == ".gz" else self.path
        return path.suffix.lower()


def sources_of(task: TaskConfig) -> tuple[dict[str, list[Source]], list[str]]:
    """(split -> its files, what is wrong with the paths); a split of a training folder gives way to a file given."""
    given = {"train": task.train_file, "validation": task.validation_file, "test": task.test_file}
    found: dict[str, list[Source]] = {}
    problems = []
    for split, name in given.items():
        if not name:
            continue
        path = Path(name).expanduser()
        parts = {split: [Source(path, path.name)]}
        if path.is_dir():
            parts = _below(path)
            if split != "train" or "train" not in parts:
                parts = {split: [source for sources in parts.values() for source in sources]}
            problem = None if parts[split] else f"{path} holds no data files; allowed: {_ALLOWED}"
        else:
            problem = _path_problem(name, parts[split][0])
        if problem:
            problems.append(f"task.{split}_file: {problem}")
        else:
            found = parts | found | {split: parts[split]}
    return found, problems


def _path_problem(name: str, source: Source) -> str | None:
    if source.kind not in READERS:
        if not source.path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            return f"no file {name}; a data set of the hub is task.source=hub task.hub_dataset={name}"
        return f"{source.path} has the extension {source.path.suffix or 'none'!r}; allowed: {_ALLOWED}"
    if not source.path.exists():
        return f"{source.path} not found; give a file or a folder, relative paths start at {Path.cwd()}"
    return None


def _below(folder: Path) -> dict[str, list[Source]]:
    """Split -> the data files below a folder, by a split's name in the file's or a folder's; without any: train."""
    saved = [path.parent for path in folder.rglob("state.json")]
    files = [path for path in folder.rglob("*") if Source(path, "").kind in READERS and path.is_file()]
    named: dict[str, list[Source]] = {}
    for path in sorted(saved or files):
        relative = path.relative_to(folder)
        split = next((_NAMES[w] for part in relative.parts[::-1] for w in re.split(r"[^a-z]+", part.lower())
                      if w in _NAMES), "")  # fmt: skip
        named.setdefault(split, []).append(Source(path, str(relative) if relative.parts else folder.name))
    unnamed = named.pop("", [])
    return named or {"train": unnamed}


# --- Their records ---

Read = tuple[list[Row], list[str]]  # rows, and what is wrong with the others


def read_records(source: Source) -> Read:
    """The rows of a source, and what is wrong with the others.

    Row numbers count lines of the file for .jsonl and .csv, records for .parquet, a .json array and a saved folder;
    from 1.
    """
    try:
        if source.path.is_dir():
            return _read_saved(source)
        content = source.path.read_bytes()
        return READERS[source.kind](source, gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return [], [f"{source.path}: not a whole gzip file: {error}"]
    except OSError as error:
        return [], [f"{source.path}: cannot be read: {error.strerror or error}"]
    except ValueError as error:  # of `decoded`
        return [], [str(error)]


def _read_json(source: Source, content: bytes) -> Read:
    """A list of records, or one a line. Only \\n ends one: texts may hold others that str.splitlines would break at."""
    text = decoded(content, str(source.path))
    is_list = text.lstrip().startswith("[")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    records, problems = list[tuple[int, Any]](), list[str]()
    for number, part in [(1, text)] if is_list else lines:
        try:
            value = json.loads(part)
        except (ValueError, RecursionError) as error:
            line = error.lineno if is_list and isinstance(error, json.JSONDecodeError) else number
            problems.append(f"{source.path}:{line}: {_why(error)}{'' if is_list else '; one object a line'}")
        else:
            records += enumerate(value, 1) if is_list else [(number, value)]
    rows, more = _objects(source, records)
    return rows, problems + more


def _why(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (column {error.colno})"
    if isinstance(error, RecursionError):
        return "nested too deeply to be read"
    return f"a number of more than {sys.get_int_max_str_digits()} digits; write it as a text"  # Python's own limit


def _objects(source: Source, records: list[tuple[int, Any]]) -> Read:
    wrong = [(number, type(record).__name__) for number, record in records if not isinstance(record, dict)]
    problems = [f"{source.path}:{number}: a {kind}, not an object of named columns" for number, kind in wrong]
    return [Row(f"{source.name}:{number}", record) for number, record in records if isinstance(record, dict)], problems


def _read_csv(source: Source, content: bytes) -> Read:
    csv.field_size_limit(sys.maxsize)  # else a cell of more than 131,072 characters is an error
    reader = csv.reader(io.StringIO(decoded(content, str(source.path)), newline=""), strict=True)
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
                    return [], [f"{source.path}:1: columns named twice: {', '.join(repeated)}"]
            elif cells and len(cells) != len(header):
                problems.append(f"{source.path}:{line}: {len(cells)} cells, but the header names {len(header)} columns")
            elif cells:
                rows.append(Row(f"{source.name}:{line}", dict(zip(header, cells, strict=True))))
            line = reader.line_num + 1  # where the next record starts: quoted cells may span lines
    except csv.Error as error:
        problems.append(f"{source.path}:{reader.line_num}: not CSV: {error}")
    return rows, problems


def _read_parquet(source: Source, content: bytes) -> Read:
    import pyarrow  # slow to import, and only these files need it
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        return [], [f"{source.path}: not Parquet: {str(error).splitlines()[0]}"]
    return _objects(source, list(enumerate(map(_without_nulls, records), 1)))


def _read_saved(source: Source) -> Read:
    import datasets

    try:
        records = list(datasets.load_from_disk(str(source.path)))
    except Exception as error:  # the library raises many kinds for a folder that is not whole
        return [], [f"{source.path}: cannot be read by `datasets`: {type(error).__name__}: {error}"]
    return _objects(source, list(enumerate(map(_without_nulls, records), 1)))


def _without_nulls(record: dict[str, Any]) -> dict[str, Any]:
    """Arrow gives every object of a column the same fields: those that an object lacks are null in it."""

    def inner(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: inner(v) for name, v in value.items() if v is not None}
        return [inner(v) for v in value] if isinstance(value, list) else value

    return {name: inner(value) for name, value in record.items()}


READERS: dict[str, Callable[[Source, bytes], Read]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
_ALLOWED = f"{', '.join(READERS)}, also with .gz"


# --- Their examples ---


def load(task: TaskConfig) -> Loaded:
    """Examples of every given file, and splits cut for those not given.

    Raises:
        ConfigurationError: files that are missing, malformed or empty, columns and cells that do not suit the
            templates or the layout, examples in two splits; all at once, ten of a kind.
    """
    found, problems = sources_of(task)
    given: dict[str, list[Example]] = {}
    layout = ""
    for split in [split for split in SPLITS if split in found]:
        rows, more = _rows(split, found[split])
        if split == "train":
            task = with_labels(rows, task)
        given[split], unusable = ([], []) if more else _examples(rows, found[split], task)
        problems += more + unusable
        if split == "train" and (task.prompt is None or task.target is None) and given[split]:
            layout = f" ({described(rows, given[split])})"
    if problems:
        raise ConfigurationError(list(dict.fromkeys(problems)))
    paths = {split: sources[0].path for split, sources in found.items()}
    if task.overlap == "error" and (problems := _overlap_problems(given, paths)):
        raise ConfigurationError(problems)
    splits, dropped = divided(given)
    empty = [split for split in SPLITS if not splits[split]]
    if empty:
        cuts = {split: "its other splits were cut" if split == "train" else f"{split} was cut" for split in empty}
        start = f"{paths['train']}: with {len(given['train'])} examples nothing is left in"
        raise ConfigurationError([f"{start} {split} after {cuts[split]}; give separate files" for split in empty])
    names = dict.fromkeys(source.name for sources in found.values() for source in sources)
    return Loaded(splits, dropped, ", ".join(shortened(list(names), 5)) + layout)


def _rows(split: str, sources: list[Source]) -> Read:
    """The rows of a split, or what is wrong with its files."""
    read = [read_records(source) for source in sources]
    rows, problems = [row for rows, _ in read for row in rows], [p for _, found in read for p in found]
    if not rows and not problems:
        problems = [f"task.{split}_file: {_listed(sources)} holds no records"]
    return rows, shortened(problems)


def _examples(rows: list[Row], sources: list[Source], task: TaskConfig) -> tuple[list[Example], list[str]]:
    if problems := column_problems(columns_there(rows), task, "task.prompt", "task.target"):
        return [], [f"{problem} (in {_listed(sources)})" for problem in problems]
    examples, problems = fill(rows, task)
    return examples, shortened(problems)


def _listed(sources: list[Source]) -> str:
    return ", ".join(shortened([str(source.path) for source in sources], 3))


def _overlap_problems(given: dict[str, list[Example]], paths: dict[str, Path]) -> list[str]:
    """One problem for each pair of given files with an example in both."""
    problems = []
    for (first, second), pairs in overlaps(given).items():
        listed = ", ".join(f"{one.example_id} = {other.example_id}" for one, other in pairs[:5])
        more = ", ..." if len(pairs) > 5 else ""
        problems.append(
            f"task.{first}_file and task.{second}_file overlap: {len(pairs)} examples of {paths[second]} are "
            f"also in {paths[first]} ({listed}{more}); set task.overlap=drop to leave them out of "
            f"{first}, or task.{second}_file=null to have it cut from the training file"
        )
    return problems
