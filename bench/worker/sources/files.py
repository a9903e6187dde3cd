"""The user's own files: .jsonl, .json, .csv or .parquet -> examples.

One record is one example; the templates `task.prompt` and `task.target` say how. Everything that is wrong is
reported at once, with file and line. A split without a file is cut from the training file: a tenth of it, at
most 1000 examples, by hash. An example in two given files is an error: scores on it would be memory, not skill.

    >>> load(TaskConfig(name="mine", source="files", train_file="train.jsonl", prompt="{q}", target="{a}"))
    Loaded(splits={'train': [...], 'validation': [...], 'test': [...]}, dropped={}, source='train.jsonl')
"""

from __future__ import annotations

import hashlib
from itertools import combinations
from pathlib import Path

from bench.config import ConfigurationError, TaskConfig
from bench.worker.sources.example import (
    SPLITS,
    Example,
    Loaded,
    cut,
    in_content_order,
    shortened,
    without_duplicates,
)
from bench.worker.sources.records import READERS, read_records
from bench.worker.sources.template import fill, template_problems


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
        examples, found = _read(split, path, task)
        given[split] = examples
        problems += found
    if problems:
        raise ConfigurationError(list(dict.fromkeys(problems)))
    problems = _overlaps(given, paths)
    if problems:
        raise ConfigurationError(problems)
    names = dict.fromkeys(path.name for path in paths.values())
    splits, dropped = with_missing_splits(given)
    problems = [_too_few(split, len(given["train"]), paths) for split in SPLITS if not splits[split]]
    if problems:
        raise ConfigurationError(problems)
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


def checksums(task: TaskConfig) -> dict[str, str]:
    """Split -> SHA-256 of its file, for those that can be read."""
    found = {}
    for split, path in _paths(task).items():
        if path.is_file():
            with path.open("rb") as file:
                found[split] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _paths(task: TaskConfig) -> dict[str, Path]:
    given = {"train": task.train_file, "validation": task.validation_file, "test": task.test_file}
    return {split: Path(name).expanduser() for split, name in given.items() if name}


def _too_few(split: str, examples: int, paths: dict[str, Path]) -> str:
    others = "its other splits were cut" if split == "train" else f"{split} was cut"
    return f"{paths['train']}: with {examples} examples nothing is left in {split} after {others}; give separate files"


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
