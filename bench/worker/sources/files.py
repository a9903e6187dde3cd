"""The user's own files: .jsonl, .json, .csv or .parquet -> examples.

One record is one example; the templates `task.prompt` and `task.target` say how. Everything that is wrong is
reported at once, with file and line. A split without a file is cut from the training file: a tenth of it, at
most 1000 examples, by hash. An example in two given files is an error: scores on it would be memory, not skill.

    >>> load(TaskConfig(name="mine", source="files", train_file="train.jsonl", prompt="{q}", target="{a}"))
    Loaded(splits={'train': [...], 'validation': [...], 'test': [...]}, dropped={}, source='train.jsonl')
"""

from __future__ import annotations

import csv
import io
import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from bench.config import ConfigurationError, TaskConfig, suggest
from bench.worker.sources import SPLITS, Example, Loaded, cut, in_content_order, shortened, without_duplicates


@dataclass(frozen=True)
class Row:
    """One record of a file or data set."""

    where: str  # for a person: file:line or split:row
    columns: dict[str, Any]


def columns_of(template: str) -> list[str]:
    """The column names in a template, in order.

    Raises:
        ValueError: when the template is malformed or asks for more than plain columns.
    """
    names = []
    for _, name, specification, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name or name.isdecimal() or not set(name).isdisjoint(".[]"):
            raise ValueError(f"{{{name}}} is not a column's name")
        if specification or conversion:
            raise ValueError(f"{{{name}}} takes no format after its name")
        names.append(name)
    return names


def template_problems(key: str, template: str, columns: Sequence[str], task: TaskConfig) -> list[str]:
    """Problems of one template, given the columns of the data; empty when it can be filled.

    Args:
        key: the setting's name for the message, for example "task.prompt".
    """
    allowed = [*columns, *(["labels"] if task.labels else [])]
    try:
        names = columns_of(template)
    except ValueError as error:
        return [f"{key}: {template!r} is not a template: {error}; write {{column}}, and a literal brace twice"]
    if not names:
        return [f"{key}: {template!r} names no column, so every example would be the same; {_listing(columns)}"]
    return [f"{key}: {{{n}}} is not a column{suggest(n, allowed)}" for n in dict.fromkeys(names) if n not in allowed]


def fill(rows: Sequence[Row], prompt: str, target: str, task: TaskConfig) -> tuple[list[Example], list[str]]:
    """Examples of all rows that can be filled, and one problem a row that cannot.

    Prompts and targets are stripped of surrounding white space: chat templates do so, or not, by model.
    """
    answer_columns = columns_of(target)
    needed = [c for c in dict.fromkeys([*columns_of(prompt), *answer_columns]) if c != "labels" or not task.labels]
    extra = {"labels": ", ".join(task.labels)} if task.labels else {}
    examples, problems = [], []
    for row in rows:
        values, problem = _named_label(row.columns, task)
        problem = problem or _cell_problem(values, needed, answer_columns)
        if problem is None:
            text = prompt.format_map({**values, **extra}).strip()
            answer = target.format_map({**values, **extra}).strip()
            if text and answer:
                examples.append(Example(row.where, text, answer, group=text))
                continue
            problem = "the target is empty" if text else "the prompt is empty"
        problems.append(f"{row.where}: {problem}")
    return examples, problems


def _cell_problem(values: dict[str, Any], needed: list[str], answer_columns: list[str]) -> str | None:
    for name in needed:
        if name not in values:
            return f"no column {name!r}; {_listing(list(values))}"
        value = values[name]
        # Numbers read well in a prompt; an answer's exact spelling is what is learned and scored.
        allowed: tuple[type, ...] = (str,) if name in answer_columns else (str, int, float)
        if value is None:
            return f"column {name!r} is null; give it a text, or leave the record out"
        if not isinstance(value, allowed):
            return f"column {name!r} holds a {type(value).__name__} ({_short(value)}); write it as a text"
        if isinstance(value, str) and value.encode(errors="replace").decode() != value:  # JSON can spell such
            return f"column {name!r} holds half a surrogate pair, which is no text; mend its \\u escapes"
    return None


def _named_label(values: dict[str, Any], task: TaskConfig) -> tuple[dict[str, Any], str | None]:
    """The values with the integer class of `label_column` replaced by its name."""
    name, labels = task.label_column, task.labels
    if name is None or labels is None or name not in values:
        return values, None
    given = values[name]
    index = int(given) if isinstance(given, str) and given.isdecimal() else given
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(labels):
        return values, f"column {name!r} is {_short(given)}; allowed: 0 to {len(labels) - 1}, an index of task.labels"
    return {**values, name: labels[index]}, None


def _listing(columns: Sequence[str]) -> str:
    return f"columns there: {', '.join(sorted(map(str, columns))) or 'none'}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


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
    wrong = [(number, type(record).__name__) for number, record in records if not isinstance(record, dict)]
    problems = [f"{path}:{number}: a {kind}, not an object of named columns" for number, kind in wrong]
    return [Row(f"{path.name}:{number}", record) for number, record in records if isinstance(record, dict)], problems


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


def load(task: TaskConfig) -> Loaded:
    """Examples of every given file, and splits cut for those not given.

    Raises:
        ConfigurationError: files that are missing, malformed or empty, columns and cells that do not suit the
            templates, examples in two splits; all at once, ten of a kind.
    """
    paths = _paths(task)
    problems: list[str] = []
    given: dict[str, list[Example]] = {}
    for split, path in paths.items():
        given[split], found = _read(split, path, task)
        problems += found
    if problems:
        raise ConfigurationError(list(dict.fromkeys(problems)))
    problems = _overlaps(given, paths)
    if problems:
        raise ConfigurationError(problems)
    names = dict.fromkeys(path.name for path in paths.values())
    splits, dropped = with_missing_splits(given)
    empty = [split for split in SPLITS if not splits[split]]
    if empty:
        cuts = {split: "its other splits were cut" if split == "train" else f"{split} was cut" for split in empty}
        start = f"{paths['train']}: with {len(given['train'])} examples nothing is left in"
        raise ConfigurationError([f"{start} {split} after {cuts[split]}; give separate files" for split in empty])
    return Loaded({s: in_content_order(splits[s]) for s in SPLITS}, dropped, ", ".join(names))


def with_missing_splits(given: dict[str, list[Example]]) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """The given splits, and those not given cut from the training split; with what was dropped for it.

    Duplicates within the training split are dropped only when it is cut: they could end up on both sides.
    """
    splits = dict(given)
    missing = [split for split in ("test", "validation") if split not in given]
    dropped: dict[str, int] = {}
    if missing:
        distinct = without_duplicates(splits["train"])
        if len(distinct) < len(splits["train"]):
            dropped["train: duplicate"] = len(splits["train"]) - len(distinct)
        splits["train"] = distinct
        for split in missing:
            splits["train"], splits[split] = cut(splits["train"], len(distinct))
    return splits, dropped


def _paths(task: TaskConfig) -> dict[str, Path]:
    given = {"train": task.train_file, "validation": task.validation_file, "test": task.test_file}
    return {split: Path(name).expanduser() for split, name in given.items() if name}


def _read(split: str, path: Path, task: TaskConfig) -> tuple[list[Example], list[str]]:
    key = f"task.{split}_file"
    if path.suffix not in READERS:
        return [], [f"{key}: {path} has the extension {path.suffix or 'none'!r}; allowed: {', '.join(READERS)}"]
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "not found"
        return [], [f"{key}: {path} {what}; give a file, relative paths start at {Path.cwd()}"]
    rows, problems = read_records(path)
    if problems:
        return [], shortened(problems)
    if not rows:
        return [], [f"{key}: {path} holds no records"]
    columns = list(dict.fromkeys(name for row in rows for name in row.columns))
    problems = template_problems("task.prompt", task.prompt, columns, task)
    problems += template_problems("task.target", task.target, columns, task)
    if problems:
        return [], [f"{problem} (in {path})" for problem in problems]
    examples, problems = fill(rows, task.prompt, task.target, task)
    return examples, shortened(problems)


def _overlaps(given: dict[str, list[Example]], paths: dict[str, Path]) -> list[str]:
    """One problem for each pair of given files with an example in both."""
    problems = []
    for first, second in combinations([s for s in SPLITS if s in given], 2):
        places = {(e.prompt, e.target): e.example_id for e in reversed(given[first])}
        shared = [(places[key], e.example_id) for e in given[second] if (key := (e.prompt, e.target)) in places]
        if shared:
            listed = ", ".join(f"{one} = {other}" for one, other in shared[:5])
            more = ", ..." if len(shared) > 5 else ""
            problems.append(
                f"task.{first}_file and task.{second}_file overlap: {len(shared)} examples of {paths[second]} are "
                f"also in {paths[first]} ({listed}{more}); remove them from one, or set task.{second}_file=null "
                "to have it cut from the training file"
            )
    return problems
